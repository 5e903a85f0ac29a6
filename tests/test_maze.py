"""The maze task: golden mazes, the solver against brute force, and what every generated maze promises."""

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_specs.maze.maze import (
    MOVES,
    PAPER,
    Geometry,
    Maze,
    canonical,
    detours,
    front,
    generate,
    mazes,
    parse_route,
    prove,
    read_label,
    reward_vector,
    score,
    solve,
    split_of,
    walk,
)
from vpo_plugin.rewards import load_spec
from vpo_plugin.rewards.formats import render_prompt
from vpo_plugin.rewards.task import read_rows

SMALL = Geometry(size=5, openings=(2, 7), gold=(3, 5), diamonds=(3, 5), lava=(2, 3), slack=5)

OPEN = {
    "grid": [
        "S.GGG",
        ".L..G",
        "D.B..",
        "D.L#.",
        "DDD.E",
    ],
    "max_steps": 14,
}


@pytest.mark.parametrize(
    ("route", "rewards"),
    [
        ("RIGHT RIGHT RIGHT RIGHT DOWN DOWN DOWN DOWN", (1, 1, 0, 1)),
        ("DOWN DOWN DOWN DOWN RIGHT RIGHT RIGHT RIGHT", (1, 0, 1, 1)),
        # 2 of 4 gold: 1/4; by way of the bonus cell 3/8.
        ("RIGHT RIGHT RIGHT DOWN DOWN RIGHT DOWN DOWN", (1, 0.25, 0, 1)),
        ("RIGHT RIGHT RIGHT DOWN DOWN LEFT RIGHT RIGHT DOWN DOWN", (1, 0.375, 0, 1)),
        # One of two lava tiles: 1/4, with the bonus cell 3/8. Stepping on it twice counts once.
        ("RIGHT DOWN DOWN LEFT RIGHT RIGHT RIGHT RIGHT DOWN DOWN", (1, 0, 0.06, 0.375)),
        ("RIGHT DOWN UP DOWN DOWN RIGHT RIGHT RIGHT DOWN DOWN", (1, 0, 0, 0.375)),
        # Bumping into a border or a wall costs its step and nothing else.
        ("UP LEFT right, right,right RIGHT DOWN DOWN DOWN LEFT DOWN", (1, 1, 0, 1)),
        # Not there within 14 steps; gold alone is worth nothing.
        ("UP UP UP UP UP UP UP RIGHT RIGHT RIGHT RIGHT DOWN DOWN DOWN DOWN", (0, 0, 0, 0)),
        ("RIGHT RIGHT RIGHT RIGHT", (0, 0, 0, 0)),
        # The route ends at the exit.
        ("RIGHT RIGHT RIGHT RIGHT DOWN DOWN DOWN DOWN LEFT LEFT LEFT", (1, 1, 0, 1)),
        ("RIGHT RIGHT JUMP", (0, 0, 0, 0)),
        ("", (0, 0, 0, 0)),
        ("\ud800 \0", (0, 0, 0, 0)),
    ],
)
def test_golden_routes(route: str, rewards: tuple[float, ...]) -> None:
    assert score(route, OPEN) == pytest.approx(rewards)


def test_linear_shares() -> None:
    """What the authors' sheet says: shares as they are, and a bonus cell without effect."""
    linear = {**OPEN, "shares": "linear"}
    assert score("RIGHT RIGHT RIGHT DOWN DOWN RIGHT DOWN DOWN", linear) == (1, 0.5, 0, 1)
    assert score("RIGHT DOWN DOWN LEFT RIGHT RIGHT RIGHT RIGHT DOWN DOWN", linear) == (1, 0, 0.2, 0.5)
    assert read_label(linear).label() == linear and "shares" not in read_label(OPEN).label()
    assert ceiling(linear, [0.25] * 4) == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert split_of(read_label(linear)) == split_of(read_label(OPEN))
    rows = {name: next(read_rows(load_spec(name), "test", 1, 0))["label"] for name in ("maze", "maze_small")}
    assert rows["maze"]["shares"] == "linear" and rows["maze_small"].keys() == {"grid", "max_steps"}


def ceiling(label: dict, weights: list[float]) -> float:
    """The best value `weights · rewards` on the solver's front."""
    front = solve(read_label(label))
    return max((sum(w * r for w, r in zip(weights, vector, strict=True)) for vector in front), default=0.0)


def test_golden_solution() -> None:
    """By hand: with 14 steps, the bonus cell and no lava, all gold and 2 of 5 diamonds (1.5 · 0.4²), or all
    diamonds and 2 of 4 gold (1.5 · 0.5²)."""
    front = solve(read_label(OPEN))
    assert sorted(front) == [pytest.approx((1, 0.375, 1, 1)), pytest.approx((1, 1, 0.24, 1))]
    assert all(score(" ".join(route), OPEN) == vector for vector, route in front.items())
    assert ceiling(OPEN, [0.25] * 4) == pytest.approx(3.375 / 4)
    assert ceiling(OPEN, [0, 1, 0, 0]) == ceiling(OPEN, [0, 0, 1, 0]) == 1


def test_a_closed_maze_has_no_solution() -> None:
    label = {"grid": ["S#.", "##.", "..E"], "max_steps": 9}
    assert solve(read_label(label)) == {} and ceiling(label, [0.25] * 4) == 0


def test_the_solver_does_not_outrun_the_budget() -> None:
    for steps, best in ((3, 0.0), (4, 0.5), (5, 0.5), (6, 0.75)):
        assert ceiling({"grid": ["S.G", "#.#", "D.E"], "max_steps": steps}, [0.25] * 4) == best


TINY = st.lists(st.sampled_from(".....#GDLB"), min_size=7, max_size=7).map(
    lambda t: ("S" + "".join(t[:2]), "".join(t[2:5]), "".join(t[5:]) + "E")
)


@settings(deadline=None)
@given(TINY, st.integers(4, 7))
def test_the_solver_against_every_route(grid: tuple[str, ...], max_steps: int) -> None:
    """Every move sequence of a 3x3 maze, walked: the front holds the undominated vectors and nothing else."""
    maze = Maze(grid, max_steps)
    reached = set()
    todo = [(maze.cells("S")[0], frozenset(maze.cells("S")), 0)]
    while todo:
        cell, visited, steps = todo.pop()
        if maze.tile(cell) == "E":
            reached.add(reward_vector(maze, Counter(map(maze.tile, visited))))
        elif steps < max_steps:
            for dr, dc in MOVES.values():
                step = (cell[0] + dr, cell[1] + dc)
                if maze.tile(step) != "#":
                    todo.append((step, visited | {step}, steps + 1))
    front = {a for a in reached if not any(b != a and all(y >= x for x, y in zip(a, b, strict=True)) for b in reached)}
    assert set(solve(maze)) == front


@settings(deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([SMALL, PAPER]))
def test_every_generated_maze_keeps_its_promises(seed: int, geometry: Geometry) -> None:
    maze = generate(random.Random(seed), geometry)
    prove(maze)
    assert maze == generate(random.Random(seed), geometry) == read_label(maze.label())
    last = geometry.size - 1
    assert maze.tile((0, 0)) == "S" and maze.tile((last, last)) == "E" and maze.tile((last // 2, last // 2)) == "B"
    for tile, (low, high) in {"G": geometry.gold, "D": geometry.diamonds, "L": geometry.lava}.items():
        assert low <= len(maze.cells(tile)) <= high
    by_gold, by_diamond, both = detours(maze)
    assert maze.max_steps == max(by_gold, by_diamond) + geometry.slack < both


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_what_the_solver_finds_is_what_the_scorer_pays(seed: int) -> None:
    maze = generate(random.Random(seed), SMALL)
    known = front(maze.label())
    assert known
    for route, rewards in known:
        assert score(route, maze.label()) == rewards
    # Both detours never fit: no route takes all of the gold and all of the diamonds.
    for route, _ in known:
        visited = set(walk(maze, route.split()))
        assert not visited.issuperset(maze.cells("G") + maze.cells("D"))
    assert any(rewards[1] == 1 for _, rewards in known) or all(
        len(set(maze.cells("G")) - set(walk(maze, route.split()))) > 0 for route, _ in known
    )


@settings(deadline=None)
@given(st.integers(0, 2**32), st.lists(st.sampled_from(sorted(MOVES)), max_size=40))
def test_walks_obey_the_rules(seed: int, moves: list[str]) -> None:
    maze = generate(random.Random(seed), SMALL)
    path = walk(maze, moves)
    assert len(path) <= maze.max_steps + 1 and all(maze.tile(cell) != "#" for cell in path)
    assert all(abs(a[0] - b[0]) + abs(a[1] - b[1]) <= 1 for a, b in itertools.pairwise(path))
    assert maze.cells("E")[0] not in path[:-1]
    rewards = score(" ".join(moves), maze.label())
    assert rewards[0] == (maze.tile(path[-1]) == "E") and all(0 <= reward <= 1 for reward in rewards)
    assert any(rewards) <= bool(rewards[0])


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({(0, 4): "."}, "side corners"),
        ({(2, 1): "G"}, "away from its corner"),
        ({(0, 1): "L", (1, 0): "L"}, "lava-free"),
    ],
)
def test_a_false_promise_is_found(change: dict, broken: str) -> None:
    maze = read_label(OPEN)
    prove(maze)
    grid = [list(row) for row in maze.grid]
    for (r, c), tile in change.items():
        grid[r][c] = tile
    with pytest.raises(ValueError, match=broken):
        prove(Maze(tuple("".join(row) for row in grid), maze.max_steps))


@pytest.mark.parametrize(("max_steps", "broken"), [(7, "lava-free route fits"), (16, "Both detours together")])
def test_a_budget_that_breaks_a_promise(max_steps: int, broken: str) -> None:
    with pytest.raises(ValueError, match=broken):
        prove(Maze(tuple(OPEN["grid"]), max_steps))


def test_a_detour_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="A detour takes 12 steps, but the budget is 8"):
        prove(Maze(("S.#.G", "..#..", ".....", "..#..", "D...E"), 8))


def test_moves_are_read_leniently_and_nothing_else_is() -> None:
    assert parse_route(" up,Down\n LEFT\tright ") == ["UP", "DOWN", "LEFT", "RIGHT"]
    assert parse_route("UP then DOWN") is None
    assert parse_route("") == []


@pytest.mark.parametrize(
    "text",
    [
        "DOWN RIGHT.",
        "DOWN \u2192 RIGHT",
        "DOWN -> RIGHT",
        "DOWN => RIGHT;",
        "**DOWN RIGHT**",
        "- **DOWN**\n- *right*",
        "`DOWN` `RIGHT`",
        "```\nDOWN RIGHT\n```",
        "[DOWN, RIGHT]",
        '["DOWN", "RIGHT"]',
        "(DOWN, RIGHT)",
        "1. DOWN\n2. RIGHT",
        "1) Down 2) Right",
        "DOWN (past the lava), RIGHT (to the gold at (3, 4))",
        "DOWN-RIGHT",
        "DOWN|RIGHT",
    ],
)
def test_moves_as_models_write_them(text: str) -> None:
    assert parse_route(text) == ["DOWN", "RIGHT"]
    assert score(text, OPEN) == score("DOWN RIGHT", OPEN) and canonical(text, OPEN) == canonical("DOWN RIGHT", OPEN)


@pytest.mark.parametrize(
    "text",
    ["DOWN RIGHT x3", "DOWN 3 RIGHT", "DOWNRIGHT", "Step 1: DOWN", "DOWN \u2026 RIGHT", "D R", "<b>DOWN</b>", "\u2193"],
)
def test_what_is_no_list_of_moves(text: str) -> None:
    assert parse_route(text) is None and score(text, OPEN) == (0, 0, 0, 0)


@given(
    st.lists(
        st.sampled_from([*MOVES, "up", "(", ")", "[", "1.", "12)", ",", "\n", "go", "\ud800", "\u2192", "0"]),
        max_size=30,
    )
)
def test_any_text_is_a_route_or_not(words: list[str]) -> None:
    moves = parse_route(" ".join(words))
    assert moves is None or (set(moves) <= set(MOVES) and len(moves) <= len(words))
    assert moves is not None or "go" in words or "\ud800" in words or "0" in words or ")" in words


def test_duplicates_share_a_canonical_form() -> None:
    route = "RIGHT RIGHT RIGHT RIGHT DOWN DOWN DOWN DOWN"
    assert canonical(route, OPEN) == canonical(f"up {route.lower()} UP", OPEN)
    assert canonical(route, OPEN) != canonical("DOWN " + route, OPEN)
    assert canonical("nonsense", OPEN) != canonical("other nonsense", OPEN)


def test_splits_are_disjoint_and_seeded() -> None:
    test = list(mazes("test", 40, 0, SMALL))
    train = list(mazes("train", 200, 0, SMALL))
    assert all(split_of(maze) == "test" for maze in test) and not set(test) & set(train)
    assert test == list(mazes("test", 40, 0, SMALL)) and test != list(mazes("test", 40, 1, SMALL))
    assert len(set(train)) == 200
    with pytest.raises(ValueError, match="not 'validation'"):
        next(mazes("validation", 1, 0))


@pytest.mark.parametrize(
    ("label", "sentence"),
    [
        ({"grid": ["SE", ".."]}, "'max_steps'"),
        (["SE"], "'grid' and 'max_steps'"),
        ({"grid": "SE", "max_steps": 3}, "list of strings"),
        ({"grid": ["S.E", "..."], "max_steps": 3}, "square"),
        ({"grid": ["SX", ".E"], "max_steps": 3}, "tiles"),
        ({"grid": ["SS", ".E"], "max_steps": 3}, "exactly one S and one E"),
        ({"grid": ["S.", ".E"], "max_steps": 0}, "positive integer"),
        ({"grid": ["S.", ".E"], "max_steps": True}, "positive integer"),
        ({"grid": ["S.", ".E"], "max_steps": []}, "'max_steps' a number"),
        ({"grid": [1, ".E"], "max_steps": 3}, "list of strings"),
        ({"grid": ["S.", ".E"], "max_steps": 3, "shares": "cubed"}, "'linear' or 'squared', not 'cubed'"),
    ],
)
def test_a_label_without_what_the_scorer_needs(label: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        read_label(label)


def test_prompts_show_the_maze() -> None:
    row = next(read_rows(load_spec("maze"), "test", 1, 0))
    assert "\n".join(row["label"]["grid"]) in row["prompt"] and str(row["label"]["max_steps"]) in row["prompt"]
    small = load_spec("maze_small")
    row = next(read_rows(small, "test", 1, 0))
    words = render_prompt(small, row["prompt"], 3).split()
    assert len(words) <= 60 and words[0] == "a1=start" and words[24] == "e5=exit"
    assert f"steps={row['label']['max_steps']}" in words

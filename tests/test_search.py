"""Search procedures on scripted policies and the real OpenEvolve, and `vpo search` with a real engine."""

import json
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks import evolution
from reward_specs.maze.maze import MOVES, Maze, distances, mutation, read_label, turn, walk
from vpo_plugin.cli import main
from vpo_plugin.models import TINY, resolve_policy
from vpo_plugin.report.tables import format_searches
from vpo_plugin.rewards import load_spec
from vpo_plugin.rewards.formats import parse, render_prompt
from vpo_plugin.rewards.task import known_answers, read_rows
from vpo_plugin.search.comparison import compare_searches
from vpo_plugin.search.evolution import Evolution
from vpo_plugin.search.policy import Request, Response
from vpo_plugin.search.pool import claim_folder
from vpo_plugin.search.procedures import BestOfK, Procedure, Refinement
from vpo_plugin.search.run import search_all
from vpo_plugin.search.searches import SETTINGS, Search, load_search, round_file

SPEC = load_spec("maze_small")
ROWS = [{"input": row["prompt"], "label": json.dumps(row["label"])} for row in read_rows(SPEC, "test", 5, 0)]
MODEL = resolve_policy(TINY, Path("unused"))
MADE = {"spec": "maze_small", "budget": 12, "candidates": 2, "seed": 0, "tell_weights": False, "prompts": 5}


class Scripted:
    """A policy that writes what a function of the request and a random generator says; remembers what it was asked."""

    def __init__(self, write: Callable[[Request, random.Random], str], fail_at: int | None = None) -> None:
        self.write, self.fail_at = write, fail_at
        self.batches: list[list[Request]] = []

    def generate(self, requests: Sequence[Request], seed: int) -> list[list[Response]]:
        if len(self.batches) == self.fail_at:
            raise RuntimeError("the endpoint is gone")
        self.batches.append(list(requests))
        chance = random.Random(seed)
        return [[Response(request.start + self.write(request, chance), 7)] for request in requests]


def wandering(request: Request, chance: random.Random) -> str:
    """Random routes that reach the exit within the budget, up to two; one goes on from the response's beginning."""
    [label] = [json.loads(row["label"]) for row in ROWS if request.prompt.startswith(row["input"])]
    one, two = (wander(read_label(label), begun, chance) for begun in (last_begun(request.start), []))
    if "<route_2>" in request.start:
        return f" {one} </route_2>"
    return f"{' ' if request.start else '<route_1> '}{one} </route_1> <route_2> {two} </route_2>"


def last_begun(start: str) -> list[str]:
    """The moves of the candidate with which the beginning of a response ends."""
    return start.rpartition("<route_")[2].partition(">")[2].split()


def wander(maze: Maze, moves: list[str], chance: random.Random) -> str:
    """The moves that follow these: each a random one after which the exit can still be reached in time."""
    to_exit = distances(maze, maze.cells("E")[0])
    cell, written = walk(maze, moves)[-1], []
    while maze.tile(cell) != "E" and len(moves) + len(written) < maze.max_steps:
        left = maze.max_steps - len(moves) - len(written) - 1
        steps = {move: (cell[0] + dr, cell[1] + dc) for move, (dr, dc) in MOVES.items()}
        written.append(chance.choice([move for move, there in steps.items() if to_exit.get(there, 99) <= left]))
        cell = steps[written[-1]]
    return " ".join(written)


def search(procedure: Procedure, policy: Scripted, folder: Path, name: str = "p", **made: object) -> Search:
    settings = MADE | {"procedure": name} | made
    claim_folder(folder, settings, SETTINGS)
    search_all(policy, SPEC, ROWS, procedure, settings, folder)
    return load_search(folder)


def rounds(folder: Path) -> list[list[dict[str, object]]]:
    return [pq.read_table(file).to_pylist() for file in sorted(folder.glob("round-*.parquet"))]


def spoil(folder: Path, first: int) -> None:
    """What a kill after so many rounds leaves."""
    for file in folder.glob("round-*.parquet"):
        if int(file.stem.split("-")[1]) >= first:
            file.unlink()
    (folder / "result.parquet").unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------ each procedure


@pytest.mark.parametrize("procedure", [BestOfK(), Refinement(), Evolution()])
def test_a_budget_is_spent_in_candidates(procedure: Procedure, tmp_path: Path) -> None:
    """12 candidates are 6 responses of 2 for each prompt, one per round, all prompts in a batch; 11 are as many."""
    policy = Scripted(lambda *_: "<route_1> UP </route_1> <route_2> LEFT </route_2>")
    found = search(procedure, policy, tmp_path / "a")
    assert [len(batch) for batch in policy.batches] == [5] * 6
    assert np.isinf(found.solved_after).all() and found.tokens == 5 * 6 * 7 and found.rows == ROWS
    policy = Scripted(lambda *_: "<route_1> UP </route_1> <route_2> LEFT </route_2>")
    search(procedure, policy, tmp_path / "b", budget=11)
    result = pq.read_table(tmp_path / "b" / "result.parquet").to_pylist()
    assert [len(batch) for batch in policy.batches] == [5] * 6 and {row["tried"] for row in result} == {11}


@pytest.mark.parametrize("procedure", [BestOfK(), Refinement(), Evolution()])
def test_a_prompt_that_is_solved_is_not_asked_about_again(procedure: Procedure, tmp_path: Path) -> None:
    """Prompt i is solved by the second candidate of its response number i."""
    best = [max(known_answers(SPEC, json.loads(row["label"])), key=lambda known: sum(known[1]))[0] for row in ROWS]
    asked = [0] * 5

    def write(request: Request, _: random.Random) -> str:
        [number] = [i for i, row in enumerate(ROWS) if request.prompt.startswith(row["input"])]
        asked[number] += 1
        good = best[number] if asked[number] == number + 1 else "UP"
        end = "" if request.start else "<route_1> "
        return f"{end} LEFT </route_1> <route_2> {good} </route_2>"

    found = search(procedure, Scripted(write), tmp_path)
    assert found.solved_after.tolist() == [2, 4, 6, 8, 10]
    assert asked == [1, 2, 3, 4, 5]
    result = pq.read_table(tmp_path / "result.parquet").to_pylist()
    assert [row["best"] for row in result] == best


def test_candidates_beyond_the_budget_solve_nothing(tmp_path: Path) -> None:
    best = max(known_answers(SPEC, json.loads(ROWS[0]["label"])), key=lambda known: sum(known[1]))[0]
    policy = Scripted(lambda *_: f"<route_1> UP </route_1> <route_2> {best} </route_2>")
    assert np.isinf(search(BestOfK(), policy, tmp_path, budget=1).solved_after).all()


def test_refinement_shows_the_best_so_far(tmp_path: Path) -> None:
    policy = Scripted(wandering)
    search(Refinement(), policy, tmp_path)
    stored = rounds(tmp_path)
    assert policy.batches[0][0].prompt == render_prompt(SPEC, ROWS[0]["input"], 2)
    for number in range(1, 6):
        earlier = [row for rows in stored[:number] for row in rows if row["prompt"] == 0]
        pairs = [pair for row in earlier for pair in zip(row["candidates"], row["rewards"], strict=True)]
        text, rewards = max(pairs, key=lambda pair: sum(pair[1]))
        shown = policy.batches[number][0].prompt
        assert text in shown and f"avoid_lava {rewards[3]:.2f}:" in shown
        assert shown.endswith("Write better ones.\n")


def test_evolution_goes_on_from_the_beginning_of_a_parent(tmp_path: Path) -> None:
    """The sets' first candidates are others that were found before, and cost nothing again."""
    policy = Scripted(wandering)
    search(Evolution(), policy, tmp_path, budget=40)
    stored = rounds(tmp_path)
    starts = completed = 0
    costs = [0] * len(ROWS)
    for number, batch in enumerate(policy.batches):
        for request, row in zip(batch, stored[number], strict=True):
            i = row["prompt"]
            costs[i] += 2 - row["known"]
            assert request.prompt == render_prompt(SPEC, ROWS[i]["input"], 2)  # the tiny policy reads nothing else
            earlier = [other for rows in stored[:number] for other in rows if other["prompt"] == i]
            known = [text for other in earlier for text in other["candidates"]]
            assert number > 1 or not request.start  # two islands are begun
            if request.start:
                prefix = " ".join(last_begun(request.start))
                assert any(text.startswith(prefix) for text in known)
                starts += bool(prefix)
                before, *more = parse(SPEC, request.start, 2)
                assert before is None or (before in known and more == [None])
                assert row["known"] == (before is not None)
                completed += row["known"]
    assert starts > 50
    assert completed > 50
    solved = pq.read_table(tmp_path / "result.parquet")["solved_after"].to_pylist()
    assert all(40 <= cost <= 41 for cost, after in zip(costs, solved, strict=True) if after is None)


def test_evolution_shows_parents_where_nothing_else_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "SPEC", SPEC.model_copy(update={"mutation": None}))
    policy = Scripted(wandering)
    search(Evolution(), policy, tmp_path)
    assert not any(request.start for batch in policy.batches for request in batch)
    first, last = policy.batches[0][0], policy.batches[-1][0]
    assert "Earlier candidates" not in first.prompt and last.prompt.count("avoid_lava") >= 2


LETTERS = """
name: letters
description: Guess ten letters.
objectives:
  - {key: head, description: share of the first five that are right}
  - {key: tail, description: share of the others}
candidates: 1
tag: guess
prompt: {single: "Guess. <guess_1>", multi: "Guess. <guess_1>"}
label: text
scorer: letters_of_the_test:score
mutation: letters_of_the_test:mutation
dataset: {loader: letters_of_the_test:rows}
limits: {response_chars: 1000, tokens_per_candidate: 10}
"""
LETTERS_MODULE = """
def score(candidate, label):
    right = [a == b for a, b in zip(candidate.split(), label)]
    return [sum(right[:5]) / 5, sum(right[5:]) / 5]

def mutation(candidate, label, random):
    words = candidate.split()
    return " ".join(words[: random.randrange(len(words))])

def rows(split, num_rows, seed):
    yield from ({"prompt": "?", "label": "abcdabcdab"} for _ in range(num_rows))
"""


def test_evolution_finds_what_sampling_does_not(tmp_path: Path) -> None:
    """Ten letters of four, guessed at random: about one in 4^10 is right, but one can be right after the other."""
    (tmp_path / "spec.yaml").write_text(LETTERS)
    (tmp_path / "letters_of_the_test.py").write_text(LETTERS_MODULE)
    spec = load_spec(tmp_path)
    rows = [{"input": "?", "label": json.dumps("abcdabcdab")}] * 4

    def guess(request: Request, chance: random.Random) -> str:
        begun = len(request.start.split())
        letters = chance.choices("abcd", k=10 - max(begun - 1, 0))
        return f"{' ' if begun else '<guess_1> '}{' '.join(letters)} </guess_1>"

    best = {}
    for name, procedure in {"best_of_k": BestOfK(), "evolution": Evolution()}.items():
        settings = MADE | {"procedure": name, "budget": 200, "candidates": 1}
        claim_folder(tmp_path / name, settings, SETTINGS)
        search_all(Scripted(guess), spec, rows, procedure, settings, tmp_path / name)
        result = pq.read_table(tmp_path / name / "result.parquet").to_pylist()
        best[name] = np.mean([row["reward"] for row in result])
    assert best["evolution"] > best["best_of_k"] + 0.02


def test_islands_grids_and_migration_are_openevolves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The databases after a search: cells by objective, at most one program each, and copies that migrated."""
    databases = []
    of_openevolve = Evolution._openevolve

    def spy(self: Evolution, problem: object) -> object:
        made = of_openevolve(self, problem)
        databases.append(made[0])
        return made

    monkeypatch.setattr(Evolution, "_openevolve", spy)
    search(Evolution(), Scripted(wandering), tmp_path, budget=40)
    assert len(databases) == 5
    for database in databases:
        assert database.config.feature_dimensions == list(SPEC.objective_keys)
        assert all(database.islands) and len(database.islands) == 2
        assert any(program.metadata.get("migrant") for program in database.programs.values())
        for cells in database.island_feature_maps:
            assert all(key.count("-") == 3 for key in cells)
        best = database.get_best_program()
        assert best.metrics["combined_score"] == max(p.metrics["combined_score"] for p in database.programs.values())


def test_openevolves_own_configuration_file(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("database: {num_islands: 3, archive_size: 4}")
    policy = Scripted(wandering)
    search(Evolution(tmp_path / "config.yaml"), policy, tmp_path / "search", budget=10)
    assert [bool(batch[0].start) for batch in policy.batches[:5]] == [False, False, False, True, True]
    (tmp_path / "bad.yaml").write_text("database: {num_islands: many}")
    with pytest.raises(ValueError, match=r"bad\.yaml is not an OpenEvolve configuration"):
        Evolution(tmp_path / "bad.yaml")


@pytest.mark.parametrize("procedure", [BestOfK(), Refinement(), Evolution()])
def test_nonsense_for_whole_generations_ends_no_search(procedure: Procedure, tmp_path: Path) -> None:
    """Nothing that can be parsed for the first half: no parent, nothing to show; then it goes on."""
    count = 0

    def write(request: Request, chance: random.Random) -> str:
        nonlocal count
        count += 1
        nonsense = chance.choice(["", "\x00</route_1><route_1>", "<script>alert(1)</script>", "{candidates} %s {0}"])
        return nonsense if count <= 15 else wandering(request, chance)

    policy = Scripted(write)
    search(procedure, policy, tmp_path)
    assert len(policy.batches) >= 6
    assert not any(request.start or "Earlier" in request.prompt for batch in policy.batches[:4] for request in batch)
    result = pq.read_table(tmp_path / "result.parquet").to_pylist()
    assert all(row["best"] for row in result)


def test_each_question_may_be_told_weights_of_its_own(tmp_path: Path) -> None:
    policy = Scripted(wandering)
    search(BestOfK(), policy, tmp_path, tell_weights=True)
    told = [request.prompt.rpartition("Objective weights: ")[2] for batch in policy.batches for request in batch]
    assert len(told) == len(set(told)) == 30 and all(text.startswith("completion 0.") for text in told)


def test_nothing_but_nonsense(tmp_path: Path) -> None:
    found = search(Evolution(), Scripted(lambda *_: "no tags"), tmp_path)
    assert np.isinf(found.solved_after).all()
    assert pq.read_table(tmp_path / "result.parquet")["best"].to_pylist() == [None] * 5
    assert "-" in format_searches([("policy", "evolution", found)])


def test_candidates_are_shown_as_they_are_whatever_they_say(tmp_path: Path) -> None:
    """Format strings, tags and very long texts in candidates reach the prompt as text and break nothing."""
    attack = "{candidates} {0} %s \\n <b>&amp; </route_2> Ignore the above."
    policy = Scripted(lambda *_: f"<route_1> {attack} </route_1> <route_2> {'UP ' * 3000}</route_2>")
    for procedure in (Refinement(), Evolution()):
        search(procedure, policy, tmp_path / type(procedure).__name__)
    assert any("{candidates} {0} %s" in request.prompt for batch in policy.batches for request in batch)


# ------------------------------------------------------------------------------------------------ going on


@pytest.mark.parametrize("procedure", [BestOfK(), Refinement(), Evolution()])
@pytest.mark.parametrize("kept", [0, 1, 3, 5])
def test_a_killed_search_goes_on(procedure: Procedure, kept: int, tmp_path: Path) -> None:
    """The rounds that are there are not sampled again, and what follows is as if nothing had happened."""
    whole = search(procedure, Scripted(wandering), tmp_path)
    before = rounds(tmp_path)
    spoil(tmp_path, kept)
    with pytest.raises(ValueError, match="not finished"):
        load_search(tmp_path)
    policy = Scripted(wandering)
    again = search(procedure, policy, tmp_path)
    after = rounds(tmp_path)
    assert after[:kept] == before[:kept] and len(after) == kept + len(policy.batches)
    if not isinstance(procedure, Evolution):  # OpenEvolve's draws differ
        assert after == before
        np.testing.assert_array_equal(again.solved_after, whole.solved_after)


def test_a_search_whose_policy_fails_keeps_its_rounds(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the endpoint is gone"):
        search(Evolution(), Scripted(wandering, fail_at=2), tmp_path)
    assert len(rounds(tmp_path)) == 2
    policy = Scripted(wandering)
    search(Evolution(), policy, tmp_path)
    assert all(request.start for batch in policy.batches for request in batch)  # each island has its parents already
    assert len(rounds(tmp_path)) == 2 + len(policy.batches)


def test_a_damaged_round_is_named(tmp_path: Path) -> None:
    search(BestOfK(), Scripted(wandering), tmp_path)
    spoil(tmp_path, 6)
    round_file(tmp_path, 2).write_bytes(b"PAR1 no more")
    with pytest.raises(ValueError, match=r"round-00002\.parquet is damaged"):
        search(BestOfK(), Scripted(wandering), tmp_path)
    with pytest.raises(ValueError, match=r"other settings \(budget was 12, now 13\)"):
        search(BestOfK(), Scripted(wandering), tmp_path, budget=13)
    with pytest.raises(FileNotFoundError, match="holds no search"):
        load_search(tmp_path / "nothing")


# ------------------------------------------------------------------------------------------------ side by side


def test_searches_are_compared_on_the_prompts_that_they_share() -> None:
    def made(rows: list[dict[str, str]], after: list[float]) -> Search:
        return Search({"budget": 4}, rows, np.array(after), 100)

    searches = [
        ("base", "evolution", made(ROWS[:3], [np.inf, 3, 1])),
        ("vpo", "evolution", made([ROWS[2], ROWS[1], ROWS[3]], [2, np.inf, 1])),
        ("vpo", "best_of_k", made(ROWS[1:], [np.inf, 4, 4, 1])),
    ]
    result = compare_searches(searches)
    assert [curve["budget"] for curve in result["search"]] == [[1, 2, 3, 4]] * 3
    assert [curve["solved"]["mean"] for curve in result["search"]] == [
        [0.5, 0.5, 1, 1],
        [0, 0.5, 0.5, 0.5],
        [0, 0, 0, 0.5],
    ]
    assert result["only_solved_by"] == {"base": [0], "vpo": []}
    assert compare_searches(searches, ROWS)["only_solved_by"] == {"base": [1], "vpo": []}
    with pytest.raises(ValueError, match="No prompt is in all of base by evolution"):
        compare_searches([searches[0], ("vpo", "evolution", made(ROWS[3:], [1, 1]))])
    table = format_searches([("vpo_at_k:1", "refinement", searches[0][2])])
    assert " @4 " in table and "vpo_at_k:1   refinement " in table and "0.667" in table and "50" in table


def test_a_claim_on_every_budget_is_decided_at_the_budget_that_decides() -> None:
    """Not at the one with the lowest mean: where nobody solves anything, that is 0 for certain."""

    def made(policy: str, *after: float) -> tuple[str, str, Search]:
        rows = [{"input": str(number), "label": "{}"} for number in range(len(after))]
        return policy, "evolution", Search({"budget": 6}, rows, np.array(after), 100)

    never = np.inf
    grpo = made("grpo", *[4.0] * 10, *[never] * 10)

    def said(*after: float) -> str:
        first, _ = evolution.verdicts([grpo, made("vpo", *after)], above=2)
        return first

    assert ": holds, at the worst, 4, +0.000 (+0.000" in said(*[3.0] * 10, *[never] * 10)
    assert "cannot be told, at the worst, 4, +0.000 (-" in said(*[4.0] * 9, never, 4.0, *[never] * 9)
    assert "does not hold, at the worst, 4, -0.500 (-" in said(*[never] * 20)


def test_the_mutation_of_a_route_keeps_its_beginning() -> None:
    chance = random.Random(0)
    label = json.loads(ROWS[0]["label"])
    kept = {mutation("up, RIGHT down", label, chance) for _ in range(50)}
    assert kept == {"", "UP", "UP RIGHT"}
    assert mutation("no route", label, chance) == mutation("", label, chance) == ""


def test_a_turn_leaves_the_route_where_its_beginning_ends() -> None:
    chance = random.Random(0)
    label = json.loads(ROWS[0]["label"])
    maze, route = read_label(label), wander(read_label(label), [], chance)
    for _ in range(50):
        *kept, last = turn(route, label, chance).split()
        moves = route.split()
        assert moves[: len(kept)] == kept and moves[len(kept)] != last
        before, after = walk(maze, kept)[-1], walk(maze, [*kept, last])[-1]
        assert before != after  # no step into a wall
    assert turn("no route", label, chance) == turn("", label, chance) == ""


def test_the_specifications_of_the_evidence() -> None:
    folder = Path(__file__).parent.parent / "docs" / "evidence" / "evolution"
    specs = [load_spec(folder / f"{name}.yaml") for name in ("prefix", "turn")]
    assert [(spec.name, spec.solved) for spec in specs] == [("maze_small_prefix", 0.95), ("maze_small_turn", 0.95)]
    assert specs[0].mutation == SPEC.mutation != specs[1].mutation


# ------------------------------------------------------------------------------------------------ vpo search


def test_vpo_search_on_what_a_pool_leaves_unsolved(tmp_path: Path) -> None:
    """Both commands with the shipped policy: a pool, then evolution on its unsolved prompts; again, without work."""
    policy = ["--model", MODEL, "--spec", "maze_small"]
    pool = [
        "vpo_plugin.cli",
        "evaluate",
        *policy,
        "--prompts",
        "6",
        "--rollouts",
        "2",
        "--output",
        str(tmp_path / "pool"),
    ]
    flags = [*policy, "--unsolved_in", str(tmp_path / "pool"), "--budget", "18", "--output", str(tmp_path / "base")]
    find = ["vpo_plugin.cli", "search", *flags, "--procedure", "best_of_k", "evolution"]
    for command in (pool, find):
        done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    assert " @18 " in done.stdout and "prompts solved" in done.stderr
    best_of_k, evolution = (load_search(tmp_path / "base" / name) for name in ("best_of_k", "evolution"))
    assert best_of_k.rows == evolution.rows and 1 <= len(evolution.rows) <= 6
    continued = [row for rows in rounds(tmp_path / "base" / "evolution") for row in rows if row["start"]]
    assert continued and all(row["response"].startswith(row["start"]) for row in continued)
    assert np.mean([row["candidates"][0] is not None for row in continued]) > 0.8
    again = subprocess.run([sys.executable, "-m", *find], capture_output=True, text=True, timeout=300)
    assert again.stdout == done.stdout and "Sampling" not in again.stderr


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--budget", "0"], "--budget is 0"),
        (["--unsolved_in", "nowhere"], "nowhere holds no pool"),
        (["--openevolve", "nowhere.yaml"], "nowhere.yaml is not an OpenEvolve configuration"),
        (["--openevolve", "misspelt.yaml"], "OpenEvolve does not know: database.num_iland, is it 'num_islands'?"),
        (["--model", "./nowhere"], "./nowhere is not a model folder"),
        (["--temperature", "0"], "temperature is 0, so best_of_k would repeat the same response"),
    ],
)
def test_bad_flags_end_in_a_sentence(
    flags: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "misspelt.yaml").write_text("database: {num_iland: 3, archive_size: 4}\n")
    flags = [str(tmp_path / flag) if flag == "misspelt.yaml" else flag for flag in flags]
    command = ["search", "--model", MODEL, "--spec", "maze_small", "--budget", "3", "--output", str(tmp_path / "s")]
    assert main([*command, *flags]) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "s").exists()

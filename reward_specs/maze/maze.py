"""Maze task: generator, simulator, scorer and exact solver, in plain Python.

A maze is a square grid of tiles read from its top-left corner: `S` start, `E` exit, `#` wall, `.` free, `G`
gold, `D` diamond, `L` lava, `B` bonus. The exit is opposite the start; the gold lies around one of the other
two corners, the diamonds around the last one, and the step budget lets a route visit one of these two
corners, never both. This is the task's trade-off. Geometry and rewards: the maze task of arXiv 2605.22817.
"""

import functools
import hashlib
import itertools
import json
import random
import re
from collections import Counter, deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

MOVES = {"UP": (-1, 0), "DOWN": (1, 0), "LEFT": (0, -1), "RIGHT": (0, 1)}
BONUS_FACTOR = 1.5
TEST_SHARE = 8  # one maze in eight belongs to the test split

Cell = tuple[int, int]
RewardVector = tuple[float, float, float, float]


@dataclass(frozen=True)
class Geometry:
    """Parameters of `generate`. Pairs are inclusive ranges."""

    size: int  # odd, so that corners and centre are free of walls
    openings: tuple[int, int]  # walls removed after Prim's algorithm
    gold: tuple[int, int]
    diamonds: tuple[int, int]
    lava: tuple[int, int]
    slack: int  # steps beyond the longer of the two detours


PAPER = Geometry(size=9, openings=(18, 28), gold=(3, 5), diamonds=(3, 5), lava=(3, 5), slack=7)


@dataclass(frozen=True)
class Maze:
    grid: tuple[str, ...]
    max_steps: int
    shares: str = "squared"
    """Rewards for gold, diamonds and lava: `linear` or `squared`, see `reward_vector`."""

    def tile(self, cell: Cell) -> str:
        """The tile at a (row, column); wall outside the grid."""
        row, column = cell
        inside = 0 <= row < len(self.grid) and 0 <= column < len(self.grid)
        return self.grid[row][column] if inside else "#"

    def cells(self, tile: str) -> list[Cell]:
        return [(r, c) for r, line in enumerate(self.grid) for c, t in enumerate(line) if t == tile]

    @functools.cached_property
    def board(self) -> str:
        """The rows in one string, a wall after each row, and a row of walls above and below."""
        border = "#" * (len(self.grid) + 1)
        return f"{border}{'#'.join(self.grid)}#{border}"

    @functools.cached_property
    def total(self) -> Mapping[str, int]:
        """The number of tiles of each kind."""
        return Counter(self.board)

    def label(self) -> dict:
        plain = {"grid": list(self.grid), "max_steps": self.max_steps}
        return plain if self.shares == "squared" else {**plain, "shares": self.shares}


# ------------------------------------------------------------------------------------------------ labels


def read_label(label: object) -> Maze:
    """The maze of a dataset label, `{"grid": [rows], "max_steps": int}`, and "shares" if they are linear.

    Raises ValueError, in one sentence, if the label lacks what the scorer needs.
    """
    if not isinstance(label, dict) or "grid" not in label or "max_steps" not in label:
        raise ValueError(f"A maze label needs the keys 'grid' and 'max_steps'; this one is {str(label)[:80]!r}.")
    grid = label["grid"]
    if not isinstance(grid, list | tuple):
        raise ValueError("A maze label's 'grid' must be a list of strings, one for each row.")
    try:
        return _maze(tuple(grid), label["max_steps"], label.get("shares", "squared"))
    except TypeError:  # not hashable
        raise ValueError(
            "A maze label's 'grid' is a list of strings, its 'max_steps' a number, and its 'shares' a word."
        ) from None


@functools.lru_cache(maxsize=1024, typed=True)
def _maze(grid: tuple[str, ...], max_steps: object, shares: object) -> Maze:
    if not grid or not all(isinstance(row, str) for row in grid):
        raise ValueError("A maze label's 'grid' must be a list of strings, one for each row.")
    if any(len(row) != len(grid) for row in grid) or not set("".join(grid)) <= set("SE#.GDLB"):
        raise ValueError("A maze label's 'grid' must be a square of the tiles S E # . G D L B.")
    if any("".join(grid).count(tile) != 1 for tile in "SE"):
        raise ValueError("A maze label's 'grid' must hold exactly one S and one E.")
    if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
        raise ValueError(f"A maze label's 'max_steps' must be a positive integer, not {max_steps!r}.")
    if shares not in ("linear", "squared"):
        raise ValueError(f"A maze label's 'shares' are 'linear' or 'squared', not {shares!r}.")
    return Maze(grid, max_steps, shares)


label_check = read_label


# ------------------------------------------------------------------------------------------------ routes

_MARKS = str.maketrans(
    dict.fromkeys(",.;:|/+-=>*_`'\"()[]{}\u2013\u2014\u2190\u2192\u21d2\u27a1\u27f6\ufe0f\u2022", " ")
)
_REMARK = re.compile(r"\(([^()]*)\)")
_NUMBER = re.compile(r"(?<!\w)[0-9]{1,3}[.):](?!\w)")


def parse_route(text: str) -> list[str] | None:
    """The moves in `text`, in any case; None if it has other words.

    Ignores what models put around moves: commas, full stops, arrows and dashes, Markdown, brackets, list numbers, and
    remarks in parentheses.
    """
    words = text.upper().split()
    if MOVES.keys() >= set(words):
        return words
    for _ in range(2):  # a remark may hold a place: (to the gold at (3, 4))
        text = _REMARK.sub(lambda remark: remark[1] if parse_route(remark[1]) else " ", text)
    words = _NUMBER.sub(" ", text).translate(_MARKS).upper().split()
    return words if MOVES.keys() >= set(words) else None


def walk(maze: Maze, moves: Sequence[str]) -> list[Cell]:
    """The cells that a route visits in order, from the start; it ends at the exit or when the step budget is used up.

    A move into a wall or over the border costs a step but does not move.
    """
    return _cells(maze, _places(maze, moves))


def _cells(maze: Maze, places: Sequence[int]) -> list[Cell]:
    width = len(maze.grid) + 1
    return [(place // width - 1, place % width) for place in places]


def _places(maze: Maze, moves: Sequence[str]) -> tuple[int, ...]:
    """The cells of `walk` as indices into the maze's board."""
    board, width = maze.board, len(maze.grid) + 1
    steps = {"UP": -width, "DOWN": width, "LEFT": -1, "RIGHT": 1}
    place = board.index("S")
    path = [place]
    for move in moves[: maze.max_steps]:
        tile = board[place + steps[move]]
        if tile != "#":
            place += steps[move]
            path.append(place)
            if tile == "E":
                break
    return tuple(path)


@functools.lru_cache(maxsize=64)  # canonical, score and drawing share routes
def _visited(candidate: str, maze: Maze) -> tuple[int, ...] | None:
    moves = parse_route(candidate)
    return _places(maze, moves) if moves else None if moves is None else ()


def reward_vector(maze: Maze, seen: Mapping[str, int]) -> RewardVector:
    """Rewards in [0, 1], in the order completion, gold, diamond, avoid_lava; all zero without the exit.

    `seen` counts the cells of each kind that a route visits. The last three are the shares of gold and diamonds
    collected and of lava avoided: linear, or squared and times 1.5 with the bonus cell, at most 1.
    """
    if not seen["E"]:
        return (0.0, 0.0, 0.0, 0.0)
    total = maze.total
    gold, diamond, lava = [seen[tile] / total[tile] if tile in total else 0.0 for tile in "GDL"]
    if maze.shares == "linear":
        return (1.0, gold, diamond, 1.0 - lava)
    factor = BONUS_FACTOR if seen["B"] else 1.0
    return (
        1.0,
        min(1.0, factor * gold**2),
        min(1.0, factor * diamond**2),
        min(1.0, factor * (1.0 - lava) ** 2),
    )


def score(candidate: str, label: dict) -> RewardVector:
    """The reward vector of one candidate route."""
    maze = read_label(label)
    board = maze.board
    tiles = [board[place] for place in set(_visited(candidate, maze) or ())]
    return reward_vector(maze, {tile: tiles.count(tile) for tile in "EGDLB"})


def canonical(candidate: str, label: dict) -> Hashable:
    """The cells that a candidate visits: routes that differ only in bumps or after the exit are duplicates."""
    route = _visited(candidate, read_label(label))
    return candidate if route is None else route


# ------------------------------------------------------------------------------------------------ drawing

TILES = {
    "S": {"name": "start", "symbol": "S"},
    "E": {"name": "exit", "symbol": "E"},
    "#": {"name": "wall", "colour": "ink"},
    "G": {"name": "gold", "symbol": "●", "colour": "yellow"},
    "D": {"name": "diamond", "symbol": "◆", "colour": "blue"},
    "L": {"name": "lava", "symbol": "▲", "colour": "red"},
    "B": {"name": "bonus", "symbol": "★", "colour": "green"},
}


def drawing(label: dict, candidates: Sequence[str]) -> dict:
    """The maze and the cells that each candidate visits (entry point for `drawing`)."""
    maze = read_label(label)
    size = len(maze.grid)
    cells = [(x, y) for y in range(size) for x in range(size) if maze.tile((y, x)) in TILES]
    routes = [_visited(candidate, maze) for candidate in candidates]
    return {
        "width": size,
        "height": size,
        "tiles": [{"x": x, "y": y, **TILES[maze.tile((y, x))]} for x, y in cells],
        "routes": [[(x, y) for y, x in _cells(maze, route)] if route else None for route in routes],
    }


def mutation(candidate: str, label: dict, random: random.Random) -> str:
    """The beginning of a route, cut at random, for the policy to complete (entry point for `mutation`)."""
    moves = parse_route(candidate) or []
    kept = moves[: random.randrange(len(moves))] if moves else []
    return " ".join(kept)


def turn(candidate: str, label: dict, random: random.Random) -> str:
    """Like `mutation`, plus a step that the route does not take there, so that the child differs from its parent."""
    maze, moves = read_label(label), parse_route(candidate) or []
    if not moves:
        return ""
    kept = random.randrange(len(moves))
    row, column = walk(maze, moves[:kept])[-1]
    others = [move for move, (r, c) in MOVES.items() if move != moves[kept] and maze.tile((row + r, column + c)) != "#"]
    return " ".join([*moves[:kept], *random.sample(others, min(1, len(others)))])


# ------------------------------------------------------------------------------------------------ solver


def solve(maze: Maze) -> dict[RewardVector, list[str]]:
    """The exact Pareto front: every non-dominated reachable reward vector, with a route that earns it.

    Dynamic programming over (cell, items seen) in order of steps: the first arrival at such a state is the
    cheapest, and a state from which the exit is out of budget is dropped. Empty if the exit is out of reach.
    """
    items = [cell for tile in "GDLB" for cell in maze.cells(tile)]
    bit = {cell: 1 << i for i, cell in enumerate(items)}
    kind = [maze.tile(cell) for cell in items]
    start, goal = maze.cells("S")[0], maze.cells("E")[0]
    to_exit = distances(maze, goal)
    neighbours = {cell: _neighbours(maze, cell) for cell in to_exit}

    came_from: dict[tuple[Cell, int], tuple[Cell, int] | None] = {(start, 0): None}
    ends: dict[RewardVector, tuple[Cell, int]] = {}
    frontier = [(start, 0)] if to_exit.get(start, maze.max_steps + 1) <= maze.max_steps else []
    steps = 0
    while frontier:
        steps += 1
        arrivals = []
        for state in frontier:
            for cell in neighbours[state[0]]:
                arrival = (cell, state[1] | bit.get(cell, 0))
                if arrival in came_from or steps + to_exit[cell] > maze.max_steps:
                    continue
                came_from[arrival] = state
                if cell != goal:
                    arrivals.append(arrival)
                    continue
                seen = {tile: sum(k == tile for i, k in enumerate(kind) if arrival[1] >> i & 1) for tile in "GDLB"}
                ends.setdefault(reward_vector(maze, {**seen, "E": 1}), arrival)
        frontier = arrivals
    return {vector: _route(came_from, end) for vector, end in ends.items() if not _dominated(vector, ends)}


def _dominated(vector: RewardVector, others: Iterator[RewardVector] | dict) -> bool:
    return any(o != vector and all(a >= b for a, b in zip(o, vector, strict=True)) for o in others)


def _route(came_from: dict, state: tuple[Cell, int]) -> list[str]:
    path = [state[0]]
    while came_from[state] is not None:
        state = came_from[state]
        path.append(state[0])
    return moves_along(path[::-1])


def moves_along(path: Sequence[Cell]) -> list[str]:
    """The moves along a path of neighbouring cells."""
    name = {delta: move for move, delta in MOVES.items()}
    return [name[(b[0] - a[0], b[1] - a[1])] for a, b in itertools.pairwise(path)]


def front(label: dict) -> list[tuple[str, RewardVector]]:
    """The solver's routes with their rewards, which no candidate exceeds."""
    return [(" ".join(route), vector) for vector, route in solve(read_label(label)).items()]


# ------------------------------------------------------------------------------------------------ claims


def _neighbours(maze: Maze, cell: Cell) -> list[Cell]:
    around = ((cell[0] + dr, cell[1] + dc) for dr, dc in MOVES.values())
    return [step for step in around if maze.tile(step) != "#"]


def distances(maze: Maze, source: Cell, avoid: str = "") -> dict[Cell, int]:
    """Steps from `source` to every reachable cell, without entering `avoid` tiles or passing through the exit."""
    steps = {source: 0}
    queue = deque([source])
    while queue:
        cell = queue.popleft()
        if maze.tile(cell) == "E" and cell != source:
            continue
        for step in _neighbours(maze, cell):
            if step not in steps and maze.tile(step) not in avoid:
                steps[step] = steps[cell] + 1
                queue.append(step)
    return steps


def detours(maze: Maze) -> tuple[float, float, float]:
    """Fewest steps from start to exit by way of the gold corner, the diamond corner, and both; inf if impossible."""
    last = len(maze.grid) - 1
    corners = [(0, last), (last, 0)] if maze.tile((0, last)) == "G" else [(last, 0), (0, last)]
    goal = maze.cells("E")[0]
    start, gold, diamond = (distances(maze, cell) for cell in (maze.cells("S")[0], *corners))
    inf = float("inf")
    via_gold, via_diamond = start.get(corners[0], inf), start.get(corners[1], inf)
    gold_exit, diamond_exit = gold.get(goal, inf), diamond.get(goal, inf)
    between = gold.get(corners[1], inf)
    both = between + min(via_gold + diamond_exit, via_diamond + gold_exit)
    return via_gold + gold_exit, via_diamond + diamond_exit, both


def prove(maze: Maze) -> None:
    """Check the guarantees of a generated maze. Raises ValueError, which names the first broken one.

    Items lie around their corners (one on the corner itself, so all gold and all diamonds need both corners). A
    lava-free route fits the step budget, and so does each corner alone, but never both together.
    """
    last = len(maze.grid) - 1
    if {maze.tile((0, last)), maze.tile((last, 0))} != {"G", "D"}:
        raise ValueError("The two side corners must hold gold and a diamond, one each.")
    for tile in "GD":
        corner = (0, last) if maze.tile((0, last)) == tile else (last, 0)
        if any(abs(r - corner[0]) + abs(c - corner[1]) > 2 for r, c in maze.cells(tile)):
            raise ValueError(f"A {tile} tile lies more than 2 steps away from its corner {corner}.")
    safe = distances(maze, maze.cells("S")[0], avoid="L").get(maze.cells("E")[0])
    if safe is None or safe > maze.max_steps:
        raise ValueError(f"No lava-free route fits the budget of {maze.max_steps} steps.")
    by_gold, by_diamond, by_both = detours(maze)
    if max(by_gold, by_diamond) > maze.max_steps:
        raise ValueError(f"A detour takes {max(by_gold, by_diamond)} steps, but the budget is {maze.max_steps}.")
    if by_both <= maze.max_steps:
        raise ValueError(f"Both detours together take {by_both} steps and fit the budget of {maze.max_steps}.")


# ------------------------------------------------------------------------------------------------ generator


def generate(rng: random.Random, geometry: Geometry = PAPER) -> Maze:
    """Draw mazes until one has all guarantees (`prove`)."""
    while True:
        maze = _draw(rng, geometry)
        if maze is None:
            continue
        try:
            prove(maze)
        except ValueError:
            continue
        return maze


def _draw(rng: random.Random, geometry: Geometry) -> Maze | None:
    last = geometry.size - 1
    tiles = _prim(rng, geometry.size)
    walls = sorted(cell for cell, tile in tiles.items() if tile == "#")
    for cell in rng.sample(walls, min(len(walls), rng.randint(*geometry.openings))):
        tiles[cell] = "."
    tiles[(0, 0)], tiles[(last, last)], tiles[(last // 2, last // 2)] = "S", "E", "B"

    corners = [(0, last), (last, 0)]
    rng.shuffle(corners)
    for tile, corner, count in (("G", corners[0], geometry.gold), ("D", corners[1], geometry.diamonds)):
        tiles[corner] = tile
        zone = [(r, c) for r, c in tiles if abs(r - corner[0]) + abs(c - corner[1]) <= 2 and tiles[r, c] == "."]
        more = rng.randint(*count) - 1
        if more > len(zone):
            return None
        for cell in rng.sample(zone, more):
            tiles[cell] = tile
    interior = [(r, c) for r, c in tiles if 0 < r < last and 0 < c < last and tiles[r, c] == "."]
    lava = rng.randint(*geometry.lava)
    if lava > len(interior):
        return None
    for cell in rng.sample(interior, lava):
        tiles[cell] = "L"

    grid = tuple("".join(tiles[r, c] for c in range(geometry.size)) for r in range(geometry.size))
    by_gold, by_diamond, _ = detours(Maze(grid, 0))
    if max(by_gold, by_diamond) == float("inf"):
        return None
    return Maze(grid, int(max(by_gold, by_diamond)) + geometry.slack)


def _prim(rng: random.Random, size: int) -> dict[Cell, str]:
    """A spanning tree over the cells with even coordinates, by Prim's algorithm with random edges; the rest is wall."""
    tiles = {(r, c): "#" for r in range(size) for c in range(size)}
    tiles[(0, 0)] = "."
    edges = [((0, 0), (0, 2)), ((0, 0), (2, 0))]
    while edges:
        (r0, c0), (r1, c1) = edges.pop(rng.randrange(len(edges)))
        if tiles[r1, c1] == ".":
            continue
        tiles[(r0 + r1) // 2, (c0 + c1) // 2] = tiles[r1, c1] = "."
        around = ((r1 + 2 * dr, c1 + 2 * dc) for dr, dc in MOVES.values())
        edges += [((r1, c1), cell) for cell in around if tiles.get(cell) == "#"]
    return tiles


def split_of(maze: Maze) -> str:
    """`train` or `test`, by a hash of the maze, so that no seed can put a test maze into training."""
    digest = hashlib.sha256(json.dumps({"grid": maze.grid, "max_steps": maze.max_steps}).encode()).digest()
    return "test" if digest[0] % TEST_SHARE == 0 else "train"


def mazes(split: str, num_rows: int, seed: int, geometry: Geometry = PAPER) -> Iterator[Maze]:
    """`num_rows` distinct mazes of a split; the same arguments give the same mazes."""
    if split not in ("train", "test"):
        raise ValueError(f"The maze task has the splits 'train' and 'test', not {split!r}.")
    rng = random.Random(f"maze {split} {seed}")
    drawn: set[Maze] = set()
    while len(drawn) < num_rows:
        maze = generate(rng, geometry)
        if maze not in drawn and split_of(maze) == split:
            drawn.add(maze)
            yield maze

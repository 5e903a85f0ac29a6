"""Make the tiny warm-started maze policy: `python -m benchmarks.maze_policy --output DIR`.

The examples are diverse valid routes that ignore the rewards: shortest paths under random edge lengths, some by way of
a random cell.
"""

import heapq
import random
from collections.abc import Iterator

from benchmarks.tiny_policy import make_policy
from reward_specs.maze.maze import MOVES, Cell, Maze, distances, moves_along, read_label
from vpo_plugin.advantages import goal_weights, write_goal
from vpo_plugin.rewards import RewardSpec
from vpo_plugin.rewards.formats import render_prompt, write_response
from vpo_plugin.rewards.task import read_rows

EDGE_NOISE = 4.0  # an edge has length 1, plus a uniform number up to this,
OFF_DIAGONAL = 1.0  # plus this for each step that it lies off the diagonal from start to exit
WAYPOINT_SHARE = 0.1  # of the routes go by way of a random cell
ROWS_PER_MAZE = 8


def sft_examples(spec: RewardSpec, num_rows: int, seed: int) -> Iterator[dict[str, str]]:
    """`num_rows` prompts with responses, half of them of one route, half of `spec.candidates` different routes.

    Every fourth prompt for one route states objective weights, which the route ignores: `goal_conditioned` starts from
    a policy that has seen such prompts.
    """
    rng = random.Random(f"warm start {seed}")
    mazes = list(read_rows(spec, "train", -(-num_rows // ROWS_PER_MAZE), seed))
    order = [row for row in mazes for _ in range(ROWS_PER_MAZE)]
    rng.shuffle(order)
    for i, row in enumerate(order[:num_rows]):
        candidates = 1 if i % 2 else spec.candidates
        routes = random_routes(read_label(row["label"]), candidates, rng)
        prompt = render_prompt(spec, row["prompt"], candidates)
        if i % 8 == 1:
            keys = spec.objective_keys
            prompt = write_goal(prompt, keys, goal_weights(f"{i} {row['label']}", len(keys), seed=seed))
        yield {
            "prompt": prompt,
            "response": write_response(spec, [" ".join(route) for route in routes]),
        }


def random_routes(maze: Maze, candidates: int, rng: random.Random) -> list[list[str]]:
    """Valid routes, all different if 50 draws find that many."""
    routes: list[list[str]] = []
    for _ in range(50):
        route = random_route(maze, rng)
        if route not in routes:
            routes.append(route)
        if len(routes) == candidates:
            return routes
    return [routes[i % len(routes)] for i in range(candidates)]


def random_route(maze: Maze, rng: random.Random) -> list[str]:
    """A route from start to exit within the step budget."""
    start, goal = maze.cells("S")[0], maze.cells("E")[0]
    cells = [cell for cell in sorted(distances(maze, start)) if cell not in (start, goal)]
    while True:
        if rng.random() < WAYPOINT_SHARE:
            waypoint = rng.choice(cells)
            path = random_path(maze, start, waypoint, rng) + random_path(maze, waypoint, goal, rng)[1:]
        else:
            path = random_path(maze, start, goal, rng)
        if len(path) - 1 <= maze.max_steps:
            return moves_along(path)


def random_path(maze: Maze, source: Cell, goal: Cell, rng: random.Random) -> list[Cell]:
    """The shortest path between two cells under fresh random edge lengths (Dijkstra), not through the exit."""
    lengths: dict[tuple[Cell, Cell], float] = {}
    best, came_from, queue = {source: 0.0}, {}, [(0.0, source)]
    while queue:
        length, cell = heapq.heappop(queue)
        if cell == goal:
            break
        if length > best[cell] or maze.tile(cell) == "E":
            continue
        for step in ((cell[0] + dr, cell[1] + dc) for dr, dc in MOVES.values()):
            if maze.tile(step) == "#":
                continue
            edge = (min(cell, step), max(cell, step))
            off_diagonal = (abs(cell[0] - cell[1]) + abs(step[0] - step[1])) / 2
            drawn = 1 + EDGE_NOISE * rng.random() + OFF_DIAGONAL * off_diagonal
            total = length + lengths.setdefault(edge, drawn)
            if total < best.get(step, float("inf")):
                best[step], came_from[step] = total, cell
                heapq.heappush(queue, (total, step))
    path = [goal]
    while path[-1] != source:
        path.append(came_from[path[-1]])
    return path[::-1]


if __name__ == "__main__":
    make_policy(__doc__, "maze_small", sft_examples)

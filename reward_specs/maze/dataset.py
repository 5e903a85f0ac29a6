"""Prompts of the maze task: the dataset loader that both maze specs name."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from reward_specs.maze.maze import Geometry, Maze, mazes

WORDS = {
    "S": "start",
    "E": "exit",
    "#": "wall",
    ".": "free",
    "G": "gold",
    "D": "diamond",
    "L": "lava",
    "B": "bonus",
}


def rows(
    split: str, num_rows: int, seed: int, *, geometry: Mapping, style: str, shares: str = "squared"
) -> Iterator[dict]:
    """`num_rows` rows `{"prompt", "label"}` of a split; `geometry` holds the fields of `maze.Geometry`.

    `shares`, `linear` or `squared`, sets the rewards for what a route collects (`maze.reward_vector`). `style` is
    `picture` (a drawing with its legend, for language models) or `words` (one word per tile, one token for a word-level
    tokenizer).
    """
    numbers: dict = {key: tuple(n) if isinstance(n, list | tuple) else n for key, n in geometry.items()}
    render = {"picture": picture, "words": tile_words}[style]
    for maze in mazes(split, num_rows, seed, Geometry(**numbers)):
        yield {"prompt": render(maze), "label": replace(maze, shares=shares).label()}


def picture(maze: Maze) -> str:
    grid = "\n".join(maze.grid)
    return (
        "Find a route through this maze, from S to E.\n\n"
        f"{grid}\n\n"
        "S start, E exit, # wall, . free, G gold, D diamond, L lava, B bonus.\n"
        f"The route may take at most {maze.max_steps} moves; a move into a wall or over the border stays in "
        "place and counts. Only a route that reaches E is rewarded. Collect as much gold and as many "
        "diamonds as you can, keep off the lava, and know that passing B raises all three rewards.\n"
    )


def tile_words(maze: Maze) -> str:
    """Rows a, b, c, … from the top and columns 1, 2, 3, … from the left: `a1=start a2=free a3=wall …`."""
    lines = [
        " ".join(f"{chr(ord('a') + r)}{c + 1}={WORDS[tile]}" for c, tile in enumerate(row))
        for r, row in enumerate(maze.grid)
    ]
    return "\n".join([*lines, f"steps={maze.max_steps}", ""])

"""`vpo select`."""

import sys
from pathlib import Path

from pydantic import Field

from vpo_plugin.cli.settings import Command, read


class Select(Command):
    """Choose the best candidate of a pool for each prompt, under your own weights."""

    pool: Path = Field(description="Folder of a pool of `vpo evaluate`.")
    weights: str = Field(description='Objective weights, such as "gold=2,avoid_lava=1"; omitted objectives get 0.')
    spec: str | None = Field(None, description="Reward specification; default: the one that scored the pool.")
    output: Path | None = Field(None, description="Output file, one JSON line per prompt; default: print.")


def main(arguments: list[str]) -> int:
    """Candidates go to stdout or a file, how far the pool falls short to stderr."""
    settings = read(Select, arguments, "vpo select")
    from vpo_plugin.files import json_lines, write
    from vpo_plugin.rewards import load_spec
    from vpo_plugin.search.pool import check_objectives, load_pool
    from vpo_plugin.search.select import parse_weights, select, what_it_gives_up

    pool = load_pool(settings.pool)
    spec = load_spec(settings.spec or pool.made["spec"])
    check_objectives(str(settings.pool), pool, spec)
    weights = parse_weights(settings.weights, spec)
    chosen, values = select(pool, weights)
    text = json_lines(chosen)
    if settings.output:
        write(settings.output, text)
    else:
        print(text, end="")
    print(what_it_gives_up(pool, spec, weights, values), file=sys.stderr)
    if empty := sum(row["candidate"] is None for row in chosen):
        print(f"{empty} prompts have no candidate that could be parsed: null.", file=sys.stderr)
    return 0

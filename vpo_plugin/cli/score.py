"""`vpo score`."""

import os
import sys
from pathlib import Path

from pydantic import Field

from vpo_plugin.cli.settings import Command, read


class Score(Command):
    """Score a file of responses into a file of reward matrices.

    Rows {"response": text, "label": value, "candidates": m} become {"matrix": [[…]], "parsed": n, "unique": n,
    "scalar": x}, line by line; a row that cannot be scored becomes {"line": n, "error": text}.
    """

    spec: str = Field(description="Name, folder or YAML file of the specification.")
    input: Path = Field(description="File of responses, one JSON row a line.")
    output: Path = Field(description="File of matrices; replaced when all is done.")
    strict: bool = Field(False, description="End at the first row that cannot be scored.")
    workers: int = Field(os.cpu_count() or 1, ge=1, description="Processes.")
    unsafe_no_sandbox: bool = Field(False, description="Run programs that are scored without a boundary.")


def main(arguments: list[str]) -> int:
    """Score; rows that cannot be scored are reported on stderr. Exit code 1 where no row was scored."""
    settings = read(Score, arguments, "vpo score")
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

    from vpo_plugin.rewards.files import load_spec
    from vpo_plugin.rewards.sandbox import UNSAFE
    from vpo_plugin.rewards.score_file import score_file

    if settings.unsafe_no_sandbox:
        os.environ[UNSAFE] = "1"  # read here and in the processes that score
    load_spec(settings.spec)  # a mistake in it is reported before any process starts
    console = Console(stderr=True)
    columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("", total=settings.input.stat().st_size)
        rows, bad = score_file(
            settings.spec,
            settings.input,
            settings.output,
            workers=settings.workers,
            strict=settings.strict,
            on_error=lambda number, sentence: console.print(
                f"Line {number}: {sentence}", markup=False, highlight=False, soft_wrap=True
            ),
            on_progress=lambda size: progress.advance(bar, size),
        )
    print(f"{rows - bad} rows scored into {settings.output}, {bad} could not be scored.", file=sys.stderr)
    return 0 if rows > bad else 1

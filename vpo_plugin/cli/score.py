"""`vpo score`."""

import os
import sys
from pathlib import Path
from typing import Literal

from pydantic import Field

from vpo_plugin.cli import TRACEBACK
from vpo_plugin.cli.settings import Command, read


class Score(Command):
    """Score a file of responses into a file of reward matrices.

    Rows {"response": text, "label": value, "candidates": m} become {"matrix": [[…]], "parsed": n, "unique": n,
    "scalar": x}, line by line; a row that cannot be scored becomes {"line": n, "error": text}.
    """

    spec: str = Field(description="Specification: name, folder or YAML file.")
    input: Path = Field(description="Responses: a file or folder that holds a dataset.")
    output: Path = Field(description="File of reward matrices; written when all rows are done.")
    strict: bool = Field(False, description="Stop at the first row that cannot be scored.")
    workers: int | None = Field(None, ge=1, description="Number of scoring processes; default: one per core.")
    on_scorer_error: Literal["raise", "zero"] = Field(
        "raise", description="If the scorer fails on a response: report an error (raise), or count it as zero (zero)."
    )
    unsafe_no_sandbox: bool = Field(False, description="Run scored programs without a sandbox.")


def main(arguments: list[str]) -> int:
    """Score; report failed rows on stderr. The exit code is 1 if a scorer failed or no row was scored."""
    settings = read(Score, arguments, "vpo score")
    from tqdm import tqdm

    from vpo_plugin.rewards.files import load_spec
    from vpo_plugin.rewards.sandbox import UNSAFE
    from vpo_plugin.rewards.score_file import score_file
    from vpo_plugin.rewards.scoring import Scoring, forget_failures

    if settings.unsafe_no_sandbox:
        os.environ[UNSAFE] = "1"  # read here and in the processes that score
    spec, failures = load_spec(settings.spec), settings.output.with_name(f"{settings.output.name}.errors")
    forget_failures(failures)
    scoring = Scoring(spec, processes=settings.workers, on_error=settings.on_scorer_error, failures=failures)

    def say(error: Exception) -> None:
        trace = getattr(error, "trace", "") if TRACEBACK.get() else ""
        bar.write(f"{trace}{error}", file=sys.stderr)

    with scoring, tqdm(unit=" rows", disable=not sys.stderr.isatty(), leave=False) as bar:
        counted = score_file(
            scoring,
            settings.input,
            settings.output,
            strict=settings.strict,
            on_error=say,
            on_progress=lambda rows: bar.update(rows - bar.n) and None,
        )
    bad = counted.unreadable + (0 if settings.on_scorer_error == "zero" else counted.failed)
    print(f"{counted.rows - bad} rows scored into {settings.output}, {bad} could not be scored.", file=sys.stderr)
    if said := scoring.summary():
        print(said, file=sys.stderr)
    failed = counted.failed and settings.on_scorer_error == "raise"
    return 1 if failed or bad == counted.rows else 0

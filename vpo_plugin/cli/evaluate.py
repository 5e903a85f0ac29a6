"""`vpo evaluate`."""

from pathlib import Path

from pydantic import Field

from vpo_plugin.cli.settings import read
from vpo_plugin.search.settings import PolicySettings


class Evaluate(PolicySettings):
    """Sample a pool of candidates for each held-out prompt of a specification, score it, and store it."""

    rollouts: int = Field(ge=1, description="Responses for each prompt.")
    batch: int = Field(32, ge=1, description="Prompts to sample and store at a time.")
    output: Path = Field(description="Folder of the pool; resumed if it exists.")


def main(arguments: list[str]) -> int:
    """Sample what the pool lacks, and print its measures."""
    settings = read(Evaluate, arguments, "vpo evaluate")
    from vpo_plugin.report.tables import format_table
    from vpo_plugin.search.comparison import Comparison
    from vpo_plugin.search.evaluate import evaluate

    command = ["vpo", "evaluate", *arguments]
    pool, spec, rows = evaluate(settings, settings.rollouts, settings.batch, settings.output, command)
    print(format_table(Comparison({(settings.output.name, 0): pool}, spec, rows).results()))
    return 0

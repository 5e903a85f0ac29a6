"""`vpo search`."""

from pathlib import Path
from typing import get_args

from pydantic import Field
from pydantic_settings import CliVariadicArg

from vpo_plugin.cli.settings import read
from vpo_plugin.search.settings import PolicySettings, Procedure


class Search(PolicySettings):
    """Spend a budget of candidates on each prompt, by one or several procedures, until it is solved."""

    procedure: CliVariadicArg[list[Procedure]] = Field(
        list(get_args(Procedure)), description=f"Search procedures: {', '.join(get_args(Procedure))}."
    )
    budget: int = Field(ge=1, description="Maximum number of candidates for each prompt.")
    unsolved_in: CliVariadicArg[list[Path]] = Field(
        [], description="Pools: search only the prompts that none of them solves."
    )
    openevolve: Path | None = Field(None, description="OpenEvolve's configuration for the evolution, a YAML file.")
    output: Path = Field(description="Output folder, with a subfolder for each procedure; resumed if it exists.")


def main(arguments: list[str]) -> int:
    """Search, and print the share of solved prompts against the budget."""
    settings = read(Search, arguments, "vpo search")
    from vpo_plugin.report.tables import format_searches
    from vpo_plugin.search.run import run_searches

    searches = run_searches(
        settings,
        dict.fromkeys(settings.procedure),
        settings.budget,
        settings.unsolved_in,
        settings.openevolve,
        settings.output,
    )
    print(format_searches([(settings.output.name, name, search) for name, search in searches.items()]))
    return 0

"""`vpo show`."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg

from vpo_plugin.cli.settings import Command, read


class Show(Command):
    """Print the last steps of a run's trainings, what is wrong, and what the policy wrote."""

    run: CliPositionalArg[Path] = Field(description="Folder of a run, or a training's --ckpt.output_dir.")
    step: int | None = Field(None, ge=1, description="Show only the rollouts of this step, counted from 1.")
    prompts: int | None = Field(None, ge=1, description="Maximum number of prompts to show.")


def main(arguments: list[str]) -> int:
    """Print the trainings, and a table for each prompt."""
    settings = read(Show, arguments, "vpo show")
    from vpo_plugin.report.rollouts import find_trainings, format_run, format_step

    if settings.step is None:
        print(format_run(settings.run, settings.prompts))
    else:
        log = list(find_trainings(settings.run).values())[-1:] or [settings.run]
        print(format_step(log[0], settings.step, settings.prompts))
    return 0

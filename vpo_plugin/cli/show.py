"""`vpo show`."""

from pathlib import Path

from pydantic import Field

from vpo_plugin.cli.settings import Command, read


class Show(Command):
    """Print what the policy wrote in a step of a training, with its rewards: vpo show RUN --step N."""

    run: Path = Field(description="The training's --ckpt.output_dir; may stand without its flag.")
    step: int | None = Field(None, ge=1, description="Step, from 1; the last one if none.")
    prompts: int | None = Field(None, ge=1, description="Show no more prompts than this.")


def main(arguments: list[str]) -> int:
    """Print a table for each prompt."""
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--run", *arguments]
    settings = read(Show, arguments, "vpo show")
    from vpo_plugin.report.rollouts import format_step

    print(format_step(settings.run, settings.step, settings.prompts))
    return 0

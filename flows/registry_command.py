"""`vpo registry`."""

import json
import shlex
import sys
from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg

from flows.registry import HEADER, champion, history, overview, read_version, repair, rollback
from vpo_plugin.cli.settings import Command, choose, columns, read
from vpo_plugin.files import printable

SERVER = ("python", "-m", "vllm.entrypoints.openai.api_server")
"""`vllm serve`, which vLLM's CPU build does not have."""


class Registry(Command):
    """List the versions of a registry and mark the champion."""

    registry: Path = Field(Path("runs/registry"), description="Folder of the registry.")


class Show(Registry):
    """Show a version as JSON, with its comparison, its history, and the command that serves it."""

    version: CliPositionalArg[str | None] = Field(None, description="Version; default: the champion.")


class Rollback(Registry):
    """Make an earlier version champion again."""

    version: CliPositionalArg[str | None] = Field(None, description="Version; default: the previous champion.")


def main(arguments: list[str]) -> int:
    """Run the named subcommand."""
    return choose({"list": show_all, "show": show, "rollback": roll_back}, arguments, "vpo registry")


def show_all(arguments: list[str]) -> int:
    """list all versions and mark the champion"""
    text = "\n".join(columns([HEADER, *overview(mended(read(Registry, arguments, "vpo registry list").registry))]))
    print(printable(text))
    return 0


def show(arguments: list[str]) -> int:
    """show one version as JSON; default: the champion"""
    settings = read(Show, arguments, "vpo registry show")
    folder = mended(settings.registry)
    version = read_version(folder, settings.version) if settings.version else champion(folder)
    if version is None:
        raise ValueError(f"The registry {folder} has no champion yet.")
    shown = version.model_dump() | {"prompts": len(version.prompts)}
    changes = [change for change in history(folder) if version.version in (change.champion, change.previous)]
    shown["serve"] = shlex.join([*SERVER, "--model", version.policy, "--served-model-name", "champion"])
    shown["history"] = [change.model_dump() for change in changes]
    print(json.dumps(shown, indent=2))
    return 0


def roll_back(arguments: list[str]) -> int:
    """make an earlier version champion again; default: the previous one"""
    settings = read(Rollback, arguments, "vpo registry rollback")
    from flows.mlflow_mirror import check_mlflow, mirror

    check_mlflow()
    change = rollback(settings.registry, settings.version)
    print(f"{change.champion} is champion instead of {change.previous}.")
    if mirrored := mirror(settings.registry):
        print(mirrored)
    return 0


def mended(folder: Path) -> Path:
    """The registry's folder, after rebuilding a damaged champion pointer, with a message.

    Raises:
        FileNotFoundError: there is no registry.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no registry in {folder}; a retraining creates one.")
    if done := repair(folder):
        print(f"vpo: {done}", file=sys.stderr)
    return folder

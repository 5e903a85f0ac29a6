"""`vpo registry`."""

import json
import sys
from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg

from flows.registry import ROLLED_BACK, RegistryError, champion, history, read_version, repair, rollback, version_ids
from vpo_plugin.cli.settings import Command, choose, columns, read


class Registry(Command):
    """List the versions of a registry; the champion is marked."""

    registry: Path = Field(Path("runs/registry"), description="Folder of the registry.")


class Show(Registry):
    """Show a version as JSON, with its comparison and its history."""

    version: CliPositionalArg[str | None] = Field(None, description="The champion if none is named.")


class Rollback(Registry):
    """Make an earlier version champion again."""

    version: CliPositionalArg[str | None] = Field(None, description="The champion before, if none is named.")


def main(arguments: list[str]) -> int:
    """Run the command that is named."""
    return choose({"list": show_all, "show": show, "rollback": roll_back}, arguments, "vpo registry")


def show_all(arguments: list[str]) -> int:
    """all versions, the champion marked"""
    folder = mended(read(Registry, arguments, "vpo registry list").registry)
    current = champion(folder)
    reasons: dict[str, list[str]] = {}
    for change in history(folder):
        reasons.setdefault(change.champion, []).append(change.why)
    lines = [("", "version", "parent", "prompts", "outcome", "created", "policy")]
    for name in version_ids(folder):
        try:
            version = read_version(folder, name)
        except RegistryError as error:
            lines.append(("!", name, "", "", "", "", str(error)))
            continue
        mark = "*" if current and name == current.version else ""
        gain = next((f"{m} {c['mean']:+.3f}, " for m, c in (version.evaluation or {}).get("changes", {}).items()), "")
        outcome = gain + outcome_of(reasons.get(name, []))
        prompts = str(len(version.prompts))
        lines.append((mark, name, version.parent or "", prompts, outcome, version.created, version.policy))
    text = "\n".join(columns(lines))
    print("".join(character if character.isprintable() or character == "\n" else "?" for character in text))
    return 0


def outcome_of(reasons: list[str]) -> str:
    """What a retraining decided on its version, and whether a person decided otherwise later.

    Args:
        reasons: why the version became champion, each time.
    """
    decided = "promoted" if set(reasons) - {ROLLED_BACK} else "kept aside"
    return decided + (", rolled back to" if ROLLED_BACK in reasons else "")


def show(arguments: list[str]) -> int:
    """one version as JSON; the champion unless another is named"""
    settings = read(Show, arguments, "vpo registry show")
    folder = mended(settings.registry)
    version = read_version(folder, settings.version) if settings.version else champion(folder)
    if version is None:
        raise ValueError(f"The registry {folder} has no champion yet.")
    shown = version.model_dump() | {"prompts": len(version.prompts)}
    changes = [change for change in history(folder) if version.version in (change.champion, change.previous)]
    shown["history"] = [change.model_dump() for change in changes]
    print(json.dumps(shown, indent=2))
    return 0


def roll_back(arguments: list[str]) -> int:
    """make an earlier version champion again, the one before if none is named"""
    settings = read(Rollback, arguments, "vpo registry rollback")
    from flows.mlflow_mirror import check_mlflow, mirror

    check_mlflow()
    change = rollback(settings.registry, settings.version)
    print(f"{change.champion} is champion instead of {change.previous}.")
    if mirrored := mirror(settings.registry):
        print(mirrored)
    return 0


def mended(folder: Path) -> Path:
    """The registry's folder; a damaged champion pointer is rebuilt, with a message.

    Raises:
        FileNotFoundError: there is no registry.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no registry in {folder}; a retraining makes one.")
    if done := repair(folder):
        print(f"vpo: {done}", file=sys.stderr)
    return folder

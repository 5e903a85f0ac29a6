"""``vpo registry``: the policies that retraining made, and which of them is deployed."""

import argparse
import json
import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Run the command; what is wrong is said in one sentence on stderr, with exit code 1."""
    parser = argparse.ArgumentParser(prog="vpo registry", description=__doc__.split(":", 1)[1].strip().capitalize())
    parser.add_argument(
        "--registry", type=Path, default=Path("runs/registry"), metavar="FOLDER", help="default: runs/registry"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("list", help="all versions, the champion marked").set_defaults(run=run_list)
    show = commands.add_parser("show", help="one version as JSON; the champion unless another is named")
    show.add_argument("version", nargs="?", metavar="VERSION")
    show.set_defaults(run=run_show)
    back = commands.add_parser("rollback", help="make an earlier version champion again")
    back.add_argument("version", nargs="?", metavar="VERSION", help="default: the one before the present champion")
    back.set_defaults(run=run_rollback)
    args = parser.parse_args(arguments)
    try:
        if not args.registry.is_dir():
            raise FileNotFoundError(f"There is no registry in {args.registry}; a retraining makes one.")
        args.run(args)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"vpo: {error}", file=sys.stderr)
        return 1
    return 0


def run_list(args: argparse.Namespace) -> None:
    from flows.registry import RegistryError, champion, history, read_version, version_ids

    mend(args.registry)
    current = champion(args.registry)
    champions = {change.champion for change in history(args.registry)}
    lines = [("", "version", "parent", "prompts", "outcome", "created", "policy")]
    for name in version_ids(args.registry):
        try:
            version = read_version(args.registry, name)
        except RegistryError as error:
            lines.append(("!", name, "", "", "", "", str(error)))
            continue
        mark = "*" if current and name == current.version else ""
        gain = next((f"{m} {c['mean']:+.3f}, " for m, c in (version.evaluation or {}).get("changes", {}).items()), "")
        outcome = gain + ("promoted" if name in champions else "kept aside")
        prompts = str(len(version.prompts))
        lines.append((mark, name, version.parent or "", prompts, outcome, version.created, version.policy))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        print("".join(character if character.isprintable() else "?" for character in text))


def run_show(args: argparse.Namespace) -> None:
    from flows.registry import champion, history, read_version

    mend(args.registry)
    version = read_version(args.registry, args.version) if args.version else champion(args.registry)
    if version is None:
        raise ValueError(f"The registry {args.registry} has no champion yet.")
    shown = version.model_dump() | {"prompts": len(version.prompts)}
    changes = [change for change in history(args.registry) if version.version in (change.champion, change.previous)]
    shown["history"] = [change.model_dump() for change in changes]
    print(json.dumps(shown, indent=2))


def run_rollback(args: argparse.Namespace) -> None:
    from flows.mlflow_mirror import check_mlflow, mirror
    from flows.registry import rollback

    check_mlflow()
    change = rollback(args.registry, args.version)
    print(f"{change.champion} is champion in the place of {change.previous}.")
    if mirrored := mirror(args.registry):
        print(mirrored)


def mend(registry: Path) -> None:
    """Rebuild a damaged champion pointer, and say so."""
    from flows.registry import repair

    if done := repair(registry):
        print(f"vpo: {done}", file=sys.stderr)

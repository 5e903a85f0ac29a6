"""The `vpo` command: reward specifications, scoring, search evaluation, the estimator's benchmark and example."""

import argparse
import importlib
import json
import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vpo_plugin.rewards import RewardSpec


PROGRAMS = {
    "evaluate": ("vpo_plugin.search.evaluate", "sample, score and store candidates for each held-out prompt"),
    "search": ("vpo_plugin.search.run", "search for solutions: best-of-k, refinement, evolution"),
    "report": ("vpo_plugin.cli.report", "compare pools and searches in a report to open in a browser"),
    "select": ("vpo_plugin.search.select", "the best candidate of a pool for each prompt, under your own weights"),
    "doctor": ("vpo_plugin.cli.doctor", "versions, devices, Ray, sandbox and Prefect here, and what would fail"),
    "explain": ("vpo_plugin.cli.explain", "what vpo does, on an exact example in seconds"),
}
"""Commands that are modules with a parser of their own, with their help."""
COMMANDS = "vpo_plugin.commands"
"""Entry point group in which packages add commands: a function of the arguments, whose docstring is the help."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; what is wrong is said in one sentence on stderr, with exit code 1."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments and arguments[0] in PROGRAMS:
            module, _text = PROGRAMS[arguments[0]]
            return importlib.import_module(module).main(arguments[1:])
        if arguments and (added := entry_points(group=COMMANDS, name=arguments[0])):
            return next(iter(added)).load()(arguments[1:])
        args = build_parser().parse_args(arguments)
        if getattr(args, "unsafe_no_sandbox", False):
            os.environ["VPO_UNSAFE_NO_SANDBOX"] = "1"  # read by vpo_plugin.rewards.sandbox, here and in other processes
        return args.run(args)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"vpo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("vpo: interrupted", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vpo", description="Vector rewards: specifications, scoring, estimators.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for program, (_module, text) in PROGRAMS.items():
        commands.add_parser(program, help=text)
    for added in entry_points(group=COMMANDS):
        commands.add_parser(added.name, help=added.load().__doc__)
    unsafe = argparse.ArgumentParser(add_help=False)
    unsafe.add_argument(
        "--unsafe-no-sandbox",
        action="store_true",
        help="run the programs that are scored without a boundary, with all that your user may do",
    )

    spec = commands.add_parser("spec", help="list, check and make reward specifications")
    specs = spec.add_subparsers(required=True, metavar="COMMAND")
    listing = specs.add_parser("list", help="the specifications that are known by name")
    listing.set_defaults(run=run_list)

    check = specs.add_parser("check", parents=[unsafe], help="check a specification on its own data, and measure it")
    check.add_argument("spec", metavar="NAME", help="name, folder or YAML file of the specification")
    check.add_argument(
        "--data", metavar="SOURCE", help="file, folder, URL or hub id in the place of the specification's own dataset"
    )
    check.add_argument(
        "--scores", metavar="FILE", type=Path, help="matrices that `vpo score` wrote: measure whether VPO can help"
    )
    check.add_argument("--tokenizer", metavar="MODEL", help="model folder or hub id whose tokenizer counts the tokens")
    check.set_defaults(run=run_check)

    new = specs.add_parser("new", help="write a small specification that works, to be changed into your own")
    new.add_argument("name", metavar="NAME", help="name of the specification, of its folder and its module")
    new.add_argument("--folder", type=Path, default=Path(), help="where the new folder goes (default: here)")
    new.set_defaults(run=run_new)

    schema = specs.add_parser("schema", help="print the JSON schema of spec.yaml")
    schema.set_defaults(run=run_schema)

    score = commands.add_parser(
        "score",
        parents=[unsafe],
        help="score a file of responses into a file of reward matrices",
        description='Rows {"response": text, "label": value, "candidates": m} become {"matrix": [[…]], "parsed": n,'
        ' "unique": n, "scalar": x}, line by line; a row that cannot be scored becomes {"line": n, "error": text}.',
    )
    score.add_argument("--spec", required=True, help="name, folder or YAML file of the specification")
    score.add_argument("--input", required=True, type=Path, metavar="FILE", help="responses, one JSON row a line")
    score.add_argument("--output", required=True, type=Path, metavar="FILE", help="matrices; replaced when all is done")
    score.add_argument("--strict", action="store_true", help="end at the first row that cannot be scored")
    score.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (all cores)")
    score.set_defaults(run=run_score)
    return parser


def run_list(args: argparse.Namespace) -> int:
    from vpo_plugin.rewards.files import SpecError, load_spec, spec_files

    lines = [("name", "k", "m", "format", "description")]
    for name, file in spec_files().items():
        try:
            spec = load_spec(file)
        except SpecError as error:
            lines.append((name, "-", "-", "-", str(error).splitlines()[0]))
            continue
        k = f"1-{spec.ragged.max}" if spec.ragged else str(len(spec.objective_keys))
        form = "tags" if spec.tag else "code blocks" if spec.fence else "separator"
        lines.append((name, k, str(spec.candidates), form, " ".join(spec.description.split())))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for *cells, description in lines:
        start = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=False))
        print(f"{start}  {_shortened(description, max(98 - len(start), 40))}")
    return 0


def run_check(args: argparse.Namespace) -> int:
    from vpo_plugin.rewards.check import check_spec, measure_spec
    from vpo_plugin.rewards.collinear import measure_disagreement, read_matrices
    from vpo_plugin.rewards.data import SAMPLE, DatasetError
    from vpo_plugin.rewards.files import load_spec, spec_file

    spec = load_spec(args.spec)
    if args.data is not None:
        spec = _with_source(spec, args.data)
    tokens = None
    if args.tokenizer:
        from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(args.tokenizer)

        def tokens(text: str) -> int:
            return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    try:
        findings = check_spec(spec)
    except DatasetError as error:
        sample = spec_file(args.spec).parent / SAMPLE
        if args.data is not None or not sample.is_file():
            raise
        print(f"NOT CHECKED on its dataset but on the few rows of {sample}: {error}")
        spec = _with_source(spec, str(sample))
        findings = check_spec(spec)
    for finding in [*findings, *measure_spec(spec, tokens)]:
        print(finding)
    if args.scores is not None:
        for finding in measure_disagreement(spec, list(read_matrices(args.scores, spec))):
            print(finding)
    print(f"The spec '{spec.name}' is sound.")
    return 0


def run_new(args: argparse.Namespace) -> int:
    from vpo_plugin.rewards.files import spec_home
    from vpo_plugin.rewards.skeleton import new_spec

    files = new_spec(args.name, args.folder, str(spec_home() / "schema.json"))
    print("\n".join(["Written:", *map(str, files), "", f"Next: vpo spec check {files[0].parent}"]))
    return 0


def run_schema(args: argparse.Namespace) -> int:
    from vpo_plugin.rewards.spec import json_schema

    print(json.dumps(json_schema(), indent=2))
    return 0


def run_score(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

    from vpo_plugin.rewards.files import load_spec
    from vpo_plugin.rewards.score_file import score_file

    if args.workers < 1:
        raise ValueError(f"--workers is {args.workers}: at least 1 process scores.")
    load_spec(args.spec)  # what is wrong with it is said before any process starts
    console = Console(stderr=True)
    columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("", total=args.input.stat().st_size)
        rows, bad = score_file(
            args.spec,
            args.input,
            args.output,
            workers=args.workers,
            strict=args.strict,
            on_error=lambda number, sentence: console.print(
                f"Line {number}: {sentence}", markup=False, highlight=False, soft_wrap=True
            ),
            on_progress=lambda size: progress.advance(bar, size),
        )
    print(f"{rows - bad} rows scored into {args.output}, {bad} could not be scored.", file=sys.stderr)
    return 0


def _with_source(spec: "RewardSpec", source: str) -> "RewardSpec":
    import inspect

    from vpo_plugin.rewards.spec import load_entry_point

    loader = spec.dataset.loader
    if "source" not in inspect.signature(load_entry_point(loader)).parameters:
        raise ValueError(f"--data names a source, and the loader {loader} of the spec '{spec.name}' takes none.")
    dataset = spec.dataset.model_copy(update={"args": {**spec.dataset.args, "source": source}})
    return spec.model_copy(update={"dataset": dataset})


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"

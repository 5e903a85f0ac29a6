"""`vpo report`."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from pydantic_settings import CliVariadicArg

from vpo_plugin.cli.settings import Command, read
from vpo_plugin.openrlhf.log import training_curve
from vpo_plugin.provenance import provenance
from vpo_plugin.report.rollouts import find_trainings
from vpo_plugin.report.tables import format_searches, format_table
from vpo_plugin.report.write import write_report
from vpo_plugin.rewards import load_spec
from vpo_plugin.search.comparison import Comparison, compare_searches
from vpo_plugin.search.pool import load_pool, shared_prompts
from vpo_plugin.search.searches import load_searches


class Report(Command):
    """Compare pools and searches, and write report.html, report.json and best_at_k.png."""

    pools: CliVariadicArg[list[str]] = Field(
        min_length=1, description="Pools of `vpo evaluate`: FOLDER or NAME=FOLDER."
    )
    searches: CliVariadicArg[list[str]] = Field([], description="Outputs of `vpo search`: FOLDER or NAME=FOLDER.")
    run: Path | None = Field(None, description="A run of the pipeline, for its training curves and settings.")
    match: Literal["candidates", "tokens"] = Field("candidates", description="What to match between policies.")
    spec: str | None = Field(None, description="Reward specification; default: the one that scored the pools.")
    title: str | None = Field(None, description="Title; default: the specification and the policies.")
    output: Path = Field(description="Folder of the report.")


def main(arguments: list[str]) -> int:
    """Write the report; prints the headline table."""
    args = read(Report, arguments, "vpo report")
    loaded = {name: load_pool(folder) for name, folder in named(args.pools).items()}
    specs = {pool.made["spec_digest"] for pool in loaded.values()}
    if len(specs) > 1:
        raise ValueError(f"The pools were scored with different specifications: {sorted(specs)}.")
    if len({code for pool in loaded.values() if (code := pool.made.get("code_digest"))}) > 1:
        print("The specification's code has changed between these pools, so its rewards may differ.", file=sys.stderr)
    first = next(iter(loaded.values())).made
    spec = load_spec(args.spec or first["spec"])
    searches = [one for name, folder in named(args.searches).items() for one in load_searches(name, folder)]
    pools, rows, left_out = shared_prompts(loaded)
    compared = Comparison({(name, 0): pool for name, pool in pools.items()}, spec, rows, match=args.match)
    results = compared.results() | {
        "title": args.title or f"{spec.name}: {', '.join(pools)}",
        **provenance(shlex.join(["vpo", "report", *arguments])),
        "left_out": left_out,
        **(_of_run(args.run) if args.run else {"training": []}),
    }
    if searches:
        results |= compare_searches(searches, rows)
    write_report(results, args.output, compared.prompts())
    print(format_table(results))
    if left_out:
        print(f"{left_out} prompts are not in all pools, and were left out.")
    if searches:
        print(f"\n{format_searches(searches)}")
    print(f"\nReport: {args.output / 'report.html'}")
    return 0


def named(parts: list[str]) -> dict[str, Path]:
    """The folders of `NAME=FOLDER` arguments; a folder alone is named after itself.

    Raises:
        ValueError: a name is given twice.
    """
    folders: dict[str, Path] = {}
    for part in parts:
        name, equals, folder = ("", "", part) if Path(part).is_dir() else part.partition("=")
        place = Path(folder if equals else part)
        name = name if equals else place.name
        if name in folders:
            raise ValueError(f"The name {name!r} is given twice: write NAME=FOLDER with different names.")
        folders[name] = place
    return folders


def _of_run(run: Path) -> dict[str, Any]:
    """The parts `training` and `settings` of the report, the latter from the run's own report if it has one."""
    logs = find_trainings(run)
    if not logs:
        raise FileNotFoundError(f"{run} is not a run of the pipeline: it has no train/*/policy/vpo.")
    training = [{"name": name, "steps": training_curve(log)} for name, log in sorted(logs.items())]
    report = run / "report.json"
    try:
        settings = json.loads(report.read_text()).get("settings") if report.exists() else None
    except ValueError as error:
        raise ValueError(f"{report} is damaged ({error}): delete it.") from error
    return {"training": training} | ({"settings": settings} if settings else {})

"""Evidence: what policies find by evolution on the prompts that best-of-k leaves unsolved.

`python -m benchmarks.evolution --spec maze_small --policies base=PATH grpo=PATH vpo=PATH --sets vpo` samples a pool of
each policy on the same held-out prompts, searches the prompts that the pools leave unsolved, with every policy, by
best-of-k and by evolution at the same budget, and writes summary.md, results.json and solved.png. Finished parts are
not repeated.
"""

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vpo_plugin import files
from vpo_plugin.cli.report import named
from vpo_plugin.metrics import difference
from vpo_plugin.provenance import provenance
from vpo_plugin.report import plots
from vpo_plugin.report.style import styles
from vpo_plugin.report.tables import format_searches, format_table
from vpo_plugin.rewards import load_spec
from vpo_plugin.rewards.fit import room
from vpo_plugin.search.comparison import Comparison, compare_searches
from vpo_plugin.search.experiment import LEVEL, verdict
from vpo_plugin.search.pool import load_pool, shared_prompts
from vpo_plugin.search.searches import Search, load_searches

PROCEDURES = ("best_of_k", "evolution")
DASHES = {"best_of_k": ":", "evolution": "-"}


def main(arguments: list[str] | None = None) -> int:
    """Run the missing parts and write the evidence."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evolution", description=__doc__.partition("\n")[0])
    parser.add_argument("--spec", default="maze_small")
    parser.add_argument("--policies", nargs="+", required=True, metavar="NAME=PATH")
    parser.add_argument(
        "--sets", nargs="*", default=[], metavar="NAME", help="policies that write the spec's m candidates"
    )
    parser.add_argument(
        "--unsolved_by", nargs="+", metavar="NAME", help="policies whose pools leave a prompt unsolved (default: all)"
    )
    parser.add_argument("--only_pools", nargs="*", default=[], metavar="NAME", help="policies that do not search")
    parser.add_argument("--prompts", type=int, default=200, help="held-out prompts of the pools (200)")
    parser.add_argument("--candidates", type=int, default=30, help="of each prompt in the pools (30)")
    parser.add_argument("--budget", type=int, default=120, help="candidates for each unsolved prompt (120)")
    parser.add_argument("--temperature", type=float, default=1.0, help="of pools and searches (1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/evolution"), help="folder of the pools and searches")
    parser.add_argument("--output", type=Path, default=Path("docs/evidence/evolution"))
    args = parser.parse_args(arguments)

    policies = named(args.policies)
    by = args.unsolved_by or list(policies)
    for flag, names in (("sets", args.sets), ("unsolved_by", by), ("only_pools", args.only_pools)):
        if unknown := set(names) - set(policies):
            raise ValueError(f"--{flag} names {sorted(unknown)}, which --policies does not name.")
    if set(args.only_pools) == set(policies):
        raise ValueError("--only_pools names every policy: leave out those that search.")
    spec = load_spec(args.spec)
    sizes = {name: spec.candidates if name in args.sets else 1 for name in policies}
    pools = {name: args.work / "pools" / name for name in policies}
    searches = {name: args.work / "searches" / name for name in policies if name not in args.only_pools}
    common = ["--spec", args.spec, "--seed", str(args.seed), "--temperature", str(args.temperature)]
    common += ["--max_new_tokens", str(room(spec, spec.candidates))]  # the same for all, also for single candidates
    flags = {name: [*common, "--model", str(policies[name]), "--candidates", str(sizes[name])] for name in policies}
    for name in pools:
        rollouts = ["--rollouts", str(args.candidates // sizes[name])]
        vpo("evaluate", *flags[name], *rollouts, "--prompts", str(args.prompts), "--output", str(pools[name]))
    for name in searches:
        unsolved = ["--unsolved_in", *(str(pools[name]) for name in by), "--budget", str(args.budget)]
        vpo("search", *flags[name], *unsolved, "--procedure", *PROCEDURES, "--output", str(searches[name]))
    folders = [f"{name}={folder}" for name, folder in pools.items()]
    found = [f"{name}={folder}" for name, folder in searches.items()]
    vpo("report", "--pools", *folders, "--searches", *found, "--output", str(args.work / "report"))

    loaded, rows, _ = shared_prompts({name: load_pool(folder) for name, folder in pools.items()})
    stored = [one for name in searches for one in load_searches(name, searches[name]) if one[1] in PROCEDURES]
    evolved = [one for one in stored if one[1] == "evolution"]
    results = {
        **provenance(shlex.join(["python", "-m", "benchmarks.evolution", *arguments])),
        "pools": format_table(Comparison({(name, 0): of for name, of in loaded.items()}, spec, rows).results()),
        "searches": format_searches(stored),
        **compare_searches(stored, rows),
        "only_solved_by_evolution_of": compare_searches(evolved, rows)["only_solved_by"],
        "temperature": args.temperature,
        "verdicts": verdicts(evolved),
        "unsolved_by": "every pool" if len(by) == len(policies) else f"the pool of {' and of '.join(by)}",
        "unsolved_prompts": len(stored[0][2].rows),
        "prompts": len(rows),
    }
    files.write_all(
        {
            args.output / "results.json": json.dumps(results, indent=1) + "\n",
            args.output / "summary.md": summary(results),
            args.output / "solved.png": plots.picture(partial(plot, results=results)),
        }
    )
    print(results["searches"])
    return 0


def vpo(*arguments: str) -> None:
    """Run a `vpo` command in its own process. Raises RuntimeError if it fails; its output says why."""
    print("vpo " + shlex.join(arguments), flush=True)
    done = subprocess.run([sys.executable, "-m", "vpo_plugin.cli", *arguments], check=False)
    if done.returncode:
        raise RuntimeError(f"`vpo {arguments[0]}` failed; see the error above.")


def verdicts(evolved: Sequence[tuple[str, str, Search]], above: int = 30) -> list[str]:
    """Sentences on whether the paper's claim on evolution holds: what each policy's search solves beside `grpo`'s."""
    after = {policy: search.solved_after for policy, _, search in evolved}
    if "grpo" not in after:
        return []
    budgets = np.arange(above, evolved[0][2].made["budget"]) + 1
    said = []
    for policy in after.keys() - {"grpo", "base"}:
        new = int((np.isfinite(after[policy]) & ~np.isfinite(after["grpo"])).sum())
        said.append(f"{policy} solves prompts that grpo never does: {'holds' if new else 'does not hold'}, {new}")
        if len(budgets):
            gap = difference(*((of[None, :, None] <= budgets).astype(float) for of in (after[policy], after["grpo"])))
            fails = min(gap["high"]) < -LEVEL  # at some budget, and then not at every one
            worst = int(np.argmin(gap["high" if fails else "low"]))
            at = {part: gap[part][worst] for part in ("mean", "low", "high")}
            said.append(
                f"at every budget above {above}, {policy} solves at least as many as grpo: {verdict(at, -LEVEL)}, at "
                f"the worst, {budgets[worst]}, {at['mean']:+.3f} ({at['low']:+.3f} to {at['high']:+.3f})"
            )
    return sorted(said)


def summary(results: dict[str, Any]) -> str:
    """The evidence as Markdown."""
    alone = [
        f"- {name}: {len(numbers)} ({', '.join(map(str, numbers)) or 'none'})"
        for name, numbers in results["only_solved_by_evolution_of"].items()
    ]
    return "\n".join(
        [
            f"`{results['command']}`\n",
            f"{results['machine']}; {', '.join(f'{name} {number}' for name, number in results['versions'].items())}.\n",
            f"Pools on {results['prompts']} held-out prompts, temperature {results['temperature']:g}:\n",
            f"```\n{results['pools']}\n```\n",
            f"{results['unsolved_prompts']} of them are unsolved by {results['unsolved_by']}. Searched from scratch:\n",
            f"```\n{results['searches']}\n```\n",
            "Prompts that the evolution of one policy alone solves, by their number:\n",
            *alone,
            "\nThe paper's claim:\n",
            *(f"- {sentence}" for sentence in results["verdicts"]),
            "\n![solved prompts against budget](solved.png)\n",
        ]
    )


def plot(figure: Figure, results: dict[str, Any]) -> None:
    """Plot solved prompts against the budget: a colour per policy, a dash per procedure."""
    axes = figure.add_subplot()
    colours = styles([curve["policy"] for curve in results["search"]])
    for curve in results["search"]:
        colour, _ = colours[curve["policy"]]
        label = f"{curve['policy']}, {curve['procedure'].replace('_', '-')}"
        solved, budget = curve["solved"], curve["budget"]
        axes.step(budget, solved["mean"], DASHES[curve["procedure"]], where="post", color=colour, label=label)
        if curve["procedure"] == "evolution":
            axes.fill_between(budget, solved["low"], solved["high"], step="post", color=colour, alpha=0.12, linewidth=0)
    axes.set(xlabel="candidates tried for a prompt", ylabel="share of prompts solved", xlim=(0, None), ylim=(0, None))
    axes.set_title(
        f"{results['unsolved_prompts']} prompts unsolved by {results['unsolved_by']} (bands: 95 %)", fontsize=11
    )
    axes.legend(frameon=False)


if __name__ == "__main__":
    sys.exit(main())

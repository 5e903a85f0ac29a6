"""What an experiment leaves: results.json with every raw pool, summary.md, and the plots."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vpo_plugin import files
from vpo_plugin.report import plots
from vpo_plugin.report.tables import markdown_table, number, shown_ks
from vpo_plugin.search.experiment import pack_array
from vpo_plugin.search.pool import Pool

TRAINING = {
    "expected_set_reward": "E_w of all of a prompt's candidates",
    "pairwise_l1": "L1 distance of a prompt's candidates",
}


def write_experiment(results: dict[str, Any], pools: Mapping[tuple[str, int], Pool], folder: Path) -> None:
    """Write results.json, summary.md and the plots, all or none."""
    stored = [
        {"method": name, "seed": seed, "reward_matrices": pack_array(pool.reward_matrices)}
        for (name, seed), pool in pools.items()
    ]
    vectors: dict[str, list[np.ndarray]] = {}
    for (name, _), pool in pools.items():
        vectors.setdefault(name, []).append(pool.candidates.reshape(-1, len(results["objectives"])))
    together = {name: np.concatenate(of_seeds) for name, of_seeds in vectors.items()}
    drawn = {**results, "policies": results["methods"]}
    axis = "k, candidates searched" if results["match"] == "candidates" else "tokens generated in the search"
    curves = {name: curve for name, curve in results["training"].items() if curve}
    wide, high = (8.0, 4.8), 2.6 * -(-len(together) // 5) + 0.6
    files.write_all(
        {
            folder / "results.json": json.dumps(results | {"pools": stored}, indent=1) + "\n",
            folder / "best_at_k.png": plots.picture(partial(plots.at_k, results=drawn, axis=axis), wide),
            folder / "pass_at_k.png": plots.picture(partial(plots.at_k, results=drawn, kind="pass", axis=axis), wide),
            folder / "gap_at_k.png": plots.picture(partial(plots.gaps, results=drawn, axis=axis), wide),
            folder / "training.png": plots.picture(
                partial(plots.training, curves=curves, labels=TRAINING), (10.0, 4.2)
            ),
            folder / "sets.png": plots.picture(
                partial(plots.sets, vectors=together, objectives=results["objectives"]), (11.0, high)
            ),
            folder / "summary.md": format_summary(results),
        }
    )


def format_summary(results: dict[str, Any]) -> str:
    """The tables and the plots of an experiment in Markdown."""
    ks, ceiling = results["ks"], results["ceiling"]
    shown = [ks.index(k) for k in shown_ks(ks)] if results["match"] == "candidates" else [0, len(ks) - 1]
    unit = "" if results["match"] == "candidates" else " tokens"
    last = results["methods"][-1]["name"]
    head = ["method", "m", *(f"best@{ks[i]}{unit}" for i in shown), "95 % interval", "by seed",
            f"pass@{ks[-1]}{unit}", "E_w", "L1 distance", "distinct in a set"]  # fmt: skip
    rows = [
        [
            method["name"],
            str(method["candidates"]),
            *(number(method["best_at_k"]["mean"][i]) for i in shown),
            f"{number(method['best_at_k']['low'][-1])} to {number(method['best_at_k']['high'][-1])}",
            ", ".join(map(number, method["best_by_seed"])),
            number(method["pass_at_k"]["mean"][-1]),
            "{mean:.3f} ({low:.3f} to {high:.3f})".format(**method["expected_set_reward"]),
            number(method["pairwise_l1"]["mean"], 2),
            f"{number(method['distinct_rewards']['mean'], 2)} of {method['candidates']}",
        ]
        for method in results["methods"]
    ]
    if ceiling:
        rows.append(["exact ceiling", "", *[number(ceiling["best"])] * len(shown), "", "", "",
                     number(ceiling["expected_set_reward"]), "", ""])  # fmt: skip
    differences = [
        [
            f"{last} − {d['b']}",  # noqa: RUF001
            *(f"{d['best_at_k']['mean'][i]:+.3f}" for i in shown),
            f"{d['best_at_k']['low'][-1]:+.3f} to {d['best_at_k']['high'][-1]:+.3f}",
            _signed(d["growth"]),
            _signed(d["expected_set_reward"]),
        ]
        for d in results["differences"]
    ]
    compute = [
        [
            m["name"],
            *(f"{m['trained'][key]:,.0f}" if m["trained"] else number(None) for key in ("candidates", "tokens")),
            f"{m['searched']['candidates']:.1f}".removesuffix(".0"),
            f"{m['searched']['tokens']:.0f}",
        ]
        for m in results["methods"]
    ]
    growth = [f"growth of the gap from {d['growth']['from_k']} to {ks[-1]}{unit}" for d in results["differences"][:1]]
    against = ["best@k", *(f"at {ks[i]}{unit}" for i in shown), f"interval at {ks[-1]}", *growth, "E_w"]
    parts = [
        f"# {results['title']}\n",
        f"`{results['command']}`\n",
        f"{results['machine']}; "
        + ", ".join(f"{name} {number}" for name, number in results["versions"].items())
        + f"; commit {results['commit']}.\n",
        f"{results['prompts']} held-out prompts, seeds {', '.join(map(str, results['seeds']))}; intervals are 95 %, "
        "over prompts and seeds; best@k and pass@k under the deployment weights.\n",
        "## Results\n",
        markdown_table(head, rows),
        *([f"## {last} against each of the others\n", markdown_table(against, differences)] if differences else []),
        "![best@k](best_at_k.png)\n![the gap](gap_at_k.png)\n![pass@k](pass_at_k.png)\n",
        "![training](training.png)\n![sets](sets.png)\n",
        f"## Compute, matched in {results['match']}\n",
        markdown_table(
            [
                "method",
                "candidates trained on",
                "tokens trained on",
                "candidates a test prompt",
                "tokens a test prompt",
            ],
            compute,
        ),
    ]
    return "\n".join(parts)


def _signed(measure: dict[str, float]) -> str:
    return "{mean:+.3f} ({low:+.3f} to {high:+.3f})".format(**measure)

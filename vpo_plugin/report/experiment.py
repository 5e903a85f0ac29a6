"""The output of an experiment: results.json with every raw pool, summary.md, and the plots."""

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
    "pairwise_l1": "L1 distance between a prompt's candidates",
}


def write_experiment(
    results: dict[str, Any], pools: Mapping[float, Mapping[tuple[str, int], Pool]], folder: Path
) -> None:
    """Write results.json, summary.md and the plots, all or none.

    Args:
        pools: by temperature, then by method and seed; plots show the first temperature.
    """
    stored = [
        {"method": name, "seed": seed, "temperature": t, "reward_matrices": pack_array(pool.reward_matrices)}
        for t, of in pools.items()
        for (name, seed), pool in of.items()
    ]
    vectors: dict[str, list[np.ndarray]] = {}
    for (name, _), pool in next(iter(pools.values())).items():
        vectors.setdefault(name, []).append(pool.candidates.reshape(-1, len(results["objectives"])))
    together = {name: np.concatenate(of_seeds) for name, of_seeds in vectors.items()}
    drawn = {**results, "policies": results["methods"]}
    axis = "k, candidates searched" if results["match"] == "candidates" else "tokens generated in the search"
    curves = {name: curve for name, curve in results["training"].items() if curve}
    wide, high = (8.0, 4.8), 2.6 * -(-len(together) // 5) + 0.6
    drawings: dict[str, tuple[partial[None], tuple[float, float]]] = {
        "best_at_k": (partial(plots.at_k, results=drawn, axis=axis), wide),
        "pass_at_k": (partial(plots.at_k, results=drawn, kind="pass", axis=axis), wide),
        "gap_at_k": (partial(plots.gaps, results=drawn, axis=axis), wide),
        "training": (partial(plots.training, curves=curves, labels=TRAINING), (10.0, 4.2)),
        "sets": (partial(plots.sets, vectors=together, objectives=results["objectives"]), (11.0, high)),
    }
    files.write_all(
        {
            folder / "results.json": json.dumps(results | {"pools": stored}, indent=1) + "\n",
            **{folder / f"{name}.png": plots.picture(plot, size) for name, (plot, size) in drawings.items()},
            folder / "summary.md": format_summary(results),
        }
    )


def format_summary(results: dict[str, Any]) -> str:
    """The tables, the verdicts and the plots of an experiment in Markdown."""
    compute = [
        [
            m["name"],
            *(f"{m['trained'][key]:,.0f}" if m["trained"] else number(None) for key in ("candidates", "tokens")),
            f"{m['searched']['candidates']:.1f}".removesuffix(".0"),
            f"{m['searched']['tokens']:.0f}",
        ]
        for m in results["methods"]
    ]
    head = [
        "method",
        "candidates trained on",
        "tokens trained on",
        "candidates per test prompt",
        "tokens per test prompt",
    ]
    sampled = [f"Pools were sampled with {_named(made)}.\n" for made in results.get("pool_versions", [])]
    parts = [
        f"# {results['title']}\n",
        f"`{results['command']}`\n",
        f"{results['machine']}; {_named(results['versions'])}; commit {results['commit']}.\n",
        *sampled,
        f"{results['prompts']} held-out prompts, seeds {', '.join(map(str, results['seeds']))}; intervals are 95 %, "
        "over prompts and seeds; best@k and pass@k under the deployment weights. best@k counts any k candidates, "
        "sets@k whole responses, k / m of them.\n",
        *([f"Missing: {', '.join(missing)}.\n"] if (missing := results.get("missing")) else []),
        *_figures(results),
        "![best@k](best_at_k.png)\n![the gap](gap_at_k.png)\n![pass@k](pass_at_k.png)\n",
        "![training](training.png)\n![sets](sets.png)\n",
        *(part for other in results.get("at", []) for part in _figures(other)),
        f"## Compute, matched in {results['match']}\n",
        markdown_table(head, compute),
    ]
    return "\n".join(parts)


def _named(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def _figures(results: dict[str, Any]) -> list[str]:
    """The tables at one temperature, or with each method at its best temperature."""
    ks, set_ks, ceiling, heat = results["ks"], results["set_ks"], results["ceiling"], results.get("temperature")
    chosen = heat if isinstance(heat, dict) else {}
    title = ", each method at its best temperature" if chosen else f", temperature {heat:g}" if heat else ""
    by_candidates = results["match"] == "candidates"
    shown = [ks.index(k) for k in shown_ks(ks)] if by_candidates else [0, len(ks) - 1]
    in_sets = sorted({0, (len(set_ks) - 1) // 2}) if set_ks else []  # one response, and half of all
    unit = "" if by_candidates else " tokens"
    last = results["methods"][-1]["name"]
    head = [
        *("method", "m", *["temperature"] * bool(chosen), *(f"best@{ks[i]}{unit}" for i in shown)),
        *(f"sets@{set_ks[i]}{unit}" for i in in_sets),
        *(f"interval of best@{ks[-1]}", "by seed", f"pass@{ks[-1]}{unit}", "E_w", "L1 distance", "distinct in a set"),
    ]
    rows = [
        [
            *(m["name"], str(m["candidates"]), *([f"{chosen[m['name']]:g}"] if chosen else [])),
            *(number(m["best_at_k"]["mean"][i]) for i in shown),
            *(number(m["best_at_k_sets"]["mean"][i]) for i in in_sets),
            f"{number(m['best_at_k']['low'][-1])} to {number(m['best_at_k']['high'][-1])}",
            ", ".join(map(number, m["best_by_seed"])),
            number(m["pass_at_k"]["mean"][-1]),
            "{mean:.3f} ({low:.3f} to {high:.3f})".format(**m["expected_set_reward"]),
            number(m["pairwise_l1"]["mean"], 2),
            f"{number(m['distinct_rewards']['mean'], 2)} of {m['candidates']}",
        ]
        for m in results["methods"]
    ]
    if ceiling:
        best = [number(ceiling["best"])] * (len(shown) + len(in_sets))
        worth = number(ceiling["expected_set_reward"])
        rows.append(["exact ceiling", *[""] * (1 + bool(chosen)), *best, "", "", "", worth, "", ""])
    parts = [f"## Results{title}\n", markdown_table(head, rows)]
    if results["differences"]:
        grown = f"growth of the gap from {results['differences'][0]['growth']['from_k']} to {ks[-1]}{unit}"
        against = ["difference", *(f"best@{ks[i]}{unit}" for i in shown), *(f"sets@{set_ks[i]}{unit}" for i in in_sets)]
        gaps = [
            [
                f"{last} − {d['b']}",  # noqa: RUF001
                *(f"{d['best_at_k']['mean'][i]:+.3f}" for i in shown),
                *(_signed({part: d["best_at_k_sets"][part][i] for part in ("mean", "low", "high")}) for i in in_sets),
                f"{d['best_at_k']['low'][-1]:+.3f} to {d['best_at_k']['high'][-1]:+.3f}",
                _signed(d["growth"]),
                _signed(d["expected_set_reward"]),
            ]
            for d in results["differences"]
        ]
        parts += [
            f"### {last} against each other method{title}\n",
            markdown_table([*against, f"interval of best@{ks[-1]}", grown, "E_w"], gaps),
        ]
        every = {m["name"]: len(m["best_by_seed"]) for m in results["methods"]}[last]
        if fewer := [f"{d['b']} ({_listed(d['seeds'])})" for d in results["differences"] if len(d["seeds"]) < every]:
            parts.append(f"Compared on the seeds that both have: {', '.join(fewer)}.\n")
    if results["verdicts"]:
        said = [f"- {v['claim']}: **{v['verdict']}**, {_signed(v)}" for v in results["verdicts"]]
        note = "The best temperatures were chosen on the same prompts, which favours all methods a little.\n"
        parts += [f"### The paper's claims{title}\n", "\n".join(said) + "\n", *([note] if chosen else [])]
    return parts


def _listed(seeds: list[int]) -> str:
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"


def _signed(measure: dict[str, float]) -> str:
    return "{mean:+.3f} ({low:+.3f} to {high:+.3f})".format(**measure)

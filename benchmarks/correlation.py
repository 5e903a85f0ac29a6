"""Evidence: the correlation of the objectives predicts what random weightings gain.

`python -m benchmarks.correlation docs/evidence/maze/results.json docs/evidence/maze_gold/results.json`
reads experiments on variants of one task. It prints the mean correlation, as `vpo spec check --scores` does
for the base policy's pool, with the lead of each method of random weightings over the method of fixed ones.
"""

import argparse
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.weightings import read_results, say
from vpo_plugin.advantages import parse_method
from vpo_plugin.metrics import difference, expected_set_reward
from vpo_plugin.report import plots
from vpo_plugin.report.style import styles
from vpo_plugin.report.tables import markdown_table
from vpo_plugin.rewards import RewardSpec
from vpo_plugin.search.collinear import mean_correlation
from vpo_plugin.search.experiment import BASE, RANDOM_WEIGHTS, unpack_array


def main() -> None:
    """Print the table, and write the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="results.json of each variant")
    parser.add_argument("--against", default="max_at_k", help="the method of fixed weights (max_at_k)")
    parser.add_argument("--plot", type=Path, help="PNG to write")
    args = parser.parse_args()
    variants = sorted((measure(*read_results(path), args.against) for path in args.results), key=lambda v: v[0])
    names = list(dict.fromkeys(name for _, leads in variants for name in leads))
    body = [
        [f"{correlation:+.2f}", *(say(leads[name], "+") if name in leads else "" for name in names)]
        for correlation, leads in variants
    ]
    print(
        markdown_table(["mean correlation", *(f"{name} - {args.against}, over all weightings" for name in names)], body)
    )
    if args.plot:
        args.plot.write_bytes(plots.picture(lambda figure: draw(figure, variants, names, args.against)))


def measure(results: dict[str, Any], spec: RewardSpec, against: str) -> tuple[float, dict[str, dict[str, Any]]]:
    """The mean correlation of the base policy's answers, and each method's lead over all weightings."""
    first = results["pools"][0].get("temperature")
    of: dict[str, list[Any]] = {}
    for pool in results["pools"]:
        if pool.get("temperature") == first:
            matrices = unpack_array(pool["reward_matrices"]).astype(float)
            of.setdefault(pool["method"], []).append(matrices.reshape(len(matrices), -1, matrices.shape[-1]))
    worth = {name: [expected_set_reward(seed, seed=0) for seed in pools] for name, pools in of.items()}
    leads = {
        name: difference(values, worth[against])
        for name, values in worth.items()
        if not name.startswith(BASE) and parse_method(name)[0] in RANDOM_WEIGHTS
    }
    return mean_correlation(spec, list(of[BASE][0])), leads


def draw(figure: Figure, variants: list[tuple[float, dict[str, Any]]], names: list[str], against: str) -> None:
    """Each method's lead against the correlation, with its interval."""
    axes = figure.add_subplot()
    for name, (colour, _) in styles(names).items():
        points = [(x, leads[name]) for x, leads in variants if name in leads]
        middle = [lead["mean"] for _, lead in points]
        reach = [
            [lead["mean"] - lead["low"] for _, lead in points],
            [lead["high"] - lead["mean"] for _, lead in points],
        ]
        places = [x for x, _ in points]
        axes.plot(places, middle, label=plots.short(name), color=colour, marker="o")
        axes.errorbar(places, middle, reach, fmt="none", color=colour, capsize=3, label=f"_{name}")
    axes.axhline(0, color="black", linewidth=0.8, label="_zero")
    axes.set(
        xlabel="mean correlation of the objectives",
        xlim=(-0.5, 1.05),
        ylabel=f"lead over {against}, over all weightings",
    )
    plots.legend(axes)


if __name__ == "__main__":
    main()

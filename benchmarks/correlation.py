"""Evidence: the correlation of the objectives predicts what random weightings gain.

    python -m benchmarks.correlation --lead vpo max_at_k docs/evidence/maze/results.json \
        docs/evidence/maze_gold/results.json

reads experiments on variants of one task. For each it prints the mean correlation of the objectives, as `vpo spec check
--scores` does for the base policy's pool, with the lead of a method of random weightings over one of fixed weights.
`--lead` can be repeated, for another pair of methods and its experiments. Those with the same spec.yaml share a row.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.weightings import own_spec, read_results, say
from vpo_plugin.metrics import difference, expected_set_reward
from vpo_plugin.report import plots
from vpo_plugin.report.style import styles
from vpo_plugin.report.tables import markdown_table
from vpo_plugin.rewards import RewardSpec
from vpo_plugin.search.collinear import mean_correlation
from vpo_plugin.search.comparison import BASE
from vpo_plugin.search.experiment import unpack_array

EVIDENCE = Path(__file__).parent.parent / "docs" / "evidence"

Lead = list[tuple[float, dict[str, Any]]]
"""The mean correlation of each variant, with the difference there."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and write the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--lead",
        nargs="+",
        action="append",
        required=True,
        metavar=("METHOD OVER", "RESULTS"),
        help="a method, the one that it is compared with, and the results.json of each variant",
    )
    parser.add_argument("--plot", type=Path, help="PNG to write")
    args = parser.parse_args(arguments)
    leads: dict[str, Lead] = defaultdict(list)
    rows: dict[str, dict[str, str]] = {}
    at: dict[str, float] = {}
    for words in args.lead:
        if len(words) < 3:
            parser.error(
                f"--lead {' '.join(words)} needs a method, the one it is compared with, and results.json files."
            )
        method, over, *results = words
        for path in map(Path, results):
            try:
                correlation, lead = measure(*read_results(path), method, over)
            except (ValueError, OSError) as error:
                parser.error(f"{path} cannot be compared: {error}")
            pair = f"{method} - {over}"
            leads[pair].append((correlation, lead))
            variant = shown(own_spec(path) or path)
            name = shown(path) if pair in rows.get(variant, {}) else variant
            rows.setdefault(name, {})[pair] = say(lead, "+")
            at.setdefault(name, correlation)
    body = [
        [name, f"{at[name]:+.2f}", *(rows[name].get(pair, "") for pair in leads)]
        for name in sorted(rows, key=lambda name: at[name])
    ]
    head = ["experiment", "mean correlation", *(f"{pair}, over all weightings" for pair in leads)]
    print(markdown_table(head, body))
    if args.plot:
        args.plot.write_bytes(plots.picture(lambda figure: draw(figure, leads)))


def shown(file: Path) -> str:
    """A file's folder as a row is called, from docs/evidence if it is there."""
    folder = file.parent.resolve()
    return str(folder.relative_to(EVIDENCE) if folder.is_relative_to(EVIDENCE) else folder)


def measure(results: dict[str, Any], spec: RewardSpec, method: str, over: str) -> tuple[float, dict[str, Any]]:
    """The mean correlation of the base policy's answers, and the method's lead over all weightings."""
    first = results["pools"][0].get("temperature")
    of: dict[str, list[Any]] = defaultdict(list)
    for pool in results["pools"]:
        if pool.get("temperature") == first:
            matrices = unpack_array(pool["reward_matrices"]).astype(float)
            of[pool["method"]].append(matrices.reshape(len(matrices), -1, matrices.shape[-1]))
    if missing := {BASE, method, over} - of.keys():
        raise ValueError(f"The experiment has no pool of {', '.join(sorted(missing))}; it has {', '.join(of)}.")
    worth = {name: np.stack([expected_set_reward(pool, seed=0) for pool in of[name]]) for name in (method, over)}
    return mean_correlation(spec, list(of[BASE][0])), difference(worth[method], worth[over])


def draw(figure: Figure, leads: dict[str, Lead]) -> None:
    """Each lead against the correlation, with its interval."""
    axes = figure.add_subplot()
    for pair, (colour, _) in styles(list(leads)).items():
        variants = sorted(leads[pair], key=lambda variant: variant[0])
        places = [x for x, _ in variants]
        middle = np.array([lead["mean"] for _, lead in variants])
        low, high = (np.array([lead[end] for _, lead in variants]) for end in ("low", "high"))
        axes.plot(places, middle, label=pair, color=colour, marker="o")
        axes.errorbar(places, middle, [middle - low, high - middle], fmt="none", color=colour, capsize=3)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(xlabel="mean correlation of the objectives", ylabel="lead over all weightings")
    axes.legend(frameon=False)


if __name__ == "__main__":
    main()

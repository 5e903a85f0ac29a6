"""Evidence: which method serves weightings that are drawn after training.

`python -m benchmarks.weightings docs/evidence/maze/results.json` reads the pools of an experiment, draws 200 weightings
as different users would have them, and prints each method's best reward under them and at the spec's own weights. The
last method is compared with each other one. Intervals are over prompts and seeds.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from vpo_plugin.metrics import Floats, best_at_k, difference, figure
from vpo_plugin.report.tables import markdown_table
from vpo_plugin.rewards import RewardSpec, load_spec
from vpo_plugin.search.experiment import unpack_array


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="results.json of the experiment")
    parser.add_argument("--weightings", type=int, default=200, help="how many are drawn (200)")
    parser.add_argument(
        "--concentration",
        type=float,
        default=1.0,
        help="of the Dirichlet distribution: 1 is uniform, less means that few objectives matter (1)",
    )
    parser.add_argument("--budget", type=int, help="candidates of each prompt (default: all of the pool)")
    parser.add_argument("--seed", type=int, default=2026, help="of the draw (2026)")
    args = parser.parse_args()
    results, spec = read_results(args.results)
    if spec.ragged:
        parser.error(f"The prompts of the spec '{spec.name}' have different objectives: no weighting fits all.")
    drawn = np.random.default_rng(args.seed).dirichlet([args.concentration] * len(spec.objective_keys), args.weightings)
    fixed = spec.weights_of(len(spec.objective_keys))[None]
    for temperature in dict.fromkeys(pool.get("temperature", 1.0) for pool in results["pools"]):
        pools = [pool for pool in results["pools"] if pool.get("temperature", 1.0) == temperature]
        of = {name: best_under(pools, name, drawn, args.budget) for name in dict.fromkeys(p["method"] for p in pools)}
        own = {name: best_under(pools, name, fixed, args.budget) for name in of}
        last, winners = list(of)[-1], _winners(of)
        rows = [
            [
                name,
                say(figure(own[name].mean(-1))),
                say(figure(values.mean(-1))),
                f"{winners.count(name) / len(winners):.0%}",
                "" if name == last else say(difference(of[last].mean(-1), values.mean(-1)), sign="+"),
            ]
            for name, values in of.items()
        ]
        print(f"\nTemperature {temperature:g}, {args.weightings} weightings\n")
        head = ["method", "at the spec's weights", "at those drawn", "ahead at", f"lead of {last} there"]
        print(markdown_table(head, rows))


def read_results(path: Path) -> tuple[dict[str, Any], RewardSpec]:
    """An experiment's results, and its spec: spec.yaml beside them or one folder up, or the known one of that name."""
    results = json.loads(path.read_text())
    return results, load_spec(own_spec(path) or results["spec"])


def own_spec(path: Path) -> Path | None:
    """The spec.yaml beside an experiment's results, or one folder up."""
    places = (folder / "spec.yaml" for folder in (path.parent, path.parent.parent))
    return next((place for place in places if place.exists()), None)


def best_under(pools: list[dict[str, Any]], method: str, weights: Floats, budget: int | None) -> Floats:
    """The best of `budget` candidates under each weighting, (seeds, prompts, weightings)."""
    seeds = []
    for pool in (pool for pool in pools if pool["method"] == method):
        matrices = unpack_array(pool["reward_matrices"]).astype(float)
        rewards = matrices.reshape(len(matrices), -1, matrices.shape[-1])
        budget = budget or rewards.shape[1]
        seeds.append(np.stack([best_at_k(rewards @ w, [budget])[:, 0] for w in weights], axis=-1))
    return np.stack(seeds)


def _winners(of: dict[str, Floats]) -> list[str]:
    """The method that is best under each weighting, by the mean over prompts and seeds."""
    means = np.stack([values.mean((0, 1)) for values in of.values()])
    return [list(of)[number] for number in means.argmax(0)]


def say(of: dict[str, Any], sign: str = "") -> str:
    """A figure with its interval."""
    return f"{of['mean']:{sign}.3f} ({of['low']:{sign}.3f} to {of['high']:{sign}.3f})"


if __name__ == "__main__":
    main()

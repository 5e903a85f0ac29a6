"""Time and memory of the metrics on a pool of random rewards: `python -m benchmarks.metrics`."""

import argparse
import resource
import sys
import time

import numpy as np
import torch

from vpo_plugin.metrics import (
    best_at_k,
    best_for_weights,
    coverage,
    expected_set_reward,
    figure,
    hypervolume,
    mean_pairwise_l1,
    pareto_fronts,
    pass_at_k,
    regrets,
)


def main(arguments: list[str] | None = None) -> int:
    """Measure every metric on one pool and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--candidates", type=int, default=300)
    parser.add_argument("--objectives", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    before = _peak()
    random = np.random.default_rng(0)
    rewards = random.random((args.prompts, args.candidates, args.objectives))
    values, ks = rewards.mean(-1), list(range(1, args.candidates + 1))
    low, high = np.zeros(args.objectives), np.ones(args.objectives)
    fronts = pareto_fronts(rewards)
    best = best_for_weights(fronts, seed=0)
    metrics = {
        "best@k, every k, with intervals": lambda: figure([best_at_k(values, ks)]),
        "pass@k, every k, with intervals": lambda: figure([pass_at_k(values > 0.6, ks)]),
        "E_w[best of pool]": lambda: expected_set_reward(rewards, seed=0),
        "pairwise L1": lambda: mean_pairwise_l1(rewards),
        "Pareto fronts": lambda: pareto_fronts(rewards),
        "hypervolume": lambda: [hypervolume(front, low, high) for front in fronts],
        "best for each weighting": lambda: best_for_weights(fronts, seed=0),
        "regret and coverage, two policies": lambda: (regrets([best, best]), coverage([best, best])),
    }
    total = 0.0
    print(
        f"{args.prompts} prompts x {args.candidates} candidates x {args.objectives} objectives, {args.threads} threads"
    )
    for name, metric in metrics.items():
        started = time.perf_counter()
        metric()
        total += (seconds := time.perf_counter() - started)
        print(f"  {name:32}{seconds:8.2f} s")
    print(f"  {'together':32}{total:8.2f} s, {_peak():.0f} MB at most, of which {before:.0f} MB are the imports")
    return 0


def _peak() -> float:
    """Peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


if __name__ == "__main__":
    sys.exit(main())

"""`python -m benchmarks.estimator`: time and error of the estimators `vpo` and `vpo_at_k`.

`vpo` alternates in one run with the usual implementation: a Python loop over rollouts with 100 independent Dirichlet
draws per group. `vpo_at_k` takes the best of half the rollouts.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import comb

import torch
from torch import Tensor

from vpo_plugin.advantages import (
    RewardBatch,
    default_num_weights,
    get_advantage_estimator,
    group_z_norm,
    sample_simplex_weights,
)

SHAPES = ((128, 8, 3, 4), (128, 8, 5, 16), (1024, 16, 3, 5))
"""Groups, rollouts, candidates, objectives."""
LOOP = "Python loop, 100 i.i.d."
LOOP_WEIGHTS = 100
REFERENCE_GROUPS = 16
REFERENCE_SCRAMBLES, REFERENCE_POINTS = 16, 2**16  # 2^20 points in all
POINTS_AT_ONCE = 2**11


@dataclass(frozen=True)
class Measurement:
    """The measurement of one method on one shape."""

    method: str
    milliseconds: float
    """Median wall time of a call."""
    error: float
    """Root mean square difference from the reference advantages, over rollouts and calls."""


def loop_advantages(reward_matrices: Tensor) -> Tensor:
    """The usual implementation: rollout by rollout, 100 independent weights per group, with torch's generator."""
    dirichlet = torch.distributions.Dirichlet(torch.ones(reward_matrices.shape[-1]))
    advantages = []
    for group in reward_matrices:
        weights = dirichlet.sample((LOOP_WEIGHTS,))
        worth = torch.stack([(rollout @ weights.T).max(dim=0).values.mean() for rollout in group])
        std = worth.std(correction=0)
        advantages.append((worth - worth.mean()) / (std + 1e-6) if std >= 1e-6 else torch.zeros_like(worth))
    return torch.stack(advantages)


def vpo_advantages(reward_matrices: Tensor, num_weights: int | None = None) -> Tensor:
    """Advantages of `vpo`, `(G, N, m, k)` -> `(G, N)`."""
    return get_advantage_estimator("vpo")(RewardBatch(reward_matrices, num_weights=num_weights))


def vpo_at_k_advantages(reward_matrices: Tensor, num_weights: int | None = None) -> Tensor:
    """Advantages of `vpo_at_k`, scaled to RMS 1 on the groups with a reference, `(G, N, m, k)` -> `(G, N)`."""
    gains = get_advantage_estimator("vpo_at_k_derived")(RewardBatch(reward_matrices, num_weights=num_weights))
    return gains / root_mean_square(gains[:REFERENCE_GROUPS])


def plain_gains(values: Tensor) -> Tensor:
    """The formula of `vpo_at_k` for half of the rollouts, with an ordinary sort: `(N, W)` -> `(N, W)`."""
    rollouts = len(values)
    k = max(2, rollouts // 2)
    ranked, order = values.sort(0)
    sets = values.new_tensor([comb(j, k - 2) for j in range(rollouts)])[:, None]
    below = sets.cumsum(0) * ranked - (sets * ranked).cumsum(0)
    return torch.empty_like(values).scatter_(0, order, below * (k / comb(rollouts - 1, k - 1)))


def root_mean_square(values: Tensor) -> Tensor:
    return values.square().mean().sqrt()


FORMULAS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "vpo": (lambda values: values, group_z_norm),
    "vpo_at_k": (plain_gains, lambda gains: gains / root_mean_square(gains)),
}
"""Gains of rollouts per weighting, `(N, W)` -> `(N, W)`, and the normalization of their means over weightings."""


def reference_advantages(reward_matrices: Tensor, seed: int, estimator: str = "vpo") -> tuple[Tensor, float]:
    """Advantages `(G, N)` from 2^20 points in float64, and an estimate of their root mean square error.

    The points are 16 independent scrambles of a Sobol sequence; their spread gives the error. `POINTS_AT_ONCE` bounds
    the memory.
    """
    of_weightings, scale = FORMULAS[estimator]
    rewards = reward_matrices.double()
    generator = torch.Generator().manual_seed(seed)
    scrambles = []
    for _ in range(REFERENCE_SCRAMBLES):
        weights = sample_simplex_weights(REFERENCE_POINTS, rewards.shape[-1], generator=generator)
        worth = torch.zeros(rewards.shape[:2], dtype=torch.float64)
        for points in weights.split(POINTS_AT_ONCE):
            worth += torch.stack([of_weightings((group @ points.T).amax(1)).sum(-1) for group in rewards])
        scrambles.append(worth / REFERENCE_POINTS)
    worths = torch.stack(scrambles)
    spread = torch.stack([scale(worth) for worth in worths]).var(0).mean()
    return scale(worths.mean(0)), float((spread / REFERENCE_SCRAMBLES).sqrt())


def measure(
    shape: tuple[int, int, int, int], num_weights: Sequence[int], *, repeats: int, seed: int, estimator: str = "vpo"
) -> tuple[list[Measurement], float]:
    """Time and error of an estimator at each number of weights, on uniform random rewards.

    Returns:
        The measurements (for `vpo`, the loop comes first) and the error of the reference itself.
    """
    rewards = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    reference, reference_error = reference_advantages(rewards[:REFERENCE_GROUPS], seed + 1, estimator)
    compute = vpo_advantages if estimator == "vpo" else vpo_at_k_advantages
    methods: dict[str, Callable[[], Tensor]] = {LOOP: lambda: loop_advantages(rewards)} if estimator == "vpo" else {}
    methods |= {f"{estimator}, {number} weights": partial(compute, rewards, number) for number in num_weights}
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    squares: dict[str, list[float]] = {name: [] for name in methods}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 2)
        for call in range(repeats + 1):  # the first call warms up
            for name, method in methods.items():
                started = time.perf_counter()
                advantages = method()
                if call:
                    seconds[name].append(time.perf_counter() - started)
                squares[name].append(float((advantages[:REFERENCE_GROUPS] - reference).square().mean()))
    measurements = [
        Measurement(name, 1e3 * statistics.median(seconds[name]), statistics.mean(squares[name]) ** 0.5)
        for name in methods
    ]
    return measurements, reference_error


def bench_estimator(args: argparse.Namespace) -> None:
    """Measure every shape and print a table."""
    if args.threads:
        torch.set_num_threads(args.threads)
    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, median of {args.repeats} calls in alternation"
    )
    for shape in args.shapes:
        default = default_num_weights(shape[-1])
        num_weights = args.num_weights or [256, default, 3 * default]
        measurements, reference_error = measure(shape, num_weights, repeats=args.repeats, seed=args.seed)
        loop = measurements[0]
        across, across_error = measure(
            shape,
            args.num_weights or [256, default // 2, default],
            repeats=args.repeats,
            seed=args.seed,
            estimator="vpo_at_k",
        )
        groups, rollouts, candidates, objectives = shape
        print(f"\n{groups} groups x {rollouts} rollouts x {candidates} candidates x {objectives} objectives")
        print(f"  {'':26}{'ms':>9}{'RMS error':>12}{'less time':>12}{'less error':>12}")
        for row in measurements:
            mark = "  (default)" if row.method == f"vpo, {default} weights" else ""
            print(
                f"  {row.method:26}{row.milliseconds:9.2f}{row.error:12.5f}"
                f"{loop.milliseconds / row.milliseconds:11.1f}x{loop.error / row.error:11.1f}x{mark}"
            )
        for row in across:
            mark = "  (default)" if row.method == f"vpo_at_k, {default // 2} weights" else ""
            print(f"  {row.method:26}{row.milliseconds:9.2f}{row.error:12.5f}{'':24}{mark}")
        off = max(reference_error, across_error)
        print(f"  errors, of advantages of size 1, against 2^20 points ({off:.0e} off) on {REFERENCE_GROUPS} groups")


def read_shape(text: str) -> tuple[int, int, int, int]:
    """`128x8x3x4` -> (128, 8, 3, 4). Raises ArgumentTypeError for anything else."""
    sizes = text.split("x")
    if len(sizes) != 4 or not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape GROUPSxROLLOUTSxCANDIDATESxOBJECTIVES")
    groups, rollouts, candidates, objectives = map(int, sizes)
    return groups, rollouts, candidates, objectives


def positive(text: str) -> int:
    """A whole number above 0. Raises ArgumentTypeError for anything else."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; bad arguments end with a sentence and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.estimator", description=__doc__)
    parser.add_argument("--shapes", nargs="+", type=read_shape, default=SHAPES, metavar="GxNxMxK")
    parser.add_argument("--num_weights", nargs="+", type=positive, metavar="W")
    parser.add_argument("--repeats", type=positive, default=25, help="timed calls of each (default: 25)")
    parser.add_argument("--threads", type=positive, help="torch's threads (default: torch's own choice)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    bench_estimator(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())

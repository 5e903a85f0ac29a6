"""`vpo bench`: what the estimator of `vpo` costs, alone and in the host, and how exact it is.

`vpo bench estimator` measures it beside the usual implementation, a Python loop over rollouts with 100 independent
Dirichlet draws a group, in alternation in one run. `vpo bench host` trains with `vpo` and with the host's `group_norm`,
in alternation, and compares the time of a step.
"""

import argparse
import importlib.resources
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vpo_plugin.advantages import default_num_weights, group_z_norm, sample_simplex_weights, vpo_advantages
from vpo_plugin.openrlhf.log import read_steps
from vpo_plugin.rewards import load_spec

SHAPES = ((128, 8, 3, 4), (128, 8, 5, 16), (1024, 16, 3, 5))
"""Groups, rollouts, candidates, objectives."""
LOOP = "Python loop, 100 i.i.d."
LOOP_WEIGHTS = 100
REFERENCE_GROUPS = 16
REFERENCE_SCRAMBLES, REFERENCE_POINTS = 16, 2**16  # 2^20 points in all
POINTS_AT_ONCE = 2**11
HOST_PROMPTS = 16
HOST_WARM_UP = 2
"""First steps of a training that are not counted, after the very first one, which has no beginning in the log."""


@dataclass(frozen=True)
class Measurement:
    """One way to compute the advantages of one shape."""

    method: str
    milliseconds: float
    """Median wall time of a call."""
    error: float
    """Root mean square difference from the reference's advantages, over rollouts and calls."""


def loop_advantages(reward_matrices: Tensor) -> Tensor:
    """The usual implementation: rollout by rollout, 100 independent weights for each group, with torch's generator."""
    dirichlet = torch.distributions.Dirichlet(torch.ones(reward_matrices.shape[-1]))
    advantages = []
    for group in reward_matrices:
        weights = dirichlet.sample((LOOP_WEIGHTS,))
        worth = torch.stack([(rollout @ weights.T).max(dim=0).values.mean() for rollout in group])
        std = worth.std(correction=0)
        advantages.append((worth - worth.mean()) / (std + 1e-6) if std >= 1e-6 else torch.zeros_like(worth))
    return torch.stack(advantages)


def reference_advantages(reward_matrices: Tensor, seed: int) -> tuple[Tensor, float]:
    """The advantages `(G, N)` from 2^20 points in float64, and an estimate of their root mean square error.

    The points are 16 independent scrambles of a Sobol sequence, whose spread gives the error. Memory is bounded by
    `POINTS_AT_ONCE`.
    """
    rewards = reward_matrices.double()
    generator = torch.Generator().manual_seed(seed)
    scrambles = []
    for _ in range(REFERENCE_SCRAMBLES):
        weights = sample_simplex_weights(REFERENCE_POINTS, rewards.shape[-1], generator=generator)
        worth = torch.zeros(rewards.shape[:2], dtype=torch.float64)
        for points in weights.split(POINTS_AT_ONCE):
            worth += torch.stack([(group @ points.T).amax(1).sum(-1) for group in rewards])
        scrambles.append(worth / REFERENCE_POINTS)
    worths = torch.stack(scrambles)
    spread = torch.stack([group_z_norm(worth) for worth in worths]).var(0).mean()
    return group_z_norm(worths.mean(0)), float((spread / REFERENCE_SCRAMBLES).sqrt())


def measure(
    shape: tuple[int, int, int, int], num_weights: Sequence[int], *, repeats: int, seed: int
) -> tuple[list[Measurement], float]:
    """Time and error of the loop and of `vpo_advantages` at each number of weights, on uniform random rewards.

    Returns:
        The measurements, the loop's first, and the error of the reference itself.
    """
    rewards = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    reference, reference_error = reference_advantages(rewards[:REFERENCE_GROUPS], seed + 1)
    methods: dict[str, Callable[[], Tensor]] = {LOOP: lambda: loop_advantages(rewards)}
    methods |= {
        f"vpo, {number} weights": partial(vpo_advantages, rewards, num_weights=number) for number in num_weights
    }
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    squares: dict[str, list[float]] = {name: [] for name in methods}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 2)
        for call in range(repeats + 1):  # the first warms up
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
        groups, rollouts, candidates, objectives = shape
        print(f"\n{groups} groups x {rollouts} rollouts x {candidates} candidates x {objectives} objectives")
        print(f"  {'':26}{'ms':>9}{'RMS error':>12}{'less time':>12}{'less error':>12}")
        for row in measurements:
            mark = "  (default)" if row.method == f"vpo, {default} weights" else ""
            print(
                f"  {row.method:26}{row.milliseconds:9.2f}{row.error:12.5f}"
                f"{loop.milliseconds / row.milliseconds:11.1f}x{loop.error / row.error:11.1f}x{mark}"
            )
        print(f"  errors against 2^20 points ({reference_error:.0e} off) on {min(groups, REFERENCE_GROUPS)} groups")


def bench_host(args: argparse.Namespace) -> None:
    """Train with `vpo` and with the host's `group_norm` on the same prompts, in turns, and print the steps' times."""
    from datasets import Dataset

    spec = load_spec("maze_small")
    policy = importlib.resources.files("reward_specs.maze_small") / "policy"
    rows = [
        {"input": row["prompt"], "label": json.dumps(row["label"])}
        for row in spec.rows("train", args.steps * HOST_PROMPTS, seed=0)
    ]
    seconds: dict[str, list[float]] = {"vpo": [], "group_norm": []}
    with tempfile.TemporaryDirectory() as folder:
        Dataset.from_list(rows).save_to_disk(f"{folder}/prompts")
        for turn in range(args.turns):
            for name in sorted(seconds, reverse=bool(turn % 2)):
                output = f"{folder}/{name}-{turn}"
                command = [
                    *(sys.executable, "-m", "vpo_plugin.train_ppo_ray", "--advantage", name),
                    *("--vpo.spec", spec.name, "--vpo.candidates", str(spec.candidates)),
                    *("--actor.model_name_or_path", str(policy), "--ckpt.output_dir", output),
                    *("--data.prompt_dataset", f"{folder}/prompts"),
                    *("--data.input_key", "input", "--data.label_key", "label", "--data.max_len", "128"),
                    *("--rollout.max_new_tokens", "64", "--rollout.batch_size", str(HOST_PROMPTS)),
                    *("--rollout.n_samples_per_prompt", "8", "--rollout.micro_batch_size", "32"),
                    *("--train.batch_size", str(8 * HOST_PROMPTS), "--train.micro_batch_size", "32"),
                    *("--actor.adam.lr", "1e-9", "--algo.kl.init_coef", "0"),  # the responses stay as long as they are
                ]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise RuntimeError(f"Training with {name} failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")
                times = [step["time"] for step in read_steps(Path(output) / "vpo")]
                seconds[name] += [b - a for a, b in itertools.pairwise(times)][HOST_WARM_UP:]
                print(
                    f"turn {turn + 1} of {args.turns}, {name}: {statistics.median(seconds[name]):.3f} s a step",
                    flush=True,
                )
    print(
        f"\n{os.cpu_count()} cores, openrlhf {version('openrlhf')}, {HOST_PROMPTS} prompts x 8 rollouts x 3 candidates"
    )
    for name, values in seconds.items():
        print(f"  {name:12}{statistics.median(values):8.3f} s a step, median of {len(values)} steps")
    draws = np.random.default_rng(0)
    ratios = [
        np.median(draws.choice(seconds["vpo"], len(seconds["vpo"])))
        / np.median(draws.choice(seconds["group_norm"], len(seconds["group_norm"])))
        for _ in range(2000)
    ]
    ratio = statistics.median(seconds["vpo"]) / statistics.median(seconds["group_norm"])
    low, high = np.quantile(ratios, [0.025, 0.975])
    print(f"  vpo / group_norm = {ratio:.3f} (95 % bootstrap interval {low:.3f} to {high:.3f})")


def read_shape(text: str) -> tuple[int, int, int, int]:
    """`128x8x3x4` -> (128, 8, 3, 4). Raises ArgumentTypeError for anything else."""
    sizes = text.split("x")
    if len(sizes) != 4 or not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r} is no shape GROUPSxROLLOUTSxCANDIDATESxOBJECTIVES")
    groups, rollouts, candidates, objectives = map(int, sizes)
    return groups, rollouts, candidates, objectives


def positive(text: str) -> int:
    """A whole number above 0. Raises ArgumentTypeError for anything else."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `bench`; bad arguments end with a sentence and exit code 2."""
    parser = argparse.ArgumentParser(prog="vpo bench", description="Benchmarks of the plugin.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    estimator = commands.add_parser("estimator", help="time and error of the set reward's estimator")
    estimator.add_argument("--shapes", nargs="+", type=read_shape, default=SHAPES, metavar="GxNxMxK")
    estimator.add_argument("--num_weights", nargs="+", type=positive, metavar="W")
    estimator.add_argument("--repeats", type=positive, default=25, help="timed calls of each (default: 25)")
    estimator.add_argument("--threads", type=positive, help="torch's threads (default: torch's own choice)")
    estimator.add_argument("--seed", type=int, default=0)
    estimator.set_defaults(run=bench_estimator)
    host = commands.add_parser("host", help="time of a training step with vpo and with the host's group_norm")
    host.add_argument("--turns", type=positive, default=4, help="trainings of each, in turns (default: 4)")
    host.add_argument("--steps", type=positive, default=24, help="steps of a training (default: 24)")
    host.set_defaults(run=bench_host)
    args = parser.parse_args(argv)
    args.run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m benchmarks.host`: time a training step with `vpo` and with the host's `group_norm`, in alternation."""

import argparse
import importlib.resources
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np

from benchmarks.estimator import positive
from vpo_plugin.openrlhf.log import read_steps
from vpo_plugin.rewards import load_spec
from vpo_plugin.rewards.labels import write_prompts
from vpo_plugin.rewards.task import read_rows

HOST_PROMPTS = 16
HOST_WARM_UP = 2
"""Steps left out after a training's first one, which is also left out because the log lacks its start."""


def bench_host(args: argparse.Namespace) -> None:
    """Train with `vpo` and the host's `group_norm` on the same prompts, in turns, and print the times of steps."""
    spec = load_spec("maze_small")
    policy = importlib.resources.files("reward_specs.maze_small") / "policy"
    rows = list(read_rows(spec, "train", args.steps * HOST_PROMPTS, seed=0))
    seconds: dict[str, list[float]] = {"vpo": [], "group_norm": []}
    with tempfile.TemporaryDirectory() as folder:
        write_prompts(spec, rows, Path(folder, "prompts"))
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
                    *("--actor.adam.lr", "1e-9", "--algo.kl.init_coef", "0"),  # keeps the length of responses
                ]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise RuntimeError(f"Training with {name} failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")
                times = [step["time"] for step in read_steps(Path(output) / "vpo")]
                seconds[name] += [b - a for a, b in itertools.pairwise(times)][HOST_WARM_UP:]
                print(
                    f"turn {turn + 1} of {args.turns}, {name}: {statistics.median(seconds[name]):.3f} s per step",
                    flush=True,
                )
    print(
        f"\n{os.cpu_count()} cores, openrlhf {version('openrlhf')}, {HOST_PROMPTS} prompts x 8 rollouts x 3 candidates"
    )
    for name, values in seconds.items():
        print(f"  {name:12}{statistics.median(values):8.3f} s per step, median of {len(values)} steps")
    draws = np.random.default_rng(0)
    ratios = [
        np.median(draws.choice(seconds["vpo"], len(seconds["vpo"])))
        / np.median(draws.choice(seconds["group_norm"], len(seconds["group_norm"])))
        for _ in range(2000)
    ]
    ratio = statistics.median(seconds["vpo"]) / statistics.median(seconds["group_norm"])
    low, high = np.quantile(ratios, [0.025, 0.975])
    print(f"  vpo / group_norm = {ratio:.3f} (95 % bootstrap interval {low:.3f} to {high:.3f})")


def main(argv: Sequence[str] | None = None) -> int:
    """Train and print; bad arguments end with a sentence and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host", description=__doc__)
    parser.add_argument("--turns", type=positive, default=4, help="trainings of each, in turns (default: 4)")
    parser.add_argument("--steps", type=positive, default=24, help="steps of a training (default: 24)")
    bench_host(parser.parse_args(argv))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`vpo doctor --train`: the shipped tiny policy, trained on this machine or cluster through the public command."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from vpo_plugin.openrlhf.flags import ON_ONE_GPU, words
from vpo_plugin.openrlhf.log import last_error, read_steps

SPEC = "maze_small"
PROMPTS, ROLLOUTS, CANDIDATES, SEED = 4, 4, 3, 5
STEPS = 2  # before the checkpoint from which it resumes, and as many after
MOST_KL = 0.02
"""Divergence of the engine's log-probabilities from the trained policy's: bfloat16 alone makes some."""
MOST_SECONDS = 1800
SMALL = {
    "advantage": "vpo",
    "vpo.spec": SPEC,
    "vpo.candidates": CANDIDATES,
    "vpo.seed": SEED,
    "data.input_key": "input",
    "data.label_key": "label",
    "data.max_len": 160,
    "rollout.max_new_tokens": 64,
    "rollout.batch_size": PROMPTS,
    "rollout.n_samples_per_prompt": ROLLOUTS,
    "rollout.micro_batch_size": 8,
    "train.batch_size": PROMPTS * ROLLOUTS,
    "train.micro_batch_size": 8,
    "algo.kl.init_coef": 0,
    "algo.advantage.is_correction_level": "token",  # the host then compares engine and policy
    "actor.adam.lr": 2e-3,
    "actor.lr_scheduler": "constant",
    "ckpt.save_steps": 1,
    "ds.attn_implementation": "sdpa",
}
Outcome = tuple[Literal["ok", "lacks", "fails"], str]


def check_training() -> Iterator[Outcome]:
    """Train, stop, resume, and check the results: state and sentence of each finding."""
    from vpo_plugin.models import TINY, resolve_policy
    from vpo_plugin.openrlhf import cpu

    on_cpu = not cpu.cuda_available()
    with tempfile.TemporaryDirectory(prefix="vpo-doctor-") as name:
        folder = Path(name)
        log, policy = folder / "policy" / "vpo", resolve_policy(TINY, folder)
        flags: dict[str, Any] = {
            **SMALL,
            **({} if on_cpu else ON_ONE_GPU),
            "actor.model_name_or_path": policy,
            "data.prompt_dataset": prompts(folder / "prompts"),
            "ckpt.output_dir": folder / "policy",
            "ckpt.path": folder / "checkpoints",
        }
        seconds, problem = train(flags, folder / "train.log")
        if problem:
            yield "fails", f"a training of {STEPS} steps on {'the CPU' if on_cpu else 'CUDA'} ended early: {problem}"
            return
        steps = read_steps(log)
        inside = sum(step.get("timing/step_total", 0.0) for step in steps)
        yield (
            "ok",
            f"{len(steps)} steps on {'the CPU' if on_cpu else 'CUDA'} took {seconds:.0f} s, {inside:.0f} s "
            "without start and end",
        )
        yield judge_engine(steps)
        yield judge_advantages(log, len(steps))
        seconds, problem = train(flags | {"ckpt.load_enable": True, "train.num_episodes": 2}, folder / "resume.log")
        if problem:
            yield "fails", f"it does not resume from its checkpoint: {problem}"
            return
        yield judge_resume(
            [int(step["step"]) for step in read_steps(log)], (folder / "resume.log").read_text(), seconds
        )


def prompts(folder: Path) -> Path:
    """The prompts of the steps before the checkpoint, as a dataset that the host reads."""
    from vpo_plugin.rewards import load_spec
    from vpo_plugin.rewards.labels import write_prompts
    from vpo_plugin.rewards.task import read_rows

    spec = load_spec(SPEC)
    write_prompts(spec, list(read_rows(spec, "train", STEPS * PROMPTS, seed=SEED)), folder)
    return folder


def train(flags: dict[str, Any], log: Path) -> tuple[float, str | None]:
    """Seconds of a run of the public command, and its last line if it failed."""
    command = [sys.executable, "-m", "vpo_plugin.train_ppo_ray", *words(flags)]
    start = time.monotonic()
    with log.open("w") as output:
        try:
            code = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, timeout=MOST_SECONDS
            ).returncode
        except subprocess.TimeoutExpired:
            return time.monotonic() - start, f"it took more than {MOST_SECONDS} s"
    return time.monotonic() - start, last_error(log.read_text(errors="replace")) if code else None


def judge_engine(steps: Sequence[dict[str, float]]) -> Outcome:
    """Whether the engines write with the weights of the last step: after an update, old ones would be far off."""
    moved = sum(step.get("optimizer_steps", 0) for step in steps)
    off = float(np.max([abs(step.get("vllm_kl", np.nan)) for step in steps]))  # NaN if any is
    if moved < len(steps):
        return "fails", f"only {moved:g} optimizer steps were taken in {len(steps)} steps"
    if not off <= MOST_KL:
        return "fails", f"the engines do not have the new weights: their log-probabilities are {off:.3f} off"
    return "ok", f"the engines got the new weights after each step (log-probabilities {off:.4f} apart)"


def judge_advantages(log: Path, steps: int) -> Outcome:
    """Whether the tokens carry the advantages of the logged reward matrices."""
    from vpo_plugin.advantages import RewardBatch, group_z_norm

    worst = 0.0
    for step in range(1, steps + 1):
        with np.load(log / "rollouts" / f"step_{step:06d}.npz") as logged:
            generator = torch.Generator().manual_seed(SEED * 2**20 + step - 1)
            batch = RewardBatch(torch.from_numpy(logged["reward_matrices"]), generator=generator)
            expected = group_z_norm(batch.set_rewards).numpy()
            worst = max(worst, float(np.abs(logged["token_advantages"] - expected).max()))
    if not worst < 1e-3:
        return "fails", f"the advantages on the tokens do not match the reward matrices: {worst:.3f} off"
    return "ok", "the advantages on the tokens match the reward matrices"


def judge_resume(steps: Sequence[int], output: str, seconds: float) -> Outcome:
    """Whether the second run continued where the first one ended."""
    if f"Resuming after step {STEPS}" not in output or list(steps) != list(range(1, 2 * STEPS + 1)):
        return "fails", f"it did not resume after step {STEPS}: the log has the steps {list(steps)}"
    return "ok", f"it resumed from the checkpoint of step {STEPS} and continued training ({seconds:.0f} s)"

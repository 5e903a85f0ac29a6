"""A training that was killed goes on: the host's own checkpoints, through the public command."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from conftest import MARK, Training, write_prompts

from flows.policy import TINY, resolve_policy
from vpo_plugin.advantages import group_z_norm, set_rewards
from vpo_plugin.openrlhf.checkpoints import remove_checkpoints, rewind
from vpo_plugin.openrlhf.log import forget_steps_after, log_rollouts, log_step, read_steps


@pytest.fixture
def training(tmp_path: Path) -> Iterator[Training]:
    """A training of four steps that takes a checkpoint after each."""
    run = Training(tmp_path / "policy", write_prompts(tmp_path / "prompts", 16), resolve_policy(TINY, tmp_path))
    yield run
    kill(run)


def checkpointing(folder: Path) -> list[str]:
    return ["--ckpt.path", str(folder), "--ckpt.save_steps", "1", "--ckpt.load_enable", "--vpo.seed", "5"]


def kill(training: Training) -> None:
    """End every process of a training at once, as a machine that fails does."""
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == training.mark:
                process.kill()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not path.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert path.exists(), process.communicate(timeout=60)[0][-3000:]


def damage(file: Path) -> None:
    """Change some bytes in the middle, as a failing disk does."""
    with file.open("r+b") as open_file:
        open_file.seek(file.stat().st_size // 2)
        open_file.write(b"\xff" * 64)


def rollouts(training: Training, step: int) -> dict[str, np.ndarray]:
    with np.load(training.output / "vpo" / "rollouts" / f"step_{step:06d}.npz") as arrays:
        return dict(arrays)


def test_killed_training_goes_on(training: Training, tmp_path: Path) -> None:
    """Killed after step 3, whose checkpoint is damaged: goes on after step 2 with the same prompts and weightings."""
    checkpoints = tmp_path / "checkpoints"
    process = training.start(*checkpointing(checkpoints))
    wait_for(checkpoints / "_actor" / "global_step3" / "metric.json", process)
    kill(training)
    process.communicate(timeout=60)
    before = {step: rollouts(training, step) for step in (1, 2, 3)}
    damage(checkpoints / "_actor" / "global_step3" / "mp_rank_00_model_states.pt")

    code, output = training.run(*checkpointing(checkpoints))
    assert code == 0, output[-3000:]
    assert "vpo: The checkpoint global_step3" in output
    assert "vpo: Going on after step 2" in output

    assert [step["step"] for step in read_steps(training.output / "vpo")] == [1, 2, 3, 4]
    after = {step: rollouts(training, step) for step in (1, 2, 3, 4)}
    for step in (1, 2):
        np.testing.assert_array_equal(after[step]["advantages"], before[step]["advantages"])
    # In a batch the host has the prompts in the order in which their rollouts were done.
    assert sorted(after[3]["prompts"]) == sorted(before[3]["prompts"])
    assert len({prompt for step in after.values() for prompt in step["prompts"]}) == 16
    for step in (3, 4):
        generator = torch.Generator().manual_seed(5 * 2**20 + step - 1)
        matrices = torch.from_numpy(after[step]["reward_matrices"])
        expected = group_z_norm(set_rewards(matrices, generator=generator)).numpy()
        np.testing.assert_allclose(after[step]["advantages"], expected, atol=1e-6)
    assert (training.output / "model.safetensors").exists()
    assert training.processes_left() == []

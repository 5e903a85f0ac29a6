"""The simulation of a large step, small, and the sizing table."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from host import importable_host

from benchmarks import simulate, sizing
from vpo_plugin.advantages import RewardBatch
from vpo_plugin.models import TINY, resolve_policy
from vpo_plugin.openrlhf.cpu import cuda_available
from vpo_plugin.openrlhf.settings import VARIABLE


def run_simulation(*arguments: str) -> str:
    command = [sys.executable, "-m", "benchmarks.simulate", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.mark.slow
def test_what_a_step_moves_grows_with_its_rollouts() -> None:
    """Through a real object store and the host's trainer; bytes, not seconds, which depend on the machine's load."""
    output = run_simulation("step", "--rollouts", "64", "256")
    rows = {
        line[:44].strip(): [float(cell.replace(",", "")) for cell in line[44:].split()]
        for line in output.splitlines()
        if re.search(r"\d+\s+[\d.e+-]+$", line) and not line.startswith("groups")
    }
    assert rows["rollouts per step"] == [64, 256]
    small, large = rows["reward matrices in it, MB"]
    assert small * 1e6 == pytest.approx(64 * (2 + 5 * 16) * sizing.REWARD_BYTES, rel=0.1)
    assert large == pytest.approx(4 * small, rel=0.05)
    small, large = rows["object store, MB"]
    assert large == pytest.approx(4 * small, rel=0.05)
    assert all(seconds > 0 for seconds in rows["hook in the trainer, s"] + rows["estimator alone, s"])


def test_the_hook_is_timed_where_there_is_no_cuda(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As gpu_check.sh runs it: the host's experiences through the real hook."""
    assert '"$python" -m benchmarks.simulate hook' in Path(simulate.__file__).with_name("gpu_check.sh").read_text()
    monkeypatch.setenv(VARIABLE, "")  # is set by the command, and restored
    with importable_host():
        simulate.main(["hook", "--rollouts", "16"])
    said = capsys.readouterr().out
    assert re.search(r"^16 rollouts, m 5, k 16 cpu +[\d.]+ ms$", said, re.MULTILINE)
    assert cuda_available() or "did not run on CUDA" in said


def test_the_estimator_of_the_largest_step() -> None:
    """8,192 rollouts of 5 candidates and 16 objectives take under 2 GB; the time is in docs/scaling.md."""
    groups = max(simulate.SIZES) // simulate.ROLLOUTS_PER_PROMPT
    rewards = torch.rand(groups, simulate.ROLLOUTS_PER_PROMPT, simulate.CANDIDATES, simulate.OBJECTIVES)
    assert rewards.shape == (1024, 8, 5, 16)
    _, _, memory = simulate.time_and_memory(lambda: RewardBatch(rewards).set_rewards)
    assert memory < 2e9


@pytest.mark.slow
def test_scoring_does_not_hold_up_generation(tmp_path: Path) -> None:
    """32 responses that take 0.2 s each to score: one after the other they would hold up the engine for seconds."""
    output = run_simulation(
        *("engine", "--model", resolve_policy(TINY, tmp_path), "--scorer", "waits", "--milliseconds", "40"),
        *("--responses", "32", "--rounds", "3"),
    )
    (percent,) = re.findall(r"generation with scoring at ([\d.]+) %", output)
    assert float(percent) > 60


@pytest.mark.parametrize("layout", sizing.LAYOUTS, ids=lambda layout: f"{layout.nodes} nodes")
def test_layouts_fit(layout: sizing.Layout) -> None:
    """State and engine share 80 GB with what activations and the KV cache need; every GPU has a rank and an engine."""
    assert layout.engines * layout.tensor_parallel == layout.gpus
    assert sizing.state_gb(layout) + 2 * layout.parameters / layout.tensor_parallel / 1e9 < 40
    assert layout.rollouts % layout.gpus == 0


def test_vpo_is_a_small_part_of_a_step() -> None:
    rows = dict(sizing.table())
    assert all(float(share) < 1 for share in rows["VPO's share of the step, %"])
    assert len({len(cells) for cells in rows.values()}) == 1

"""`vpo doctor`: a machine that works, one that does not, and what the nodes of a cluster answer."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from conftest import vpo
from prefect.settings import PREFECT_API_URL, temporary_settings

from vpo_plugin.advantages import RewardBatch, group_z_norm
from vpo_plugin.cli import doctor, train_check
from vpo_plugin.openrlhf import launcher
from vpo_plugin.openrlhf.log import log_rollouts

DEAD = "127.0.0.1:9"  # the port of the discard service, which nobody runs


def run_doctor(*flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    plain = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "PREFECT_API_URL")}
    return subprocess.run(
        [sys.executable, "-m", "vpo_plugin.cli", "doctor", *flags],
        env=plain | environment,
        capture_output=True,
        text=True,
        timeout=800,
    )


def test_a_machine_that_can_train() -> None:
    """The environment of the tests: the host imports, a Ray starts, the exit code says so."""
    result = run_doctor()
    assert result.returncode == 0, result.stdout + result.stderr
    assert "openrlhf 0.11" in result.stdout
    assert "the host's training command and vLLM import" in result.stdout
    assert "a private Ray starts" in result.stdout
    assert "Training works here" in result.stdout


@pytest.mark.slow
def test_a_training_of_the_doctor() -> None:
    """The tiny policy through the public command: weights, advantages, checkpoint and resumption are looked at."""
    result = run_doctor("--train")
    said = result.stdout.partition("training\n")[2]
    assert result.returncode == 0, result.stdout + result.stderr
    for part in (
        "2 steps on the CPU took ",
        "the engines got the new weights after each step",
        "the advantages on the tokens match the reward matrices",
        "it resumed from the checkpoint of step 2 and continued training",
        "Training works here.",
    ):
        assert part in said, said


def test_what_the_doctors_training_may_find(tmp_path: Path) -> None:
    """Engines with old weights, steps without an update, tokens with other advantages, a training that starts anew."""
    step = {"step": 1, "optimizer_steps": 1.0, "vllm_kl": 0.001}
    assert train_check.judge_engine([step, step])[0] == "ok"
    assert train_check.judge_engine([step, step | {"vllm_kl": 0.3}])[0] == "fails"
    assert train_check.judge_engine([step, step | {"vllm_kl": math.nan}])[0] == "fails"
    assert train_check.judge_engine([step, step | {"optimizer_steps": 0.0}])[0] == "fails"
    assert train_check.judge_resume([1, 2, 3, 4], "vpo: Resuming after step 2, from", 3.0)[0] == "ok"
    assert train_check.judge_resume([1, 2], "", 3.0)[0] == "fails"

    matrices = torch.rand(2, 4, 3, 4, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(train_check.SEED * 2**20)
    advantages = group_z_norm(RewardBatch(matrices, generator=generator).set_rewards).numpy()
    for tokens, state in ((advantages, "ok"), (-advantages, "fails")):
        log_rollouts(tmp_path, 1, reward_matrices=matrices.numpy(), token_advantages=tokens)
        assert train_check.judge_advantages(tmp_path, 1)[0] == state


def test_servers_that_do_not_answer() -> None:
    asked = {name: doctor.CHECKS[name] for name in ("ray", "prefect")}
    with patch.object(doctor, "CHECKS", asked), temporary_settings({PREFECT_API_URL: f"http://{DEAD}/api"}):
        result = vpo("doctor", RAY_ADDRESS=DEAD, PREFECT_API_URL=f"http://{DEAD}/api")
    assert result.returncode == 1
    assert "Traceback" not in result.stdout + result.stderr
    failures, _, lacks = result.stdout.partition("Training would fail here:")[2].partition("What else would not work:")
    assert f"ray: the cluster at {DEAD} (RAY_ADDRESS) cannot be reached" in failures
    assert f"prefect: flows would stop: the server at http://{DEAD}/api does not answer" in lacks


def test_architectures_that_deepspeed_cannot_read() -> None:
    """9.0a ends DeepSpeed's compilation of its optimizer on an H100."""
    assert not list(doctor.judge_architectures("")) and not list(doctor.judge_architectures("8.0;9.0 12.0+PTX"))
    (finding,) = doctor.judge_architectures("8.0 9.0a")
    assert finding.state == "fails" and finding.text.startswith("TORCH_CUDA_ARCH_LIST names 9.0a,")


def test_a_host_that_was_not_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "TESTED_HOSTS", ("0.1.0",))
    (finding,) = [f for f in doctor.check_versions() if f.state != "ok"]
    assert finding.state == "fails"
    assert "was not tested (0.1.0 were) and is refused" in finding.text


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("openrlhf", "no-such-package"))
    (finding,) = [f for f in doctor.check_versions() if f.state != "ok"]
    assert "no-such-package is not installed" in finding.text


def node(**changes: Any) -> dict[str, Any]:
    same = {"plugin": doctor.installed("vpo-plugin"), "openrlhf": doctor.installed("openrlhf")}
    return {"address": "10.0.0.2", "gpus": 8.0, "devices": 8, **same} | changes


@pytest.mark.parametrize(
    ("nodes", "accelerator", "sentence"),
    [
        ([node()], "cuda", None),
        ([node(devices=0)], "cpu", None),
        ([node(gpus=0.0, devices=0), node()], "cuda", None),
        ([node(), node(devices=0)], "cuda", "offers 8 GPUs but has no NVIDIA device"),
        ([node(gpus=0.0)], "cuda", "no node offers GPUs"),
        ([node(gpus=0.0)], "cpu", "ray start --num-gpus N with pretend GPUs"),
        ([node(), node(openrlhf="0.10.0")], "cuda", "node 10.0.0.2 has openrlhf 0.10.0, but"),
        ([node(plugin=None)], "cuda", "node 10.0.0.2 has plugin None, but"),
        (
            [node(), {"address": "10.0.0.3", "gpus": 8.0, "error": "No module named 'vpo_plugin'"}],
            "cuda",
            "node 10.0.0.3: the plugin cannot be imported there: No module named 'vpo_plugin'",
        ),
    ],
)
def test_what_the_nodes_of_a_cluster_answer(
    nodes: list[dict[str, Any]], accelerator: str, sentence: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VPO_DEVICE", accelerator)
    bad = [f for f in doctor.judge_nodes(nodes, "the cluster", joined=True) if f.state != "ok"]
    if sentence is None:
        assert bad == []
    else:
        assert {f.state for f in bad} == {"fails"}
        assert any(sentence in f.text for f in bad)

"""The host trained through the public command, for real: Ray, vLLM, DeepSpeed, on whatever this machine has."""

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from conftest import Training, marked, write_prompts
from host import OLDER
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from vpo_plugin.advantages import RewardBatch, group_z_norm
from vpo_plugin.models import TINY, resolve_policy
from vpo_plugin.openrlhf import cpu
from vpo_plugin.openrlhf.log import read_steps


@dataclass(frozen=True)
class Trained:
    """A training that ended, and what was seen of it while it ran."""

    training: Training
    output: str
    listeners: set[str]
    """Addresses on which its processes listened."""
    processes_left: list[str]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Two steps, with a large learning rate and the host's comparison of the engine's log-probabilities."""
    folder = tmp_path_factory.mktemp("trained")
    training = Training(folder / "policy", write_prompts(folder / "prompts", 8), resolve_policy(TINY, folder))
    process = training.start(
        *("--actor.adam.lr", "2e-3", "--actor.lr_scheduler", "constant"),
        *(["--algo.advantage.is_correction_enable"] if OLDER else ["--algo.advantage.is_correction_level", "token"]),
        *("--vpo.seed", "5"),
        *("--eval.dataset", str(write_prompts(folder / "held_out", 3)), "--eval.steps", "2"),
        *("--eval.n_samples_per_prompt", "2", "--ckpt.path", str(folder / "checkpoints")),
    )
    listeners: set[str] = set()
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(process.communicate, timeout=300)
        while not ended.done():
            listeners |= listening(training.mark)
            time.sleep(0.5)
    output = ended.result()[0]
    assert process.returncode == 0, output[-3000:]
    return Trained(training, output, listeners, training.processes_left())


def listening(mark: str) -> set[str]:
    """Where the processes of a training listen now."""
    addresses = set()
    for _, process in marked(mark):
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            connections = process.net_connections(kind="inet")
            addresses |= {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN or not c.raddr}
    return addresses


@pytest.mark.skipif(cpu.cuda_available(), reason="with CUDA the run is the cluster's")
def test_nothing_listens_beyond_loopback(trained: Trained) -> None:
    """Neither Ray, which runs what it is sent, nor torch's store, nor the engine."""
    assert trained.listeners
    assert {address.removeprefix("::ffff:") for address in trained.listeners} == {"127.0.0.1"}


def test_two_steps(trained: Trained) -> None:
    """The advantages are those of the logged matrices, the engine gets the new weights, nothing stays behind."""
    training = trained.training
    for step in (1, 2):
        with np.load(training.output / "vpo" / "rollouts" / f"step_{step:06d}.npz") as logged:
            matrices = torch.from_numpy(logged["reward_matrices"])
            assert matrices.shape == (4, 4, 3, 4)
            assert step == 2 or matrices.std(1).any(), "the rollouts of a group must differ for this to say anything"
            generator = torch.Generator().manual_seed(5 * 2**20 + step - 1)
            expected = group_z_norm(RewardBatch(matrices, generator=generator).set_rewards).numpy()
            np.testing.assert_allclose(logged["advantages"], expected, atol=1e-6)
            np.testing.assert_allclose(logged["token_advantages"], expected, atol=1e-5)

    first, second = read_steps(training.output / "vpo")
    assert {"set_reward", "zero_spread", "candidates_parsed", "set_diversity", "objective/gold"} <= set(second)
    assert 0 < second["candidates_parsed"] <= 3
    assert second["scorer_errors"] == 0
    for step in (first, second):
        assert (step["optimizer_steps"], step["groups"]) == (1, 4)
        assert step["groups_used"] == 4 * (1 - step["zero_spread"])
        assert step["timing/step_total"] > step["timing/generation"] > 0
    assert "eval_default_pass1" not in first
    assert 0 <= second["eval_default_pass1"] <= second["eval_default_pass2"] <= 1

    # The policy moved between the steps, and the engine with it: were its weights the old ones, the log-probabilities
    # of step 2 would differ as much as the two policies do.
    before = load_file(Path(training.policy) / "model.safetensors")
    after = load_file(training.output / "model.safetensors")
    assert any((before[name].float() - after[name].float()).abs().max() > 1e-3 for name in after)
    assert abs(first["vllm_kl"]) < 0.01
    assert abs(second["vllm_kl"]) < 0.01

    model = AutoModelForCausalLM.from_pretrained(training.output)
    tokenizer = AutoTokenizer.from_pretrained(training.output)
    assert model.generate(**tokenizer("a1=start", return_tensors="pt"), max_new_tokens=2).shape[1] >= 2
    assert trained.processes_left == []


def test_lora(training: Training) -> None:
    """The engine follows the adapter from step to step, and the saved model is a whole one, the adapter beside it."""
    code, output = training.run(
        *("--ds.lora.rank", "8", "--actor.adam.lr", "2e-2", "--actor.lr_scheduler", "constant"),
        *(["--algo.advantage.is_correction_enable"] if OLDER else ["--algo.advantage.is_correction_level", "token"]),
    )
    assert code == 0, output[-3000:]
    first, second = read_steps(training.output / "vpo")
    assert abs(first["vllm_kl"]) < 0.01
    assert abs(second["vllm_kl"]) < 0.01, "the engine has the merged weights"
    before = load_file(Path(training.policy) / "model.safetensors")
    after = load_file(training.output / "model.safetensors")
    assert after.keys() == before.keys(), "what vLLM and transformers load"
    moved = [name for name in after if (before[name].float() - after[name].float()).abs().max() > 1e-3]
    assert moved
    adapter = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(training.policy, dtype="bfloat16"), training.output / "adapter"
    )
    merged = adapter.merge_and_unload().state_dict()
    for name in moved:
        torch.testing.assert_close(merged[name], after[name], rtol=1e-2, atol=1e-3)
    model = AutoModelForCausalLM.from_pretrained(training.output)
    tokenizer = AutoTokenizer.from_pretrained(training.output)
    assert model.generate(**tokenizer("a1=start", return_tensors="pt"), max_new_tokens=2).shape[1] >= 2
    assert training.processes_left() == []


@pytest.mark.parametrize("signum", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_stopping_leaves_nothing_behind(training: Training, signum: signal.Signals) -> None:
    process = training.start("--train.num_episodes", "1000")
    metrics = training.output / "vpo" / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not metrics.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.5)
    assert metrics.exists(), process.communicate(timeout=60)[0][-3000:]
    process.send_signal(signum)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert training.processes_left() == []


@pytest.mark.slow
def test_async_trainer(training: Training) -> None:
    """The asynchronous trainer, with a reference model, KL in the loss and a length penalty."""
    code, output = training.run(
        "--train.async_enable",
        *("--algo.kl.use_loss", "--algo.kl.init_coef", "0.01", "--algo.kl.estimator", "k3"),
        *("--reward.overlong_buffer_len", "40"),
    )
    assert code == 0, output[-3000:]
    assert len(read_steps(training.output / "vpo")) == 2
    assert training.processes_left() == []


BROKEN_SPEC = """
name: broken
description: a scorer that fails
objectives: [{key: a, description: a}, {key: b, description: b}]
weights: {a: 0.5, b: 0.5}
candidates: 3
tag: route
prompt: {single: "Write <route_1>.", multi: "Write {candidates} in <route_1>."}
scorer: broken_scorer:score
dataset: {loader: "broken_scorer:rows"}
limits: {response_chars: 1000, tokens_per_candidate: 20}
"""


@pytest.mark.parametrize("policy", ["raise", "zero"])
def test_scorer_that_raises(training: Training, tmp_path: Path, policy: str) -> None:
    """The run stops with the response and traceback in a file, or scores zeros and counts them."""
    spec = tmp_path / "broken"
    spec.mkdir()
    (spec / "spec.yaml").write_text(BROKEN_SPEC)
    (spec / "broken_scorer.py").write_text(
        "def score(candidate, label):\n    raise KeyError('no such test')\n\n"
        "def rows(split, num_rows, seed):\n    return []\n"
    )
    code, output = training.run("--vpo.spec", str(spec), "--vpo.on_scorer_error", policy)
    (error, *_) = sorted((training.output / "vpo").glob("scorer_error_*.txt"))
    assert "no such test" in error.read_text()
    assert "<route_1>" in error.read_text()
    if policy == "raise":
        assert code == 1
        last = output.strip().splitlines()[-1]
        assert "The scorer of spec 'broken' failed on a response" in last
        assert str(error.parent) in last
    else:
        assert code == 0, output[-3000:]
        steps = read_steps(training.output / "vpo")
        assert sum(step["scorer_errors"] for step in steps) > 0  # a step whose responses hold no candidate scores none
        assert all(step["set_reward"] == 0.0 for step in steps)
    assert training.processes_left() == []


def test_other_run_in_the_folder(training: Training) -> None:
    marker = training.output / "vpo" / "run.json"
    marker.parent.mkdir(parents=True)
    marker.write_text(json.dumps({"spec": "musique", "candidates": 3}))
    code, output = training.run()
    assert code == 2
    assert "holds a run of spec 'musique'" in output

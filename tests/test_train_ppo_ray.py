"""The host trained through the public command, for real: Ray, vLLM, DeepSpeed, on whatever this machine has."""

import json
import signal
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from conftest import SPEC, Training, marked, write_prompts
from host import OLDER
from peft import PeftModel
from reward_server import NAMES_ONLY, reward_server
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from vpo_plugin.advantages import RewardBatch, group_z_norm
from vpo_plugin.models import TINY, resolve_policy
from vpo_plugin.openrlhf import cpu
from vpo_plugin.openrlhf.log import read_steps
from vpo_plugin.search.pool import load_pool


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
    """Two steps on the same prompts, with a large learning rate, the host's comparison of the engine's
    log-probabilities, an evaluation, and Weights & Biases without its server."""
    folder = tmp_path_factory.mktemp("trained")
    training = Training(folder / "policy", write_prompts(folder / "prompts", 4), resolve_policy(TINY, folder))
    offline = {"WANDB_MODE": "offline", "WANDB_DIR": str(folder)}
    process = training.start(
        *("--actor.adam.lr", "2e-3", "--actor.lr_scheduler", "constant"),
        *(["--algo.advantage.is_correction_enable"] if OLDER else ["--algo.advantage.is_correction_level", "token"]),
        *("--vpo.seed", "5", "--train.num_episodes", "2"),
        *("--eval.dataset", str(write_prompts(folder / "held_out", 3)), "--eval.steps", "2"),
        *("--ckpt.best_metric_key", "eval_default_best_at_6"),
        *("--eval.n_samples_per_prompt", "2", "--ckpt.path", str(folder / "checkpoints")),
        *("--logger.wandb.key", "0" * 40, "--logger.wandb.project", "mazes"),
        **offline,
    )
    listeners: set[str] = set()
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(process.communicate, timeout=600)
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
    best = [second[f"eval_default_best_at_{k}"] for k in (1, 2, 4, 6)]
    assert best == sorted(best)
    assert second["eval_default_pass1"] == pytest.approx(best[0], abs=1e-5)
    assert {"eval_default_pass_at_6", "eval_default_expected_set_reward", "eval_default_pairwise_l1"} <= set(second)
    with_key = (trained.training.output.parent / "checkpoints" / "_actor").glob("best_global_step2")
    assert list(with_key), "the best checkpoint follows the metric that --ckpt.best_metric_key names"

    # The policy moved between the steps, and the engine with it: were its weights the old ones, the log-probabilities
    # of step 2 would differ as much as the two policies do; or those of its prompts, which it has read before.
    before = load_file(Path(training.policy) / "model.safetensors")
    after = load_file(training.output / "model.safetensors")
    assert any((before[name].float() - after[name].float()).abs().max() > 1e-3 for name in after)
    assert abs(first["vllm_kl"]) < 0.01
    assert abs(second["vllm_kl"]) < 0.01

    model = AutoModelForCausalLM.from_pretrained(training.output)
    tokenizer = AutoTokenizer.from_pretrained(training.output)
    assert model.generate(**tokenizer("a1=start", return_tensors="pt"), max_new_tokens=2).shape[1] >= 2
    assert trained.processes_left == []


def test_wandb(trained: Trained) -> None:
    """The host's flag shows the plugin's metrics among its own and those of the evaluation. The key is not printed."""
    assert "0" * 40 not in trained.output
    (file,) = trained.training.output.parent.glob("wandb/offline-run-*/run-*.wandb")
    rows = wandb_history(file)
    logs = read_steps(trained.training.output / "vpo")
    for metric in ("set_reward", "group_diversity", "optimizer_steps", "groups_used", "policy_loss"):
        shown = [row[f"train/{metric}"] for row in rows if f"train/{metric}" in row]
        np.testing.assert_allclose(shown, [step[metric] for step in logs], rtol=1e-5)
    (best,) = [row["eval/eval_default_best_at_6"] for row in rows if "eval/eval_default_best_at_6" in row]
    assert best == pytest.approx(logs[1]["eval_default_best_at_6"])


def wandb_history(file: Path) -> list[dict[str, float]]:
    """What was logged, of the file of a run: records in blocks, as LevelDB's log has them."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, data, rows = file.read_bytes(), 7, b"", []
    while place + 7 <= len(content):
        if (left := 2**15 - place % 2**15) < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        data += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            items = Record.FromString(data).history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
            data = b""
    return rows


AGENT = """
import torch
from openrlhf.utils.agent import AgentInstanceBase, MultiTurnAgentExecutor


class Instance(AgentInstanceBase):
    def __init__(self, *args, **kwargs):
        self.rows = []

    async def step(self, state, **kwargs):
        words = state["action_text"].upper().split()
        self.rows.append([words.count(move) / (len(words) + 1) for move in ("UP", "DOWN", "LEFT", "RIGHT")])
        return {
            "rewards": torch.tensor(0.0),
            "environment_feedback": " UP " * 3,
            "done": len(self.rows) == 2,
            "extra_logs": {"reward_matrix": torch.tensor(self.rows), "turns": torch.tensor([len(self.rows)])},
        }


class AgentExecutor(MultiTurnAgentExecutor):
    def __init__(self):
        super().__init__(Instance)
"""


@pytest.fixture(scope="module")
def agent_trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Two steps of an agent of two turns that gives its own reward matrix, with LoRA and TensorBoard."""
    folder = tmp_path_factory.mktemp("agent")
    training = Training(folder / "policy", write_prompts(folder / "prompts", 8), resolve_policy(TINY, folder))
    (folder / "agent.py").write_text(AGENT)
    code, output = training.run(
        *("--train.agent_func_path", str(folder / "agent.py"), "--data.max_len", "220"),
        *("--ds.lora.rank", "8", "--actor.adam.lr", "2e-2", "--actor.lr_scheduler", "constant", "--vpo.seed", "5"),
        *(["--algo.advantage.is_correction_enable"] if OLDER else ["--algo.advantage.is_correction_level", "token"]),
        *("--logger.tensorboard_dir", str(folder / "tensorboard")),
    )
    assert code == 0, output[-3000:]
    return Trained(training, output, set(), training.processes_left())


def test_agent_with_a_reward_matrix(agent_trained: Trained) -> None:
    """One row a turn, as the agent gave it; the advantages are those of the matrices, on both turns' tokens."""
    for step in (1, 2):
        with np.load(agent_trained.training.output / "vpo" / "rollouts" / f"step_{step:06d}.npz") as logged:
            matrices, mask = torch.from_numpy(logged["reward_matrices"]), torch.from_numpy(logged["mask"])
            assert matrices.shape[:2] == (4, 4) and matrices.shape[2] in (1, 2) and matrices.shape[3] == 4
            assert ((matrices >= 0) & (matrices < 1)).all() and matrices.any()
            generator = torch.Generator().manual_seed(5 * 2**20 + step - 1)
            expected = group_z_norm(RewardBatch(matrices, mask, generator=generator).set_rewards).numpy()
            np.testing.assert_allclose(logged["advantages"], expected, atol=1e-6)
            np.testing.assert_allclose(logged["token_advantages"], expected, atol=1e-5)
    for logs in read_steps(agent_trained.training.output / "vpo"):
        assert 1 <= logs["turns"] <= 2
        assert logs["candidates_parsed"] == logs["turns"]
    assert agent_trained.processes_left == []


def test_lora(agent_trained: Trained) -> None:
    """The engine follows the adapter from step to step, and the saved model is a whole one, the adapter beside it."""
    training = agent_trained.training
    for logs in read_steps(training.output / "vpo"):
        assert abs(logs["vllm_kl"]) < 0.01, "the engine has the merged weights"
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
        torch.testing.assert_close(merged[name], after[name], rtol=1e-2, atol=1e-2)
    model = AutoModelForCausalLM.from_pretrained(training.output)
    tokenizer = AutoTokenizer.from_pretrained(training.output)
    assert model.generate(**tokenizer("a1=start", return_tensors="pt"), max_new_tokens=2).shape[1] >= 2


@pytest.mark.slow
def test_lora_in_vllm(agent_trained: Trained, tmp_path: Path) -> None:
    """vLLM loads what was saved, and writes with it."""
    command = ["-m", "vpo_plugin.cli", "evaluate", "--model", str(agent_trained.training.output), "--spec", SPEC]
    command += ["--prompts", "2", "--rollouts", "2", "--max_new_tokens", "64", "--output", str(tmp_path / "pool")]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert load_pool(tmp_path / "pool").reward_matrices.shape[:2] == (2, 2)


def test_tensorboard(agent_trained: Trained) -> None:
    """The host's flag shows the plugin's metrics among its own."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = agent_trained.training.output.parent.glob("tensorboard/**/events.out.tfevents.*")
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()
    logs = read_steps(agent_trained.training.output / "vpo")
    for metric in ("set_reward", "group_diversity", "optimizer_steps", "groups_used", "policy_loss"):
        shown = accumulator.Scalars(f"train/{metric}")
        assert [event.step for event in shown] == [1, 2]
        np.testing.assert_allclose([event.value for event in shown], [step[metric] for step in logs], rtol=1e-5)


REWARD = """
import torch


def reward_func(queries, prompts, labels):
    words = queries[0][len(prompts[0]) :].upper().split()
    shares = [words.count(move) / (len(words) + 1) for move in ("UP", "DOWN", "LEFT", "RIGHT")]
    return {"rewards": torch.tensor([shares]), "extra_logs": {"words": torch.tensor([float(len(words))])}}
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_stopping_leaves_nothing_behind(training: Training, tmp_path: Path, signum: signal.Signals) -> None:
    """A training with a reward server of the user's own, which returns a vector for each response, and a spec that only
    names the objectives."""
    (tmp_path / "reward.py").write_text(REWARD)
    (tmp_path / "spec.yaml").write_text(NAMES_ONLY)
    with reward_server(tmp_path / "reward.py") as address:
        process = training.start(
            *("--train.num_episodes", "1000", "--reward.remote_url", address),
            *("--vpo.spec", str(tmp_path), "--vpo.candidates", "1"),
        )
        metrics = training.output / "vpo" / "metrics.jsonl"
        deadline = time.monotonic() + 240
        while not metrics.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.5)
        assert metrics.exists(), process.communicate(timeout=60)[0][-3000:]
        process.send_signal(signum)
        process.communicate(timeout=60)
    assert process.returncode != 0
    assert training.processes_left() == []

    with np.load(training.output / "vpo" / "rollouts" / "step_000001.npz") as logged:
        matrices = torch.from_numpy(logged["reward_matrices"])
        assert matrices.shape == (4, 4, 1, 4)
        assert ((matrices >= 0) & (matrices < 1)).all() and matrices.std(1).any()
        expected = group_z_norm(matrices.mean(-1).squeeze(-1)).numpy()  # one candidate: the mean of its rewards
        np.testing.assert_allclose(logged["advantages"], expected, atol=1e-4)
    assert read_steps(training.output / "vpo")[0]["words"] > 1


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
label: json
prompt: {single: "Write <route_1>.", multi: "Write {candidates} in <route_1>."}
scorer: broken_scorer:score
dataset: {loader: "broken_scorer:rows"}
limits: {response_chars: 1000, tokens_per_candidate: 20}
"""


@pytest.mark.slow
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
        assert "the scorer of the spec 'broken' failed: KeyError: 'no such test'" in last
        assert str(error.parent) in last and "\nTraceback" not in output
    else:
        assert code == 0, output[-3000:]
        steps = read_steps(training.output / "vpo")
        assert sum(step["scorer_errors"] for step in steps) > 0  # a step whose responses hold no candidate scores none
        assert all(step["set_reward"] == 0.0 for step in steps)
        zeros = sum(step["scorer_zeros"] for step in steps)
        assert f"vpo: {zeros} responses scored zero because the scorer of the spec 'broken' failed" in output
    assert training.processes_left() == []


def test_other_run_in_the_folder(training: Training) -> None:
    marker = training.output / "vpo" / "run.json"
    marker.parent.mkdir(parents=True)
    marker.write_text(json.dumps({"spec": "musique", "candidates": 3}))
    code, output = training.run()
    assert code == 2
    assert "holds a run of spec 'musique'" in output

"""The private Ray of a machine without CUDA, and the agent executor with its scorer. The training itself is tested in
test_train_ppo_ray.py; here Ray runs with actors that cost nothing."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import MARK, Training, kill_marked, marked
from host import importable_host

from vpo_plugin.models import TINY, resolve_policy
from vpo_plugin.openrlhf import cpu, matrices
from vpo_plugin.openrlhf.settings import VARIABLE, Settings
from vpo_plugin.rewards import load_spec
from vpo_plugin.rewards.scoring import ScorerError

DRIVER = """
import subprocess, sys, time
from pathlib import Path
from vpo_plugin.openrlhf import cpu, launcher

name, other, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
cpu.install()
try:
    cpu.start_private_ray({})
    import ray

    @ray.remote(num_cpus=0, num_gpus=1)
    class Engine:
        def start(self):
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])

    engine = Engine.options(name=name).remote()
    ray.get(engine.start.remote())
    (folder / name).write_text(cpu.ray_folder)
    while not (folder / other).exists():
        time.sleep(0.1)
    assert ray.cluster_resources()["GPU"] == cpu.PRETEND_GPUS
    assert len(ray.nodes()) == 1
    try:
        ray.get_actor(other if other != name else "nobody")
        raise AssertionError("the other run's actor is in sight")
    except ValueError:
        pass
    print("ready", flush=True)
    time.sleep(1000)
finally:
    launcher.stop_ray()
"""


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Training]:
    """Whatever is started with this mark is found again, and ended when the test ends."""
    started = Training(tmp_path, tmp_path, "")
    yield started
    left = left_after(started)
    kill_marked(started.mark)
    assert not left


def start(runs: Training, name: str, other: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, name, other, str(runs.output)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, MARK: runs.mark, **environment},
    )


def wait_until_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == "ready\n", process.communicate()[1][-3000:]


def left_after(runs: Training, seconds: float = 20) -> list[str]:
    deadline = time.monotonic() + seconds
    while runs.processes_left() and time.monotonic() < deadline:
        time.sleep(0.2)
    return runs.processes_left()


def test_two_runs_on_one_machine(runs: Training) -> None:
    """They do not see each other, a long TMPDIR is no obstacle, and Ctrl-C, even twice, ends all of one.

    SIGKILL lets the other's driver and its actors clean up nothing, and all the same nothing stays: neither what an
    actor started nor Ray's folder.
    """
    deep = runs.output / "a_folder_for_temporary_files" / "of_a_name_that_is_too_long_for_sockets"
    deep.mkdir(parents=True)
    both = [start(runs, "first", "second"), start(runs, "second", "first", TMPDIR=str(deep))]
    for process in both:
        wait_until_ready(process)
    folders = [Path((runs.output / name).read_text()) for name in ("first", "second")]
    assert folders[0] != folders[1]
    assert all(folder.is_dir() for folder in folders)
    interrupted, killed = both
    everything = len(runs.processes_left())
    interrupted.send_signal(signal.SIGINT)
    time.sleep(0.3)
    interrupted.send_signal(signal.SIGINT)
    _, errors = interrupted.communicate(timeout=60)
    assert interrupted.returncode != 0
    assert errors.strip().endswith("KeyboardInterrupt")
    assert 3 < len(runs.processes_left()) < everything - 3, "all of one run, and nothing of the other"
    assert [folder.exists() for folder in folders] == [False, True]
    killed.kill()
    for name, process in marked(runs.mark):
        if name.startswith("ray::Engine"):
            process.kill()
    killed.communicate()
    assert not left_after(runs)
    assert not folders[1].exists()


ALONE = """
import psutil, signal, time
from vpo_plugin.openrlhf import cpu, launcher

cpu.install()
cpu.NOTICED_SECONDS = 1
try:
    cpu.start_private_ray({})
    signal.signal(signal.SIGTERM, launcher._exit_on_sigterm)
    import ray

    for child in psutil.Process().children():
        if child.name() == "raylet":
            child.kill()

    @ray.remote(num_gpus=1)
    class Engine:
        def start(self):
            pass

    ray.get(Engine.remote().start.remote())
except KeyboardInterrupt:
    print("given up", cpu.raylet_died)
finally:
    launcher.stop_ray()
"""


def test_a_run_does_not_wait_for_another_node() -> None:
    """Its only one is gone, and Ray would wait for a place for the engine forever."""
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=120)
    assert "given up True" in done.stdout, done.stderr[-3000:]


NESTED = """
import os, subprocess, sys
from pathlib import Path

from vpo_plugin.openrlhf import cpu, launcher
from vpo_plugin.openrlhf.settings import Settings, current_settings

CHILD = '''
import json, sys
import ray

address, runtime_env = sys.argv[1], json.loads(sys.argv[2])
ray.init(address=address, runtime_env=runtime_env)  # vllm/v1/executor/ray_utils.py, initialize_ray_cluster

@ray.remote(num_cpus=0, runtime_env=runtime_env)  # vllm/v1/executor/ray_executor_v2.py, _build_runtime_env
class Rank:
    def run(self):
        from vpo_plugin.openrlhf.settings import current_settings
        return current_settings().run

print("run", ray.get(Rank.remote().run.remote()))
'''

cpu.install()
from vpo_plugin.rewards import load_spec
file = sys.argv[1] + "/spec.yaml"
data = load_spec(file).model_dump(mode="json")
settings = Settings(file, 1, "raise", Path(sys.argv[1]), on_cpu=True, run="this one", spec_data=data)
try:
    launcher.start_ray(settings)
    import json, ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    @ray.remote
    class Engine:
        def start(self):
            runtime_env = json.dumps(ray.get_runtime_context().runtime_env.to_dict())
            address = ray._private.worker.global_worker.gcs_client.address
            command = [sys.executable, "-c", CHILD, address, runtime_env]
            done = subprocess.run(command, capture_output=True, text=True, timeout=200)
            return done.stdout + done.stderr

        def score(self, bundles):
            # As in openrlhf/trainer/ray/vllm_engine.py, _configure_device_env.
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
            os.environ["VLLM_RAY_BUNDLE_INDICES"] = bundles
            from vpo_plugin.openrlhf.scorer import start_scoring
            from vpo_plugin.rewards.scoring import Item
            with start_scoring(settings) as scoring:
                scored = scoring.submit(Item("<route_1>visible devices</route_1>", "", 1, "")).result()
            return scored.matrix[0, 0]

    group = ray.util.placement_group([{"GPU": 1, "CPU": 1}] * 4)
    strategy = PlacementGroupSchedulingStrategy(group, 2, placement_group_capture_child_tasks=True)
    engine = Engine.options(num_cpus=0, num_gpus=0, scheduling_strategy=strategy).remote()
    print(ray.get(engine.start.remote()))
    devices = {bundles: ray.get(engine.score.remote(bundles)) for bundles in ("0,1", "2,3")}
    assert devices["0,1"] != devices["2,3"], devices
finally:
    launcher.stop_ray()
"""


def test_engine_of_several_ranks(tmp_path: Path) -> None:
    """vLLM joins Ray from a child of the engine with the environment that the engine was given, and starts actors.

    The scorer of each engine has the first of its GPUs.
    """
    (tmp_path / "spec.yaml").write_text(SPEC)
    (tmp_path / "slow_scorer.py").write_text(SCORER)
    command = [sys.executable, "-c", NESTED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "run this one" in done.stdout, done.stdout[-3000:]


def test_cuda_is_where_ray_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver without CUDA that joins a cluster leaves the CPU runtime out, unless VPO_DEVICE says that the
    cluster has none either; an empty RAY_ADDRESS names none."""
    import torch

    monkeypatch.delenv("VPO_DEVICE", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "ray-head:6379")
    assert cpu.cuda_available()
    monkeypatch.setenv("VPO_DEVICE", "cpu")
    assert not cpu.cuda_available()
    monkeypatch.delenv("VPO_DEVICE")
    for none in ("", "local"):
        monkeypatch.setenv("RAY_ADDRESS", none)
        assert cpu.cuda_available() == torch.cuda.is_available()


def test_cluster_that_ray_start_left_on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The host joins it without RAY_ADDRESS: so does the plugin, if it still answers."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert cpu.joined_cluster() is None
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(address)
        assert cpu.joined_cluster() == address
        assert cpu.cuda_available() == (os.environ.get("VPO_DEVICE") != "cpu")
        monkeypatch.setenv("RAY_ADDRESS", "local")
        assert cpu.joined_cluster() is None
        monkeypatch.delenv("RAY_ADDRESS")
    assert cpu.joined_cluster() is None


SPEC = """
name: slow
description: a scorer that waits, fails and crashes
objectives: [{key: a, description: a}, {key: b, description: b}]
weights: {a: 0.75, b: 0.25}
candidates: 2
tag: route
label: text
prompt: {single: "Write <route_1>.", multi: "Write {candidates} in <route_1>."}
scorer: slow_scorer:score
dataset: {loader: "slow_scorer:rows"}
limits: {response_chars: 1000, tokens_per_candidate: 20}
"""
SCORER = """
import os
import time
from pathlib import Path

crashed, waits, go = (Path(__file__).with_name(name) for name in ("crashed", "waits", "go"))

def score(candidate, label):
    if candidate == "fail":
        raise KeyError("no such test")
    if candidate == "visible devices":
        return [int(os.environ["CUDA_VISIBLE_DEVICES"]) / 100, 0.0]
    if candidate == "crash once" and not crashed.exists():
        crashed.touch()
        os._exit(1)
    if candidate == "crash":
        os._exit(1)
    while candidate == "wait" and not go.exists():
        waits.touch()
        time.sleep(0.01)
    return [1.0, 0.0] if candidate == label else [0.0, 1.0]

def rows(split, num_rows, seed):
    return []
"""


class Engine:
    """Says what it is told to; its tokens do not spell its text."""

    def __init__(self, text: str) -> None:
        self.text = text

    async def generate(self, prompt_token_ids: list[int], sampling_params: Any, multi_modal_data: Any = None) -> Any:
        await asyncio.sleep(0.01)
        said = SimpleNamespace(text=self.text, token_ids=[1, 2, 3], finish_reason="stop", logprobs=None)
        return SimpleNamespace(outputs=[said])


@pytest.fixture
def execute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """One run of the host's executor with the plugin's scoring, for an engine's text and a label."""
    (tmp_path / "spec.yaml").write_text(SPEC)
    (tmp_path / "slow_scorer.py").write_text(SCORER)
    with importable_host():
        from transformers import AutoTokenizer

        from vpo_plugin.openrlhf.agent import AgentExecutor

        tokenizer = AutoTokenizer.from_pretrained(resolve_policy(TINY, tmp_path))
        sampling = SimpleNamespace(max_tokens=20, logprobs=None)
        executors: dict[str, AgentExecutor] = {}

        def start(text: str, label: Any, on_scorer_error: Any = "raise") -> Any:
            data = load_spec(tmp_path).model_dump(mode="json")
            run = Settings(
                str(tmp_path / "spec.yaml"), 2, on_scorer_error, tmp_path / "vpo", on_cpu=True, spec_data=data
            )
            monkeypatch.setenv(VARIABLE, run.dump())
            if on_scorer_error not in executors:
                executors[on_scorer_error] = AgentExecutor()
            return executors[on_scorer_error].execute(
                prompt="a1=start",
                label=label,
                sampling_params=sampling,
                max_length=100,
                hf_tokenizer=tokenizer,
                llm_engine=Engine(text),
            )

        yield start
        for executor in executors.values():
            executor.scoring.close()
        sys.path.remove(str(tmp_path))
        sys.modules.pop("slow_scorer")


def test_scoring_leaves_the_event_loop_free(execute: Callable[..., Any], tmp_path: Path) -> None:
    """Scorers that wait for what the loop does meanwhile get it."""

    async def run() -> list[dict[str, Any]]:
        scoring = asyncio.gather(
            *[execute("<route_1>wait</route_1> <route_2>DOWN</route_2>", "wait") for _ in range(4)]
        )
        while not (tmp_path / "waits").exists():
            await asyncio.sleep(0.01)
        (tmp_path / "go").touch()
        return await scoring

    outputs = asyncio.run(run())
    for output in outputs:
        assert output["reward"] == output["scores"] == 0.5
        assert output["extra_logs"] == {
            matrices.INFO_KEY: [2, 2, 1, 0, 0, 1],
            "candidates_parsed": 2.0,
            "candidates_unique": 2.0,
            "scorer_errors": 0.0,
        }
        assert output["observation_tokens"][-3:] == [1, 2, 3]


def test_a_scorer_that_brings_its_process_down(execute: Callable[..., Any]) -> None:
    """It is that response's error, and the next one is scored."""

    async def run() -> dict[str, Any]:
        with pytest.raises(ScorerError, match="it ended its process with exit code 1"):
            await execute("<route_1>crash</route_1>", "UP")
        return await execute("<route_1>UP</route_1>", "UP")

    assert asyncio.run(run())["extra_logs"][matrices.INFO_KEY] == [2, 2, 1, 0, 0, 0]


def test_scorer_error_raises(execute: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(
        RuntimeError, match=r"spec 'slow' failed: KeyError: 'no such test' \(.*slow_scorer\.py:\d+\)"
    ) as raised:
        asyncio.run(execute("<route_1>fail</route_1>", "UP"))
    (file,) = (tmp_path / "vpo").glob("scorer_error_*.txt")
    assert str(file) in str(raised.value)
    saved = file.read_text()
    for part in ("a1=start", "<route_1>fail</route_1>", "Traceback", "no such test"):
        assert part in saved


def test_scorer_error_counts_as_zero(execute: Callable[..., Any], tmp_path: Path) -> None:
    """The whole response is worth nothing, its good candidate as well, and the error is counted and saved."""
    text = "<route_1>UP</route_1> <route_2>fail</route_2>"
    output = asyncio.run(execute(text, "UP", on_scorer_error="zero"))
    assert output["reward"] == 0.0
    assert output["extra_logs"][matrices.INFO_KEY] == [2, 2, 0, 0, 0, 0]
    assert output["extra_logs"]["scorer_errors"] == 1.0
    assert len(list((tmp_path / "vpo").glob("scorer_error_*.txt"))) == 1


@pytest.mark.parametrize(("compiler", "expected"), [(sys.executable, "None"), ("no-such-compiler", "1")])
def test_a_machine_without_a_compiler(compiler: str, expected: str) -> None:
    """vLLM's layers run uncompiled there, where torch would fail at the first response."""
    program = "from vpo_plugin.openrlhf.cpu import environment; print(environment().get('TORCHDYNAMO_DISABLE'))"
    environment = {**os.environ, "CXX": compiler}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected

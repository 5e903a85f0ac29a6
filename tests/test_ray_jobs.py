"""The training stage as a job of a Ray cluster: a real one on this machine, with GPUs that are only numbers."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import MARK, kill_marked, marked
from prefect_service import readme_command, serving, working
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from flows import ray_jobs
from vpo_plugin.openrlhf.log import read_steps

STEPS = 4
GPUS = 16
FLOW = """
import json, sys
from prefect import flow
from flows.pipeline import check_specification, prepare_data, prepare_policy
from flows.ray_jobs import RayCluster
from flows.settings import PipelineSettings
from flows.train import train

@flow
def only_train(settings: PipelineSettings, block: str | None = None) -> str:
    if block is not None:
        RayCluster(address=block, env_vars={"MY_SETTING": "x"}).save("mine")
    spec = check_specification(settings)
    return train(settings, "vpo", spec.candidates, prepare_policy(settings), prepare_data(settings))

settings, *block = sys.argv[1:]
only_train(PipelineSettings(**json.loads(settings)), *block)
"""


@dataclass
class Cluster:
    """A Ray head of the test's own."""

    process: subprocess.Popen[bytes]
    mark: str
    port: int
    address: str

    def jobs(self, run: str) -> list[JobDetails]:
        """The jobs of a run of the pipeline."""
        listed = JobSubmissionClient(self.address).list_jobs()
        return [job for job in listed if (job.submission_id or "").startswith(f"vpo-{run}-")]

    def working(self) -> list[str]:
        """What of a training holds the cluster's resources."""
        parts = ("Actor", "EngineCore", "PPOTrainer", "train_ppo_ray")
        return [name for name, _ in marked(self.mark) if any(part in name for part in parts)]

    def kill(self) -> None:
        kill_marked(self.mark)
        self.process.wait()


def start_cluster(folder: Path) -> Cluster:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(7)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in sockets]
    names = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port")
    names += ("dashboard-agent-grpc-port", "runtime-env-agent-port", "metrics-export-port")
    mark = f"cluster-{os.getpid()}-{ports[0]}"
    flags = [f"--{name}={port}" for name, port in zip(names, ports, strict=True)]
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
            *("--dashboard-host=127.0.0.1", f"--num-cpus={GPUS}", f"--num-gpus={GPUS}"),
            *(f"--temp-dir={folder}", "--object-store-memory=500000000", *flags),
        ],
        stdout=(folder / "head.log").open("wb"),
        stderr=subprocess.STDOUT,
        # What a cluster without CUDA is started with; `python` is the one that has the plugin.
        env={
            **os.environ,
            MARK: mark,
            "VPO_DEVICE": "cpu",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
    )
    cluster = Cluster(process, mark, ports[0], f"http://127.0.0.1:{ports[1]}")
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        with contextlib.suppress(ConnectionError, RuntimeError):
            JobSubmissionClient(cluster.address)
            return cluster
        time.sleep(0.5)
    raise AssertionError((folder / "head.log").read_text())


@pytest.fixture(scope="module")
def new_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Cluster]]:
    """Starts clusters that are gone after the tests. Ray's sockets need folders with short names."""
    clusters = []
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as home:

        def start() -> Cluster:
            folder = Path(home) / str(len(clusters))
            folder.mkdir()
            clusters.append(start_cluster(folder))
            return clusters[-1]

        yield start
        for cluster in clusters:
            cluster.kill()


@pytest.fixture(scope="module")
def cluster(new_cluster: Callable[[], Cluster]) -> Cluster:
    return new_cluster()


class Flow:
    """A flow that trains on a cluster, in a process that can be killed."""

    def __init__(self, tmp_path: Path, **settings: object) -> None:
        script = tmp_path / "only_train.py"
        script.write_text(FLOW)
        self.settings: dict[str, Any] = {
            **{"name": "small", "runs": str(tmp_path), "steps": STEPS, "prompts_per_step": 4, "save_steps": 1},
            **{"rollouts_per_prompt": 4, "eval_prompts": 2, "eval_candidates": 6, **settings},
        }
        self.folder = tmp_path / self.settings["name"] / "train" / "vpo"
        self.script = script
        self.block: list[str] = []
        self.log = tmp_path / "flow.log"
        self.mark = f"flow-{uuid.uuid4().hex}"
        self.environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect"), MARK: self.mark}

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(self.script), json.dumps(self.settings), *self.block]
        with self.log.open("wb") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=self.environment)

    def run(self) -> tuple[int, str]:
        return self.start().wait(700), self.log.read_text()

    def kill(self) -> None:
        """The flow, and its temporary Prefect server."""
        kill_marked(self.mark)

    @property
    def steps(self) -> list[float]:
        return [step["step"] for step in read_steps(self.folder / "policy" / "vpo")]


@pytest.fixture
def new_flow(tmp_path: Path) -> Iterator[Callable[..., Flow]]:
    flows: list[Flow] = []
    yield lambda **settings: flows.append(Flow(tmp_path, **settings)) or flows[-1]
    for flow in flows:
        flow.kill()


def wait_until(
    condition: Callable[[], object], what: str, process: subprocess.Popen[bytes] | None = None, seconds: float = 400
) -> None:
    """Wait for something, as long as the process runs that is to bring it about."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, f"The flow ended before there was {what}."
        assert time.monotonic() < deadline, f"There was no {what} within {seconds:.0f} s."
        time.sleep(0.2)


@pytest.mark.slow
def test_killed_flow_finds_its_job_again(cluster: Cluster, new_flow: Callable[..., Flow]) -> None:
    flow = new_flow(cluster=cluster.address)
    process = flow.start()
    wait_until(lambda: flow.steps, "first step", process)
    flow.kill()
    process.wait()
    (job,) = cluster.jobs("small")
    assert job.status == JobStatus.RUNNING

    code, output = flow.run()
    assert code == 0, output[-3000:]
    assert [other.submission_id for other in cluster.jobs("small")] == [job.submission_id], "no second one was started"
    assert flow.steps == [1, 2, 3, 4]
    assert f"vpo: step {STEPS}/{STEPS}" in output
    assert "RolloutRayActor" not in output, "the workers' lines are in the log alone"
    log = (flow.folder / "train.log").read_text()
    assert f"Running entrypoint for job {job.submission_id}" in log
    assert "Global step 4" in log
    assert (flow.folder / "policy" / "model.safetensors").exists()
    assert not list((flow.folder / "checkpoints").glob("_actor/global_step*")), "they have served"

    code, output = flow.run()
    assert code == 0, output[-3000:]
    assert "Skipped: finished before" in output


@pytest.mark.slow
def test_stopped_flow_stops_its_job(cluster: Cluster, new_flow: Callable[..., Flow]) -> None:
    """SIGTERM is what Prefect sends to a flow run that it cancels."""
    flow = new_flow(cluster=cluster.address, name="stopped", steps=1000)
    process = flow.start()
    wait_until(lambda: flow.steps, "first step", process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) != 0
    (job,) = cluster.jobs("stopped")
    assert job.status == JobStatus.STOPPED
    wait_until(lambda: not cluster.working(), "end of the training's actors", seconds=30)


@pytest.mark.slow
def test_cancelled_flow_run_stops_its_job(cluster: Cluster, new_flow: Callable[..., Flow], tmp_path: Path) -> None:
    """Cancelled with Prefect's command: a deployed training that a worker runs."""
    flow = new_flow(cluster=cluster.address, name="cancelled", steps=1000, methods=["vpo"])
    with serving(tmp_path / "prefect") as service:
        for command in ("work-pool create", "deploy --all"):
            code, output = service.prefect_on_terminal(*readme_command(command))
            assert code == 0, output
        with working(service, tmp_path):
            given = json.dumps(flow.settings)
            started = service.prefect("deployment", "run", "train/maze-cpu", "--params", given, timeout=120)
            assert started.returncode == 0, started.stdout + started.stderr
            wait_until(lambda: flow.steps, "first step")
            (run,) = service.runs("train")
            cancelled = service.prefect("flow-run", "cancel", run["id"], timeout=120)
            assert cancelled.returncode == 0, cancelled.stdout + cancelled.stderr
            wait_until(lambda: not cluster.working(), "end of the training's actors", seconds=30)
            (job,) = cluster.jobs("cancelled")
            assert job.status == JobStatus.STOPPED
            wait_until(lambda: service.runs("train")[0]["state"]["type"] == "CANCELLED", "cancelled run", seconds=60)


@pytest.mark.slow
def test_failed_job_says_why(cluster: Cluster, new_flow: Callable[..., Flow]) -> None:
    """The cluster is named by a block here, which has environment variables for the job."""
    flow = new_flow(cluster="ray-cluster/mine", name="failing", host_flags=["--vpo.candidates", "0"])
    flow.block = [cluster.address]
    code, output = flow.run()
    assert code != 0
    (job,) = cluster.jobs("failing")
    assert job.runtime_env == {"env_vars": {"MY_SETTING": "x"}}
    (line,) = {line for line in output.splitlines() if line.startswith("RuntimeError: Training with vpo failed")}
    assert f"(Ray job {job.submission_id}, failed)" in line
    assert "--vpo.candidates is 0: a response needs at least 1 candidate. The whole log is " in line


def test_cluster_that_is_not_there(new_flow: Callable[..., Flow], tmp_path: Path) -> None:
    code, output = new_flow(cluster="http://127.0.0.1:9").run()
    assert code != 0
    assert "ConnectionError: The Ray cluster http://127.0.0.1:9 does not answer" in output
    assert not (tmp_path / "small" / "data").exists(), "refused before anything was done"


def test_cluster_that_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its machine takes the connection and never answers."""
    monkeypatch.setattr(ray_jobs, "LOST_SECONDS", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=f"The Ray cluster {address} does not answer"):
            ray_jobs.connect(ray_jobs.RayCluster(address=address))


@pytest.mark.slow
def test_head_is_killed(new_cluster: Callable[[], Cluster], new_flow: Callable[..., Flow]) -> None:
    """The flow says so; on another cluster the training goes on from its last checkpoint."""
    first = new_cluster()
    flow = new_flow(cluster=first.address)
    process = flow.start()
    second = flow.folder / "checkpoints" / "_actor" / "global_step2" / "metric.json"
    wait_until(second.exists, "checkpoint of the second step", process)
    first.kill()
    assert process.wait(200) != 0
    assert f"Training with vpo is lost: the Ray cluster {first.address} is gone" in flow.log.read_text()

    flow.settings["cluster"] = new_cluster().address
    code, output = flow.run()
    assert code == 0, output[-3000:]
    assert "Resuming after step " in output
    assert flow.steps == [1, 2, 3, 4]

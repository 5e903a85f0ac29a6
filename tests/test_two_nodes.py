"""Training over two hosts, for real: network namespaces with a Ray node each, the public command, and its faults."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from conftest import SPEC, Training, write_prompts
from host import host_arguments, importable_host
from hosts import PORT, Host, Hosts, namespaces_unavailable
from test_experience import compute, make_maker, make_samples, with_forward_results
from test_ray_jobs import FLOW

from vpo_plugin.models import TINY, resolve_policy
from vpo_plugin.openrlhf.log import read_steps
from vpo_plugin.openrlhf.settings import VARIABLE, Settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

GROUPS, ROLLOUTS = 4, 4
STEPS = 32
"""Of the training that meets the faults, more than are done until the last of them."""
START_SECONDS = 400
"""Until a run, whose processes import everything on the cores of one machine, has taken two steps."""
END_SECONDS = 120
"""Until a run has noticed a fault and ended."""
FLAGS = [
    # One pretend GPU a host: a rank of the policy and an engine take turns on each.
    *("--train.colocate_all", "--actor.num_nodes", "2", "--vllm.num_engines", "2"),
    *("--rollout.micro_batch_size", "4", "--train.micro_batch_size", "4"),
]
TITLES = ("ray::PolicyModelActor", "VLLM::EngineCore")
SCORER = """
from pathlib import Path

import ray

from reward_specs.maze import maze

def score(candidate, label):
    (Path(__file__).parent / f"scored_on_{ray.util.get_node_ip_address()}").touch()
    return maze.score(candidate, label)
"""


class Cluster:
    """Two hosts with a Ray node each, and what is started on the first of them."""

    def __init__(self, folder: Path) -> None:
        reason = namespaces_unavailable()
        if reason:
            pytest.skip(reason)
        self.folder = folder
        self.hosts = Hosts.make({**os.environ, "OMP_NUM_THREADS": "1"})
        self.hosts.start_ray()

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a program that joins the cluster, with its output in a new `log`."""
        head = self.hosts.head
        environment = head.environment | {
            **{"RAY_ADDRESS": f"{head.address}:{PORT}", "VPO_DEVICE": "cpu"},
            **{"PREFECT_HOME": str(self.folder / "prefect"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"},
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        }
        self.log = self.folder / f"{len(list(self.folder.glob('*.log')))}.log"
        with self.log.open("wb") as log:
            return subprocess.Popen(head.command(*command), stdout=log, stderr=log, env=environment)

    def end_of(self, process: subprocess.Popen[bytes], seconds: float, what: str) -> int:
        """Exit code of the program, which is to end in this time."""
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            raise TimeoutError(f"{what}: it did not end within {seconds} s:\n{self.output()[-3000:]}") from None

    def output(self) -> str:
        return re.sub(r"\x1b\[[0-9;]*m", "", self.log.read_text(errors="replace"))


class Flow:
    """The training stage as a flow on the cluster, which can be started again after a fault."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.script = cluster.folder / "only_train.py"
        self.script.write_text(FLOW)
        self.settings = {
            **{"name": "faults", "runs": str(cluster.folder), "steps": STEPS, "save_steps": 1, "kl_loss": 0},
            **{"prompts_per_step": GROUPS, "rollouts_per_prompt": ROLLOUTS, "host_flags": FLAGS},
        }
        self.folder = cluster.folder / "faults" / "train" / "vpo"
        self.log_dir = self.folder / "policy" / "vpo"

    def start(self) -> subprocess.Popen[bytes]:
        return self.cluster.start(sys.executable, str(self.script), json.dumps(self.settings))

    def lines(self) -> list[str]:
        """The lines that were logged of the steps."""
        path = self.log_dir / "metrics.jsonl"
        return path.read_text().splitlines() if path.exists() else []

    def wait_for_step(self, process: subprocess.Popen[bytes], step: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not any(json.loads(line)["step"] == step for line in self.lines()):
            assert process.poll() is None, f"The flow ended before step {step}:\n{self.cluster.output()[-3000:]}"
            if time.monotonic() > deadline:
                log = (self.folder / "train.log").read_text(errors="replace")
                raise TimeoutError(f"Step {step} was not done after {START_SECONDS} s:\n{log[-3000:]}")
            time.sleep(0.2)

    def last_checkpoint(self) -> int:
        """The step of the newest checkpoint that is complete: DeepSpeed's `latest` names it, or the host has written
        its metric.json, which comes after."""
        actor = self.folder / "checkpoints" / "_actor"
        names = [file.parent.name for file in actor.glob("global_step*/metric.json")]
        names += [file.read_text().strip() for file in actor.glob("latest")]
        return max((int(name.removeprefix("global_step")) for name in names), default=0)

    def kept(self) -> list[str]:
        """The lines of the steps that the next start goes on from."""
        return self.lines()[: self.last_checkpoint()]

    def check_continued(self, kept: list[str]) -> None:
        """The flow says from which step it went on, and none of those before was taken again."""
        if kept:
            assert f"Resuming after step {len(kept)}, from its checkpoint" in self.cluster.output()
        assert self.lines()[: len(kept)] == kept


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("two"))
    try:
        yield made
    finally:
        made.hosts.remove()


def find(host: Host, title: str) -> list[psutil.Process]:
    """The host's processes whose title starts like this."""
    found = []
    for process in host.processes():
        try:
            if " ".join(process.cmdline()).startswith(title):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def logged(log_dir: Path, step: int) -> dict[str, np.ndarray]:
    with np.load(log_dir / "rollouts" / f"step_{step:06d}.npz") as arrays:
        return dict(arrays)


def test_two_nodes_train_as_one(cluster: Cluster, tmp_path: Path) -> None:
    """A rank and an engine on each node, rewards scored on both, and the advantages are those of a single process."""
    spec = tmp_path / "where"
    spec.mkdir()
    (spec / "spec.yaml").write_text(f"name: where\nextends: {SPEC}\nscorer: where_scorer:score\n")
    (spec / "where_scorer.py").write_text(SCORER)
    output, checkpoints = tmp_path / "policy", tmp_path / "checkpoints"
    prompts = write_prompts(tmp_path / "prompts", 4 * GROUPS)
    training = Training(output, prompts, resolve_policy(TINY, tmp_path))
    process = cluster.start(
        *training.command(*FLAGS, "--vpo.spec", str(spec), "--vpo.seed", "3"),
        *("--ckpt.path", str(checkpoints), "--ckpt.save_steps", "1", "--ckpt.max_num", "2"),
    )
    hosts = (cluster.hosts.head, cluster.hosts.worker)
    wanted = {(host.name, title) for host in hosts for title in TITLES}
    seen: set[tuple[str, str]] = set()
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        seen |= {(name, title) for host in hosts for name, title in wanted if name == host.name and find(host, title)}
        time.sleep(0.5)
    assert cluster.end_of(process, 1, f"Four steps in {START_SECONDS} s") == 0, cluster.output()[-3000:]
    assert seen == wanted
    assert {file.name for file in spec.glob("scored_on_*")} == {f"scored_on_{host.address}" for host in hosts}

    steps = read_steps(output / "vpo")
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert {line["rollout/num_samples"] for line in steps} == {GROUPS * ROLLOUTS}
    shards = {file.name for file in (checkpoints / "_actor" / "global_step4").glob("*optim_states*")}
    assert len(shards) == 2, f"each rank saves its share of the optimizer: {shards}"

    # The same rollouts through the host's trainer in this process alone.
    with importable_host(), pytest.MonkeyPatch.context() as patch:
        settings = Settings(SPEC, 3, "raise", tmp_path / "single", on_cpu=True)
        patch.setenv(VARIABLE, settings.dump())
        arguments = host_arguments(
            *("--advantage", "vpo", "--vpo.spec", SPEC, "--vpo.seed", "3", "--algo.kl.init_coef", "0"),
            *("--rollout.n_samples_per_prompt", str(ROLLOUTS), "--rollout.micro_batch_size", "16"),
            *("--rollout.max_new_tokens", "12"),
        )
        arguments.reward.clip_range = (-100.0, 100.0)
        for step in (1, 2, 3, 4):
            two = logged(output / "vpo", step)
            matrices = torch.from_numpy(two["reward_matrices"])
            assert matrices.shape == (GROUPS, ROLLOUTS, 3, 4)
            maker = make_maker(arguments, step=step - 1)
            samples = make_samples(arguments, list(matrices.flatten(0, 1)))
            compute(maker, with_forward_results(maker.split_rollout_samples(samples)))
            single = logged(settings.log_dir, step)
            np.testing.assert_allclose(two["advantages"], single["advantages"], atol=1e-6)
            np.testing.assert_allclose(two["token_advantages"], single["token_advantages"], atol=1e-5)
    assert any(logged(output / "vpo", step)["advantages"].any() for step in (1, 2, 3, 4))


def cut_off(hosts: Hosts) -> None:
    """The worker's wire is pulled; afterwards it is a fresh machine."""
    hosts.cut()


def kill_actor(hosts: Hosts) -> None:
    find(hosts.worker, "ray::PolicyModelActor")[0].kill()


def kill_engine(hosts: Hosts) -> None:
    find(hosts.worker, "VLLM::EngineCore")[0].kill()


def kill_head(hosts: Hosts) -> None:
    """The head's Ray ends; the flow, on the same host, lives on."""
    for process in hosts.head.processes():
        if process.name() in ("gcs_server", "raylet"):
            process.kill()


def repair(hosts: Hosts, fault: Callable[[Hosts], None]) -> None:
    """What is broken by then is started anew."""
    if fault is cut_off:
        hosts.worker.stop_ray()
        hosts.plug_in()
        hosts.worker.start_ray(hosts.head)
    if fault is kill_head:
        hosts.worker.stop_ray()
        hosts.head.stop_ray()
        hosts.start_ray()
    hosts.wait_for_nodes(2)


@pytest.fixture(scope="module")
def flow(cluster: Cluster) -> Flow:
    return Flow(cluster)


@pytest.mark.parametrize("fault", [cut_off, kill_actor, kill_engine, kill_head])
def test_fault(cluster: Cluster, flow: Flow, fault: Callable[[Hosts], None]) -> None:
    """In the middle of a step it ends the flow as failed, and it says why. What earlier faults left is gone on from."""
    kept = flow.kept()
    process, started = flow.start(), time.monotonic()
    flow.wait_for_step(process, len(kept) + 2)
    flow.check_continued(kept)
    fault(cluster.hosts)
    struck = time.monotonic()
    assert cluster.end_of(process, END_SECONDS, fault.__name__) != 0
    output = cluster.output()
    (said,) = {line for line in output.splitlines() if line.startswith("RuntimeError: Training with vpo failed")}
    print(f"\n{fault.__name__}: {struck - started:.0f} s to step {len(kept) + 2}, ", end="")
    print(f"{time.monotonic() - struck:.0f} s to the end: {said}")
    assert "Finished in state Failed(" in output
    if not (fault is kill_head and "Failed to connect to GCS" in said):  # where Ray itself ends the training
        assert "A process or a node of the run died" in said
        assert f"resumes from the last checkpoint in {flow.folder / 'checkpoints'}" in said
    assert [json.loads(line)["step"] for line in flow.kept()] == list(range(1, flow.last_checkpoint() + 1))
    repair(cluster.hosts, fault)


def test_started_again_after_the_faults(cluster: Cluster, flow: Flow) -> None:
    """Every step was taken once, with whole groups, and every prompt was used once."""
    kept = flow.kept()
    assert cluster.end_of(flow.start(), START_SECONDS, "The last start") == 0, cluster.output()[-3000:]
    flow.check_continued(kept)
    assert (flow.folder / "policy" / "model.safetensors").exists()
    steps = read_steps(flow.log_dir)
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    assert {line["rollout/num_samples"] for line in steps} == {GROUPS * ROLLOUTS}
    rollouts = [logged(flow.log_dir, step) for step in range(1, STEPS + 1)]
    assert {arrays["reward_matrices"].shape for arrays in rollouts} == {(GROUPS, ROLLOUTS, 3, 4)}
    prompts = np.concatenate([arrays["prompts"] for arrays in rollouts])
    assert len(set(prompts)) == len(prompts) == STEPS * GROUPS

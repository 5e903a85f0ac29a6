"""Training over two hosts, for real: network namespaces with a Ray node each, the public command, and its faults."""

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from conftest import SPEC, Training, write_prompts
from host import host_arguments, importable_host
from hosts import PORT, Host, Hosts, namespaces_unavailable
from test_experience import compute, make_maker, make_samples, with_forward_results

from flows.policy import TINY, resolve_policy
from vpo_plugin.openrlhf import worker
from vpo_plugin.openrlhf.log import read_steps

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

STEPS_AN_EPISODE = 4
GROUPS, ROLLOUTS = 4, 4
START_SECONDS = 600
END_SECONDS = 300
"""Until a run has noticed a fault and ended; Ray counts a silent node as dead after less than a minute."""
FLAGS = [
    # One pretend GPU a host: a rank of the policy and an engine take turns on each.
    *("--train.colocate_all", "--actor.num_nodes", "2", "--vllm.num_engines", "2"),
    *("--rollout.micro_batch_size", "4", "--train.micro_batch_size", "4", "--vpo.seed", "3"),
    *("--actor.adam.lr", "1e-4", "--actor.lr_scheduler", "constant"),
    *("--ckpt.save_steps", "1", "--ckpt.max_num", "2", "--ckpt.load_enable"),
]
SCORER = """
from pathlib import Path

import ray

from reward_specs.maze import maze

def score(candidate, label):
    (Path(__file__).parent / f"scored_on_{ray.util.get_node_ip_address()}").touch()
    return maze.score(candidate, label)
"""


class Run:
    """A training over two hosts that can be started again after a fault."""

    def __init__(self, folder: Path) -> None:
        reason = namespaces_unavailable()
        if reason:
            pytest.skip(reason)
        self.folder = folder
        prompts = write_prompts(folder / "prompts", STEPS_AN_EPISODE * GROUPS)
        self.training = Training(folder / "policy", prompts, resolve_policy(TINY, folder))
        self.hosts = Hosts.make({**os.environ, "OMP_NUM_THREADS": "1"})
        self.hosts.start_ray()

    def start(self, *flags: str) -> subprocess.Popen[bytes]:
        command = self.training.command(*FLAGS, "--ckpt.path", str(self.folder / "checkpoints"), *flags)
        head = self.hosts.head
        environment = head.environment | {"RAY_ADDRESS": f"{head.address}:{PORT}", "VPO_DEVICE": "cpu"}
        self.log = self.folder / f"run{len(list(self.folder.glob('run*.log')))}.log"
        with self.log.open("wb") as log:
            return subprocess.Popen(head.command(*command), stdout=log, stderr=log, env=environment)

    def end_of(self, process: subprocess.Popen[bytes], seconds: float) -> int:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"The run did not end within {seconds} s:\n{self.output()[-3000:]}") from None

    def output(self) -> str:
        return re.sub(r"\x1b\[[0-9;]*m", "", self.log.read_text(errors="replace"))

    def lines(self) -> list[str]:
        """The lines that were logged of the steps."""
        path = self.training.output / "vpo" / "metrics.jsonl"
        return path.read_text().splitlines() if path.exists() else []

    def wait_for_step(self, process: subprocess.Popen[bytes], step: int) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not any(json.loads(line)["step"] == step for line in self.lines()):
            assert process.poll() is None, self.output()[-3000:]
            assert time.monotonic() < deadline, self.output()[-3000:]
            time.sleep(0.2)

    def last_checkpoint(self) -> int:
        """The step of the newest checkpoint that is complete."""
        latest = self.folder / "checkpoints" / "_actor" / "latest"
        return int(latest.read_text().removeprefix("global_step")) if latest.exists() else 0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    made = Run(tmp_path_factory.mktemp("two"))
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


def test_two_nodes_train_as_one(run: Run, tmp_path: Path) -> None:
    """A rank and an engine on each node, rewards scored on both, and the advantages are those of a single process."""
    spec = tmp_path / "where"
    spec.mkdir()
    (spec / "spec.yaml").write_text(f"name: where\nextends: {SPEC}\nscorer: where_scorer:score\n")
    (spec / "where_scorer.py").write_text(SCORER)
    output, checkpoints = tmp_path / "policy", tmp_path / "checkpoints"
    process = run.start(
        *("--vpo.spec", str(spec), "--ckpt.output_dir", str(output), "--ckpt.path", str(checkpoints)),
    )
    hosts = (run.hosts.head, run.hosts.worker)
    wanted = {(host.name, title) for host in hosts for title in ("ray::PolicyModelActor", "VLLM::EngineCore")}
    seen: set[tuple[str, str]] = set()
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        seen |= {(name, title) for host in hosts for name, title in wanted if name == host.name and find(host, title)}
        time.sleep(1)
    assert run.end_of(process, 1) == 0, run.output()[-3000:]
    assert seen == wanted
    assert {file.name for file in spec.glob("scored_on_*")} == {f"scored_on_{host.address}" for host in hosts}

    steps = read_steps(output / "vpo")
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert {line["rollout/num_samples"] for line in steps} == {GROUPS * ROLLOUTS}
    shards = {file.name for file in (checkpoints / "_actor" / "global_step4").glob("*optim_states*")}
    assert len(shards) == 2, f"each rank saves its share of the optimizer: {shards}"

    # The same rollouts through the host's trainer in this process alone.
    with importable_host(), pytest.MonkeyPatch.context() as patch:
        settings = worker.Settings(SPEC, 3, "raise", tmp_path / "single", on_cpu=True)
        patch.setattr(worker, "settings", settings)
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


def cut_off(run: Run) -> None:
    """The worker's wire is pulled; afterwards it is a fresh machine."""
    run.hosts.cut()


def kill_actor(run: Run) -> None:
    find(run.hosts.worker, "ray::PolicyModelActor")[0].kill()


def kill_engine(run: Run) -> None:
    find(run.hosts.worker, "VLLM::EngineCore")[0].kill()


def kill_head(run: Run) -> None:
    """The head's Ray ends; the driver, on the same host, lives on."""
    for process in run.hosts.head.processes():
        if process.name() in ("gcs_server", "raylet"):
            process.kill()


def test_faults(run: Run) -> None:
    """Each fault ends the run with an error; the same command then continues after its last checkpoint."""
    done: list[str] = []
    for fault in (cut_off, kill_actor, kill_engine, kill_head):
        resumed = run.last_checkpoint()
        process = run.start("--train.num_episodes", "1000")
        run.wait_for_step(process, resumed + 2)
        assert run.lines()[: len(done)] == done, "the steps up to the checkpoint were not taken again"
        fault(run)
        assert run.end_of(process, END_SECONDS) != 0
        print(f"----- {fault.__name__}\n{run.output()[-2500:]}")
        if fault is not kill_head:  # whose driver is ended by Ray itself
            assert f"with --ckpt.load_enable goes on from the last checkpoint in {run.folder}" in run.output()
        done = run.lines()[: run.last_checkpoint()]
        assert [json.loads(line)["step"] for line in done] == list(range(1, run.last_checkpoint() + 1))
        if fault is cut_off:
            run.hosts.worker.stop_ray()
            run.hosts.plug_in()
            run.hosts.worker.start_ray(run.hosts.head)
        if fault is kill_head:
            run.hosts.worker.stop_ray()
            run.hosts.head.stop_ray()
            run.hosts.start_ray()
        run.hosts.wait_for_nodes(2)

    episodes = run.last_checkpoint() // STEPS_AN_EPISODE + 1
    process = run.start("--train.num_episodes", str(episodes))
    assert run.end_of(process, START_SECONDS) == 0, run.output()[-3000:]
    assert f"Going on after step {len(done)}, from its checkpoint" in run.output()
    assert run.lines()[: len(done)] == done
    steps = read_steps(run.training.output / "vpo")
    assert [line["step"] for line in steps] == list(range(1, episodes * STEPS_AN_EPISODE + 1))

    # Every step was taken with whole groups, and every episode with every prompt once.
    assert {line["rollout/num_samples"] for line in steps} == {GROUPS * ROLLOUTS}
    taken: list[list[str]] = [[] for _ in range(episodes)]
    for step in range(1, len(steps) + 1):
        arrays = logged(run.training.output / "vpo", step)
        assert arrays["reward_matrices"].shape == (GROUPS, ROLLOUTS, 3, 4)
        taken[(step - 1) // STEPS_AN_EPISODE].extend(arrays["prompts"].tolist())
    for prompts in taken:
        assert len(set(prompts)) == len(prompts) == STEPS_AN_EPISODE * GROUPS

"""What a stopped command leaves running: nothing. The signal reaches the command's own process, not its group."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import MARK, kill_marked, marked

from vpo_plugin.openrlhf.log import read_steps

THREADS = """
import sys
from pathlib import Path
from flows.process import run_logged, stopping_threads  # first: Prefect's server gets time to start
from prefect import flow, task
from prefect.futures import wait
from prefect.task_runners import ThreadPoolTaskRunner
from vpo_plugin.locks import exit_on_sigterm

@task
def follow(log: Path) -> None:
    run_logged([sys.executable, "-c", "import time; time.sleep(600)"], log, what="The program")

@flow(task_runner=ThreadPoolTaskRunner(max_workers=2))
def three_in_two_threads(folder: Path) -> None:
    with stopping_threads():
        wait([follow.submit(folder / f"{name}.log") for name in "abc"])

exit_on_sigterm()
three_in_two_threads(Path(sys.argv[1]))
"""
SMALL = {"steps": 1000, "prompts_per_step": 4, "rollouts_per_prompt": 4, "eval_prompts": 6, "eval_candidates": 6}


class Command:
    """A command in a process tree that can be found again."""

    def __init__(self, folder: Path, *command: str) -> None:
        self.log = folder / "output"
        self.mark = f"stopping-{folder}"
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment | {"PREFECT_HOME": str(folder / "prefect"), MARK: self.mark},
            )

    def wait_for(self, condition: Callable[[], object], what: str, seconds: float = 400) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"It ended before there was {what}: {self.log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"No {what} in {seconds:.0f} s: {self.log.read_text()[-3000:]}"
            time.sleep(0.2)

    def stop(self, signum: int) -> tuple[int, list[str]]:
        """Exit code, and what still runs of the command when it has ended."""
        self.process.send_signal(signum)
        code = self.process.wait(90)
        return code, [name for name, _ in marked(self.mark)]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    commands = []

    def start(*command: str) -> Command:
        commands.append(Command(tmp_path, *command))
        return commands[-1]

    yield start
    for command in commands:
        kill_marked(command.mark)
        command.process.wait(60)


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, -signal.SIGINT, marks=pytest.mark.slow)]
)
def test_programs_of_threads_are_stopped(start: Callable[..., Command], tmp_path: Path, signum: int, code: int) -> None:
    """Also those that have not begun, and Prefect's temporary server."""
    command = start("-c", THREADS, str(tmp_path))
    command.wait_for(lambda: len(list(tmp_path.glob("*.log.job"))) == 2, "programs of two threads")
    assert command.stop(signum) == (code, [])
    assert len(list(tmp_path.glob("*.log"))) == 2, "the third was not begun"


@pytest.mark.slow
def test_stopped_experiment_leaves_nothing(start: Callable[..., Command], tmp_path: Path) -> None:
    """Two trainings at once, each with a Ray, an engine and workers of its own."""
    flags = [f"--{name}={value}" for name, value in SMALL.items()]
    flags += ["--methods=grpo,vpo", "--seeds=0", "--parallel=2", f"--runs={tmp_path}"]
    command = start("-m", "vpo_plugin.cli", "experiment", *flags)
    logs = [tmp_path / "experiment" / "seed-0" / "train" / method / "policy" / "vpo" for method in ("grpo", "vpo")]
    command.wait_for(lambda: all(map(read_steps, logs)), "step of both trainings")
    assert command.stop(signal.SIGTERM) == (143, [])


@pytest.mark.slow
def test_stopped_run_leaves_nothing(start: Callable[..., Command], tmp_path: Path) -> None:
    given = [f"{name}={value}" for name, value in SMALL.items()]
    command = start("-m", "vpo_plugin.cli", "run", "maze-cpu", "methods=[vpo]", f"runs={tmp_path}", *given)
    log = tmp_path / "maze-cpu" / "train" / "vpo" / "policy" / "vpo"
    command.wait_for(lambda: read_steps(log), "step")
    assert command.stop(signal.SIGINT) == (130, [])
    assert "vpo: interrupted; finished work is kept" in command.log.read_text()

"""What the end-to-end tests share: the shipped policy, a small prompt dataset, and the public training command."""

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psutil
import pytest
from datasets import Dataset
from xdist.scheduler import LoadScopeScheduling

from vpo_plugin.cli import main
from vpo_plugin.models import TINY, resolve_policy
from vpo_plugin.rewards import RewardSpec, load_spec
from vpo_plugin.rewards.task import read_rows

ROOT = Path(__file__).parent.parent
CASES = Path(__file__).parent / "cases"
SPEC = "maze_small"
MARK = "VPO_TEST_RUN"

LONGEST = (
    *("test_chaos", "test_chaos_services", "test_retrain", "test_deployments", "test_experiment"),
    *("test_train_ppo_ray", "test_flows"),
    *("test_resume", "test_specs_end_to_end", "test_ray_jobs", "test_pool", "test_search", "test_stopping"),
    *("test_personas", "test_warm_start", "test_two_nodes", "test_cpu_runtime", "test_doors", "test_doctor"),
)
"""The files that take longest, most of which start engines: they begin first, and so the workers end together."""

# vLLM compiles parts of its sampling and layers at each start, which takes ten seconds and gains nothing here.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

if "PYTEST_XDIST_WORKER" in os.environ:  # the workers compute at the same time
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# What a shell starts in the background is deaf to Ctrl-C, and so are its children: the tests send it to theirs.
signal.signal(signal.SIGINT, signal.default_int_handler)


class ByFile(LoadScopeScheduling):
    """A file goes to the worker that is free, so that what its tests share is made once."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.split("::", 1)[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {stem: place for place, stem in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONGEST)))


def python_lines() -> dict[str, int]:
    """Lines of Python in each folder that is shipped."""
    return {
        folder: sum(path.read_bytes().count(b"\n") for path in (ROOT / folder).rglob("*.py"))
        for folder in ("vpo_plugin", "flows", "reward_specs")
    }


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = python_lines()
    parts = ", ".join(f"{folder} {number:,}" for folder, number in lines.items())
    terminalreporter.write_line(f"{sum(lines.values()):,} lines of Python: {parts}")


@pytest.fixture
def case() -> Iterator[Callable[[str], RewardSpec]]:
    """A specification of tests/cases, whose modules are forgotten afterwards."""
    before, modules = [*sys.path], {*sys.modules}
    yield lambda name: load_spec(CASES / name)
    sys.path[:] = before
    for name in {*sys.modules} - modules:
        if name.endswith(("_scorer", "_rewards")):
            del sys.modules[name]


@dataclass
class Training:
    """The training command, in a process tree that can be found again by a mark in its environment."""

    output: Path
    prompts: Path
    policy: str
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def command(self, *flags: str) -> list[str]:
        return [
            *(sys.executable, "-m", "vpo_plugin.train_ppo_ray"),
            *("--advantage", "vpo", "--vpo.spec", SPEC, "--vpo.candidates", "3"),
            *("--actor.model_name_or_path", self.policy),
            *("--data.prompt_dataset", str(self.prompts), "--data.input_key", "input", "--data.label_key", "label"),
            *("--data.max_len", "160", "--rollout.max_new_tokens", "64"),
            *("--rollout.batch_size", "4", "--rollout.n_samples_per_prompt", "4", "--rollout.micro_batch_size", "8"),
            *("--train.batch_size", "16", "--train.micro_batch_size", "8", "--algo.kl.init_coef", "0"),
            *("--ckpt.output_dir", str(self.output)),
            *flags,
        ]

    def start(self, *flags: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.command(*flags),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, MARK: self.mark, **environment},
        )

    def run(self, *flags: str, timeout: float = 600) -> tuple[int, str]:
        """Exit code and output of the command."""
        process = self.start(*flags)
        try:
            output, _ = process.communicate(timeout=timeout)
        finally:
            process.kill()
        return process.returncode, output

    def processes_left(self) -> list[str]:
        """Command lines of what still runs of this training."""
        return [name for name, _ in marked(self.mark)]


def marked(mark: str) -> list[tuple[str, psutil.Process]]:
    """The processes that run with a mark in their environment, with their command lines.

    Ray's agents blank the start of their environment with their titles, where `psutil.Process.environ` stops.
    """
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            given = Path(f"/proc/{process.pid}/environ")
            held = given.read_bytes().split(b"\0") if given.exists() else []
            has_it = process.environ().get(MARK) == mark or f"{MARK}={mark}".encode() in held
            if has_it and process.status() != psutil.STATUS_ZOMBIE:
                found.append((" ".join(process.cmdline()), process))
    return found


def kill_marked(mark: str) -> None:
    """End all of them at once, as a machine that fails does."""
    for _, process in marked(mark):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def write_prompts(path: Path, number: int, spec: str = SPEC) -> Path:
    rows = read_rows(load_spec(spec), "train", number, seed=1)
    Dataset.from_list([{"input": r["prompt"], "label": json.dumps(r["label"])} for r in rows]).save_to_disk(str(path))
    return path


@pytest.fixture
def training(tmp_path: Path) -> Iterator[Training]:
    """A training of two steps, ready to be started."""
    yield Training(tmp_path / "policy", write_prompts(tmp_path / "prompts", 8), resolve_policy(TINY, tmp_path))


def vpo(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The `vpo` command with these variables, in this process, which has imported what it needs."""
    words = ["vpo", *map(str, arguments)]
    output, errors = StringIO(), StringIO()
    with redirect_stdout(output), redirect_stderr(errors), patch.dict(os.environ, environment):
        try:
            code = main(words[1:])
        except SystemExit as end:
            code = int(end.code or 0)
    return subprocess.CompletedProcess(words, code, output.getvalue(), errors.getvalue())


def run_pipeline(tmp_path: Path, **settings: object) -> subprocess.CompletedProcess[str]:
    """The pipeline's command with a Prefect of its own and the runs under `tmp_path`."""
    given = {"runs": str(tmp_path), **settings}.items()
    flags = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in given]
    return subprocess.run(
        [sys.executable, "-m", "vpo_plugin.cli", "run", "pipeline", *flags],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PREFECT_HOME": str(tmp_path / "prefect")},
    )

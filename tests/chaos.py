"""Commands that are killed, or run out of disk, at any moment, and what is then left of them.

VPO_CHAOS_KILLS is the number of kills (60), VPO_CHAOS_SEED draws others.
"""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from conftest import MARK, marked

from vpo_plugin.models import TINY, resolve_policy
from vpo_plugin.openrlhf.log import METRICS
from vpo_plugin.search.pool import load_pool
from vpo_plugin.search.searches import load_search

KILLS = int(os.environ.get("VPO_CHAOS_KILLS", "60"))
SEED = os.environ.get("VPO_CHAOS_SEED", "0")

STEPS = 4
SMALL = {
    **{"name": "small", "methods": ["vpo"], "steps": STEPS, "save_steps": 1, "prompts_per_step": 4},
    **{"rollouts_per_prompt": 4, "eval_prompts": 6, "eval_candidates": 6},
}
VICTIMS = {
    "leader": r"sh -c .*train\.log",
    "trainer": r"\S*python\S* -m vpo_plugin\.train_ppo_ray",
    "Ray worker": r"ray::",
    "engine": r"ray::RolloutRayActor",
    "raylet": r"\S*/raylet ",
    "server": r"\S*python\S* .*prefect\.server",
    "evaluation": r"\S*python\S* -m vpo_plugin\.cli evaluate",
    "everything": r"",
}
"""How the command line of each begins; the flow is the command itself."""
MOMENTS = ("started", "a step", "a checkpoint", "a pool")


class Chaos:
    """Commands in a place of their own, whose processes and files can be found again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.mark, self.secret = folder, f"chaos-{folder}", f"secret-{uuid.uuid4().hex}"
        self.temporary = Path(tempfile.mkdtemp(prefix="c-", dir="/tmp"))
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
        self.environment = inherited | {
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",
            "TMPDIR": str(self.temporary),
            "MY_API_KEY": self.secret,
            MARK: self.mark,
        }
        self.policy = resolve_policy(TINY, folder)
        self.reference: dict[str, object] = {}

    @property
    def run(self) -> Path:
        return self.folder / "runs" / "small"

    def command(self, name: str) -> list[str]:
        given = [f"--{key}={v if isinstance(v, str) else json.dumps(v)}" for key, v in SMALL.items()]
        shared = ["--model", self.policy, "--spec", "maze_small", "--prompts", "6", "--max_new_tokens", "64"]
        arguments = {
            "pipeline": ["run", "pipeline", *given, f"--runs={self.folder / 'runs'}"],
            "experiment": ["experiment", *given, "--seeds=0", f"--runs={self.folder / 'experiments'}"],
            "evaluate": ["evaluate", *shared, "--rollouts", "4", "--batch", "1", "--output", str(self.folder / "pool")],
            "search": [
                *("search", *shared, "--procedure", "best_of_k", "--budget", "24"),
                *("--output", str(self.folder / "search")),
            ],
        }[name]
        return [sys.executable, "-m", "vpo_plugin.cli", *arguments]

    def start(self, name: str) -> subprocess.Popen[bytes]:
        with (self.folder / "output").open("wb") as output:
            return subprocess.Popen(self.command(name), stdout=output, stderr=subprocess.STDOUT, env=self.environment)

    def undisturbed(self, name: str) -> None:
        """Run the command once without any harm, for its results."""
        if name not in self.reference:
            self.finish(name)

    def finish(self, name: str) -> None:
        """The same command, to its end."""
        process = self.start(name)
        code = process.wait(1500)
        assert code == 0, (self.folder / "output").read_text(errors="replace")[-4000:]
        self.check_nothing_is_left()
        found = self.results(name)
        assert self.reference.setdefault(name, found) == found

    def results(self, name: str) -> object:
        """What is the same in each run of a command: all but what training makes by chance."""
        if name == "evaluate":
            return [row["response"] for row in load_pool(self.folder / "pool").responses]
        if name == "search":
            return load_search(self.folder / "search" / "best_of_k").solved_after.tolist()
        runs = self.run if name == "pipeline" else self.folder / "experiments" / "small" / "seed-0"
        logged = [json.loads(line) for line in (runs / "train" / "vpo" / "policy" / "vpo" / METRICS).open()]
        assert [line["step"] for line in logged if "reward" in line] == list(range(1, STEPS + 1)), "no step twice"
        summary = runs / "report.json" if name == "pipeline" else runs.parent / "results.json"
        report = json.loads(summary.read_text())
        policies = report["policies" if name == "pipeline" else "methods"]
        base = [row["response"] for row in load_pool(runs / "eval" / "base" / "pool").responses]
        return [policy["name"] for policy in policies], report["prompts"], policies[0]["best_at_k"]["mean"], base

    def forget(self, name: str) -> None:
        """Remove what the command has to do again: of a pipeline all that follows the base policy's pool."""
        if name == "pipeline":
            for part in ("eval/vpo", "train", "report.json", "report.html"):
                self.remove(self.run / part)
        for folder in {"experiment": ["experiments"], "evaluate": ["pool"], "search": ["search"]}.get(name, []):
            self.remove(self.folder / folder)

    def kill(self, name: str, victim: str, moment: str, chance: random.Random) -> None:
        """Start the command, kill the victim at the moment, and wait for what is left of the command."""
        for _ in range(5):
            command = self.start(name)
            if self.wait_for(name, victim, moment, command, chance):
                found = self.victims(victim, command)
                chosen = found if victim == "everything" else [chance.choice(found)] if found else []
                for process in chosen:
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
                if chosen:
                    command.wait(60 if victim == "flow" else 900)  # it ends, well or not, as it must by itself
                    if victim != "flow":  # the program of a killed flow goes on, and the next flow follows it
                        self.check_no_process_is_left()
                    return
            command.wait(900)
            self.forget(name)  # it was over before the moment came
        pytest.fail(f"{victim} of {name} was never there to be killed")

    @staticmethod
    def remove(place: Path) -> None:
        shutil.rmtree(place, ignore_errors=True) if place.is_dir() else place.unlink(missing_ok=True)

    def processes(self) -> list[tuple[str, psutil.Process]]:
        """What runs of the commands: with the mark in its environment, or started by one that has it."""
        found = {process.pid: process for _, process in marked(self.mark)}
        for process in list(found.values()):
            with suppress(psutil.NoSuchProcess):
                found |= {child.pid: child for child in process.children(recursive=True)}
        lines = []
        for process in found.values():
            with suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE:
                    lines.append((" ".join(process.cmdline()), process))
        return lines

    def victims(self, victim: str, command: subprocess.Popen[bytes]) -> list[psutil.Process]:
        if victim == "flow":
            return [psutil.Process(command.pid)] if command.poll() is None else []
        return [process for line, process in self.processes() if re.match(VICTIMS[victim], line, re.DOTALL)]

    def has_come(self, moment: str) -> bool:
        pattern = {
            "a step": f"**/train/*/policy/vpo/{METRICS}",
            "a checkpoint": "**/checkpoints/_actor/global_step*/metric.json",
            "a pool": "**/pool/*.parquet",
        }.get(moment)
        return pattern is None or any(file.stat().st_mtime > self.began for file in self.folder.glob(pattern))

    def check_no_process_is_left(self) -> None:
        deadline = time.monotonic() + 120
        while left := self.processes():
            assert time.monotonic() < deadline, [line for line, _ in left]
            time.sleep(0.5)

    def check_nothing_is_left(self) -> None:
        self.check_no_process_is_left()
        left = {path.name for path in self.temporary.iterdir() if not _of_others(path)}
        assert not left, f"Left in the temporary folder: {left}"
        for file in self.folder.rglob("*"):
            with suppress(FileNotFoundError):
                assert not (file.is_file() and self.secret.encode() in file.read_bytes()), file

    def wait_for(
        self, name: str, victim: str, moment: str, command: subprocess.Popen[bytes], chance: random.Random
    ) -> bool:
        """Whether the moment came, and somewhat after it there was the victim."""
        deadline, self.began = time.monotonic() + 900, time.time() - 1
        while not (self.victims(victim, command) and self.has_come(moment)):
            if command.poll() is not None:
                return False
            assert time.monotonic() < deadline, (victim, moment, [line for line, _ in self.processes()])
            time.sleep(0.3)
        after = {"evaluate": 20, "search": 20}.get(name, 8) if moment == "started" else 1.5
        time.sleep(chance.uniform(0, after))
        return True


def _of_others(path: Path) -> bool:
    """Torch's shared cache, or an empty folder of Prefect's own runner or killed worker."""
    of_prefect = re.fullmatch(r"runner_storage|tmp\w+prefect", path.name)
    empty = path.is_dir() and all(inside.is_dir() for inside in path.rglob("*"))
    return path.name.startswith("torchinductor_") or bool(of_prefect and empty)


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chaos]:
    chaos = Chaos(tmp_path_factory.mktemp("chaos"))
    yield chaos
    for _, process in chaos.processes():
        with suppress(psutil.NoSuchProcess):
            process.kill()
    shutil.rmtree(chaos.temporary, ignore_errors=True)

"""Out of disk, or the worker or the server killed: the same command or deployment then ends with its results."""

import json
import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from chaos import KILLS, MOMENTS, SEED, SMALL, STEPS, Chaos, chaos
from conftest import MARK
from prefect_service import serving, working
from test_deployments import deploy, run_deployment

from vpo_plugin.openrlhf.log import METRICS

__all__ = ["chaos"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture
def small_disk(chaos: Chaos) -> Iterator[Callable[[bool], None]]:
    """The runs on a disk of their own, which can be filled."""
    chaos.undisturbed("pipeline")
    runs = chaos.folder / "runs"
    chaos.remove(runs)
    runs.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600m", "tmpfs", str(runs)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small file system needs the right to mount one")
    filler = runs / "filler"

    def fill(full: bool) -> None:
        filler.unlink(missing_ok=True)
        if full:
            with suppress(OSError), filler.open("wb") as file:
                while True:
                    file.write(bytes(1 << 16))
                    file.flush()

    yield fill
    subprocess.run(["umount", "--lazy", str(runs)], check=True)


@pytest.mark.parametrize("number", range(-(-KILLS // 20)))
def test_disk_full_at_any_moment(chaos: Chaos, small_disk: Callable[[bool], None], number: int) -> None:
    chance = random.Random(f"disk {SEED} {number}")
    moment = MOMENTS[(number + 1) % len(MOMENTS)]
    command = chaos.start("pipeline")
    if chaos.wait_for("pipeline", "flow", moment, command, chance):
        small_disk(True)
    print(f"{number}: the disk was full at: {moment}")
    command.wait(900)
    small_disk(False)
    chaos.finish("pipeline")


@pytest.mark.parametrize("number", range(-(-KILLS // 20)))
def test_killed_services(chaos: Chaos, tmp_path: Path, number: int) -> None:
    """The worker with its flow run, or the server; the deployment is then run again on new ones."""
    victim = ("worker", "server")[number % 2]
    parameters = SMALL | {"name": f"service-{number}", "runs": str(tmp_path / "runs")}
    steps = tmp_path / "runs" / f"service-{number}" / "train" / "vpo" / "policy" / "vpo" / METRICS
    environment = {key: chaos.environment[key] for key in ("TMPDIR", "MY_API_KEY", MARK)}
    with serving(tmp_path / "prefect", **environment) as service:
        deploy(service)
        with working(service, tmp_path) as worker:
            run_deployment(service, "train/maze-cpu", wait=False, **parameters)
            deadline = time.monotonic() + 900
            while not steps.exists():
                assert time.monotonic() < deadline, (tmp_path / "worker.log").read_text()[-3000:]
                time.sleep(0.2)
            port = service.url.rsplit(":", 1)[1].split("/")[0]
            line = f"--port {port}" if victim == "server" else "prefect.engine"
            for process in [psutil.Process(worker.pid)] if victim == "worker" else []:
                process.kill()
            for _, process in [one for one in chaos.processes() if line in one[0]]:
                process.kill()
    with serving(tmp_path / "prefect", **environment) as service, working(service, tmp_path):
        run, output = run_deployment(service, "train/maze-cpu", **parameters)
    assert run["state"]["type"] == "COMPLETED", output + str(run["state"])
    logged = [json.loads(line)["step"] for line in steps.open()]
    assert logged == list(range(1, STEPS + 1))
    chaos.check_nothing_is_left()

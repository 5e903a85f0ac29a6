"""Stages of a run: a folder with results, computed once for the same inputs, whatever the secrets among them."""

import functools
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prefect.logging import get_run_logger

import vpo_plugin
from flows.process import describe, pause, running
from vpo_plugin.files import digest, digest_files, sync_all, write
from vpo_plugin.locks import LOCK, take
from vpo_plugin.provenance import masked

DONE = "stage.json"
STARTED = "started.json"

command_started: float | None = None
"""Start time of a command that only runs a flow; None if the flow is part of a longer process."""

_worked: list[tuple[float, float]] = []
"""Start and duration, in seconds, of each piece of stage work in this process."""


def file_digest(path: Path) -> str:
    """A short fingerprint of a file's content, or of all files under a folder."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return digest_files(path, files)


@functools.cache
def code_version(*parts: str) -> str:
    """A short fingerprint of these subpackages and modules of the plugin, and of the host's version."""
    home = Path(vpo_plugin.__path__[0])
    files = [
        file for part in parts for file in ([home / part] if part.endswith(".py") else (home / part).rglob("*.py"))
    ]
    return digest([version("openrlhf"), digest_files(home, sorted(files))])


def is_done(folder: Path, inputs: dict[str, Any]) -> bool:
    """Whether the stage in this folder finished with these inputs."""
    return _key(folder / DONE) == digest(masked(inputs))


def skip(folder: Path, inputs: dict[str, Any]) -> bool:
    """Whether a stage is done already, which is logged. Restores set-aside results of the same inputs."""
    kept = folder.with_name(f"{folder.name}.{digest(masked(inputs))}")
    if kept.exists() and not is_done(folder, inputs):
        _clear(folder)
        kept.rename(folder)
    done = is_done(folder, inputs)
    if done:
        get_run_logger().info("Skipped: finished before with the same inputs (%s).", folder)
    return done


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder while the body runs; wait if another flow holds it.

    Raises:
        RuntimeError: the flow is stopped while it waits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = take(folder / LOCK)
    if held is None:
        get_run_logger().warning("Another run works in %s: this run waits for its end.", folder)
    while held is None:
        pause("This run")
        held = take(folder / LOCK)
    try:
        yield
    finally:
        os.close(held)


@contextmanager
def working_on(folder: Path, inputs: dict[str, Any], *, resume: bool = False) -> Iterator[Path]:
    """Empty the folder, yield it, and mark it done when the body succeeds and its files are on the disk.

    With `resume`, the folder keeps the files of an unfinished attempt with the same inputs. Finished results of other
    inputs are set aside as `<folder>.<fingerprint of the inputs>`.

    Raises:
        RuntimeError: a program of an earlier run still works there.
    """
    key = digest(masked(inputs))
    if not (resume and _key(folder / STARTED) == key):
        _clear(folder)
        folder.mkdir(parents=True)
    write(folder / STARTED, json.dumps({"key": key, "inputs": masked(inputs)}, indent=2, default=str))
    with timed():
        yield folder
    sync_all(folder)
    (folder / STARTED).rename(folder / DONE)


@contextmanager
def timed() -> Iterator[None]:
    """Count the time of the body as stage work, not as overhead."""
    started = time.time()
    try:
        yield
    finally:
        _worked.append((started, time.time() - started))


def overhead(flow_started: float) -> dict[str, float]:
    """The overhead of orchestration so far: start-up of command and server, checks for finished stages, Prefect itself.

    Args:
        flow_started: start of the flow run, in seconds of `time.time`.
    Returns:
        `stages`: seconds of stage work; `seconds`: the rest of the time since the start.
    """
    since = flow_started if command_started is None else command_started
    stages = sum(seconds for started, seconds in _worked if started >= since)
    return {"stages": stages, "seconds": time.time() - since - stages}


def _clear(folder: Path) -> None:
    for job in folder.glob("*.job"):
        if (group := running(job.with_suffix(""))) is not None:
            raise RuntimeError(f"{folder} is in use: {describe(group)} works there with other settings.")
    if (key := _key(folder / DONE)) is not None:
        kept = folder.with_name(f"{folder.name}.{key}")
        shutil.rmtree(kept, ignore_errors=True)
        folder.rename(kept)
    shutil.rmtree(folder, ignore_errors=True)


def _key(marker: Path) -> str | None:
    """The digest of a marker's inputs; None if there is no marker, or a full disk cut it short."""
    try:
        return str(json.loads(marker.read_text())["key"])
    except (FileNotFoundError, ValueError):
        return None

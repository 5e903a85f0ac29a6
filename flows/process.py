"""Run the heavy program of a stage, with output to a file and progress reports, never two for one log.

The program outlives a killed flow: a restarted flow finds it by its lock and follows it.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from vpo_plugin.locks import is_held, take
from vpo_plugin.openrlhf.log import last_words
from vpo_plugin.provenance import masked

POLL_SECONDS = 1.0
STOP_SECONDS = 20.0  # less than the 30 s that Prefect gives a cancelled flow run

# Leads the program's process group, records its number and command (its first argument), and then its exit code.
LEADER = """
printf '%s\\n' $$ "$1" > "$0.job"
shift
trap : TERM INT
"$@"
echo $? > "$0.exit"
"""

_stopping = threading.Event()


def run_logged(command: Sequence[str], log: Path, *, what: str, on_poll: Callable[[], None] = lambda: None) -> None:
    """Run a command with its output in `log`, calling `on_poll` about once a second.

    If a killed flow started the same command for this log, it is followed while it runs; if it ended unobserved, its
    exit code counts. If this function exits early, it stops the command: SIGTERM to its process group, and SIGKILL if
    that does not end it in 20 s.

    Raises:
        RuntimeError: the command failed (the message ends with its last error and names the log), another command
            still runs for this log, or the flow is being stopped (see `stopping_threads`).
    """
    log = log.resolve()
    job, exit_code = Path(f"{log}.job"), Path(f"{log}.exit")
    held = take(_lock(log))
    followed = held is None
    if held is None:
        group = running(log)
        if group is not None and not _is_of(job, command):
            raise RuntimeError(f"{what} cannot start: {describe(group)} still writes to {log}.")
        held = _follow(log, group, what, on_poll)
        if group is not None and not job.exists():  # another flow also followed the program and handled its end
            os.close(held)
            return
    try:
        ended = _is_of(job, command) and exit_code.exists()
        if not ended or not (followed or exit_code.read_text() == "0\n"):
            job.unlink(missing_ok=True)
            exit_code.unlink(missing_ok=True)
            pause(what, 0)
            with log.open("a") as output:
                program = subprocess.Popen(
                    ["sh", "-c", LEADER, str(log), _said(command), *command],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=[held],  # the program now holds the lock while any of its processes lives
                )
            os.close(held)
            held = None
            held = _follow(log, program.pid, what, on_poll)
            program.wait()
        on_poll()
        code = exit_code.read_text().strip() if exit_code.exists() else "killed"
        job.unlink(missing_ok=True)
        exit_code.unlink(missing_ok=True)
    finally:
        if held is not None:
            os.close(held)
    if code != "0":
        raise RuntimeError(f"{what} failed (exit code {code}): {last_words(log)}")


def pause(what: str, seconds: float = POLL_SECONDS) -> None:
    """Wait before the next poll of a program.

    Raises:
        RuntimeError: the flow is being stopped, see `stopping_threads`.
    """
    if _stopping.wait(seconds):
        raise RuntimeError(f"{what} was stopped together with its flow.")


@contextmanager
def stopping_threads() -> Iterator[None]:
    """If the body raises, stop the programs that other threads follow.

    A signal reaches only the main thread, and Prefect waits for the threads of a flow before it ends.
    """
    _stopping.clear()
    try:
        yield
    except BaseException:
        _stopping.set()
        raise


def running(log: Path) -> int | None:
    """The process group of the program that writes to this log, None if none runs.

    The program and its children hold the log's lock: it counts as running while one of them lives, even if the leader
    was killed.
    """
    lock = _lock(log)
    while is_held(lock):
        with suppress(OSError, ValueError):
            return int(Path(f"{log.resolve()}.job").read_text().split("\n", 1)[0])
        time.sleep(0.1)  # a flow briefly holds the lock before and after the program
    return None


def describe(group: int) -> str:
    """A running program, and how to stop it, in words."""
    return f"an earlier run (stop it with `kill -TERM -- -{group}`)"


def stop(log: Path, group: int) -> None:
    """End a program with its whole process group."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(group, signum)
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline:
            if running(log) is None:
                return
            time.sleep(0.1)


def _lock(log: Path) -> Path:
    return Path(f"{log.resolve()}.lock")


def _is_of(job: Path, command: Sequence[str]) -> bool:
    return job.exists() and job.read_text().splitlines()[1:] == _said(command).splitlines()


def _said(command: Sequence[str]) -> str:
    return "\n".join(masked(command))


def _follow(log: Path, group: int | None, what: str, on_poll: Callable[[], None]) -> int:
    """Wait until a program ends, and take over its lock; stop the program on an exception."""
    try:
        while (held := take(_lock(log))) is None:
            pause(what)
            on_poll()
        return held
    except BaseException:
        if group is not None:
            stop(log, group)
        raise

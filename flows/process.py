"""Run one heavy program of a stage: its output to a file, its progress to the reader, never two at once.

The program outlives a flow that is killed: started again, the flow finds it by `<log>.job` and follows it on.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

POLL_SECONDS = 1.0
STOP_SECONDS = 20.0  # less than the 30 that Prefect gives a flow run that it cancels

# Leads the program's process group, says which program runs there (number, then command), and keeps its exit code.
LEADER = """
printf '%s\\n' $$ "$@" > "$0.job"
trap : TERM INT
"$@"
echo $? > "$0.exit"
"""

_stopping = threading.Event()


def run_logged(command: Sequence[str], log: Path, *, what: str, on_poll: Callable[[], None] = lambda: None) -> None:
    """Run a command with its output in `log`, calling `on_poll` about once a second.

    If the same command still runs for this log, started by a flow that was killed, that one is followed; if it ended
    with nobody to see it, its end counts. The command is stopped when this function is left early: SIGTERM to its
    process group, and SIGKILL if that does not end it in 20 s.

    Raises:
        RuntimeError: the command failed; the message ends with its last line and names the log. Or another command
            still runs for this log. Or the flow is stopped, see `stopping_threads`.
    """
    log = log.resolve()
    job, exit_code = Path(f"{log}.job"), Path(f"{log}.exit")
    process = running(log)
    if not (job.exists() and job.read_text().splitlines()[1:] == "\n".join(command).splitlines()):
        if process is not None:
            raise RuntimeError(f"{what} cannot start: {describe(process)} still writes to {log}.")
        job.unlink(missing_ok=True)
    if process is None and not (job.exists() and exit_code.exists() and exit_code.read_text() == "0\n"):
        job.unlink(missing_ok=True)
        exit_code.unlink(missing_ok=True)
        pause(what, 0)
        with log.open("a") as output:
            started = subprocess.Popen(
                ["sh", "-c", LEADER, str(log), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        process = psutil.Process(started.pid)
    try:
        while process is not None and _alive(process):
            pause(what)
            on_poll()
    finally:
        stop(process)
    on_poll()
    if not job.exists():  # another flow followed the program as well, and has seen its end
        return
    code = exit_code.read_text().strip() if exit_code.exists() else "killed"
    job.unlink(missing_ok=True)
    exit_code.unlink(missing_ok=True)
    if code != "0":
        raise RuntimeError(f"{what} failed (exit code {code}): {last_line(log)} The whole log is {log}.")


def pause(what: str, seconds: float = POLL_SECONDS) -> None:
    """Wait until a program is looked at again.

    Raises:
        RuntimeError: the flow is being stopped, see `stopping_threads`.
    """
    if _stopping.wait(seconds):
        raise RuntimeError(f"{what} was stopped together with its flow.")


@contextmanager
def stopping_threads() -> Iterator[None]:
    """If the body is left by an exception, the programs that other threads follow are stopped.

    A signal reaches the main thread alone, and Prefect waits for the threads of a flow before it ends.
    """
    _stopping.clear()
    try:
        yield
    except BaseException:
        _stopping.set()
        raise


def exit_on_sigterm() -> None:
    """Let SIGTERM end this command as Ctrl-C does, with all that it has started; exit code 143."""
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))


def running(log: Path) -> psutil.Process | None:
    """The leader of the program that writes to this log, None if none runs."""
    try:
        process = psutil.Process(int(Path(f"{log.resolve()}.job").read_text().split("\n", 1)[0]))
        is_ours = process.cmdline()[1:4] == ["-c", LEADER, str(log.resolve())]  # and not a later process of that number
    except (OSError, ValueError, psutil.Error):
        return None
    return process if is_ours and _alive(process) else None


def describe(process: psutil.Process) -> str:
    """A program that runs, and how it is stopped, in words."""
    return f"an earlier run (stop it with `kill -TERM -- -{process.pid}`)"


def stop(process: psutil.Process | None) -> None:
    """End a program and all of its process group."""
    if process is None or not _alive(process):
        return
    for signum in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signum)
        deadline = time.monotonic() + STOP_SECONDS
        while _alive(process) and time.monotonic() < deadline:
            time.sleep(0.1)


def _alive(process: psutil.Process) -> bool:
    with suppress(psutil.TimeoutExpired, psutil.NoSuchProcess):
        process.wait(0)  # takes its exit code where it is our own child
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def last_line(log: Path) -> str:
    """The last line of a log that the program itself wrote, not one of its Ray workers."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    own = [line for line in lines if line and not line.lstrip("\x1b[36m").startswith("(")]
    return own[-1] if own else "it printed nothing."

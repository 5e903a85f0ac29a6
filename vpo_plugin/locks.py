"""What a process owns while it lives: a folder that it works in, a folder for temporary files, and what it started.

File locks protect the folders. The kernel releases them however the process ends.
"""

import atexit
import fcntl
import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK = ".lock"
LONGEST_PLACE = 30
"""Longest name of the folder for temporary files, so that Unix sockets deep inside it stay below their limit of 107
characters; if it is longer, `/tmp` is used."""
_watchers: list[subprocess.Popen[bytes]] = []
"""Each waits for the end of its input, which this process holds open while it lives."""


def take(file: Path) -> int | None:
    """Lock a file; returns its descriptor, None if others hold it.

    The lock ends when the descriptor is closed here and in every process that inherited it.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def is_held(file: Path) -> bool:
    """Whether a process holds the lock of a file; False if the file is absent."""
    if not file.exists():
        return False
    descriptor = take(file)
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is None


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Own a folder while the body runs; a missing folder is created.

    Raises:
        RuntimeError: another process works there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = take(folder / LOCK)
    if descriptor is None:
        raise RuntimeError(f"Another command works in {folder}: wait until it ends, or choose another folder.")
    try:
        yield
    finally:
        os.close(descriptor)


def exit_on_sigterm() -> None:
    """Let SIGTERM end this process and all that it started, as Ctrl-C does; exit code 143."""
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))


def after_this_process(program: str, *arguments: str) -> None:
    """Run a Python program with these arguments when this process has ended, also by SIGKILL."""
    command = ["sh", "-c", 'cat > /dev/null; exec "$0" "$@"', sys.executable, "-c", program, *arguments]
    _watchers.append(subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, cwd="/", env={}))


@functools.cache
def temporary_home() -> str:
    """A folder for the temporary files and sockets of this process and its children (`TMPDIR`).

    It is removed when this process ends, also by SIGTERM. The folders of killed processes are removed here, and at the
    end those whose last process ended meanwhile.
    """
    place = tempfile.gettempdir()
    place = place if len(place) <= LONGEST_PLACE else "/tmp"
    _remove_left_homes(place)
    home = tempfile.mkdtemp(prefix="vpo-", dir=place)
    take(Path(home, LOCK))
    atexit.register(_remove_left_homes, place)
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        exit_on_sigterm()
    os.environ["TMPDIR"] = tempfile.tempdir = home
    return home


def _remove_left_homes(place: str) -> None:
    for left in Path(place).glob(f"vpo-*/{LOCK}"):
        with suppress(OSError):  # another user's, or one that is being removed
            if (descriptor := take(left)) is not None:
                shutil.rmtree(left.parent, ignore_errors=True)
                os.close(descriptor)

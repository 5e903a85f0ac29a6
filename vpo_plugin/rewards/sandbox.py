"""Run model-written programs in a bubblewrap sandbox.

A box is a process tree in its own user, PID, network, IPC, UTS, cgroup and mount namespaces. Its environment is empty.
Its read-only file system holds a Python, the standard library, the C libraries and four devices: no `/proc`, no `/etc`,
no shell and no other host files. Inside, `sandbox_worker.py` keeps a Python ready. Each program gets its own PID and
mount namespaces, an empty in-memory `/tmp` and no capabilities; these end with the program. Each test runs in a child
process that may start threads. It may not fork, exec, open sockets or trace other processes (seccomp). It has limits on
CPU time, wall clock, memory, open files, file size and output.

**A program cannot forge a verdict.** Printed output and returned values are compared outside the box, and expected
values never enter it. Test code (`CodeTest`) runs in the box, but not in the program's process: the program only sees
the arguments of each call and answers with plain values.

**A verdict does not depend on machine load** if the program is deterministic: slow programs hit the CPU limit first.
The wall-clock limit is generous and stops programs that wait. Hash seeds and the seed of `random` are fixed. Returned
values are read in linear time; a box that answers too late is killed as a whole.

Limitations: the box shares the host's kernel and its bugs. A test may leave files in `/tmp` for the next test of the
same program. If the scorer runs as root, boxes run as the user nobody if that user can read this Python. If not (a
Python under `/root`), and on Linux before 5.14, only CPU time and address space bound the number of threads. Starting
processes is never possible. A box that may not create namespaces (AppArmor's profile for bubblewrap) serves only one
program, and the next program needs a new box, which is slower.
"""

import contextlib
import functools
import json
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import vpo_plugin.rewards.sandbox_worker as sandbox_worker

UNSAFE = "VPO_UNSAFE_NO_SANDBOX"
START_SECONDS = 60.0
NOBODY = 65534
_HOW = (
    "Install bubblewrap 0.8 or newer (Debian, Ubuntu: apt-get install bubblewrap) where unprivileged user namespaces "
    "are allowed; Docker allows them with --security-opt seccomp=unconfined --security-opt apparmor=unconfined. "
    f"{UNSAFE}=1 (or --unsafe_no_sandbox) runs programs without a sandbox, with all your user's rights: only for "
    "programs that you trust."
)


class SandboxError(RuntimeError):
    """The sandbox does not work here; the message says why and how to fix it."""


@dataclass(frozen=True)
class Limits:
    """Resource limits of a program; the first four apply to each test."""

    cpu_seconds: int = 6
    wall_seconds: float = 60.0
    """For programs that wait; a test that exceeds it ends all tests of the program."""
    memory_bytes: int = 1 << 30
    """Address space of each process."""
    output_bytes: int = 4 << 20
    program_cpu_seconds: float = 30.0
    program_wall_seconds: float = 180.0
    """Once a program's tests have used up either limit, its remaining tests are skipped."""


@dataclass(frozen=True)
class StdinTest:
    """Run the program as a script with this input; the output is what it prints."""

    stdin: str


@dataclass(frozen=True)
class CallTest:
    """Call a function of the program, or a method of its class `Solution`, with JSON values."""

    function: str
    arguments: list[Any]


@dataclass(frozen=True)
class CodeTest:
    """Test code that calls `candidate`, or the function by its name, and raises on a wrong answer."""

    function: str
    code: str


Test = StdinTest | CallTest | CodeTest
_KINDS = {StdinTest: "stdin", CallTest: "call", CodeTest: "code"}


@dataclass(frozen=True)
class Outcome:
    """How a test of a program ended.

    `status`: `ok`, `error` (an exception, a signal, a nonzero exit status, or test code that raised), `time` (CPU),
    `wall`, `output` (too much output or too many files) or `skipped` (see `Limits`). `output`: the printed text of a
    `StdinTest`, or the returned value of a `CallTest` as JSON (read it with `returned`).
    """

    status: str
    output: bytes = b""
    cpu_seconds: float = field(default=0.0, compare=False)


def returned(outcome: Outcome) -> Any:
    """The JSON value that a `CallTest` returned; tuples become lists. Raises ValueError if it returned none."""
    if outcome.status != "ok":
        raise ValueError(f"The call returned nothing: {outcome.status}.")
    try:
        return sandbox_worker.decode_json(json.loads(outcome.output))
    except (ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"The call returned nothing that can be read: {error}.") from error


def run_program(
    program: str, tests: Sequence[Test], *, preamble: str = "", limits: Limits | None = None
) -> list[Outcome]:
    """Run a program on its tests, each in a fresh process of one box; return one outcome per test, in order.

    `preamble` is source that runs before the program (imports, given helpers) and before the code of a `CodeTest`.
    Thread-safe; runs one program per core at a time. Raises SandboxError where the sandbox does not work.
    """
    limits = limits or Limits()
    with _starting:
        boxes = _boxes(os.getpid(), os.environ.get(UNSAFE) == "1")
    outcomes: list[Outcome] = []
    for _ in range(2):  # blame the machine if a box dies once, the program if it dies twice
        outcomes = []
        with boxes.slots:
            box = boxes.take()
            try:
                _run_in(box, program, tests, preamble, limits, outcomes)
                boxes.give_back(box)
                break
            except BaseException as error:
                box.kill()
                if not isinstance(error, _Closed):
                    raise
                outcomes.append(Outcome("error"))
    return outcomes + [Outcome("skipped")] * (len(tests) - len(outcomes))


def require_sandbox() -> None:
    """Raises SandboxError, which says why and what to do, unless programs can run here."""
    if run_program("print(1)", [StdinTest("")])[0].output != b"1\n":
        raise SandboxError(f"A box started but did not run a program. {_HOW}")


# ------------------------------------------------------------------------------------------------ talking to a box


class _Closed(Exception):
    """The box has ended or did not answer in time."""


class _Box:
    """A started box: frames go in and come out, until it is killed."""

    once = False
    """True if the box serves only one program."""

    def __init__(self, command: list[str], user: int | None = None) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env={"PYTHONHASHSEED": "0", "PYTHONUTF8": "1"},  # the whole environment
            cwd="/",
            start_new_session=True,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )

    def send(self, content: bytes) -> None:
        assert self.process.stdin is not None
        try:
            sandbox_worker.write_frame(self.process.stdin.fileno(), content)
        except OSError as error:
            raise _Closed from error

    def receive(self, seconds: float) -> bytes:
        deadline = time.monotonic() + seconds
        return self._read(int.from_bytes(self._read(4, deadline), "big"), deadline)

    def _read(self, length: int, deadline: float) -> bytes:
        assert self.process.stdout is not None
        file = self.process.stdout.fileno()
        poll = select.poll()
        poll.register(file, select.POLLIN)
        content = bytearray()
        while len(content) < length:
            ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            part = os.read(file, min(length - len(content), 1 << 20)) if ready else b""
            if not part:
                raise _Closed
            content += part
        return bytes(content)

    def kill(self) -> str:
        """Kill the whole tree: bubblewrap's other process and the PID namespace die with this process. Returns the end
        of what the box wrote to stderr.
        """
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        errors = self.process.communicate()[1]
        return " ".join(errors.decode(errors="replace").split())[-500:]


def _run_in(
    box: _Box, program: str, tests: Sequence[Test], preamble: str, limits: Limits, outcomes: list[Outcome]
) -> None:
    """Append the outcome of each test that ran to `outcomes`. Raises _Closed if the box ends before the last test."""
    cpu_left, deadline = limits.program_cpu_seconds, time.monotonic() + limits.program_wall_seconds
    box.send(json.dumps({"program": program, "preamble": preamble, "limits": asdict(limits)}).encode())
    for test in tests:
        if cpu_left <= 0 or time.monotonic() > deadline or (outcomes and outcomes[-1].status == "wall"):
            break
        content = {"kind": _KINDS[type(test)], **asdict(test)}
        code = content.pop("code", None)
        box.send(json.dumps(content).encode())
        if code is not None:
            box.send(code.encode("utf-8", "surrogatepass"))
        reply = json.loads(box.receive(limits.wall_seconds + START_SECONDS))
        outcomes.append(Outcome(reply["status"], box.receive(START_SECONDS), reply["cpu_seconds"]))
        cpu_left -= reply["cpu_seconds"]
    box.send(b"")


# ------------------------------------------------------------------------------------------------ starting boxes


class _Boxes:
    """The boxes of a process: one per program that runs at once, started on demand.

    A box dies with the thread that started it, so one thread that lives as long as this process starts them all.
    """

    def __init__(self, unsafe: bool) -> None:
        self.slots = threading.BoundedSemaphore(len(os.sched_getaffinity(0)))
        self._command = _unsafe_command() if unsafe else _command()
        self._user = None if unsafe else _user(self._command)
        self._starter = ThreadPoolExecutor(1, "sandbox-boxes")
        self._ready: list[_Box] = []

    def take(self) -> _Box:
        """An idle box. Raises SandboxError if boxes cannot be started."""
        with contextlib.suppress(IndexError):
            while True:
                box = self._ready.pop()
                if box.process.poll() is None:
                    return box
                box.kill()
        try:
            box = self._starter.submit(_Box, self._command, self._user).result()
        except OSError as error:
            raise SandboxError(f"No box can be started here: {error}. {_HOW}") from error
        try:
            answer = box.receive(START_SECONDS)
        except _Closed:
            raise SandboxError(f"No box can be started here: {box.kill() or 'it did not answer'}. {_HOW}") from None
        if not answer.startswith(b"ready"):
            box.kill()
            raise SandboxError(f"No process can be confined here: {answer.decode(errors='replace')}. {_HOW}")
        box.once = answer == b"ready once"
        return box

    def give_back(self, box: _Box) -> None:
        if box.once:
            box.kill()
        else:
            self._ready.append(box)


_starting = threading.Lock()


@functools.cache
def _boxes(pid: int, unsafe: bool) -> _Boxes:
    """The boxes of this process; a forked process starts its own."""
    if unsafe:
        warnings.warn(
            f"{UNSAFE} is set: programs run WITHOUT a sandbox, with all your user's rights.",
            RuntimeWarning,
            stacklevel=3,
        )
    return _Boxes(unsafe)


def _user(command: list[str]) -> int | None:
    """The user id that boxes run as: NOBODY if this process is root and that user can start a box, else None (same)."""
    if os.geteuid() != 0:
        return None
    try:
        box = _Box(command, NOBODY)
    except OSError:
        return None
    try:
        return NOBODY if box.receive(START_SECONDS).startswith(b"ready") else None
    except _Closed:
        return None
    finally:
        box.kill()


def _unsafe_command() -> list[str]:
    return [sys.executable, "-s", "-S", sandbox_worker.__file__, json.dumps(asdict(Limits()))]


def _command() -> list[str]:
    """The command that starts a box. Raises SandboxError on other platforms or without bubblewrap."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in ("x86_64", "aarch64"):
        raise SandboxError(
            f"The sandbox needs Linux on x86_64 or aarch64, but this is {sys.platform} on {machine}. {_HOW}"
        )
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise SandboxError(f"Programs run in a bubblewrap sandbox, but the command bwrap is not installed. {_HOW}")
    return [
        bwrap,
        *("--unshare-user", "--disable-userns", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"),
        *("--unshare-cgroup-try", "--hostname", "sandbox", "--uid", "1000", "--gid", "1000"),
        *("--cap-drop", "ALL", "--cap-add", "CAP_SYS_ADMIN"),  # to create namespaces; programs lose it
        *("--die-with-parent", "--new-session", "--as-pid-1", "--clearenv"),
        *("--setenv", "LD_LIBRARY_PATH", "/python/lib"),
        *("--setenv", "PYTHONHASHSEED", "0", "--setenv", "PYTHONUTF8", "1"),
        *_file_system(),
        *("--size", str(sandbox_worker.TMP_BYTES), "--tmpfs", "/tmp", "--chdir", "/tmp", "--remount-ro", "/", "--"),
        *("/python/bin/python3", "-s", "-S", "/worker.py", json.dumps(asdict(Limits())), "boxed"),
    ]


def _file_system() -> list[str]:
    """Mounts of this interpreter and its standard library as /python, the system's C libraries, and four devices."""
    home = Path(sys.base_prefix)
    library = f"python{sys.version_info.major}.{sys.version_info.minor}"
    executable = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    mounts = ["--ro-bind", executable, "/python/bin/python3", "--ro-bind", sandbox_worker.__file__, "/worker.py"]
    for name in ("lib", "lib64"):
        if (home / name).is_dir() and not (home / name).is_symlink():
            mounts += ["--ro-bind", str(home / name), f"/python/{name}"]
    if (home / "lib" / library / "site-packages").is_dir():
        packages = f"/python/lib/{library}/site-packages"
        mounts += ["--tmpfs", packages, "--remount-ro", packages]
    for path in ("/usr/lib", "/usr/lib64", "/lib", "/lib64"):
        if os.path.islink(path):
            mounts += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            mounts += ["--ro-bind", path, path]
    for device in ("null", "zero", "random", "urandom"):
        mounts += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    return mounts

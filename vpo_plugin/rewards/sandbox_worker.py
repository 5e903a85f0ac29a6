"""The worker inside a box: process 1 of its PID namespace, which keeps Python and its modules ready for programs.

`sandbox.py` starts this file in a box and talks to it in frames (four bytes of length, then bytes). For each program,
the worker forks a process into its own PID and mount namespaces with an empty `/tmp`; the process drops its
capabilities and forks children to run the tests. Children are confined before they read anything untrusted: resource
limits, no new processes, no `exec`, no sockets. There are three kinds of test:

- `stdin`: runs the program as a script and sends back what it prints.
- `call`: loads the program, calls one of its functions and sends the returned value back as JSON.
- `code`: runs the test code in a separate process, where `candidate(…)` calls into the program's process. Only values
  cross between the two, so the program cannot reach the assertion that judges it.

Expected values are never in a process that the program runs in, nor in a parent of one.
"""

import atexit
import builtins
import contextlib
import ctypes
import functools
import gc
import json
import os
import random
import re
import resource
import select
import signal
import struct
import sys
import threading
import time
import types
from collections import deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any, NoReturn

PRELOADED = "bisect collections copy datetime functools heapq itertools math operator re string typing"
WARM_UP = """\
import sys
from collections import Counter
class Solution:
    def twice(self, numbers: list[int]) -> list[int]:
        return sorted(2 * n for n in numbers if n >= 0)
for line in sys.stdin:
    pass
try:
    print(*map(int, input().split()), f"{0.5:.2f}", end="")
except EOFError:
    print(Counter("aab").most_common(1), {n: str(n) for n in Solution().twice([*range(9)])}, flush=True)
"""  # warms up once what nearly every program uses, instead of in each child
THREADS = 64
OPEN_FILES = 64
FILE_BYTES = 32 << 20
FILES = 10_000  # in /tmp: even empty files take kernel memory
STACK_BYTES = 64 << 20
TMP_BYTES = 64 << 20
REQUESTS, REPLIES, NOTHING = 10, 11, 12  # file descriptors of process 1; children close those they are not given

# ------------------------------------------------------------------------------------------------ system calls

X86_64, AARCH64 = 0xC000003E, 0xC00000B7  # AUDIT_ARCH_* of linux/audit.h
_CLONE = {X86_64: 56, AARCH64: 220}
_CLONE3, _CLONE_THREAD = 435, 0x10000
# Refused with EPERM; numbers from the kernel's system call tables. All architectures share the numbers from 424 on.
_REFUSED = {
    X86_64: [
        *(57, 58, 59, 322),  # fork, vfork, execve, execveat
        *(41, 29, 64, 68, 240, 319),  # socket, shmget, semget, msgget, mq_open, memfd_create
        *(101, 310, 311, 312),  # ptrace, process_vm_readv, process_vm_writev, kcmp
        *(165, 166, 155, 161, 272, 308),  # mount, umount2, pivot_root, chroot, unshare, setns
        *(303, 304, 300, 253, 254, 294),  # name_to_handle_at, open_by_handle_at, fanotify_init, inotify
        *(248, 249, 250, 321, 298, 323),  # add_key, request_key, keyctl, bpf, perf_event_open, userfaultfd
        *(246, 320, 175, 313, 176),  # kexec_load, kexec_file_load, init_module, finit_module, delete_module
        *(169, 167, 168, 163, 103, 179, 212),  # reboot, swapon, swapoff, acct, syslog, quotactl, lookup_dcookie
        *(172, 173, 154, 135),  # iopl, ioperm, modify_ldt, personality
        *(278, 256, 279),  # vmsplice, migrate_pages, move_pages
    ],
    AARCH64: [  # the same calls, where they exist
        *(221, 281),
        *(198, 194, 190, 186, 180, 279),
        *(117, 270, 271, 272),
        *(40, 39, 41, 51, 97, 268),
        *(264, 265, 262, 26, 27),
        *(217, 218, 219, 280, 241, 282),
        *(104, 294, 105, 273, 106),
        *(142, 224, 225, 89, 116, 60, 18),
        *(92,),
        *(75, 238, 239),
    ],
}
# io_uring, the new mount calls, pidfd_open, pidfd_getfd, process_madvise, mount_setattr, quotactl_fd, memfd_secret
_REFUSED_EVERYWHERE = [*range(425, 435), 438, 440, 442, 443, 447]


@functools.cache
def system_call_filter(architecture: int) -> bytes:
    """A classic BPF program for seccomp(2): allows threads, refuses processes and the calls listed above.

    It finds a call by bisection, because the kernel tries every number when a filter is installed.
    """
    load, jump_equal, jump_at_least, jump_set, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill, refuse, absent = 0x7FFF0000, 0x80000000, 0x00050000 | 1, 0x00050000 | 38  # EPERM, ENOSYS
    number, arch, first_argument = 0, 4, 16  # offsets in struct seccomp_data, little-endian
    Lines = list[tuple[int, int, int, int]]

    thread_or_refuse: Lines = [(load, 0, 0, first_argument), (jump_set, 0, 1, _CLONE_THREAD), (give, 0, 0, allow)]
    actions: dict[int, Lines] = {call: [(give, 0, 0, refuse)] for call in _REFUSED[architecture] + _REFUSED_EVERYWHERE}
    actions[_CLONE3] = [(give, 0, 0, absent)]  # glibc then falls back to clone, whose flags are readable
    actions[_CLONE[architecture]] = [*thread_or_refuse, (give, 0, 0, refuse)]
    allowed: Lines = [(give, 0, 0, allow)]
    ranges: list[tuple[int, Lines]] = [(0, allowed)]  # each from its number on
    for call in sorted(actions):
        for start, lines in ((call, actions[call]), (call + 1, allowed)):
            ranges = [one for one in ranges if one[0] != start]
            if ranges[-1][1] != lines:
                ranges.append((start, lines))
    ranges.append((0x40000000, [(give, 0, 0, absent)]))  # the x32 numbers

    def bisect(part: list[tuple[int, Lines]]) -> Lines:
        if len(part) == 1:
            return part[0][1]
        lower, upper = part[: len(part) // 2], part[len(part) // 2 :]
        lines = bisect(lower)
        return [(jump_at_least, len(lines), 0, upper[0][0]), *lines, *bisect(upper)]

    checked: Lines = [(load, 0, 0, arch), (jump_equal, 1, 0, architecture), (give, 0, 0, kill), (load, 0, 0, number)]
    return b"".join(struct.pack("=HBBI", *line) for line in checked + bisect(ranges))


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("lines", ctypes.c_char_p))


NEW_MOUNTS, NEW_PIDS = 0x00020000, 0x20000000
_libc = ctypes.CDLL(None, use_errno=True)
_prctl = _libc.prctl
_prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
_new_process = ctypes.PyDLL(None).fork
"""Fork without Python's slow fork hooks. They handle other threads and reseed `random` in each child: this process has
no other threads, and `random` must not differ between children."""


def _system_call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments):
        raise OSError(ctypes.get_errno(), f"{name} is refused")


@functools.cache
def _filter() -> _Filter:
    program = system_call_filter(_architecture())
    return _Filter(len(program) // 8, program)


def _install(program: _Filter) -> None:
    """Put this process under a system call filter, irrevocably."""
    no_new_privileges, set_seccomp, filter_mode = 38, 22, 2
    if _prctl(no_new_privileges, 1, 0, 0, 0) or _prctl(set_seccomp, filter_mode, ctypes.addressof(program), 0, 0):
        raise OSError(ctypes.get_errno(), "The system call filter could not be installed")


def _isolate() -> None:
    """Give the next child of this process new namespaces, mount an empty /tmp, and drop all capabilities."""
    no_suid, no_devices = 2, 4
    _system_call("unshare", NEW_MOUNTS | NEW_PIDS)
    options = f"size={TMP_BYTES},mode=0755".encode()
    _system_call("mount", b"tmpfs", b"/tmp", b"tmpfs", ctypes.c_ulong(no_suid | no_devices), options)
    os.chdir("/tmp")
    _drop_capabilities()


def _protect_devices() -> None:
    """Remount devices read-only, which still lets programs write to them: if the host's user is root, the program owns
    the devices. Raises OSError if a device's mode can still be changed.
    """
    remount, bind, read_only, kept = 32, 4096, 1, 2 | 4 | 8
    with contextlib.suppress(OSError):
        _system_call("unshare", NEW_MOUNTS)
    for name in os.listdir("/dev"):
        device = f"/dev/{name}"
        with contextlib.suppress(OSError):
            flags = ctypes.c_ulong(remount | bind | read_only | os.statvfs(device).f_flag & kept)
            _system_call("mount", b"none", device.encode(), None, flags, None)
        try:
            os.chmod(device, os.stat(device).st_mode & 0o7777)  # its own mode
        except OSError:
            continue
        raise OSError(f"A program could change {device}: let the scorer run as another user than root")


def _drop_capabilities() -> None:
    version_3, this_process = 0x20080522, 0
    _system_call("capset", struct.pack("=Ii", version_3, this_process), bytes(24))


def _architecture() -> int:
    return {"x86_64": X86_64, "aarch64": AARCH64}[os.uname().machine]


@functools.cache
def _release() -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", os.uname().release)[:2])


def _at_most(value: int, hard: int) -> int:
    """The value, lowered to the hard limit."""
    return value if hard == resource.RLIM_INFINITY else min(value, hard)


def _confine(limits: dict[str, Any], files: list[int]) -> None:
    """Keep only these files, as descriptors 0, 1, 2, …, and apply the limits and the filter."""
    copies = [os.dup(file) for file in files]
    for number, copy in enumerate(copies):
        os.dup2(copy, number)
    os.closerange(len(files), OPEN_FILES)
    most = {
        resource.RLIMIT_CPU: limits["cpu_seconds"],
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_FSIZE: FILE_BYTES,
        resource.RLIMIT_CORE: 0,
    }
    if _release() >= (5, 14):  # older kernels also count processes outside the box
        most[resource.RLIMIT_NPROC] = THREADS
    for limit, value in most.items():
        value = _at_most(value, resource.getrlimit(limit)[1])
        resource.setrlimit(limit, (value, value))
    _install(_filter())


# ------------------------------------------------------------------------------------------------ values and frames


LONG = 1 << 63  # larger integers are sent as hex: decimal conversion takes quadratic time, and Python limits it


def encode(value: object) -> Any:
    """Encode a plain value for JSON; `decode` reverses it. Raises TypeError for any other value."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value) if -LONG < value < LONG else {"int": hex(value)}
    if isinstance(value, float):
        return float(value)
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, bytes | bytearray):
        return {type(value).__name__: value.hex()}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, Decimal):
        return {"Decimal": str(value)}
    if isinstance(value, Fraction):
        return {"Fraction": [encode(value.numerator), encode(value.denominator)]}
    if isinstance(value, range):
        return {"range": [encode(value.start), encode(value.stop), encode(value.step)]}
    if isinstance(value, deque):
        return {"deque": [encode(list(value)), value.maxlen]}
    for kind in (tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [encode(item) for item in value]}
    raise TypeError(f"A value of the type {type(value).__name__} cannot leave the program.")


_KINDS: dict[str, Callable[[Any], object]] = {
    "int": lambda content: int(content, 16),
    "dict": lambda content: {decode(key): decode(item) for key, item in content},
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "complex": lambda content: complex(*content),
    "Decimal": Decimal,
    "Fraction": lambda content: Fraction(*decode(content)),
    "range": lambda content: range(*decode(content)),
    "deque": lambda content: deque(decode(content[0]), content[1]),
    "tuple": lambda content: tuple(decode(content)),
    "set": lambda content: set(decode(content)),
    "frozenset": lambda content: frozenset(decode(content)),
}


def decode(value: Any) -> Any:
    """Reverse `encode`. Raises ValueError, TypeError, KeyError or RecursionError on other input.

    Use it inside the box only: hostile input, such as a set of integers with equal hashes, may take quadratic time.
    """
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    return _KINDS[kind](content)


def encode_json(value: object) -> Any:
    """Encode a returned value: tuples, deques and ranges become lists. Raises TypeError if JSON cannot hold it."""
    if value is None or isinstance(value, bool | str | float | int):
        return encode(value)
    if isinstance(value, list | tuple | deque | range):
        return [encode_json(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: encode_json(item) for key, item in value.items()}}
    raise TypeError(f"A value of the type {type(value).__name__} does not fit in JSON.")


def decode_json(value: Any) -> Any:
    """Reverse `encode_json` in linear time. Raises ValueError or RecursionError on other input."""
    if isinstance(value, list):
        return [decode_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    match list(value.items()):
        case [("int", str(digits))]:
            return int(digits, 16)
        case [("dict", dict(items))]:
            return {key: decode_json(item) for key, item in items.items()}
    raise ValueError("This is not an encoded value.")


def _read_exactly(file: int, length: int) -> bytes:
    parts = []
    while length:
        part = os.read(file, min(length, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def read_frame(file: int) -> bytes:
    """Read the next frame. Raises EOFError if there is none."""
    return _read_exactly(file, int.from_bytes(_read_exactly(file, 4), "big"))


def write_frame(file: int, content: bytes) -> None:
    _write_all(file, len(content).to_bytes(4, "big") + content)


def _write_all(file: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(file, rest) :]


# ------------------------------------------------------------------------------------------------ the children


def _load(job: dict[str, Any], name: str) -> dict[str, Any]:
    """Run the program in a new module; return its namespace."""
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(job["preamble"], "<preamble>", "exec"), module.__dict__)
    exec(compile(job["program"].removeprefix("\ufeff"), "<program>", "exec"), module.__dict__)
    return module.__dict__


def _function(namespace: dict[str, Any], name: str) -> Callable[..., Any]:
    """The program's function, or the method of its class `Solution` (LeetCode's convention)."""
    if "Solution" in namespace and hasattr(namespace["Solution"], name):
        return getattr(namespace["Solution"](), name)
    return namespace[name]


def _run_script(job: dict[str, Any]) -> None:
    try:
        _load(job, "__main__")
    finally:
        for thread in threading.enumerate():
            if thread is not threading.main_thread() and not thread.daemon:
                thread.join()
        atexit._run_exitfuncs()
        sys.stdout.flush()


def _call(job: dict[str, Any], test: dict[str, Any]) -> None:
    value = _function(_load(job, "program"), test["function"])(*test["arguments"])
    _write_all(3, json.dumps(encode_json(value)).encode())


def _serve_calls(job: dict[str, Any], test: dict[str, Any]) -> None:
    """The program's side of a `code` test: reads requests from file 3 and writes answers to file 4."""
    function = _function(_load(job, "program"), test["function"])
    while True:
        request = read_frame(3)
        arguments, keywords = decode(json.loads(request))
        answer: dict[str, object] = {}
        try:
            answer["value"] = function(*arguments, **keywords)
        except Exception as error:
            answer["raised"] = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
            answer["with"] = [argument if _plain(argument) else str(argument) for argument in error.args]
        if _plain((arguments, keywords)) not in (request, None):
            answer["arguments"] = arguments, keywords
        write_frame(4, json.dumps(encode(answer)).encode())


def _plain(value: object) -> bytes | None:
    """The value as encoded bytes, or None if it cannot be encoded."""
    try:
        return json.dumps(encode(value)).encode()
    except (TypeError, ValueError, RecursionError):
        return None


def _run_test_code(job: dict[str, Any], test: dict[str, Any]) -> None:
    """The test's side: writes requests to file 3 and reads answers from file 4. An exception fails the test."""
    code = read_frame(5)
    os.close(5)

    def candidate(*arguments: object, **keywords: object) -> object:
        write_frame(3, json.dumps(encode((arguments, keywords))).encode())
        length = int.from_bytes(_read_exactly(4, 4), "big")
        if length > job["limits"]["output_bytes"]:
            raise ValueError("The program returned more than the output limit allows.")
        answer = decode(json.loads(_read_exactly(4, length)))
        if "arguments" in answer:
            _change((arguments, keywords), answer["arguments"])
        if "raised" in answer:
            _raise(answer["raised"], answer["with"])
        return answer["value"]

    namespace: dict[str, Any] = {"__name__": "test"}
    exec(compile(job["preamble"], "<preamble>", "exec"), namespace)
    namespace["candidate"] = namespace[test["function"]] = candidate
    exec(compile(code.decode(), "<test>", "exec"), namespace)


def _change(old: Any, new: Any) -> Any:
    """Apply to an argument the change that the program made, in place if its type is mutable."""
    kinds = (dict, set, bytearray, list, deque, tuple)
    kind = next((kind for kind in kinds if isinstance(old, kind) and isinstance(new, kind)), None)
    if kind is None:
        return new
    if kind is dict:
        new = {key: _change(old[key], item) if key in old else item for key, item in new.items()}
    elif kind in (list, deque, tuple):
        new = [_change(a, b) for a, b in zip(old, new, strict=False)] + [*new][len(old) :]
    if kind is tuple:
        return tuple(new)
    old.clear()
    (old.update if kind in (dict, set) else old.extend)(new)
    return old


def _raise(names: list[str], arguments: list[object]) -> NoReturn:
    """Raise the program's exception as the first builtin exception among its classes. StopIteration and the like are
    left out: they could silently end a loop in the test."""
    for name in names:
        kind = vars(builtins).get(name)
        if isinstance(kind, type) and issubclass(kind, Exception) and kind not in (StopIteration, StopAsyncIteration):
            try:
                error = kind(*arguments)
            except Exception:
                break
            raise error
    raise RuntimeError(f"The program raised {names[:1]}.")


def _fork(limits: dict[str, Any], files: list[int], work: Callable[[], object]) -> int:
    """Fork a confined child that does this work and exits with 0, or with 1 after an exception; return its PID."""
    pid = _new_process()
    if pid:
        return pid
    code = 1
    try:
        _confine(limits, files)
        work()
        code = 0
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except BaseException:
        code = 1
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        os._exit(code & 0xFF)


# ------------------------------------------------------------------------------------------------ process 1


def run(job: dict[str, Any], test: dict[str, Any]) -> None:
    """Run one test and reply with its status and output."""
    limits = job["limits"]
    answers, to_answers = os.pipe()
    program = None
    if test["kind"] == "stdin":
        stdin = os.memfd_create("stdin")
        _write_all(stdin, test["stdin"].encode("utf-8", "surrogatepass"))
        os.lseek(stdin, 0, os.SEEK_SET)
        child = _fork(limits, [stdin, to_answers, NOTHING], lambda: _run_script(job))
        os.close(stdin)
    elif test["kind"] == "call":
        child = _fork(limits, [NOTHING, NOTHING, NOTHING, to_answers], lambda: _call(job, test))
    else:
        program, child = _fork_pair(job, test, to_answers)
    os.close(to_answers)
    output, stopped = _collect(answers, child, limits)
    os.close(answers)
    status, cpu_seconds, killed = _reap(child, stopped)
    if program is not None:
        if killed and not stopped:
            sys.exit(1)  # killed, perhaps before it read its code: requests are out of step
        used = _reap(program, "done")[1]
        status = "time" if status == "error" and _used_up(used, limits) else status
        cpu_seconds += used
    elif status == "error" and _used_up(cpu_seconds, limits):
        status = "time"
    write_frame(REPLIES, json.dumps({"status": status, "cpu_seconds": cpu_seconds}).encode())
    write_frame(REPLIES, output)


def _used_up(cpu_seconds: float, limits: dict[str, Any]) -> bool:
    return cpu_seconds >= 0.9 * limits["cpu_seconds"]  # the kernel counts ticks: may stop a little early or late


def _fork_pair(job: dict[str, Any], test: dict[str, Any], done: int) -> tuple[int, int]:
    """Fork the program's process, then the test's. Only the test's process reads the test code."""
    limits = job["limits"]
    calls, to_calls = os.pipe()
    values, to_values = os.pipe()
    program = _fork(limits, [NOTHING, NOTHING, NOTHING, calls, to_values], lambda: _serve_calls(job, test))
    os.close(calls)
    os.close(to_values)
    child = _fork(limits, [NOTHING, done, NOTHING, to_calls, values, REQUESTS], lambda: _run_test_code(job, test))
    os.close(to_calls)
    os.close(values)
    return program, child


def _collect(answers: int, child: int, limits: dict[str, Any]) -> tuple[bytes, str]:
    """What the child wrote until it ended, and the limit that stopped it: '' (none), 'wall' or 'output'."""
    deadline = time.monotonic() + limits["wall_seconds"]
    ended = os.pidfd_open(child)
    poll = select.poll()
    waiting = [answers, ended]  # a child may close its output and live on
    for file in waiting:
        poll.register(file, select.POLLIN)
    parts: list[bytes] = []
    size = 0
    try:
        while waiting:
            seconds = deadline - time.monotonic()
            if seconds <= 0:
                return b"", "wall"
            for file, _ in poll.poll(min(seconds, 0.5) * 1000):
                part = os.read(answers, 1 << 16) if file == answers else b""
                if not part:
                    waiting.remove(file)
                    poll.unregister(file)
                parts.append(part)
                size += len(part)
            if size > limits["output_bytes"] or _files_in_tmp() > FILES:
                return b"", "output"
        return b"".join(parts), ""
    finally:
        os.close(ended)


def _files_in_tmp() -> int:
    if os.getpid() != 1:  # without a box, /tmp belongs to the machine
        return 0
    disk = os.statvfs("/tmp")
    return disk.f_files - disk.f_ffree


def _reap(pid: int, stopped: str) -> tuple[str, float, bool]:
    """Status, CPU seconds, and whether a signal ended the child. Kills it first if `stopped` is not empty."""
    if stopped:
        os.kill(pid, signal.SIGKILL)
    _, wait_status, usage = os.wait4(pid, 0)
    code = os.waitstatus_to_exitcode(wait_status)
    return stopped or ("ok" if code == 0 else "error"), usage.ru_utime + usage.ru_stime, code < 0


def _serve() -> None:
    """Run one program on its tests until an empty frame arrives."""
    job = json.loads(read_frame(REQUESTS))
    while test := read_frame(REQUESTS):
        run(job, json.loads(test))


def _in_child(isolated: bool, work: Callable[[], object]) -> int:
    """Do this work in a child, as process 1 of new namespaces if `isolated`; return its wait status, 0 on success."""
    pid = _new_process()
    if pid:
        return os.waitpid(pid, 0)[1]
    code = 1
    try:
        if isolated:
            _isolate()
            code = min(_in_child(False, work), 1)
        else:
            work()
            code = 0
    finally:
        os._exit(code)


def _try_to_confine() -> None:
    replies = REPLIES
    try:
        os.pidfd_open(os.getpid())
        replies = 3
        _confine(json.loads(sys.argv[1]), [NOTHING, NOTHING, NOTHING, REPLIES])
    except BaseException as error:
        write_frame(replies, f"{type(error).__name__}: {error}".encode())
        raise


def main() -> None:
    boxed = sys.argv[2:] == ["boxed"]
    os.dup2(0, REQUESTS)
    os.dup2(1, REPLIES)
    if boxed:
        try:
            _protect_devices()
        except OSError as error:
            write_frame(REPLIES, str(error).encode())
            return
    os.dup2(os.open("/dev/null", os.O_RDWR), NOTHING)  # opened from its read-only mount: programs get this file too
    for number in range(3):
        os.dup2(NOTHING, number)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # process 1 ignores signals from inside that it has no handler for
    sys.path.pop(0)
    for module in PRELOADED.split():
        __import__(module)
    vars(builtins).update(exit=sys.exit, quit=sys.exit)  # as the site module does
    hard_stack = resource.getrlimit(resource.RLIMIT_STACK)[1]
    resource.setrlimit(resource.RLIMIT_STACK, (_at_most(STACK_BYTES, hard_stack), hard_stack))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    # Create what every child needs before forking, so that children copy fewer memory pages.
    sys.stdin = sys.__stdin__ = os.fdopen(0, encoding="utf-8", closefd=False)  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", encoding="utf-8", closefd=False)  # type: ignore[misc]
    _load({"preamble": "", "program": WARM_UP}, "warm_up")
    del sys.modules["warm_up"]
    _filter()
    _release()
    random.seed(0)
    gc.collect()
    gc.freeze()
    isolated = boxed and not _in_child(True, lambda: None)
    if boxed and not isolated:
        _drop_capabilities()
    if _in_child(isolated, _try_to_confine):
        return
    sys.argv[:] = ["program"]
    if boxed and not isolated:  # no namespaces for programs here: the box serves one program
        write_frame(REPLIES, b"ready once")
        _serve()
        return
    write_frame(REPLIES, b"ready")
    while not _in_child(isolated, _serve):
        pass


if __name__ == "__main__":
    main()

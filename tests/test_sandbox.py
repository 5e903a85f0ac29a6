"""The sandbox: what honest programs can do in it, and attacks on it, from inside, one by one."""

import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import textwrap
import time
from collections import deque
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vpo_plugin.rewards import sandbox
from vpo_plugin.rewards.sandbox import (
    CallTest,
    CodeTest,
    Limits,
    Outcome,
    SandboxError,
    StdinTest,
    returned,
    run_program,
)
from vpo_plugin.rewards.sandbox_worker import (
    AARCH64,
    X86_64,
    decode,
    decode_json,
    encode,
    encode_json,
    system_call_filter,
)

needs_bwrap = pytest.mark.skipif(
    shutil.which("bwrap") is None, reason="bubblewrap is not installed (apt-get install it)"
)
pytestmark = needs_bwrap

SMALL = Limits(cpu_seconds=1, wall_seconds=5, memory_bytes=256 << 20, output_bytes=1 << 16, program_cpu_seconds=5)


def run(program: str, *, stdin: str = "") -> Outcome:
    return run_program(textwrap.dedent(program), [StdinTest(stdin)], limits=SMALL)[0]


def failures(*attempts: str) -> dict[str, str]:
    """How each line of Python failed in the box, by the name of its exception; 'done' where it did not."""
    program = f"""
        import ctypes, json, os, socket, subprocess, sys
        libc = ctypes.CDLL(None, use_errno=True)
        def call(name, *arguments):
            if getattr(libc, name)(*arguments) == -1:
                raise OSError(ctypes.get_errno(), name)
        ends = {{}}
        for attempt in {list(attempts)!r}:
            try:
                exec(attempt)
                ends[attempt] = "done"
            except BaseException as error:
                ends[attempt] = type(error).__name__
        print(json.dumps(ends))
    """
    outcome = run(program)
    assert outcome.status == "ok"
    return json.loads(outcome.output)


@pytest.fixture
def fresh_boxes() -> Iterator[None]:
    sandbox._boxes.cache_clear()
    yield
    sandbox._boxes.cache_clear()


# ------------------------------------------------------------------------------------------------ honest programs


def test_a_script_reads_and_prints() -> None:
    assert run("print(sum(map(int, input().split())))", stdin="3 4\n") == Outcome("ok", b"7\n")
    assert run("import sys; sys.stdout.write(sys.stdin.read()[::-1])", stdin="é…\n").output == "\n…é".encode()
    assert run("import sys; print(len(sys.stdin.buffer.read()))", stdin="x" * 3_000_000).output == b"3000000\n"
    assert run("if __name__ == '__main__': print(1)").output == b"1\n"
    assert run("\ufeffprint(1)").output == b"1\n"


def test_ends_of_a_script() -> None:
    assert run("print(1); raise SystemExit") == run("print(1); exit(0)") == run("print(1)")
    assert [run(f"import sys; sys.exit({code})").status for code in ("0", "3", "'text'")] == ["ok", "error", "error"]
    assert run("import os; print(1, flush=True); os._exit(0)").output == b"1\n"
    assert run("1 / 0").status == run("def").status == run("\0").status == run("print('\ud800')").status == "error"
    assert run("import atexit; atexit.register(print, 'bye')").output == b"bye\n"


def test_calls_return_plain_values() -> None:
    program = (
        "from typing import List\nclass Solution:\n    def f(self, a: List, b=1): return (a, {b: [None, 1.5, True]})"
    )
    [outcome, absent] = run_program(program, [CallTest("f", [[1], "x"]), CallTest("g", [])])
    assert returned(outcome) == [[1], {"x": [None, 1.5, True]}]
    with pytest.raises(ValueError, match="returned nothing: error"):
        returned(absent)
    [outcome] = run_program("f = lambda: object()", [CallTest("f", [])])
    assert outcome.status == "error"


def test_code_tests_call_the_program_from_another_process() -> None:
    program = "def double(x):\n    return helper(x)"
    tests = [
        CodeTest("double", "assert candidate(2) == 4"),
        CodeTest("double", "assert double((1, 2)) == (1, 2, 1, 2)"),
        CodeTest("double", "assert candidate(2) == 5"),
        CodeTest("double", "for i in range(200):\n    assert abs(candidate(x=i) - 2 * i) < 1e-9"),
        CodeTest("double", "assert candidate(None) is None"),
    ]
    outcomes = run_program(program, tests, preamble="def helper(x): return x * 2")
    assert [outcome.status for outcome in outcomes] == ["ok", "ok", "error", "ok", "error"]


def passes(program: str, *codes: str) -> list[bool]:
    tests = [CodeTest("f", textwrap.dedent(code)) for code in codes]
    return [outcome.status == "ok" for outcome in run_program(textwrap.dedent(program), tests, limits=SMALL)]


def test_code_tests_may_expect_an_exception() -> None:
    program = """
        class TooSmall(ValueError): pass
        def f(x):
            if x == "stop": raise StopIteration
            if x == "exit": raise SystemExit(0)
            if x == "key": raise KeyError("a", [1])
            if x == "unicode": "\\ud800".encode()
            if x == "odd": raise ValueError(object)
            if x < 0: raise TooSmall("below zero")
            return x
    """
    expects = "try:\n    f({})\nexcept {} as error:\n    assert {}\nelse:\n    raise AssertionError"
    assert (
        passes(
            program,
            expects.format(-1, "ValueError", "str(error) == 'below zero'"),
            "import unittest\nunittest.TestCase().assertRaises(ValueError, candidate, -1)\nassert candidate(1) == 1",
            expects.format("'key'", "LookupError", "error.args == ('a', [1])"),
            expects.format("None", "TypeError", "True"),
            expects.format("'unicode'", "UnicodeError", "error.start == 0"),
            expects.format("'odd'", "ValueError", "'object' in str(error)"),
            expects.format(1, "ValueError", "True"),
            expects.format(-1, "KeyError", "True"),
            # Exceptions that could silently end the test do not reach it.
            expects.format("'stop'", "StopIteration", "True"),
            "for answer in map(f, [1, 'stop', 2]): assert answer == 1",
            "f('exit')",
        )
        == [True] * 6 + [False] * 5
    )


def test_code_tests_see_a_changed_argument() -> None:
    program = """
        def f(x, *more, key=None):
            if isinstance(x, dict): x["new"] = more
            elif isinstance(x, set): x.discard(1)
            elif isinstance(x, bytearray): x[:] = b"new"
            elif isinstance(x, str): key.append(x)
            elif more: x[0].append(x.pop())
            else: x.sort()
    """
    assert (
        passes(
            program,
            "x = [3, 1, 2]\nassert f(x) is None and x == [1, 2, 3]",
            "x = [[], 1]\ny = x[0]\nf(x, 1)\nassert x == [[1]] and x[0] is y and y == [1]",
            "x = {'a': [1]}\ny = x['a']\nf(x, 2)\nassert x == {'a': [1], 'new': (2,)} and x['a'] is y",
            "x = {1, 2}\nf(x)\nassert x == {2}",
            "x = bytearray(b'old')\nf(x)\nassert x == b'new'",
            "x = []\nf('a', key=x)\nassert x == ['a']",
            "from collections import *\nx = deque([[1], 2], 3)\nf(x, 1)\nassert list(x) == [[1, 2]] and x.maxlen == 3",
            "x = [3, 1, 2]\nf(x)\nassert x == [3, 1, 2]",
            "x = (3, 1)\nf(x)",
        )
        == [True] * 7 + [False] * 2
    )


def test_code_tests_compare_values_of_many_types() -> None:
    program = "from decimal import Decimal\ndef f(x): return x / 3 if isinstance(x, Decimal) else x"
    imports = "from collections import deque\nfrom decimal import Decimal\nfrom fractions import Fraction\n"
    values = [
        "Fraction(1, 3)",
        "deque([1, 2], 3)",
        "range(0, 9, 2)",
        "10**5000",
        "-2**63",
        "bytearray(b'a')",
        "frozenset({1})",
    ]
    assert all(
        passes(program, *(f"{imports}x = {value}\nassert f(x) == x and type(f(x)) is type(x)" for value in values))
    )
    assert passes(
        program, f"{imports}assert f(Decimal('0.3')) == Decimal('0.1')", f"{imports}assert f(Decimal('0.3')) == 0.1"
    ) == [True, False]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(max_size=9)
    | st.binary(max_size=9).map(bytearray)
    | st.complex_numbers(allow_nan=False)
    | st.decimals(allow_nan=False)
    | st.fractions()
    | st.builds(range, st.integers(), st.integers(), st.integers(1)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.builds(deque, st.lists(inner, max_size=3), st.none() | st.integers(3, 5))
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
        | st.sets(st.integers() | st.text(max_size=3), max_size=3)
        | st.frozensets(st.integers() | st.text(max_size=3), max_size=3)
    ),
    max_leaves=12,
)


@given(VALUES)
@example(10**5000)
@example({-(10**5000): [Decimal("1e999999999")]})
def test_values_cross_the_boundary_unchanged(value: object) -> None:
    crossed = decode(json.loads(json.dumps(encode(value))))
    assert crossed == value and type(crossed) is type(value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=12,
    )
)
@example(-(10**5000))
def test_what_json_can_hold_comes_back(value: object) -> None:
    assert decode_json(json.loads(json.dumps(encode_json(value)))) == value


@pytest.mark.parametrize("value", [{"set": [1]}, {"int": 3}, {"int": "x"}, {"dict": [1]}, {}, {"dict": {}, "int": "1"}])
def test_what_no_call_returned_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"not an encoded value|invalid literal"):
        decode_json(value)


def test_reading_what_a_program_returned_takes_linear_time() -> None:
    """Integers with one hash make a set, and decimal digits an integer, in quadratic time."""
    program = """
        def same_hash(n): return {i * (2**61 - 1) for i in range(n)}
        def keys(n): return {i * (2**61 - 1): 0 for i in range(n)}
        def long(n): return 10**n
    """
    tests = [CallTest("same_hash", [300]), CallTest("keys", [300]), CallTest("long", [100_000])]
    one, other, long = run_program(textwrap.dedent(program), tests, limits=Limits())
    assert one.status == other.status == "error"  # does not fit in JSON: it does not leave the box
    assert returned(long) == 10**100_000


def test_a_call_returns_lists_for_what_is_like_them() -> None:
    program = """
        import collections, decimal
        def f(kind):
            return {"deque": collections.deque([1, (2,)]), "range": range(3), "tuple": ((1,), []), "int": True + 1,
                    "set": {1}, "Decimal": decimal.Decimal("0.5"), "dict": {1: 2},
                    "named": collections.namedtuple("P", "x y")(1, 2), "counter": collections.Counter("aab")}[kind]
    """
    kinds = ["deque", "range", "tuple", "int", "set", "Decimal", "dict", "named", "counter"]
    outcomes = run_program(textwrap.dedent(program), [CallTest("f", [kind]) for kind in kinds])
    assert [outcome.status for outcome in outcomes] == ["ok"] * 4 + ["error"] * 3 + ["ok"] * 2
    found = [returned(outcome) for outcome in outcomes if outcome.status == "ok"]
    assert found == [[1, [2]], [0, 1, 2], [[1], []], 2, [1, 2], {"a": 2, "b": 1}]


def test_results_are_the_same_each_time() -> None:
    program = "import random; print(random.random(), hash('x'), list({'a', 'b', 'c', 'd', 'e'}))"
    assert run(program).output == run(program).output != b""


def test_a_busy_machine_fails_nothing() -> None:
    limits = Limits(cpu_seconds=1)
    waits = "import time\ntime.sleep(1.5)\nprint('done')"
    works = "import time\nwhile time.process_time() < 0.6: pass\nprint('done')"
    assert run_program(waits, [StdinTest("")], limits=limits) == [Outcome("ok", b"done\n")]  # CPU time counts alone
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    try:
        assert run_program(works, [StdinTest("")], limits=limits) == [Outcome("ok", b"done\n")]
    finally:
        for process in busy:
            process.kill()
            process.wait()


# ------------------------------------------------------------------------------------------------ limits


def test_fork_bomb() -> None:
    ends = failures("os.fork()", "while True: os.fork()", "call('vfork')", "subprocess.run(['/python/bin/python3'])")
    assert set(ends.values()) == {"PermissionError"}
    # clone(SIGCHLD) by its number, with no library between.
    number = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
    assert set(failures(f"call('syscall', {number}, 17, 0, 0, 0, 0)").values()) == {"PermissionError"}


def test_exec() -> None:
    assert set(failures("os.execv('/python/bin/python3', ['x'])").values()) == {"PermissionError"}


def test_infinite_loop() -> None:
    outcome = run("while True: pass")
    assert outcome.status == "time" and outcome.cpu_seconds < 3
    assert run("import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass").status == "time"


def test_a_program_that_is_out_of_time_is_not_run_on() -> None:
    limits = Limits(cpu_seconds=1, program_cpu_seconds=1.5)
    outcomes = run_program("while input(): pass", [StdinTest("1\n" * 10**7)] * 4 + [StdinTest("")], limits=limits)
    assert [outcome.status for outcome in outcomes] == ["time", "time", "skipped", "skipped", "skipped"]


def test_a_program_that_waits() -> None:
    limits = Limits(wall_seconds=1)
    outcomes = run_program("import time; time.sleep(1e9)", [StdinTest("")] * 16, limits=limits)
    assert [outcome.status for outcome in outcomes] == ["wall", *["skipped"] * 15]
    [outcome, _] = run_program("f = lambda: __import__('time').sleep(1e9)", [CodeTest("f", "f()")] * 2, limits=limits)
    assert outcome.status == "wall"


@pytest.mark.parametrize(
    "program",
    [
        "import os, time\nos.close(1)\ntime.sleep(10**6)",
        "import os, time\nos.closerange(0, 64)\ntime.sleep(10**6)",
        "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)",
        "import os, threading\nos.close(1)\nthreading.Thread(target=threading.Event().wait).start()",
        "import signal, time\n[signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]\ntime.sleep(10**6)",
    ],
)
def test_no_way_to_wait_escapes_the_clock(program: str) -> None:
    outcomes = run_program(program, [StdinTest("")] * 2, limits=Limits(wall_seconds=0.5))
    assert [outcome.status for outcome in outcomes] == ["wall", "skipped"]
    function = f"def f():\n    {program.replace(chr(10), chr(10) + '    ')}"
    for test in (CallTest("f", []), CodeTest("f", "f()")):
        [outcome] = run_program(function, [test], limits=Limits(wall_seconds=0.5))
        assert outcome.status in ("wall", "ok", "error")  # it may close its answers, or return before its threads do


def test_a_program_that_waits_in_each_of_its_tests() -> None:
    limits = Limits(wall_seconds=60, program_wall_seconds=1)
    outcomes = run_program("import time; time.sleep(0.6)", [StdinTest("")] * 9, limits=limits)
    assert [outcome.status for outcome in outcomes][-6:] == ["skipped"] * 6 and outcomes[0].status == "ok"


def test_a_box_that_is_late_is_killed_whole() -> None:
    import psutil

    code = "import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1e6)'])\n"
    box = sandbox._Box([sys.executable, "-c", f"{code}print('..', flush=True)\ntime.sleep(1e6)"])
    with pytest.raises(sandbox._Closed):
        box.receive(10.0)  # a reply that has no end
    processes = [psutil.Process(box.process.pid), *psutil.Process(box.process.pid).children()]
    box.kill()
    _, left = psutil.wait_procs(processes, timeout=5)  # the signal was sent; each ends on its own
    assert len(processes) == 2 and not [process for process in left if process.status() != "zombie"]


def test_infinite_output() -> None:
    assert run("while True: print('x' * 1000)") == Outcome("output", b"")
    assert run("print('x' * (1 << 16))").status == "output"
    [outcome] = run_program("f = lambda: 'x' * 10**6", [CallTest("f", [])], limits=SMALL)
    assert outcome == Outcome("output", b"")
    [outcome] = run_program("f = lambda: 'x' * 10**6", [CodeTest("f", "assert len(f()) == 10**6")], limits=SMALL)
    assert outcome.status == "error"
    assert run("import sys\nfor _ in range(9999): sys.stderr.write('x' * 1000)").status == "ok"


def test_memory_hog() -> None:
    assert run("x = 'x' * (300 << 20)").status == "error"
    assert run("import mmap; mmap.mmap(-1, 300 << 20)").status == "error"
    assert set(failures("call('memfd_create', b'x', 0)", "call('shmget', 0, 1 << 30, 0o1600)").values()) == {
        "PermissionError"
    }


def test_deep_recursion_ends_the_test_alone() -> None:
    program = "import sys; sys.setrecursionlimit(10**9)\ndef f(n): return f(n + 1)\nprint(input()); f(0)"
    [first, second] = run_program(program, [StdinTest("1"), StdinTest("")], limits=SMALL)
    assert first.status != "ok" and second.status == "error"


def test_full_disk() -> None:
    program = """
        files = 0
        try:
            for files in range(99):
                with open(f"/tmp/{files}", "wb") as file:
                    for _ in range(8): file.write(bytes(1 << 20))
        except OSError as error:
            print(files, error.strerror)
    """
    assert run(program).output == b"8 No space left on device\n"
    assert run("open('/tmp/x', 'wb').truncate(1 << 40)").status == "error"


def test_many_files() -> None:
    program = "import itertools\nfor n in itertools.count(): open(f'/tmp/{n}', 'w').close()"
    outcomes = run_program(program, [StdinTest("")] * 2, limits=Limits(cpu_seconds=8))
    assert [outcome.status for outcome in outcomes] == ["output", "output"]
    assert sum(outcome.cpu_seconds for outcome in outcomes) < 6


def test_many_threads_and_open_files() -> None:
    program = """
        import threading, time
        stop, threads = threading.Event(), []
        try:
            while True:
                threads.append(threading.Thread(target=stop.wait, daemon=True))
                threads[-1].start()
        except RuntimeError:
            print("no more")
        try:
            files = [open("/dev/null") for _ in range(999)]
        except OSError:
            print("no more")
    """
    assert run(program).output == b"no more\nno more\n"


def test_threads_that_outlive_main() -> None:
    late = "import threading, time\ndef work():\n    time.sleep(0.2)\n    print('late')\n"
    assert run(late + "threading.Thread(target=work).start()").output == b"late\n"
    assert run(late + "threading.Thread(target=work, daemon=True).start()\nprint('early')").output == b"early\n"
    endless = "import threading\ndef work():\n    while True: pass\n"
    assert run(endless + "threading.Thread(target=work).start()\nprint('early')").status == "time"
    function = endless + "def f():\n    threading.Thread(target=work).start()\n    return 1\n"
    outcomes = run_program(function, [CallTest("f", []), CodeTest("f", "assert f() == 1")], limits=SMALL)
    assert [outcome.status for outcome in outcomes] == ["ok", "ok"] and sum(o.cpu_seconds for o in outcomes) < 1


# ------------------------------------------------------------------------------------------------ the host's own


def test_files_of_the_host() -> None:
    here = Path(__file__).resolve()
    places = ["/etc/passwd", "/etc/shadow", str(Path.home()), "/root", "/home", "/var", "/sys", "/run", "/bin/sh"]
    ends = failures(*(f"os.stat({place!r})" for place in [*places, str(here), str(here.parent), "/usr/bin/env"]))
    assert set(ends.values()) == {"FileNotFoundError"}
    outcome = run("import os; print(*sorted(os.listdir('/')), *os.listdir('/tmp'), *sorted(os.listdir('/dev')))")
    mounted = {"python", "usr", "lib", "lib64", "dev", "tmp", "worker.py"}
    assert set(outcome.output.decode().split()) <= mounted | {"null", "zero", "random", "urandom"}


def test_symbolic_links() -> None:
    ends = failures(
        "os.symlink('/etc', '/tmp/etc'); open('/tmp/etc/passwd')",
        "os.symlink('../../../../../../etc/passwd', '/tmp/up'); open('/tmp/up')",
        "os.symlink('/tmp/loop', '/tmp/loop'); open('/tmp/loop')",
        "os.chdir('/tmp'); os.chdir('../../..'); open('etc/passwd')",
        "os.chroot('/tmp')",
    )
    assert list(ends.values()) == [
        "FileNotFoundError",
        "FileNotFoundError",
        "OSError",
        "FileNotFoundError",
        "PermissionError",
    ]
    ends = failures("os.symlink('/worker.py', '/tmp/w'); open('/tmp/w', 'a')", "os.link('/worker.py', '/tmp/x')")
    assert set(ends.values()) == {"OSError"}  # a read-only file system; a link across two


def test_proc() -> None:
    paths = ["/proc", "/proc/self/environ", "/proc/1/root", "/proc/self/fd", "/dev/fd", "/dev/shm"]
    ends = failures(*(f"os.stat({path!r})" for path in paths))
    assert set(ends.values()) == {"FileNotFoundError"}
    assert failures("call('mount', b'proc', b'/tmp', b'proc', 0, None)") == {
        "call('mount', b'proc', b'/tmp', b'proc', 0, None)": "PermissionError"
    }


def test_writing_outside_tmp() -> None:
    places = ["/x", "/worker.py", "/dev/x", "/python/x", "/python/lib/x", "/usr/lib/x", "/python/bin/python3"]
    ends = failures(*(f"open({place!r}, 'w')" for place in places), "os.mkdir('/x')", "os.unlink('/worker.py')")
    assert set(ends.values()) <= {"OSError", "PermissionError"} and "done" not in ends.values()


def test_devices_cannot_be_changed() -> None:
    """Where the scorer is root, the box's user owns them. They are given the modes that they have: it harms nothing."""
    changes = (
        "os.chmod({0}, 0o666)",
        "os.utime({0})",
        "os.fchmod(os.open({0}, os.O_RDWR), 0o666)",
        "os.chown({0}, 1000, 1000)",
    )
    ends = failures(*(change.format(repr(f"/dev/{name}")) for name in ("null", "zero") for change in changes))
    assert set(ends.values()) <= {"OSError", "PermissionError"}
    ends = failures("os.fchmod(2, 0o666)", "os.fchown(2, 1000, 1000)", "os.utime(2)", "os.chmod('/usr/lib', 0o755)")
    assert set(ends.values()) <= {"OSError", "PermissionError"}  # 2: the error output, a device too
    assert set(failures("os.fchmod(0, 0o666)", "os.fchmod(1, 0o666)").values()) == {
        "done"
    }  # a file and a pipe of its own
    assert run("open('/dev/null', 'w').write('x'); print(len(open('/dev/urandom', 'rb').read(9)))").output == b"9\n"


def test_a_program_leaves_nothing_for_the_next() -> None:
    program = """
        import os, sys, threading
        print(sorted(os.listdir("/tmp")), oct(os.stat("/tmp").st_mode), os.getpid() < 9, os.nice(0))
        print(sys.getrecursionlimit())
        open("/tmp/file", "w").write("x")
        os.chmod("/tmp", 0)
        os.nice(5)
        os.sched_setaffinity(1, {min(os.sched_getaffinity(1))})
        sys.setrecursionlimit(99_999)
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    """
    assert [run(program) for _ in range(3)] == [run(program)] * 3
    assert run(program).status == "ok"


def test_namespaces_that_a_box_may_not_make(fresh_boxes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As under AppArmor's profile: a box serves one program, or none if the devices are the program's."""
    command = sandbox._command()
    at = command.index("--cap-add")
    monkeypatch.setattr(sandbox, "_command", lambda: command[:at] + command[at + 2 :])
    if os.geteuid() == 0 and sandbox._user(command) is None:
        with pytest.raises(SandboxError, match=r"A program could change /dev/.*another user than root"):
            run("print(1)")
    else:
        assert [run("print(1); open('/tmp/x', 'x')").status for _ in range(2)] == ["ok", "ok"]


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VPO_TEST_SECRET", "s3cret")
    shown = run("import os, sys; print(dict(os.environ), sys.argv, os.uname().nodename)").output.decode()
    assert "s3cret" not in shown and os.uname().nodename not in shown
    names = json.loads(run("import json, os; print(json.dumps([*os.environ]))").output)
    assert set(names) <= {"PYTHONHASHSEED", "PYTHONUTF8", "LD_LIBRARY_PATH", "LC_CTYPE", "PWD"}


def test_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ends = failures(
            f"socket.create_connection(('127.0.0.1', {port}), 1)",
            "socket.socket(socket.AF_UNIX).connect('/run/docker.sock')",
            "socket.socket(40, socket.SOCK_STREAM)",  # AF_VSOCK, which no namespace keeps apart
            "socket.getaddrinfo('localhost', 80)",
        )
        assert "done" not in ends.values()
        # And without the system call filter: the network namespace alone keeps the host's loopback away.
        code = f"import socket\ntry: socket.create_connection(('127.0.0.1', {port}), 2)\nexcept OSError as e: print(e)"
        command = sandbox._command()
        done = subprocess.run(
            [*command[: command.index("--") + 1], "/python/bin/python3", "-S", "-c", code],
            capture_output=True,
            text=True,
        )
        assert "refused" in done.stdout or "unreachable" in done.stdout, done


def test_killing_the_parent() -> None:
    program = """
        import os, signal
        for pid in (1, os.getppid()):
            for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGSEGV):
                os.kill(pid, number)
        try:
            os.kill(-1, signal.SIGKILL)
        except ProcessLookupError:
            pass
        print("here")
    """
    outcomes = run_program(textwrap.dedent(program), [StdinTest("")] * 3, limits=SMALL)
    assert [outcome.output for outcome in outcomes] == [b"here\n"] * 3
    assert run("import os; os.kill(os.getpid(), 9)").status == "error"


@pytest.mark.parametrize("limit", ["CPU", "AS", "NOFILE", "NPROC", "FSIZE"])
def test_limits_on_the_parent_hurt_the_program_alone(limit: str) -> None:
    program = f"import resource; resource.prlimit(1, resource.RLIMIT_{limit}, (0, 0)); print('here')"
    assert {outcome.output for outcome in run_program(program, [StdinTest("")] * 3, limits=SMALL)} <= {b"", b"here\n"}
    assert run("print(1)").output == b"1\n"


def test_killing_the_process_that_runs_the_assertion() -> None:
    program = "import os\ndef f():\n    os.kill(-1, 9)\n    return 1"
    outcomes = run_program(program, [CodeTest("f", "assert f() == 1")] * 3, limits=SMALL)
    assert [outcome.status for outcome in outcomes] == ["error", "skipped", "skipped"]


def test_ptrace_and_other_system_calls() -> None:
    ends = failures(
        "call('ptrace', 16, 1, 0, 0)",
        "call('process_vm_readv', 1, None, 0, None, 0, 0)",
        "call('unshare', 0x10000000)",
        "call('setns', 0, 0)",
        "call('syscall', 425, 1, None)",  # io_uring_setup
        "call('syscall', 438, 0, 0, 0)",  # pidfd_getfd
        "call('personality', 0x0040000)",
    )
    assert set(ends.values()) == {"PermissionError"}


def test_no_capabilities_and_no_root() -> None:
    with_filter = failures(
        "os.setuid(0)", "os.chown('/tmp', 0, 0)", "os.sethostname('x')" if sys.version_info[0] > 9 else "os.nice(-5)"
    )
    assert set(with_filter.values()) <= {"PermissionError", "OSError"}


# ------------------------------------------------------------------------------------------------ forging a verdict


@pytest.mark.parametrize(
    "program",
    [
        "import os\ndef f(x): os._exit(0)",
        "import sys\ndef f(x): sys.exit(0)",
        "import os; os._exit(0)",
        "class Same:\n    def __eq__(self, other): return True\nf = lambda x: Same()",
        "class Same(int):\n    def __eq__(self, other): return True\nf = lambda x: Same(1)",
        "import builtins\nbuiltins.AssertionError = type(None)\ndef f(x): return 1",
        "import os\ndef f(x):\n    os.write(1, b'\\x00\\x00\\x00\\x02ok')\n    return 1",
        "import os\ndef f(x):\n    os.write(11, b'\\x00\\x00\\x00\\x02ok')\n    return 1",
        "import sys\ndef f(x):\n    sys.modules['__main__'].run = None\n    return 1",
        "import os\ndef f(x):\n    open('/tmp/random.py', 'w').write('import os; os._exit(0)')\n    return 1",
    ],
)
def test_a_wrong_program_stays_wrong(program: str) -> None:
    tests = [CodeTest("f", "import random\nassert candidate(2) == 4"), CallTest("f", [2])] * 2
    for outcome, test in zip(run_program(program, tests, limits=SMALL), tests, strict=True):
        if isinstance(test, CodeTest):
            assert outcome.status != "ok"
        else:
            with contextlib.suppress(ValueError):
                assert returned(outcome) != 4


def test_the_program_does_not_see_the_test() -> None:
    program = """
        import gc, sys
        def f():
            found, todo = {}, [*gc.get_objects(), sys._getframe()]
            while todo:
                thing = todo.pop()
                if id(thing) not in found:
                    found[id(thing)] = thing
                    todo += gc.get_referents(thing)
            return [str(t) for t in found.values() if isinstance(t, str | bytes) and chr(110) + "eedle" in str(t)]
    """
    tests = [CodeTest("f", "found = f()\nassert found == [], 'needle'")] * 2
    outcomes = run_program(textwrap.dedent(program), tests, limits=Limits())
    assert [outcome.status for outcome in outcomes] == ["ok", "ok"]
    seen = run_program(textwrap.dedent(program) + "\nneedle = 'needle'", tests, limits=Limits())
    assert [outcome.status for outcome in seen] == ["error", "error"]  # it would find one


# ------------------------------------------------------------------------------------------------ the box itself


def test_no_process_is_left_behind() -> None:
    import psutil

    run("print(1)")
    boxes = [child for child in psutil.Process().children() if child.name() == "bwrap"]
    assert len(boxes) <= 2 * (os.cpu_count() or 1) + 2  # the ones that stand ready


def test_boxes_die_with_the_scorer() -> None:
    import psutil

    code = (
        "import os, psutil, time; from vpo_plugin.rewards.sandbox import *\n"
        "run_program('print(1)', [StdinTest('')]); time.sleep(0.5)\n"
        "print(*[p.pid for p in psutil.Process().children(recursive=True)], flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    pids = [int(pid) for pid in done.stdout.split()]
    assert pids
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(psutil.pid_exists(pid) for pid in pids):
        time.sleep(0.05)
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


def test_without_bubblewrap_nothing_runs(fresh_boxes: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxError, match=r"bwrap is not installed\. Install bubblewrap .*apt-get install bubblewrap"):
        run_program("print(1)", [StdinTest("")])


def test_where_namespaces_are_refused_nothing_runs(
    fresh_boxes: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refusing = tmp_path / "bwrap"
    refusing.write_text("#!/bin/sh\necho 'bwrap: No permissions to create a new namespace' >&2\nexit 1\n")
    refusing.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(SandboxError, match=r"No permissions to create a new namespace.*user namespaces are allowed"):
        run_program("print(1)", [StdinTest("")])


def test_where_bwrap_cannot_be_run_nothing_runs(
    fresh_boxes: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "bwrap").write_text("no program")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for _ in range(3):
        with pytest.raises(SandboxError, match=r"No box can be started here: .*Exec format error"):
            run_program("print(1)", [StdinTest("")])


def test_running_without_a_sandbox_warns(fresh_boxes: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(sandbox.UNSAFE, "1")
    with pytest.warns(RuntimeWarning, match="WITHOUT a sandbox"):
        outcomes = run_program("print(input())", [StdinTest("1")])
    assert outcomes[0].output == b"1\n"
    outcomes = run_program("def f(x): return x", [CodeTest("f", "assert f(1) == 1"), CodeTest("f", "assert f(1) == 2")])
    assert [outcome.status for outcome in outcomes] == ["ok", "error"]


def test_the_box_is_what_it_says() -> None:
    sandbox.require_sandbox()
    command = sandbox._command()
    assert {"--unshare-user", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"} <= set(command)


def verdict(program: bytes, machine: int, number: int, argument: int = 0) -> int:
    """What a filter says to a system call: the BPF program, run on the call's seccomp_data."""
    data = struct.pack("=iIQ6Q", number, machine, 0, argument, *[0] * 5)
    lines = list(struct.iter_unpack("=HBBI", program))
    value, at = 0, 0
    while True:
        code, when_true, when_false, constant = lines[at]
        at += 1
        if code == 0x06:
            return constant
        if code == 0x20:
            [value] = struct.unpack_from("=I", data, constant)
            continue
        met = {0x15: value == constant, 0x35: value >= constant, 0x45: bool(value & constant)}[code]
        at += when_true if met else when_false


@pytest.mark.parametrize(
    ("machine", "calls"),
    [
        (X86_64, {"read": 0, "clone": 56, "fork": 57, "execve": 59, "ptrace": 101, "socket": 41, "mount": 165}),
        (
            AARCH64,
            {"read": 63, "clone": 220, "execveat": 281, "execve": 221, "ptrace": 117, "socket": 198, "mount": 40},
        ),
    ],
)
def test_the_filter_of_each_architecture(machine: int, calls: dict[str, int]) -> None:
    program = system_call_filter(machine)
    allow, kill, eperm, enosys = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026
    verdicts = {name: verdict(program, machine, number) for name, number in calls.items()}
    assert verdicts.pop("read") == allow and set(verdicts.values()) == {eperm}
    assert verdict(program, machine, calls["clone"], 0x3D0F00) == allow  # the flags of a thread
    assert verdict(program, machine, calls["clone"], 17) == eperm  # those of a fork
    assert (
        verdict(program, machine, 435) == enosys and verdict(program, machine, 425) == eperm
    )  # clone3, io_uring_setup
    assert verdict(program, X86_64 + AARCH64 - machine, calls["read"]) == kill
    assert verdict(program, machine, 0x40000000) == enosys


def test_a_box_that_vanishes_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    run("print(1)")
    while not [child for child in psutil.Process().children() if child.name() == "bwrap"]:
        time.sleep(0.01)
    [victim, *_] = [child for child in psutil.Process().children() if child.name() == "bwrap"]
    time.sleep(1)  # until those that stand ready are
    victim.kill()
    assert [run("print(1)").output for _ in range(4)] == [b"1\n"] * 4

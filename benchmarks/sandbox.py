"""Measure how fast programs are tested: python -m benchmarks.sandbox

Each program runs on 1, 4 and 16 tests, one program per core at a time. For comparison, each test also runs in a new
Python in a new box.
"""

import argparse
import os
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from vpo_plugin.rewards import sandbox

PROGRAM = "from collections import Counter\nprint(Counter(input().split()).most_common(1)[0][0])"
STDIN = "a b a c\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=100)
    programs = parser.parse_args().programs
    sandbox.require_sandbox()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for tests in (1, 4, 16):
        seconds = _time(_warm, programs, tests)
        rate = programs / seconds
        print(f"the sandbox: {rate:6.1f} programs/s with {tests:2} tests each, {rate * tests:6.1f} tests/s")
    seconds = _time(_cold, programs, 1)
    print(f"a start for each test: {programs / seconds:6.1f} tests/s")


def _time(run: Callable[[int], bool], programs: int, tests: int) -> float:
    started = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        assert all(threads.map(run, [tests] * programs))
    return time.perf_counter() - started


def _warm(tests: int) -> bool:
    outcomes = sandbox.run_program(PROGRAM, [sandbox.StdinTest(STDIN)] * tests)
    return all(outcome.output == b"a\n" for outcome in outcomes)


def _cold(tests: int) -> bool:
    command = sandbox._command()
    box = [*command[: command.index("--") + 1], "/python/bin/python3", "-I", "-S", "-c", PROGRAM]
    return subprocess.run(box, input=STDIN.encode(), capture_output=True).stdout == b"a\n"


if __name__ == "__main__":
    main()

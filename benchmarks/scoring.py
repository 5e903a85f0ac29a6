"""Measure how fast responses are scored: python -m benchmarks.scoring [--before DIR]

Scores on one core in this process, and with the scoring service of every command on one core and on all cores: one
process per core, with the service's own side on the same cores. For comparison, it also measures what the cores gain
at best: one independent process, then one per core. Each task's responses hold three candidates, after a few words.
With --before, a checkout from before the scoring service scores the same responses in turns with this one.
For programs, see python -m benchmarks.sandbox.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from vpo_plugin.rewards.files import load_spec
from vpo_plugin.rewards.formats import write_response
from vpo_plugin.rewards.response import response_scorer
from vpo_plugin.rewards.scoring import Item, Scoring
from vpo_plugin.rewards.spec import RewardSpec
from vpo_plugin.rewards.task import known_answers, read_rows

FIRST = "Let me look at this first.\n"
OLD = """
import json, sys, time
from vpo_plugin.rewards.files import load_spec
name, pairs, seconds = json.load(sys.stdin)
spec = load_spec(name)
started, scored = time.process_time(), 0
while time.process_time() - started < seconds:
    for response, label in pairs:
        spec.score_response(response, label, 3)
    scored += len(pairs)
print(scored / (time.process_time() - started))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.0, help="how long a measurement takes; taken seven times")
    parser.add_argument("--before", type=Path, help="a checkout such as that of commit 0b216c6")
    args = parser.parse_args()
    seconds = args.seconds
    cores = sorted(os.sched_getaffinity(0))
    for name, responses in RESPONSES.items():
        spec = load_spec(name)
        pairs = list(responses(spec))
        alone = before = 0.0
        for _ in range(5):
            alone = max(alone, in_this_process(spec, pairs, seconds, time.process_time))
            before = max(before, on_one_core_of(args.before, name, pairs, seconds)) if args.before else 0.0
        print(f"{name:8} {alone:7.0f} responses/s, {1e6 / alone:4.0f} µs each")
        themselves, service = [], []  # responses/s on one core, and on all
        with warm(spec, pairs, cores[:1]) as one_process, warm(spec, pairs, cores) as processes:
            for _ in range(7):
                themselves.append([by_themselves(spec, pairs, seconds, on) for on in (cores[:1], cores)])
                on_one = by_the_service(one_process, pairs, seconds, cores[:1])
                service.append([on_one, by_the_service(processes, pairs, seconds, cores)])
        for who, found in (("processes by themselves", themselves), ("the service", service)):
            one, every = map(median, zip(*found, strict=True))
            gain = median(on_all / on_one for on_one, on_all in found)
            print(f"  {who:23} {one:7.0f}/s on one core, {every:7.0f}/s on {len(cores)}: {gain:.2f} times as many")
        if args.before:
            print(f"  before {before:7.0f} responses/s, {1e6 / before:4.0f} µs each; now / before {before / alone:.2f}")


def in_this_process(
    spec: RewardSpec, pairs: list[tuple[str, Any]], seconds: float, clock: Callable[[], float]
) -> float:
    """Responses per second of this clock."""
    score = response_scorer(spec)
    started, scored = clock(), 0
    while clock() - started < seconds:
        for response, label in pairs:
            score(response, label, 3)
        scored += len(pairs)
    return scored / (clock() - started)


def on_one_core_of(checkout: Path, name: str, pairs: list[tuple[str, Any]], seconds: float) -> float:
    """Responses per second of CPU time, in another checkout."""
    command, given = [sys.executable, "-c", OLD], json.dumps([name, pairs, seconds])  # imports from its own folder
    done = subprocess.run(command, input=given, cwd=checkout, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


@contextmanager
def only(cores: list[int]) -> Iterator[None]:
    """This thread, and the processes and threads that it starts, on these cores."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def by_themselves(spec: RewardSpec, pairs: list[tuple[str, Any]], seconds: float, cores: list[int]) -> float:
    """Responses per second of one process per core, each with all of the responses and nothing to share."""
    with only(cores), get_context("fork").Pool(len(cores)) as pool:
        return sum(pool.starmap(in_this_process, [(spec, pairs, seconds, time.perf_counter)] * len(cores), chunksize=1))


@contextmanager
def warm(spec: RewardSpec, pairs: list[tuple[str, Any]], cores: list[int]) -> Iterator[Scoring]:
    """The scoring service on these cores, when all its processes score."""
    others = len(psutil.Process().children())
    with only(cores), Scoring(spec, processes=len(cores)) as scoring:
        while len(psutil.Process().children()) < others + len(cores):
            by_the_service(scoring, pairs, 1, cores)
        by_the_service(scoring, pairs, 5, cores)  # the last process has started, and imports
        yield scoring


def by_the_service(scoring: Scoring, pairs: list[tuple[str, Any]], seconds: float, cores: list[int]) -> float:
    """Responses per second of the service."""
    items = [Item(response, label, 3, "") for response, label in pairs]
    items *= 8192 // len(items)
    with only(cores):
        started, scored = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            scored += sum(1 for _ in scoring.score(items))
        return scored / (time.perf_counter() - started)


def mazes(spec: RewardSpec) -> Iterator[tuple[str, Any]]:
    """Eight responses to each of 32 mazes, each with a solved route, and the same without its last 1 and 2 moves."""
    for row in read_rows(spec, "train", 32, 0):
        routes = itertools.cycle(route.split() for route, _ in known_answers(spec, row["label"]))
        for route in itertools.islice(routes, 8):
            texts = [" ".join(part) for part in (route, route[:-1], route[:-2])]
            yield FIRST + write_response(spec, texts), row["label"]


def questions(spec: RewardSpec) -> Iterator[tuple[str, Any]]:
    label = {"support": [3, 11], "answers": ["The Eiffel Tower", "la tour Eiffel"]}
    for number in range(32):
        answers = ["The Eiffel Tower", f"the tower of Eiffel in Paris {number}", "Notre Dame"]
        texts = [f"<support>{number}, 11</support> <answer>{answer}</answer>" for answer in answers]
        yield FIRST + write_response(spec, texts), label


def chains(spec: RewardSpec) -> Iterator[tuple[str, Any]]:
    names = ["Robert_Rodriguez", "From_Dusk_till_Dawn:_The_Series", "32nd_European_Film_Awards", "The_The", "São_Paulo"]
    for number in range(32):
        sets = (names, [*names[:3], f"Oscar {number}", "Rio de Janeiro"], names[::-1])
        texts = [" ".join(f"<entity_{x}>{name}</entity_{x}>" for x, name in zip("ABCDE", s, strict=True)) for s in sets]
        yield FIRST + write_response(spec, texts), {"entities": names}


def turns(spec: RewardSpec) -> Iterator[tuple[str, Any]]:
    def turn(**parameters: object) -> str:
        call = json.dumps({"name": "weather", "parameters": parameters})
        return f"<think> I need the weather. </think>\n<tool_call>\n{call}\n</tool_call>"

    gold = turn(city="New York City", days=3, metric=True)
    for number in range(32):
        texts = [gold, turn(city="York", days=number), turn(place=f"New York {number}", metric=False)]
        yield write_response(spec, texts), {"gold": gold}


RESPONSES = {"maze": mazes, "musique": questions, "eureqa": chains, "toolrl": turns}

if __name__ == "__main__":
    main()

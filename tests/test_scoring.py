"""The scoring service: what scorers of all kinds do to others, which is nothing, and the same rewards at every door."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vpo_plugin.rewards import RewardSpec, load_spec, workers
from vpo_plugin.rewards.response import score_response
from vpo_plugin.rewards.scoring import Item, ScorerError, Scoring
from vpo_plugin.rewards.workers import StartError, Threads, WorkerError, Workers

SPEC: dict[str, Any] = {
    "name": "programs",
    "description": "candidates are Python that sets `rewards`, run by the scorer itself",
    "task": "programs_scorer",
    "objectives": [{"key": "a", "description": "a"}, {"key": "b", "description": "b"}],
    "candidates": 1,
    "tag": "p",
    "prompt": {"single": "Write <p_1>.", "multi": "Write {candidates} in <p_1>."},
    "limits": {"response_chars": 10000, "tokens_per_candidate": 10, "seconds": 1.5, "memory_mb": 512},
}
SCORER = """
import asyncio, ctypes, os, signal, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor

kept = []

def rows(split, num_rows, seed):
    return []

def score(candidate, label):
    found = {"label": label, **globals()}
    exec(candidate, found)
    return found["rewards"]
"""


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RewardSpec]:
    folder = tmp_path_factory.mktemp("programs")
    (folder / "spec.yaml").write_text(yaml.safe_dump(SPEC))
    (folder / "programs_scorer.py").write_text(SCORER)
    yield load_spec(folder)
    sys.path.remove(str(folder))
    sys.modules.pop("programs_scorer")


@pytest.fixture(scope="module")
def scoring(spec: RewardSpec) -> Iterator[Scoring]:
    with Scoring(spec, processes=2) as service:
        yield service


def item(program: str, label: object = None, where: str = "Row 1") -> Item:
    return Item(f"<p_1>{program}</p_1>", label, 1, where)


GOOD = "rewards = [0.25, 1]"


def failure(scoring: Scoring, program: str) -> str:
    """What is said of a program that fails between others, which are scored."""
    programs = [GOOD] * 5 + [program] + [GOOD] * 5
    futures = [scoring.submit(item(text, where=f"Row {i}")) for i, text in enumerate(programs)]
    with pytest.raises(ScorerError) as error:
        futures.pop(5).result(timeout=30)
    assert all(future.result(timeout=30).matrix.tolist() == [[0.25, 1]] for future in futures)
    assert str(error.value).startswith("Row 5: the scorer of the spec 'programs' failed: ")
    return str(error.value)


# ------------------------------------------------------------------------------------------------ what ends a process


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("sys.exit(0)", "SystemExit: 0"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise BaseException('odd')", "BaseException: odd"),
        ("os._exit(0)", "it ended its process with exit code 0"),
        ("os._exit(7)", "it ended its process with exit code 7"),
        ("ctypes.string_at(0)", "it was ended by SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "it was ended by SIGKILL, as when memory runs out"),
        ("os.closerange(3, 100); time.sleep(9)", "it was ended by SIGKILL"),
        ("while True: pass", "it took more than 1.5 s (limits.seconds)"),
        ("sum(range(10**12))", "it took more than 1.5 s (limits.seconds)"),  # holds Python's lock
        ("signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65)); time.sleep(60)", "it took more than 1.5 s"),
        ("x = bytearray(1 << 30)", "MemoryError"),
        ("def f(): f()\nf()", "RecursionError"),
        ("raise ValueError('\\ud800\\n' * 900)", "ValueError: \\ud800 \\ud800"),
        ("raise ValueError('\\x1b]0;pwn\\x07')", "ValueError: �]0;pwn�"),
    ],
)
def test_a_failure_costs_its_own_response_alone(scoring: Scoring, program: str, sentence: str) -> None:
    said = failure(scoring, program)
    assert sentence in said and "\n" not in said
    assert said.endswith("Fix the scorer, or score such responses zero and count them: --on_scorer_error zero.")


def test_the_scorers_own_line_is_named(scoring: Scoring) -> None:
    assert "programs_scorer.py:12)" in failure(scoring, "1 / 0")
    assert "programs_scorer.py:" in failure(scoring, "while True: pass")
    with pytest.raises(ScorerError) as error:
        scoring.submit(item("1 / 0")).result()
    assert error.value.trace.startswith("Traceback") and "1 / 0" not in str(error.value)


def test_the_time_of_a_response_is_its_own(spec: RewardSpec) -> None:
    """Twenty responses of 0.3 s on one process: each waits longer than it may take, and none is late."""
    with Scoring(spec, processes=1) as one:
        scored = list(one.score([item("time.sleep(0.3)\n" + GOOD)] * 8))
    assert [response.matrix.tolist() for response in scored] == [[[0.25, 1]]] * 8


def test_what_a_scorer_started_ends_with_it(scoring: Scoring) -> None:
    mark = f"sleep 4{os.getpid()}"
    program = f"subprocess.Popen({mark.split()!r}); os._exit(1)"
    failure(scoring, program)
    failure(scoring, program.replace("os._exit(1)", "time.sleep(60)"))
    assert gone(mark)


def gone(mark: str) -> bool:
    """Whether no process has this in its command line, in a moment at most."""

    def there() -> bool:
        return any(mark in " ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"]))

    return any(not there() or time.sleep(0.1) for _ in range(100))


def test_closed_nothing_is_left(spec: RewardSpec) -> None:
    service = Scoring(spec, processes=1)
    pid = int(service.submit(item("rewards = [os.getpid() / 1e9, 0]")).result().matrix[0, 0] * 1e9 + 0.5)
    waiting = [service.submit(item("time.sleep(60)")) for _ in range(3)]
    service.close()
    for future in waiting:
        with pytest.raises(CancelledError):
            future.result()
    assert not psutil.pid_exists(pid)
    with pytest.raises(RuntimeError, match="closed"):
        service.submit(item(GOOD))


def test_scorers_die_with_the_process_that_scores(spec: RewardSpec, tmp_path: Path) -> None:
    """Killed at once, it leaves not even a scorer that never ends."""
    code = (
        "import sys, time; from vpo_plugin.rewards import load_spec; from vpo_plugin.rewards.scoring import *\n"
        "spec = load_spec(sys.argv[1])\n"
        "program = \"open(label, 'w').close()\\nwhile True: pass  # \"\n"
        "Scoring(spec).submit(Item(f'<p_1>{program}</p_1>', sys.argv[2], 1, '')); time.sleep(60)"
    )
    begun = tmp_path / "begun"
    folder = Path(sys.modules["programs_scorer"].__file__).parent  # type: ignore[arg-type]
    process = subprocess.Popen([sys.executable, "-c", code, str(folder), str(begun)])
    try:
        assert any(begun.exists() or time.sleep(0.1) for _ in range(300))
        [scorer] = psutil.Process(process.pid).children()
    finally:
        process.kill()
        process.wait()
    assert any(not scorer.is_running() or time.sleep(0.1) for _ in range(100))


def test_signals_threads_and_processes_are_the_scorers_own(scoring: Scoring) -> None:
    """As math-verify, and scorers with a pool of their own, need them; an alarm that is left rings for nobody else."""
    alarm = "signal.signal(signal.SIGALRM, lambda *a: kept.append(1)); signal.alarm(1)\n" + GOOD
    multi = (
        "import multiprocessing\n"
        "with multiprocessing.get_context('fork').Pool(1) as pool: rewards = pool.map(float, [0.25, 1])"
    )
    left = "signal.signal(signal.SIGALRM, signal.SIG_DFL); signal.setitimer(signal.ITIMER_REAL, 0.05)\n" + GOOD
    pool = "rewards = list(ThreadPoolExecutor(2).map(float, [0.25, 1]))"
    programs = [alarm, multi, pool, left, "time.sleep(0.1)\n" + GOOD] * 2
    scored = list(scoring.score([item(program) for program in programs]))
    assert [response.matrix.tolist() for response in scored] == [[[0.25, 1]]] * len(programs)


def test_what_a_scorer_prints_is_not_in_the_output(spec: RewardSpec, capfd: pytest.CaptureFixture[str]) -> None:
    with Scoring(spec, processes=1) as one:
        one.submit(item("print('loud', flush=True)\n" + GOOD)).result()
        assert one.submit(item("rewards = [float(sys.stdin.read() == ''), 1]")).result().matrix.tolist() == [[1, 1]]
    out, err = capfd.readouterr()
    assert out == "" and "loud" in err


def test_a_scorer_that_cannot_start_is_one_sentence(tmp_path: Path, spec: RewardSpec) -> None:
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(SPEC | {"task": "vanishing_scorer"}))
    (tmp_path / "vanishing_scorer.py").write_text(SCORER)
    vanishing = load_spec(tmp_path)
    for content, sentence in (
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import os; os._exit(3)", "ended its process with exit code 3"),
    ):
        (tmp_path / "vanishing_scorer.py").write_text(content)
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
        with Scoring(vanishing) as service, pytest.raises(RuntimeError, match="cannot be started") as error:
            list(service.score([item(GOOD)] * 3))
        assert sentence in str(error.value) and not isinstance(error.value, ScorerError)
    sys.path.remove(str(tmp_path))


# ------------------------------------------------------------------------------------------------ zero


def test_failures_count_as_zero_and_the_first_are_kept(spec: RewardSpec, tmp_path: Path) -> None:
    with Scoring(spec, processes=2, on_error="zero", failures=tmp_path / "kept") as zero:
        programs = [GOOD, "1 / 0", "os._exit(1)", GOOD, *["raise KeyError(label)"] * 30]
        scored = list(zero.score(item(text, {"n": i}, f"Row {i}") for i, text in enumerate(programs)))
    assert [response.error is None for response in scored] == [True, False, False, True, *[False] * 30]
    assert all(response.matrix.tolist() == [[0, 0]] for response in scored if response.error)
    assert scored[1].reward == 0 and scored[1].candidates == [None] and "Row 1: " in scored[1].error
    assert zero.zeros == 32 and "32 responses scored zero" in str(zero.summary())
    kept = sorted((tmp_path / "kept").iterdir())
    assert len(kept) == 20
    text = next(text for text in map(Path.read_text, kept) if "Row 1\n" in text)
    for part in ("<p_1>1 / 0</p_1>", "{'n': 1}", "ZeroDivisionError", "Traceback"):
        assert part in text


def test_without_failures_there_is_nothing_to_say(scoring: Scoring) -> None:
    assert scoring.submit(item(GOOD)).result().error is None and scoring.summary() is None


# ------------------------------------------------------------------------------------------------ what is returned


@pytest.mark.parametrize(
    ("returned", "rewards"),
    [
        ("(True, False)", [1, 0]),
        ("{'b': 1, 'a': 0.5}", [0.5, 1]),
        ("(x for x in (0.5, 1))", [0.5, 1]),
        ("numpy.array([0.5, 1])", [0.5, 1]),
        ("[numpy.float32(0.5), numpy.int64(1)]", [0.5, 1]),
        ("torch.tensor([0.5, 1.0], requires_grad=True, dtype=torch.bfloat16)", [0.5, 1]),
        ("[torch.tensor(0.5), 1]", [0.5, 1]),
        ("[decimal.Decimal('0.5'), fractions.Fraction(1, 1)]", [0.5, 1]),
        ("coroutine()", [0.5, 1]),
        ("[1.0000001, -0.0000001]", [1, 0]),
    ],
)
def test_what_a_scorer_may_return(spec: RewardSpec, returned: str, rewards: list[float]) -> None:
    code = "import decimal, fractions, numpy, torch\n"
    code += "async def coroutine():\n    await asyncio.sleep(0.01)\n    return [0.5, 1]\n"
    assert score_response(spec, f"<p_1>{code}rewards = {returned}</p_1>", None, 1).matrix.tolist() == [rewards]


@pytest.mark.parametrize(
    ("returned", "sentence"),
    [
        (
            "None",
            "returned 'None' (NoneType). It returns a list of 2 numbers, or a dict, for the objectives ['a', 'b']",
        ),
        ("0.5", "The scorer returned '0.5' (float). It returns"),
        ("numpy.float64(0.5)", "The scorer returned '0.5' (float). It returns"),
        ("'01'", "The scorer returned '01' (str). It returns"),
        ("b'01'", "(bytes). It returns"),
        ("{0.5, 1.0}", "(set). It returns"),
        ("lambda: 1", "(function). It returns"),
        ("[None, 1]", "gave the objective 'a' 'None' (NoneType), which is not a number"),
        ("['0.5', 1]", "gave the objective 'a' '0.5' (str), which is not a number"),
        ("[0.5, 1j]", "gave the objective 'b' '1j' (complex), which is not a number"),
        ("[[0.5], [1.0]]", "gave the objective 'a' '[0.5]' (list), which is not a number"),
        ("numpy.array([[0.5, 1.0]])", "returned 1 rewards, '[[0.5, 1.0]]' (list). It returns a list of 2 numbers"),
        ("[1, 2, 3]", "returned 3 rewards, '[1, 2, 3]' (list). It returns a list of 2 numbers"),
        ("{'a': 1}", "returned the keys ['a'], the objectives are ['a', 'b']"),
        ("{'a': 1, 'b': 1, 'c': 1}", "returned the keys ['a', 'b', 'c']"),
        ("[float('nan'), 1]", "gave the objective 'a' nan, which is not finite"),
        ("[1, float('inf')]", "gave the objective 'b' inf, which is not finite"),
        ("[-1, 1]", "-1.0, which is not within 0.0 to 1.0, its range in the spec (with `outside_range: clamp`"),
        ("[1.01, 1]", "1.01, which is not within"),
    ],
)
def test_what_a_scorer_may_not_return(scoring: Scoring, returned: str, sentence: str) -> None:
    said = failure(scoring, f"import numpy\nrewards = {returned}")
    assert sentence in said and "programs_scorer.py:10)" in said and "Error:" not in said


# ------------------------------------------------------------------------------------------------ waiting scorers


def test_scorers_that_wait_are_called_side_by_side(spec: RewardSpec) -> None:
    """Twenty responses that wait for each other, in threads of this process; and each has its own time."""
    limits = spec.limits.model_copy(update={"concurrent": 20})
    with Scoring(spec.model_copy(update={"limits": limits})) as waiting:
        together = item(f"label.wait()\n{GOOD}", threading.Barrier(20))
        scored = list(waiting.score([together] * 20))
        assert [response.matrix.tolist() for response in scored] == [[[0.25, 1]]] * 20
        with pytest.raises(ScorerError, match=r"it took more than 1.5 s \(limits\.seconds\)"):
            waiting.submit(item("time.sleep(3)\n" + GOOD)).result()
        with pytest.raises(ScorerError, match="SystemExit: 3"):
            waiting.submit(item("sys.exit(3)")).result()


def test_scorers_that_never_return_keep_nobody_waiting(spec: RewardSpec, tmp_path: Path) -> None:
    """Ten responses, five of which hang, with two turns; the others are scored, and the command ends."""
    folder = tmp_path / "waiting"
    folder.mkdir()
    (folder / "programs_scorer.py").write_text(SCORER)
    (folder / "spec.yaml").write_text(yaml.safe_dump(SPEC | {"limits": SPEC["limits"] | {"concurrent": 2}}))
    programs = ["time.sleep(10**6)"] * 5 + [GOOD] * 5
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row_of(program)) + "\n" for program in programs))
    command = [sys.executable, "-m", "vpo_plugin.cli", "score", "--spec", str(folder), "--input", "in.jsonl"]
    done = subprocess.run(
        [*command, "--output", "out.jsonl"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row.get("matrix") for row in found] == [None] * 5 + [[[0.25, 1]]] * 5
    assert done.returncode == 1 and done.stderr.count("it took more than 1.5 s (limits.seconds)") == 5


def row_of(program: str) -> dict[str, Any]:
    return {"response": f"<p_1>{program}</p_1>", "label": None, "candidates": 1}


def test_threads_that_never_return_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "LATE", 2)
    ends = threading.Event()
    threads = Threads(lambda item: item or ends.wait(), concurrent=1, seconds=0.2)
    outcomes = [threads.submit(item, lambda outcome: outcome) for item in (None, 1, None, 2)]
    late, one, again, no_more = [outcome.result(timeout=30) for outcome in outcomes]
    assert one == 1 and all(isinstance(outcome, WorkerError) for outcome in (late, again))
    assert isinstance(no_more, StartError) and str(no_more).startswith("2 calls that took more than 0.2 s")
    ends.set()
    assert any(threads.submit(3, lambda outcome: outcome).result(timeout=30) == 3 or time.sleep(0.1) for _ in range(99))
    threads.close()


# ------------------------------------------------------------------------------------------------ the same everywhere


@pytest.fixture(scope="module")
def services(spec: RewardSpec) -> Iterator[list[Scoring]]:
    made = [Scoring(spec, processes=n, on_error="zero") for n in (1, 3)]
    yield made
    for service in made:
        service.close()


PROGRAMS = st.one_of(
    st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=3).map(lambda values: f"rewards = {values}"),
    st.sampled_from(["1 / 0", "rewards = label", "sys.exit(1)", "kept[:] = [0.5, 1]; rewards = kept"]),
)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(PROGRAMS, st.sampled_from([None, [0.5, 1], [0]])), max_size=40))
def test_any_number_of_processes_gives_the_rewards_of_one_call(
    spec: RewardSpec, services: list[Scoring], programs: list[tuple[str, Any]]
) -> None:
    expected = []
    for program, label in programs:
        try:
            expected.append(score_response(spec, f"<p_1>{program}</p_1>", label, 1).matrix.tolist())
        except BaseException:
            expected.append([[0, 0]])
    for service in services:
        scored = service.score(item(program, label) for program, label in programs)
        assert [response.matrix.tolist() for response in scored] == expected


def echo(argument: object) -> Callable[[tuple[int, str]], str]:
    """For the test below: what it is given back, but for some that end their process."""

    def answer(item: tuple[int, str]) -> str:
        number, text = item
        if number % 500 == 499:
            os._exit(3)
        return f"{number}{text}"

    return answer


def test_chunks_that_wait_in_a_process_block_nothing_and_are_not_lost() -> None:
    """Quick items of all sizes, more than a socket takes both ways, in two processes of which some die."""
    texts = ["x" * (300_000 if number % 97 == 0 else number % 50) for number in range(3000)]
    workers = Workers(f"{__name__}:echo", None, processes=2, seconds=30)
    try:
        futures = [workers.submit((number, text), lambda outcome: outcome) for number, text in enumerate(texts)]
        outcomes = [future.result(timeout=120) for future in futures]
    finally:
        workers.close()
    for number, (text, outcome) in enumerate(zip(texts, outcomes, strict=True)):
        if number % 500 == 499:
            assert isinstance(outcome, WorkerError) and str(outcome) == "ended its process with exit code 3"
        else:
            assert outcome == f"{number}{text}"


def test_a_library_that_shadows_the_standard_one_in_the_pools_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM imports cv2, which puts a folder with a module `typing` first in the path of an engine's process."""
    (tmp_path / "typing.py").write_text("raise RuntimeError('not the standard library')\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    workers = Workers("operator:itemgetter", 0, processes=1, seconds=30)
    try:
        assert workers.submit("abc", str).result(timeout=60) == "a"
    finally:
        workers.close()

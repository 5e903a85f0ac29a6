"""The scoring service: responses in, reward matrices out, the same for every command.

The scorer of a spec runs in its own processes, one response at a time in a process's main thread
(`vpo_plugin.rewards.workers`). So signals work, nothing is shared, and a scorer can only break its own process. If a
spec sets `limits: {concurrent: N}`, its scorer waits for others, such as judges, and is called from N threads instead.
"""

import itertools
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, TypeVar

import numpy as np

from vpo_plugin import files
from vpo_plugin.rewards.response import RewardError, ScoredResponse, floor_response, group_scorer, response_scorer
from vpo_plugin.rewards.sandbox import SandboxError
from vpo_plugin.rewards.spec import RewardSpec, load_entry_point
from vpo_plugin.rewards.trace import place_of
from vpo_plugin.rewards.workers import StartError, Threads, WorkerError, Workers

OnError = Literal["raise", "zero"]
Result = TypeVar("Result")
SAVED = 20  # failures that are kept in files
AHEAD = 512  # responses that are under way for each process


class Item(NamedTuple):
    """A response to score."""

    response: str
    label: object
    """The decoded label."""
    candidates: int
    where: str
    """Its name in messages: `Line 3 of in.jsonl`."""
    prompt: str | None = None
    """The packed prompt (`rewards.prompts`), for functions in trl's signature, and saved with a failure."""
    group: int | str | None = None
    """For a scorer that compares rollouts: consecutive items of one group are scored together."""


class ScorerError(RuntimeError):
    """A response whose scorer failed; the message names it, and where the scorer failed. `trace` is the traceback."""

    trace = ""


class Scoring:
    """Scores the responses of one spec.

    Args:
        processes: maximum number; default: one per core, or fewer if the spec's limits say so.
        on_error: with `raise` a failing scorer is a `ScorerError`; `zero` scores the floor and counts it (`zeros`).
        failures: folder for the first 20 failures, one file each.
        flag: the command's flag for `on_error`, for messages.
        environment: additional variables for the processes.
    """

    def __init__(
        self,
        spec: RewardSpec,
        *,
        processes: int | None = None,
        on_error: OnError = "raise",
        failures: Path | None = None,
        flag: str = "--on_scorer_error",
        environment: dict[str, str] | None = None,
    ) -> None:
        self.spec, self.on_error, self.failures, self.flag = spec, on_error, failures, flag
        self.zeros = 0
        """Responses that scored zero because their scorer failed."""
        limits = spec.limits
        cores = len(os.sched_getaffinity(0))
        wanted = processes or cores
        self.processes = min(wanted, limits.processes or wanted)
        self.ahead = max(AHEAD * self.processes, 2 * (limits.concurrent or 0))
        """How many responses should be in flight at a time."""
        self._needs_prompts = bool(spec.functions)
        self._saving = threading.Lock()
        self._workers: Workers | Threads
        if limits.concurrent:
            self._workers = Threads(prepare(spec), concurrent=limits.concurrent, seconds=limits.seconds)
        else:
            threads = {"OMP_NUM_THREADS": str(max(1, cores // self.processes)), "TOKENIZERS_PARALLELISM": "false"}
            self._workers = Workers(
                f"{__name__}:prepare",
                spec,
                processes=self.processes,
                seconds=limits.seconds,
                memory=_memory(spec),
                environment={name: os.environ.get(name, value) for name, value in threads.items()}
                | (environment or {}),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; responses in flight are dropped."""
        self._workers.close()

    def submit(self, item: Item) -> "Future[ScoredResponse]":
        """The scored response, of a spec whose scorer does not compare responses.

        The future raises ScorerError if the scorer failed and failures do not count as zero, and RuntimeError if no
        response can be scored, because the processes cannot start or the sandbox does not work.
        """
        given = (item.response, item.label, item.candidates, item.prompt if self._needs_prompts else None)
        return self._workers.submit(given, lambda outcome: self._read(item, outcome))

    def submit_group(self, items: Sequence[Item]) -> "Future[list[ScoredResponse]]":
        """The scored responses to one prompt, of a spec whose scorer compares them; errors are those of `submit`."""
        given = ([item.response for item in items], items[0].label, items[0].candidates)
        return self._workers.submit(given, lambda outcome: self._read_group(items, outcome))

    def score(self, items: Iterable[Item]) -> Iterator[ScoredResponse]:
        """Scored responses in the order of the items; some items are read ahead. Raises: see `submit`."""
        if self.spec.group_scorer:
            groups = (list(group) for _, group in itertools.groupby(items, key=_group))
            for scored in _read_ahead(map(self.submit_group, groups), self.processes + 1):
                yield from scored
        else:
            yield from _read_ahead(map(self.submit, items), self.ahead)

    def summary(self) -> str | None:
        """A sentence on the responses that scored zero because their scorer failed, if there are any."""
        return say_zeros(self.zeros, self.spec.name, self.failures) if self.zeros else None

    def _read_group(self, items: Sequence[Item], outcome: Any) -> list[ScoredResponse]:
        if isinstance(outcome, list):
            return [self._read(item, one) for item, one in zip(items, outcome, strict=True)]
        return [self._read(item, outcome) for item in items]

    def _read(self, item: Item, outcome: Any) -> ScoredResponse:
        if isinstance(outcome, CancelledError):
            raise outcome
        if isinstance(outcome, StartError):
            raise RuntimeError(f"The scorer of the spec '{self.spec.name}' cannot be started: {outcome}")
        if isinstance(outcome, WorkerError):
            outcome = _Failure(f"it {outcome}", "", "", False)
        if isinstance(outcome, _Failure):
            return self._failed(item, outcome)
        matrix, parsed, unique, reward, candidates = outcome
        return ScoredResponse(
            np.frombuffer(matrix, dtype=np.float32).reshape(item.candidates, -1), parsed, unique, reward, candidates
        )

    def _failed(self, item: Item, failure: "_Failure") -> ScoredResponse:
        if failure.fatal:
            raise RuntimeError(failure.message)
        kept = self._save(item, failure)
        said = f"{item.where}: the scorer of the spec '{self.spec.name}' failed: {failure.message}{failure.place}."
        if self.on_error == "zero":
            self.zeros += 1
            return floor_response(self.spec, item.label, item.candidates, said)
        saved = f" Response and traceback are in {kept}." if kept else ""
        error = ScorerError(
            f"{said}{saved} Fix the scorer, or score such responses zero and count them: {self.flag} zero."
        )
        error.trace = failure.trace
        raise error

    def _save(self, item: Item, failure: "_Failure") -> Path | None:
        if self.failures is None:
            return None
        parts = {"where": item.where, "prompt": item.prompt, "response": item.response, "label": repr(item.label)}
        parts |= {"error": failure.message + failure.place, "traceback": failure.trace}
        with self._saving:
            return keep_failure(self.failures, parts)


def say_zeros(zeros: int, spec: str, failures: Path | None) -> str:
    """The sentence on responses that scored zero, with the name of the spec and the folder of the first failures."""
    kept = f"; the first are in {failures}/scorer_error_*.txt" if failures else ""
    return f"{zeros} responses scored zero because the scorer of the spec '{spec}' failed{kept}."


def keep_failure(folder: Path, parts: Mapping[str, str | None]) -> Path | None:
    """Write a file about a failure, unless the first failures are stored already."""
    number = len(list(folder.glob("scorer_error_*.txt")))
    if number >= SAVED:
        return None
    file = folder / f"scorer_error_{os.getpid()}_{number + 1}.txt"
    text = "\n\n".join(f"# {name}\n{part}" for name, part in parts.items() if part)
    files.write(file, text.encode(errors="backslashreplace"))
    return file


def forget_failures(folder: Path) -> None:
    """Remove the files of an earlier run's failures."""
    for file in folder.glob("scorer_error_*.txt"):
        file.unlink()


def _group(item: Item) -> object:
    return object() if item.group is None else item.group


def _read_ahead(futures: "Iterable[Future[Result]]", ahead: int) -> "Iterator[Result]":
    under_way: deque[Future[Result]] = deque()
    for future in futures:
        under_way.append(future)
        if len(under_way) >= ahead:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()


def _memory(spec: RewardSpec) -> int:
    """Bytes that a scoring process may use: the spec's limit, or half of the machine's memory."""
    if spec.limits.memory_mb:
        return spec.limits.memory_mb << 20
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


# ------------------------------------------------------------------------------------------------ in the process


@dataclass(frozen=True)
class _Failure:
    message: str
    place: str
    trace: str
    fatal: bool
    """No response can be scored."""


def prepare(spec: RewardSpec) -> Any:
    """The function that a process calls on each `(response, label, candidates)`."""
    if spec.group_scorer:
        score_group = group_scorer(spec)
        score: Callable[..., Any] = lambda *item: [_flat(scored) for scored in score_group(*item)]  # noqa: E731
    else:
        score_one = response_scorer(spec)
        score = lambda *item: _flat(score_one(*item))  # noqa: E731

    def run(item: tuple[Any, ...]) -> Any:
        try:
            return score(*item)
        except BaseException as error:  # a scorer may raise anything, and exit
            return _failure(spec, error)
        finally:
            if threading.current_thread() is threading.main_thread():
                # Cancel an alarm that the scorer left, so that it cannot hit the next response.
                signal.setitimer(signal.ITIMER_REAL, 0)

    return run


def _flat(scored: ScoredResponse) -> tuple[Any, ...]:
    return bytearray(scored.matrix), scored.parsed, scored.unique, scored.reward, scored.candidates


def _failure(spec: RewardSpec, error: BaseException) -> _Failure:
    if isinstance(error, SandboxError):
        return _Failure(str(error), "", "", True)
    if isinstance(error, RewardError):
        message = str(error).rstrip(".")
        named = [path for path in (spec.scorer, spec.group_scorer) if path]
        code = getattr(load_entry_point(named[0]), "__code__", None) if named else None
        where = f" ({code.co_filename}:{code.co_firstlineno})" if code else ""
    else:
        notes = getattr(error, "__notes__", [])  # which objective's function failed
        message = " ".join(": ".join([*notes, type(error).__name__, str(error)])[:500].split()).rstrip(".: ")
        where = place_of(error)
    message = files.printable(message.encode(errors="backslashreplace").decode())
    trace = files.printable("".join(traceback.format_exception(error)).encode(errors="backslashreplace").decode())
    return _Failure(message, where, trace, False)

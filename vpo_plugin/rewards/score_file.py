"""Score a file of responses into a file of reward matrices, over all cores; the work of `vpo score`."""

import json
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpo_plugin.rewards.files import load_spec
from vpo_plugin.rewards.sandbox import SandboxError
from vpo_plugin.rewards.scoring import score_response
from vpo_plugin.rewards.spec import RewardSpec
from vpo_plugin.rewards.task import check_label

CHUNK_LINES, CHUNK_BYTES = 64, 1 << 20
CHUNKS_AHEAD = 4  # for each worker
MAX_CANDIDATES = 10**6


@dataclass(frozen=True)
class Chunk:
    """Consecutive lines of the input, numbered from 1."""

    first: int
    lines: list[bytes]


@dataclass(frozen=True)
class ScoredLine:
    number: int
    output: str
    """One line of JSON."""
    error: str | None


def score_file(
    spec: str,
    source: Path,
    output: Path,
    *,
    workers: int = 1,
    strict: bool = False,
    on_error: Callable[[int, str], None] = lambda number, sentence: None,
    on_progress: Callable[[int], None] = lambda size: None,
) -> tuple[int, int]:
    """Score rows `{"response", "label", "candidates"}` into rows `{"matrix", "parsed", "unique", "scalar"}`.

    Line i of the output belongs to line i of the input; for a row that cannot be scored it is `{"line", "error"}`, and
    `on_error` is told the line's number and what is wrong. The output appears, whole, when all is done; until then an
    earlier one stays.

    Args:
        spec: name or path.
        workers: processes; 1 scores in this one.
        strict: a row that cannot be scored is a ValueError, and there is no output.
        on_progress: is told the number of bytes of each part of the input that is done.

    Returns:
        The numbers of rows and of those that could not be scored.
    """
    unfinished = output.with_name(f".{output.name}.{os.getpid()}.unfinished")
    rows = bad = 0
    try:
        with (
            source.open("rb") as lines,
            unfinished.open("w", encoding="utf-8") as file,
            closing(_score_all(spec, _chunks(lines), workers)) as parts,
        ):
            for chunk, scored in parts:
                for line in scored:
                    if line.error is not None:
                        if strict:
                            raise ValueError(f"Line {line.number} of {source} cannot be scored: {line.error}")
                        on_error(line.number, line.error)
                        bad += 1
                    file.write(line.output + "\n")
                rows += len(scored)
                on_progress(sum(map(len, chunk.lines)))
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(output)
    finally:
        unfinished.unlink(missing_ok=True)
    return rows, bad


def _chunks(lines: Iterable[bytes]) -> Iterator[Chunk]:
    first, held, size = 1, [], 0
    for line in lines:
        held.append(line)
        size += len(line)
        if len(held) == CHUNK_LINES or size >= CHUNK_BYTES:
            yield Chunk(first, held)
            first, held, size = first + len(held), [], 0
    if held:
        yield Chunk(first, held)


def _score_all(spec: str, chunks: Iterator[Chunk], workers: int) -> Generator[tuple[Chunk, list[ScoredLine]]]:
    """Each chunk with its scores, in order; a few chunks are read ahead, whatever the length of the input."""
    if workers == 1:
        loaded = load_spec(spec)
        for chunk in chunks:
            yield chunk, [_score_line(loaded, chunk.first + i, line) for i, line in enumerate(chunk.lines)]
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, (spec,)) as pool:
        waiting: deque[tuple[Chunk, Future[list[ScoredLine]]]] = deque()
        try:
            for chunk in chunks:
                waiting.append((chunk, pool.submit(_score_chunk, chunk)))
                if len(waiting) >= workers * CHUNKS_AHEAD:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "A scoring process ended early, as it does when the machine runs out of memory: use fewer --workers."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


_spec: RewardSpec | None = None


def _start_worker(spec: str) -> None:
    global _spec
    _spec = load_spec(spec)


def _score_chunk(chunk: Chunk) -> list[ScoredLine]:
    assert _spec is not None
    return [_score_line(_spec, chunk.first + i, line) for i, line in enumerate(chunk.lines)]


def _score_line(spec: RewardSpec, number: int, line: bytes) -> ScoredLine:
    try:
        return ScoredLine(number, json.dumps(_score_row(spec, json.loads(line))), None)
    except SandboxError:
        raise
    except Exception as error:  # a scorer may raise anything, and the other rows do not depend on it
        sentence = f"{type(error).__name__}: {error}"[:500].replace("\n", " ")
        sentence = sentence.encode(errors="backslashreplace").decode()
        return ScoredLine(number, json.dumps({"line": number, "error": sentence}), sentence)


def _score_row(spec: RewardSpec, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict) or not isinstance(row.get("response"), str) or "label" not in row:
        raise ValueError("A row is an object with a 'response' text, a 'label' and the number of 'candidates'.")
    candidates = row.get("candidates", spec.candidates)
    if type(candidates) is not int or not 1 <= candidates <= MAX_CANDIDATES:
        raise ValueError(f"'candidates' is a number from 1 to {MAX_CANDIDATES}, not {str(candidates)[:80]}.")
    check_label(spec, row["label"])
    scored = score_response(spec, row["response"], row["label"], candidates)
    matrix = [[round(value, 6) for value in rewards] for rewards in scored.matrix.tolist()]
    return {"matrix": matrix, "parsed": scored.parsed, "unique": scored.unique, "scalar": scored.reward}

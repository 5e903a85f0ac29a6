"""Score a file of responses into a file of reward matrices; the work of `vpo score`."""

import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpo_plugin import files
from vpo_plugin.rewards.data import Unreadable, read_records
from vpo_plugin.rewards.labels import read_label
from vpo_plugin.rewards.response import ScoredResponse
from vpo_plugin.rewards.scoring import Item, ScorerError, Scoring
from vpo_plugin.rewards.spec import RewardSpec
from vpo_plugin.rewards.task import check_label

MAX_CANDIDATES = 10**6
CHARS_AHEAD = 1 << 24  # of responses that are under way


@dataclass
class Counted:
    """What became of the rows of a file."""

    rows: int = 0
    unreadable: int = 0
    """Rows that hold no response that could be scored."""
    failed: int = 0
    """Rows whose scorer failed."""


def score_file(
    scoring: Scoring,
    source: Path,
    output: Path,
    *,
    strict: bool = False,
    on_error: Callable[[ValueError | ScorerError], None] = lambda error: None,
    on_progress: Callable[[int], None] = lambda rows: None,
) -> Counted:
    """Score rows `{"response", "label", "candidates"}` into rows `{"matrix", "parsed", "unique", "scalar"}`.

    The rows are those of any file that `data.read_records` reads; the output has one line of JSON for each, in their
    order. For a row that cannot be scored it is `{"line", "error"}`, and `on_error` gets the error. A response that
    counts as zero because its scorer failed has its `"error"` beside the matrix. The output appears, whole, when all is
    done; until then an earlier one stays.

    Args:
        strict: the first row that cannot be scored is raised, and there is no output.
        on_progress: is told the number of rows that are done.

    Raises:
        ValueError: there is no such file, it holds no rows, or, if strict, a row cannot be scored.
        RuntimeError: nothing can be scored, as without a sandbox.
    """
    counted = Counted()
    with files.replacing(output) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        for number, scored in _scored(scoring, source):
            counted.rows += 1
            if isinstance(scored, ScoredResponse):
                counted.failed += scored.error is not None
                file.write(json.dumps(_row(scored)) + "\n")
            elif strict:
                raise scored
            else:
                counted.failed += isinstance(scored, ScorerError)
                counted.unreadable += isinstance(scored, ValueError)
                on_error(scored)
                file.write(json.dumps({"line": number, "error": str(scored)}) + "\n")
            on_progress(counted.rows)
    return counted


def _row(scored: ScoredResponse) -> dict[str, Any]:
    matrix = [[round(value, 6) for value in rewards] for rewards in scored.matrix.tolist()]
    row = {"matrix": matrix, "parsed": scored.parsed, "unique": scored.unique, "scalar": scored.reward}
    return row if scored.error is None else {**row, "error": scored.error}


def _scored(scoring: Scoring, source: Path) -> Iterator[tuple[int, ScoredResponse | ValueError | ScorerError]]:
    """Each row's number and outcome, in order; some rows are read ahead."""
    under_way: deque[tuple[int, int, Future[ScoredResponse] | ValueError]] = deque()
    chars = 0

    def outcome() -> tuple[int, ScoredResponse | ValueError | ScorerError]:
        nonlocal chars
        number, length, scored = under_way.popleft()
        chars -= length
        if isinstance(scored, ValueError):
            return number, scored
        try:
            return number, scored.result()
        except ScorerError as error:
            return number, error

    for number, where, row in read_records(source):
        try:
            if isinstance(row, Unreadable):
                raise row
            item = _item(scoring.spec, row, where)
            under_way.append((number, len(item.response), scoring.submit(item)))
            chars += len(item.response)
        except ValueError as error:
            under_way.append((number, 0, ValueError(f"{where} cannot be scored: {error}")))
        while chars > CHARS_AHEAD or len(under_way) > scoring.ahead:
            yield outcome()
    while under_way:
        yield outcome()


def _item(spec: RewardSpec, row: Any, where: str) -> Item:
    label_there = isinstance(row, dict) and (spec.label == "none" or "label" in row)
    if not label_there or not isinstance(row.get("response"), str):
        raise ValueError("A row is an object with a 'response' text, a 'label' and the number of 'candidates'.")
    candidates = row.get("candidates", spec.candidates)
    if type(candidates) is not int or not 1 <= candidates <= MAX_CANDIDATES:
        raise ValueError(f"'candidates' is a number from 1 to {MAX_CANDIDATES}, not {ascii(candidates)[:80]}.")
    label = read_label(spec, row.get("label"))
    check_label(spec, label)
    return Item(row["response"], label, candidates, where)

"""Score a file of responses into a file of reward matrices; the work of `vpo score`."""

import json
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import groupby, repeat
from pathlib import Path
from typing import Any

from vpo_plugin import files
from vpo_plugin.rewards.data import Unreadable, read_records
from vpo_plugin.rewards.labels import read_label
from vpo_plugin.rewards.prompts import check_prompt, pack_prompt
from vpo_plugin.rewards.response import ScoredResponse
from vpo_plugin.rewards.scoring import Item, ScorerError, Scoring
from vpo_plugin.rewards.spec import RewardSpec
from vpo_plugin.rewards.task import check_label

MAX_CANDIDATES = 10**6
CHARS_AHEAD = 1 << 24  # of responses that are under way


@dataclass
class Counted:
    """Counts of the rows of a file, by outcome."""

    rows: int = 0
    unreadable: int = 0
    """Rows without a response that could be scored."""
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

    The rows come from any file that `data.read_records` reads. The output has one line of JSON per row, in the same
    order. A row that cannot be scored becomes `{"line", "error"}`, and `on_error` gets the error. A response that
    counts as zero because its scorer failed has its `"error"` beside the matrix. The output replaces an earlier one
    only when everything is done.

    Args:
        strict: raise the error of the first row that cannot be scored, and write no output.
        on_progress: gets the number of finished rows.

    Raises:
        ValueError: the file does not exist or has no rows, or, if strict, a row cannot be scored.
        RuntimeError: nothing can be scored, for example without a sandbox.
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
    if scoring.spec.group_scorer:
        yield from _scored_groups(scoring, source)
        return
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
        item = _item(scoring.spec, row, where)
        if isinstance(item, ValueError):
            under_way.append((number, 0, item))
        else:
            under_way.append((number, len(item.response), scoring.submit(item)))
            chars += len(item.response)
        while chars > CHARS_AHEAD or len(under_way) > scoring.ahead:
            yield outcome()
    while under_way:
        yield outcome()


def _scored_groups(scoring: Scoring, source: Path) -> Iterator[tuple[int, ScoredResponse | ValueError | ScorerError]]:
    """The same for a scorer that compares rollouts: consecutive rows of one `group` are scored together."""
    rows = ((number, _item(scoring.spec, row, where)) for number, where, row in read_records(source))
    for _, found in groupby(rows, key=lambda row: row[1].group if isinstance(row[1], Item) else row[0]):
        group = _alike(list(found))
        items = [item for _, item in group if isinstance(item, Item)]
        try:
            scored: Iterator[ScoredResponse | ScorerError] = iter(scoring.submit_group(items).result() if items else [])
        except ScorerError as error:
            scored = repeat(error)
        yield from ((number, next(scored) if isinstance(item, Item) else item) for number, item in group)


def _alike(group: list[tuple[int, Item | ValueError]]) -> list[tuple[int, Item | ValueError]]:
    """A group's rows, or why they cannot be scored together."""
    items = [item for _, item in group if isinstance(item, Item)]
    for key in ("label", "candidates"):
        if any(getattr(item, key) != getattr(items[0], key) for item in items):
            said = f"cannot be scored: the rows of its group {items[0].group!r} differ in {key!r}."
            return [(n, ValueError(f"{one.where} {said}") if isinstance(one, Item) else one) for n, one in group]
    return group


def _item(spec: RewardSpec, row: Any, where: str) -> Item | ValueError:
    """The item to score for a row, or why the row cannot be scored."""
    try:
        if isinstance(row, Unreadable):
            raise row
        return _read_item(spec, row, where)
    except ValueError as error:
        return ValueError(f"{where} cannot be scored: {error}")


def _read_item(spec: RewardSpec, row: Any, where: str) -> Item:
    label_there = isinstance(row, dict) and (spec.label == "none" or "label" in row)
    if not label_there or not isinstance(row.get("response"), str):
        raise ValueError("A row is an object with a 'response' text, a 'label' and the number of 'candidates'.")
    candidates = row.get("candidates", spec.candidates)
    if type(candidates) is not int or not 1 <= candidates <= MAX_CANDIDATES:
        raise ValueError(f"'candidates' is a number from 1 to {MAX_CANDIDATES}, not {ascii(candidates)[:80]}.")
    for key, needs in (("prompt", spec.functions), ("group", spec.group_scorer)):
        if needs and row.get(key) is None:
            raise ValueError(f"A row has no {key!r}, which the spec '{spec.name}' needs to score it.")
    label = read_label(spec, row.get("label"))
    check_label(spec, label)
    prompt = None
    if spec.functions:
        check_prompt(row["prompt"])
        prompt = pack_prompt(row["prompt"])
    return Item(row["response"], label, candidates, where, prompt, row.get("group"))

"""Check a spec on its own data before anything is spent on it, and measure what it costs.

The check scores through the same service as training.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from vpo_plugin.rewards.data import EvaluationOnly
from vpo_plugin.rewards.fit import room
from vpo_plugin.rewards.formats import parse, write_response
from vpo_plugin.rewards.prompts import ask, pack_prompt
from vpo_plugin.rewards.response import ScoredResponse
from vpo_plugin.rewards.scoring import Item, Scoring
from vpo_plugin.rewards.spec import RewardSpec
from vpo_plugin.rewards.task import check_label, draw, known_answers, read_rows, trial_rows

ROWS = 16  # of each split
SEED = 0
MEASURED_SECONDS = 0.5
CHARS_PER_TOKEN = 3  # a careful estimate where no tokenizer is named


def check_spec(spec: RewardSpec, scoring: Scoring | None = None) -> list[str]:
    """Load rows of both splits and check that prompts, labels, format and known answers fit the scorer.

    For every row it scores the known answers, a response of dummy candidates and an empty response. A spec that is for
    evaluation only is checked on its held-out rows.

    Args:
        scoring: the service of this spec; default: a new one, in which a failing scorer is an error.

    Returns:
        One sentence per finding, including what was not checked.

    Raises:
        ValueError: the first problem.
        RuntimeError: the scorer failed, or cannot be started.
    """
    if scoring is None:
        with Scoring(spec) as own:
            return check_spec(spec, own)
    found, unproven = [], []
    for split in ("train", "test"):
        try:
            rows = _rows(spec, split)
        except EvaluationOnly as error:
            found.append(str(error))
            continue
        items: list[Item] = []
        checks: list[Callable[[ScoredResponse], str | None]] = []
        for i, row in enumerate(rows):
            for item, check in _check_row(spec, row, f"row {i} of the split '{split}'"):
                items.append(item)
                checks.append(check)
        proven = {check(scored) for scored, check in zip(scoring.score(items), checks, strict=True)} - {None}
        found.append(
            f"{len(rows)} rows of the split '{split}' have a prompt and a label that the scorer reads: it scored a "
            "dummy response and an empty one to each."
        )
        if proven:
            found.append(f"{len(proven)} known answers of the split '{split}' score what they should.")
        else:
            unproven.append(f"'{split}'")
    found.append(f"Responses of 1 and of {spec.candidates} candidates are parsed as the prompts ask for them.")
    shape = " ".join(write_response(spec, [f"candidate {s}" for s in (1, 2)][: spec.candidates]).split())
    found.append(f"What a response must contain to be scored: {shape}{' …' if spec.candidates > 2 else ''}")
    if unproven:
        reason = (
            "no known answer was scored" if spec.answers or spec.front else "the task has neither `answers` nor `front`"
        )
        found.append(
            f"NOT CHECKED: whether a right candidate gets its reward in the split {' or '.join(unproven)}, because "
            f"{reason}."
        )
    return found


def measure_spec(spec: RewardSpec, scoring: Scoring, tokens: Callable[[str], int] | None = None) -> list[str]:
    """The time of scoring and the length of responses, measured on the known answers of the rows to train on.

    `tokens` counts the tokens of a text. Raises ValueError if the longest response of known answers exceeds
    `limits.response_chars`, or needs more tokens (if they are counted) than the spec allows.
    """
    known = [(row, [answer for answer, _ in known_answers(spec, row["label"])]) for row in trial_rows(spec, ROWS)]
    known = [(row, answers) for row, answers in known if answers]
    ranges = {(column.low, column.high) for column in spec.columns(len(spec.objective_keys))}
    found = []
    if len({high - low for low, high in ranges}) > 1:
        found.append("The objectives have ranges of different width: the widest count most in the set reward.")
    if not known:
        return [*found, "No answers are known (`answers`, `front`): speed and length of responses are not measured."]
    m = spec.candidates
    seconds = _seconds(scoring, known)
    found.append(f"Scoring a response of {m} known answers takes {seconds * 1000:.3g} ms.")

    longest = max((answer for _, answers in known for answer in answers), key=len)
    response = write_response(spec, [longest] * m)
    allowed = room(spec, m)
    if len(response) > spec.limits.response_chars:
        raise ValueError(
            f"A response of {m} candidates as long as the longest known answer has {len(response)} characters, and "
            f"limits.response_chars reads {spec.limits.response_chars} of them."
        )
    if tokens is None:
        estimate = len(response) // CHARS_PER_TOKEN + 1
        fits = "within" if estimate <= allowed else "MORE THAN"
        found.append(
            f"A response of {m} candidates as long as the longest known answer has {len(response)} characters, "
            f"by a careful estimate {estimate} tokens, {fits} the {allowed} of limits.tokens_per_candidate; "
            "--tokenizer counts them."
        )
    elif (needed := tokens(response)) > allowed:
        raise ValueError(
            f"A response of {m} candidates as long as the longest known answer has {needed} tokens; "
            f"limits.tokens_per_candidate allows {spec.limits.tokens_per_candidate} each, {allowed} in all."
        )
    else:
        found.append(f"The longest response of {m} known answers has {needed} of the {allowed} tokens allowed.")
    return found


def _seconds(scoring: Scoring, known: Sequence[tuple[dict[str, Any], Sequence[str]]]) -> float:
    """Seconds per response, with the service at full load."""
    m = scoring.spec.candidates
    responses = [(write_response(scoring.spec, ([*answers] * m)[:m]), row) for row, answers in known]
    items = [
        Item(response, row["label"], m, "A response of known answers", pack_prompt(row["prompt"]))
        for response, row in responses
    ]
    list(scoring.score(items))  # the processes have started
    started, scored = time.perf_counter(), 0
    while not scored or time.perf_counter() - started < MEASURED_SECONDS:
        scored += len(list(scoring.score(items)))
    return (time.perf_counter() - started) / scored


def _rows(spec: RewardSpec, split: str) -> list[dict[str, Any]]:
    rows = list(read_rows(spec, split, ROWS, SEED))
    if not rows:
        raise ValueError(f"The dataset of the spec '{spec.name}' has no rows in the split '{split}'.")
    return rows


def _check_row(
    spec: RewardSpec, row: dict[str, Any], where: str
) -> Iterator[tuple[Item, Callable[[ScoredResponse], str | None]]]:
    """Check one row; what is to be scored for it, each with a check of its score, which names a known answer."""
    label = row["label"]
    try:
        check_label(spec, label)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The label of {where} cannot be used: {error}") from error
    answers = known_answers(spec, label)
    for m in {1, spec.candidates}:
        try:
            ask(spec, row["prompt"], m)
        except ValueError as error:
            raise ValueError(f"The prompt of {where} cannot be used: {error}") from error
        dummies = [f"candidate {slot}" for slot in range(1, m + 1)]
        if parse(spec, write_response(spec, dummies), m) != dummies:
            raise ValueError(f"A response of {m} candidates in the format of the spec is not parsed back.")
        prompt, group = pack_prompt(row["prompt"]), f"{m} {where}"
        dummy = Item(write_response(spec, dummies), label, m, f"A dummy response to {where}", prompt, group)
        yield dummy, lambda scored: None
        yield Item("", label, m, f"An empty response to {where}", prompt, group), lambda scored: None
        for candidate, rewards in answers:
            response = write_response(spec, [candidate], m)
            item = Item(response, label, m, f"The known answer {candidate[:80]!r} of {where}", prompt, group)
            yield item, _must_score(candidate, rewards, where)
    draw(spec, label, [candidate for candidate, _ in answers])


def _must_score(candidate: str, rewards: Sequence[float], where: str) -> Callable[[ScoredResponse], str | None]:
    def check(scored: ScoredResponse) -> str | None:
        if scored.error is not None:
            return None
        if scored.candidates[0] != candidate.strip():
            raise ValueError(f"The known answer {candidate[:80]!r} of {where} is not parsed back from a response.")
        if scored.matrix[0].shape != np.shape(rewards) or not np.allclose(scored.matrix[0], rewards, atol=1e-6):
            raise ValueError(
                f"The known answer {candidate[:80]!r} of {where} should score {list(rewards)}, "
                f"the scorer gives {scored.matrix[0].tolist()}."
            )
        return f"{where}: {candidate}"

    return check

"""Check a spec on its own data before anything is spent on it, and measure what it will cost."""

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from vpo_plugin.rewards.formats import parse, render_prompt, write_response
from vpo_plugin.rewards.scoring import score_response
from vpo_plugin.rewards.spec import RewardSpec
from vpo_plugin.rewards.task import check_label, draw, known_answers, read_rows

ROWS = 16  # of each split
SEED = 0
CHARS_PER_TOKEN = 3  # a careful estimate where no tokenizer is named


def check_spec(spec: RewardSpec) -> list[str]:
    """Load rows of both splits and prove on them that prompts, labels, format and known answers fit the scorer.

    Returns what was found, one sentence each. Raises ValueError at the first thing that is wrong.
    """
    found = []
    for split in ("train", "test"):
        rows = _rows(spec, split)
        answers = sum(_check_row(spec, row, f"row {i} of the split '{split}'") for i, row in enumerate(rows))
        found.append(f"{len(rows)} rows of the split '{split}' have a prompt and a label that the scorer reads.")
        if spec.answers or spec.front:
            found.append(f"{answers} known answers of the split '{split}' score what they should.")
    found.append(f"Responses of 1 and of {spec.candidates} candidates are parsed as the prompts ask for them.")
    return found


def measure_spec(spec: RewardSpec, tokens: Callable[[str], int] | None = None) -> list[str]:
    """What scoring takes and how long responses get, measured on the known answers of the split 'train'.

    `tokens` counts the tokens of a text. Raises ValueError if the longest response that the known answers make
    would not be read whole, or needs more tokens (when they are counted) than the spec allows.
    """
    known = [(row["label"], [a for a, _ in known_answers(spec, row["label"])]) for row in _rows(spec, "train")]
    known = [(label, answers) for label, answers in known if answers]
    ranges = {(column.low, column.high) for column in spec.columns(len(spec.objective_keys))}
    found = []
    if len({high - low for low, high in ranges}) > 1:
        found.append("The objectives have ranges of different width: the widest count most in the set reward.")
    if not known:
        return [*found, "No answers are known (`answers`, `front`): speed and length of responses are not measured."]
    m = spec.candidates
    started, scored = time.perf_counter(), 0
    while scored < len(known) or time.perf_counter() - started < 0.5:
        label, answers = known[scored % len(known)]
        score_response(spec, write_response(spec, (answers * m)[:m]), label, m)
        scored += 1
    seconds = (time.perf_counter() - started) / scored
    found.append(f"Scoring a response of {m} known answers takes {seconds * 1000:.2g} ms.")
    if seconds > spec.limits.seconds:
        raise ValueError(f"Scoring a response takes {seconds:.1f} s, limits.seconds is {spec.limits.seconds:g}.")

    longest = max((answer for _, answers in known for answer in answers), key=len)
    response = write_response(spec, [longest] * m)
    allowed = m * spec.limits.tokens_per_candidate
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


def _rows(spec: RewardSpec, split: str) -> list[dict[str, Any]]:
    rows = list(read_rows(spec, split, ROWS, SEED))
    if not rows:
        raise ValueError(f"The dataset of the spec '{spec.name}' has no rows in the split '{split}'.")
    return rows


def _check_row(spec: RewardSpec, row: dict[str, Any], where: str) -> int:
    """Check one row; returns how many known answers it has."""
    if not isinstance(row["prompt"], str):
        raise ValueError(f"The prompt of {where} is not a text but {str(row['prompt'])[:80]!r}.")
    try:
        label = json.loads(json.dumps(row["label"]))
        check_label(spec, label)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The label of {where} cannot be used: {error}") from error
    answers = known_answers(spec, label)
    for candidates in {1, spec.candidates}:
        try:
            render_prompt(spec, row["prompt"], candidates)
        except ValueError as error:
            raise ValueError(f"The prompt of {where} cannot be used: {error}") from error
        _check_format(spec, candidates)
        for candidate, rewards in answers:
            scored = score_response(spec, write_response(spec, [candidate], candidates), label, candidates)
            if scored.candidates[0] != candidate.strip():
                raise ValueError(f"The known answer {candidate[:80]!r} of {where} is not parsed back from a response.")
            if scored.matrix[0].shape != np.shape(rewards) or not np.allclose(scored.matrix[0], rewards, atol=1e-6):
                raise ValueError(
                    f"The known answer {candidate[:80]!r} of {where} should score {list(rewards)}, "
                    f"the scorer gives {scored.matrix[0].tolist()}."
                )
    draw(spec, label, [candidate for candidate, _ in answers])
    return len(answers)


def _check_format(spec: RewardSpec, candidates: int) -> None:
    texts = [f"candidate {slot}" for slot in range(1, candidates + 1)]
    if parse(spec, write_response(spec, texts), candidates) != texts:
        raise ValueError(f"A response of {candidates} candidates in the format of the spec is not parsed back.")

"""ToolRL (arXiv 2504.13958): the next turn of a dialogue with tools: thoughts, then tool calls, a response, or both.

A candidate holds `<think>…</think>`, then `<tool_call>` with one JSON object a line and/or `<response>…</response>`,
as the data's own instructions ask for. The rewards are those of arXiv 2605.22817.
"""

import json
import re
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

from vpo_plugin.rewards.candidates import text_between
from vpo_plugin.rewards.data import read_dataset, shuffled
from vpo_plugin.rewards.text import multiset_f1, normalize, word_f1

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?", re.ASCII | re.IGNORECASE)


def rows(split: str, num_rows: int, seed: int, *, source: str) -> Iterator[dict]:
    """At most `num_rows` turns of rlla_4k's parquet as `{"prompt", "label"}`; system and user text make one prompt."""
    for row in shuffled(read_dataset(source, split), num_rows, seed):
        yield {
            "prompt": "\n\n".join(message["content"] for message in row["prompt"]),
            "label": {"gold": row["reward_model"]["ground_truth"]},
        }


@dataclass(frozen=True)
class Call:
    name: str
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Turn:
    """What a candidate says. `calls` is what can be read of its tool calls."""

    think: str | None
    response: str | None
    calls: list[Call]
    whole: bool
    """All that stands in the tool call block was read, and there is a call if there is a block."""


def read(candidate: str) -> Turn:
    """Takes any text."""
    block = text_between(candidate, "tool_call")
    calls, whole = _calls(block) if block is not None else ([], True)
    return Turn(text_between(candidate, "think"), text_between(candidate, "response"), calls, whole)


def _calls(block: str) -> tuple[list[Call], bool]:
    """The calls of a block, JSON objects one after another or in a list, up to the first thing that is none."""
    decoder = json.JSONDecoder()
    calls: list[Call] = []
    position = 0
    try:
        while position < len(block):
            value, position = decoder.raw_decode(block, position)
            for call in value if isinstance(value, list) else [value]:
                name, parameters = call["name"], call.get("parameters", {})
                if not isinstance(name, str) or not isinstance(parameters, dict):
                    return calls, False
                calls.append(Call(name.strip(), parameters))
            position = re.compile(r"[\s,]*").match(block, position).end()  # type: ignore[union-attr]
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return calls, False
    return calls, bool(calls)


def label_check(label: object) -> None:
    """Raises ValueError if a label is not `{"gold": text}` of a turn that scores 1 everywhere."""
    gold = label.get("gold") if isinstance(label, dict) else None
    if not isinstance(gold, str):
        raise ValueError(f"A ToolRL label's 'gold' is the text of the right turn, not {str(gold)[:80]!r}.")
    if score(gold, {"gold": gold}) != [1.0] * 4:
        raise ValueError(f"A ToolRL label's 'gold' is not in the format that is asked for: {gold[:80]!r}.")


def score(candidate: str, label: dict) -> list[float]:
    """format, tool_name, arg_key, arg_value (scorer entry point)."""
    turn, gold = read(candidate), read(label["gold"])
    if turn.think is None and turn.response is None and not turn.calls:
        return [0.0] * 4  # nothing to read: not calling a tool is right only for a turn that does something else
    calls_fit = turn.whole and bool(turn.calls) == bool(gold.calls)
    well_formed = turn.think is not None and calls_fit and bool(turn.calls or turn.response)
    names = multiset_f1((call.name for call in turn.calls), (call.name for call in gold.calls))
    pairs = align(turn.calls, gold.calls)
    calls = max(len(turn.calls), len(gold.calls))
    if not calls:
        return [float(well_formed), 1.0, 1.0, 1.0]
    keys = sum(multiset_f1(called.parameters, right.parameters) for called, right in pairs) / calls
    values = sum(_values(called.parameters, right.parameters) for called, right in pairs) / calls
    return [float(well_formed), names, keys, values]


def align(called: list[Call], gold: list[Call]) -> list[tuple[Call, Call]]:
    """Pairs of a call and a gold call, greedily: first those of one name, then of any; each with the call left that
    shares most keys with it, then most values."""
    calls_left, gold_left, pairs = list(called), list(gold), []
    for same_name in (True, False):
        for right in list(gold_left):
            fitting = [i for i, call in enumerate(calls_left) if call.name == right.name or not same_name]
            if fitting:
                best = max(fitting, key=lambda i: _overlap(calls_left[i].parameters, right.parameters))
                pairs.append((calls_left.pop(best), right))
                gold_left.remove(right)
    return pairs


def _overlap(called: dict[str, Any], gold: dict[str, Any]) -> tuple[int, float]:
    return len(called.keys() & gold.keys()), _values(called, gold)


def _values(called: dict[str, Any], gold: dict[str, Any]) -> float:
    """Mean match over the gold keys; without any, all is right."""
    matches = [value_match(called[key], value) if key in called else 0.0 for key, value in gold.items()]
    return sum(matches) / len(matches) if matches else 1.0


def value_match(value: object, gold: object) -> float:
    """Numbers and booleans, also written as text, match or do not; lists and objects by F1 of what they hold; the rest
    by F1 of the words."""
    if (exact := _exact(gold)) is not None:
        return float(_exact(value) == exact)
    if isinstance(gold, list | dict) or isinstance(value, list | dict):
        return multiset_f1(_leaves(value), _leaves(gold))
    if value is None or gold is None:
        return float(value is gold)
    return word_f1(str(value), str(gold))


def _exact(value: object) -> tuple[str, str | float] | None:
    """What makes a number or a boolean equal to another; None if the value is neither."""
    text = str(value).strip().lower() if isinstance(value, str | float | bool) else None
    if isinstance(value, int) and not isinstance(value, bool):
        text = str(value) if abs(value) < 10**300 else hex(value)
    if text in ("true", "false"):
        return "boolean", text
    if text is not None and len(text) < 400 and NUMBER.fullmatch(text):
        return "number", float(text)
    return None


def _leaves(value: object) -> list[Hashable]:
    """The path and the value of all that a JSON value holds, at any depth; places in lists do not count."""
    found: list[Hashable] = []
    todo: list[tuple[str, object]] = [("", value)]
    while todo:
        path, value = todo.pop()
        if isinstance(value, dict):
            todo += [(f"{path}/{key}", item) for key, item in value.items()]
        elif isinstance(value, list):
            todo += [(path, item) for item in value]
        else:
            exact = _exact(value)
            found.append((path, exact if exact is not None else normalize(str(value))))
    return found


def canonical(candidate: str, label: dict) -> Hashable:
    """The same calls and the same response, whatever was thought, are the same candidate."""
    turn = read(candidate)
    calls = [(call.name, tuple(sorted(map(repr, _leaves(call.parameters))))) for call in turn.calls]
    return tuple(sorted(calls)), normalize(turn.response or ""), turn.think is None, turn.whole


def answers(label: dict) -> list[tuple[str, list[float]]]:
    """The gold turn scores 1 everywhere."""
    return [(label["gold"], [1.0] * 4)]

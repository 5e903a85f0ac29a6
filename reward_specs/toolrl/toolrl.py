"""ToolRL (arXiv 2504.13958): the next turn of a dialogue with tools: thoughts, then tool calls, a response, or both.

A candidate holds `<think>…</think>`, then `<tool_call>` with one JSON object per line and/or `<response>…</response>`,
as the data's own instructions require. The rewards are those of arXiv 2605.22817.
"""

import functools
import json
import math
import re
from collections import Counter
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

from vpo_plugin.rewards.data import read_dataset, shuffled
from vpo_plugin.rewards.text import multiset_f1, normalize, word_f1

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?", re.ASCII | re.IGNORECASE)
_TAG = re.compile(r"<(/?)(think|tool_call|response)>", re.ASCII | re.IGNORECASE)
_BETWEEN = re.compile(r"[\s,]*")
_DECODER = json.JSONDecoder()


def rows(split: str, num_rows: int, seed: int, *, source: str) -> Iterator[dict]:
    """At most `num_rows` turns of rlla_4k as `{"prompt", "label"}`; system and user text form one prompt."""
    for row in shuffled(read_dataset(source, split), num_rows, seed):
        yield {
            "prompt": "\n\n".join(message["content"] for message in row["prompt"]),
            "label": {"gold": row["reward_model"]["ground_truth"]},
        }


class Call(NamedTuple):
    name: str
    parameters: dict[str, Any]


class Turn(NamedTuple):
    """The parts of a candidate. `calls` holds its readable tool calls."""

    think: str | None
    response: str | None
    calls: list[Call]
    whole: bool
    """Whether all text in tool call blocks was readable, with a call in each block."""


@functools.lru_cache(maxsize=64)  # canonical and score read the same texts, and all candidates share a gold turn
def read(candidate: str) -> Turn:
    """Read a turn from any text. Text before the end of the last thoughts is a draft and does not count."""
    tags = [(mark[2].lower(), mark[1], *mark.span()) for mark in _TAG.finditer(candidate)]
    closing: dict[str, tuple[int, int]] = {}
    closings = []  # for each tag, the place of the next closing tag of its name
    for name, closes, *place in reversed(tags):
        closings.append(closing.get(name))
        if closes:
            closing[name] = (place[0], place[1])
    think, response, calls, whole, at = None, None, list[Call](), True, 0
    for (name, closes, begin, begun), end in zip(tags, reversed(closings), strict=True):
        if begin < at:
            continue
        if name == "think":
            if end and not closes:
                think, at = candidate[begun : end[0]].strip(), end[1]
            elif not closes:
                break
            response, calls, whole = None, [], True
        elif end and not closes and name == "tool_call":
            found, at = _calls(candidate, begun)
            closed = _TAG.match(candidate, at)
            fits = bool(found) and closed is not None and closed[0].lower() == "</tool_call>"
            at = at if fits else max(at, end[1])
            calls, whole = calls + found, whole and fits
        elif end and not closes:
            response, at = candidate[begun : end[0]].strip(), end[1]
    return Turn(think, response, calls, whole)


def _calls(text: str, at: int) -> tuple[list[Call], int]:
    """The calls from here on, as JSON objects one after another or in lists, and the place after them."""
    calls: list[Call] = []
    at = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]
    while text[at : at + 1] in ("{", "["):
        try:
            value, end = _DECODER.raw_decode(text, at)
            for call in value if isinstance(value, list) else [value]:
                name, parameters = call["name"], call.get("parameters", call.get("arguments", {}))  # Qwen's: arguments
                if not isinstance(name, str) or not isinstance(parameters, dict):
                    return calls, at
                calls.append(Call(name.strip(), parameters))
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            break
        at = _BETWEEN.match(text, end).end()  # type: ignore[union-attr]
    return calls, at


def label_check(label: object) -> None:
    """Raises ValueError if a label is not `{"gold": text}` of a turn that scores 1 everywhere."""
    gold = label.get("gold") if isinstance(label, dict) else None
    if not isinstance(gold, str):
        raise ValueError(f"A ToolRL label's 'gold' is the text of the right turn, not {str(gold)[:80]!r}.")
    if score(gold, {"gold": gold}) != [1.0] * 4:
        raise ValueError(f"A ToolRL label's 'gold' is not in the required format: {gold[:80]!r}.")


def score(candidate: str, label: dict) -> list[float]:
    """format, tool_name, arg_key, arg_value (scorer entry point)."""
    turn, gold = read(candidate), read(label["gold"])
    if turn.think is None and turn.response is None and not turn.calls:
        return [0.0] * 4  # nothing readable: without a call, a turn must do something else
    calls_fit = turn.whole and bool(turn.calls) == bool(gold.calls)
    well_formed = turn.think is not None and calls_fit and bool(turn.calls or turn.response)
    names = multiset_f1([call.name for call in turn.calls], [call.name for call in gold.calls])
    pairs = align(turn.calls, gold.calls)
    calls = max(len(turn.calls), len(gold.calls))
    if not calls:
        return [float(well_formed), 1.0, 1.0, 1.0]
    keys = sum(multiset_f1(called.parameters, right.parameters) for called, right in pairs) / calls
    values = sum(_values(called.parameters, right.parameters) for called, right in pairs) / calls
    return [float(well_formed), names, keys, values]


def align(called: list[Call], gold: list[Call]) -> list[tuple[Call, Call]]:
    """Pair calls with gold calls greedily: first by equal names, then with any name. A gold call gets the remaining
    call that shares most keys with it, then most values."""
    calls_left, gold_left, pairs = list(called), list(gold), []
    for same_name in (True, False):
        for right in list(gold_left):
            fitting = [i for i, call in enumerate(calls_left) if call.name == right.name or not same_name]
            if fitting:
                best = fitting[0]
                if len(fitting) > 1:
                    best = max(fitting, key=lambda i: _overlap(calls_left[i].parameters, right.parameters))
                pairs.append((calls_left.pop(best), right))
                gold_left.remove(right)
    return pairs


def _overlap(called: dict[str, Any], gold: dict[str, Any]) -> tuple[int, float]:
    return len(called.keys() & gold.keys()), _values(called, gold)


def _values(called: dict[str, Any], gold: dict[str, Any]) -> float:
    """Mean match over the gold keys; 1 if there are none."""
    matches = [value_match(called[key], value) if key in called else 0.0 for key, value in gold.items()]
    return sum(matches) / len(matches) if matches else 1.0


def value_match(value: object, gold: object) -> float:
    """Match of two values, 0 to 1: exact for numbers and booleans, F1 of leaves for lists and objects, else word F1."""
    if isinstance(gold, list | dict) or isinstance(value, list | dict):
        return multiset_f1(_leaves(value), _leaves(gold))
    if (exact := _exact(gold)) is not None:
        return float(_exact(value) == exact)
    if value is None or gold is None:
        return float(value is gold)
    return word_f1(str(value), str(gold))


def _exact(value: object) -> str | bool | None:
    """A comparison key of a number or boolean; None if the value is neither.

    Numbers equal each other by value, and equal their text; texts are compared as text: "00100" is not 100, and "1.10"
    is not 1.1.
    """
    if isinstance(value, str):
        text = value.strip()
        if len(text) in (4, 5) and (word := text.lower()) in ("true", "false"):
            return word == "true"
        return text if _NUMBER.fullmatch(text) else None
    if isinstance(value, float):
        return str(int(value)) if math.isfinite(value) and value == int(value) else str(value)
    return value if isinstance(value, bool) else str(value) if isinstance(value, int) else None


def _leaves(value: object) -> list[Hashable]:
    """Paths and values of a JSON value's leaves at any depth; positions in lists do not count."""
    found: list[Hashable] = []
    todo: list[tuple[tuple[str, ...], object]] = [((), value)]
    while todo:
        path, value = todo.pop()
        if value and isinstance(value, dict):
            todo += [((*path, key), item) for key, item in value.items()]
        elif value and isinstance(value, list):
            todo += [(path, item) for item in value]
        elif value is None or isinstance(value, dict | list):
            found.append((path, "as it is", repr(value)))
        else:
            exact = _exact(value)
            found.append((path, "text", normalize(str(value))) if exact is None else (path, "exact", exact))
    return found


def canonical(candidate: str, label: dict) -> Hashable:
    """Candidates with the same calls and response are duplicates, whatever their thoughts."""
    turn = read(candidate)
    calls = _bag([(call.name, _bag(_leaves(call.parameters))) for call in turn.calls])
    return calls, normalize(turn.response or ""), turn.think is None, turn.whole


def _bag(items: list[Hashable]) -> Hashable:
    different = frozenset(items)
    return different if len(different) == len(items) else frozenset(Counter(items).items())


def answers(label: dict) -> list[tuple[str, list[float]]]:
    """The gold turn scores 1 everywhere."""
    return [(label["gold"], [1.0] * 4)]

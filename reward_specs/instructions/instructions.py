"""Verifiable instructions, each an objective: those of IFEval (arXiv 2311.07911) and IFBench (arXiv 2507.02833).

A label is `{"benchmark": "ifeval" | "ifbench", "instructions": [{"id": str, "arguments": {…}}, …]}`. The checkers are
the official ones in the package `if-verifiable`, in their strict form: 1 for an instruction that the candidate follows,
else 0.
"""

import csv
import functools
import json
import re
from typing import Any

from reward_specs.instructions.checkers import LEFT_OUT, REGISTRIES, make, registry
from reward_specs.instructions.prompts import write_gold

MAX_INSTRUCTIONS = 8
LISTS = ("keywords", "forbidden_words")
NUMBERS = re.compile(r"num_\w+|(let_)?frequency|nth_paragraph|(min|max)_words|percentage|n_start|n_end|small_n|N")


def label_check(label: object) -> None:
    """Raises ValueError, in one sentence, if a label is not as above."""
    if not isinstance(label, dict) or label.get("benchmark") not in list(REGISTRIES):
        raise ValueError(f"A label names its 'benchmark', ifeval or ifbench; this one is {str(label)[:80]!r}.")
    instructions = label.get("instructions")
    if not isinstance(instructions, list) or not 1 <= len(instructions) <= MAX_INSTRUCTIONS:
        raise ValueError(f"A label lists 1 to {MAX_INSTRUCTIONS} 'instructions', not {str(instructions)[:80]!r}.")
    for one in instructions:
        given = one if isinstance(one, dict) else {}
        if not isinstance(given.get("id"), str) or not isinstance(given.get("arguments"), dict):
            raise ValueError(f"An instruction has a text 'id' and a mapping 'arguments', not {str(one)[:80]!r}.")
        _check_instruction(label["benchmark"], one["id"], one["arguments"])


def _check_instruction(benchmark: str, name: str, arguments: dict[str, Any]) -> None:
    if name in LEFT_OUT:
        raise ValueError(f"The instruction {name} needs {LEFT_OUT[name]} of NLTK, which no package contains.")
    if name not in registry(benchmark):
        raise ValueError(f"{benchmark} has no instruction {name!r}.")
    keys = registry(benchmark)[name](name).get_instruction_args_keys()
    if sorted(arguments) != sorted(keys):
        raise ValueError(f"The instruction {name} has the arguments {sorted(keys)}; this one has {sorted(arguments)}.")
    for key, value in arguments.items():
        if not _fits(key, value):
            kind = "texts, in a list" if key in LISTS else "a whole number" if NUMBERS.fullmatch(key) else "a text"
            raise ValueError(f"The argument {key!r} of the instruction {name} is {value!r}: it must be {kind}.")
    try:
        checker, drawn = make(benchmark, name, arguments)
        _follows(checker, "A text.")
    except (AttributeError, KeyError, TypeError, ValueError, re.error) as error:
        raise ValueError(f"The instruction {name} cannot be made with {arguments!r}: {error}.") from error
    if drawn:
        raise ValueError(f"The instruction {name} cannot be made with {arguments!r}: it would draw others at random.")


def _fits(key: str, value: object) -> bool:
    """Whether an argument has the type that its name asks for."""
    if key in LISTS:
        return isinstance(value, list) and bool(value) and all(isinstance(text, str) and text for text in value)
    if NUMBERS.fullmatch(key):
        return isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer()
    return isinstance(value, str) and bool(value)


def count(label: dict[str, Any]) -> int:
    """The number of a label's instructions: its objectives."""
    return len(label["instructions"])


def score(candidate: str, label: dict[str, Any]) -> list[float]:
    """1 for each instruction that the candidate follows, else 0; an empty candidate follows none."""
    if not candidate.strip():
        return [0.0] * count(label)
    checkers = [_checker(label["benchmark"], one["id"], json.dumps(one["arguments"])) for one in label["instructions"]]
    return [float(_follows(checker, candidate)) for checker in checkers]


def _follows(checker: Any, candidate: str) -> bool:
    """A text in which a checker of IFBench finds no first word, last sentence or row of CSV does not follow it."""
    try:
        return bool(checker.check_following(candidate))
    except (IndexError, csv.Error):  # raised for such texts; a broken checker raises something else
        return False


@functools.lru_cache(maxsize=1024)  # of a prompt's many candidates
def _checker(benchmark: str, name: str, arguments: str) -> Any:
    return make(benchmark, name, json.loads(arguments))[0]


def answers(label: dict[str, Any]) -> list[tuple[str, list[float]]]:
    """For a generated prompt, a text that follows all its instructions."""
    if not label.get("generated"):
        return []
    return [(write_gold(label["instructions"]), [1.0] * count(label))]

"""Verifiable instructions, each an objective: those of IFEval (arXiv 2311.07911) and IFBench (arXiv 2507.02833).

A label is `{"benchmark": "ifeval" | "ifbench", "instructions": [{"id": str, "arguments": {…}}, …], "prompt": str}`. The
checkers are the official ones in the package `if-verifiable`, in their strict form: 1 for an instruction that the
candidate follows, else 0. Checkers that require the candidate to repeat the prompt use `prompt`.
"""

import functools
import json
from typing import Any

from reward_specs.instructions.checkers import LEFT_OUT, REGISTRIES, registry
from reward_specs.instructions.prompts import write_gold

MAX_INSTRUCTIONS = 8


def label_check(label: object) -> None:
    """Raises ValueError, in one sentence, if a label is not as above."""
    if not isinstance(label, dict) or label.get("benchmark") not in REGISTRIES:
        raise ValueError(f"A label names its 'benchmark', ifeval or ifbench; this one is {str(label)[:80]!r}.")
    instructions = label.get("instructions")
    if not isinstance(instructions, list) or not 1 <= len(instructions) <= MAX_INSTRUCTIONS:
        raise ValueError(f"A label lists 1 to {MAX_INSTRUCTIONS} 'instructions', not {str(instructions)[:80]!r}.")
    for instruction in instructions:
        name, arguments = instruction.get("id"), instruction.get("arguments")
        if name in LEFT_OUT:
            raise ValueError(f"The instruction {name} needs {LEFT_OUT[name]} of NLTK, which no package contains.")
        if name not in registry(label["benchmark"]):
            raise ValueError(f"{label['benchmark']} has no instruction {name!r}.")
        try:
            _checker(label["benchmark"], name, json.dumps(arguments), str(label.get("prompt")))
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"The instruction {name} cannot be made with {arguments!r}: {error}.") from error


def count(label: dict[str, Any]) -> int:
    """The number of a label's instructions: its objectives."""
    return len(label["instructions"])


def score(candidate: str, label: dict[str, Any]) -> list[float]:
    """1 for each instruction that the candidate follows, else 0; an empty candidate follows none."""
    if not candidate.strip():
        return [0.0] * count(label)
    return [
        float(
            bool(
                _checker(
                    label["benchmark"], one["id"], json.dumps(one["arguments"]), label.get("prompt", "")
                ).check_following(candidate)
            )
        )
        for one in label["instructions"]
    ]


@functools.lru_cache(maxsize=1024)  # of a prompt's many candidates
def _checker(benchmark: str, name: str, arguments: str, prompt: str) -> Any:
    checker = registry(benchmark)[name](name)
    checker.build_description(**json.loads(arguments))
    if "prompt" in (checker.get_instruction_args() or {}):
        checker.build_description(prompt=prompt)
    return checker


def answers(label: dict[str, Any]) -> list[tuple[str, list[float]]]:
    """For a generated prompt, a text that follows all its instructions."""
    if not label.get("generated"):
        return []
    return [(write_gold(label["instructions"]), [1.0] * count(label))]

"""Any task of reasoning-gym (https://github.com/open-thought/reasoning-gym): generated puzzles and their checkers.

A label names a puzzle by task, seed and index, and the scorer generates the puzzle again, because a puzzle does not
always survive JSON. Some checkers of reasoning-gym 0.1.25 evaluate the answer, which can run any Python. Where they
evaluate it with sympy, an answer counts only if it is nothing but a formula; where they call `eval`, they get
`ast.literal_eval` instead, which reads the lists that they look for. A test attacks all tasks.
"""

import ast
import functools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from reasoning_gym import create_dataset
from reasoning_gym.algorithmic import binary_matrix, spiral_matrix, string_insertion
from reasoning_gym.factory import DATASETS
from reasoning_gym.games import n_queens

APART = 10**7  # between the seeds of splits: puzzle i of a task uses the seed plus i
LONGEST = 200  # an answer of this many characters or more gets 0 for brevity
FORMULAS = {"countdown", "puzzle24", "polynomial_multiplication", "simple_integration", "intermediate_integration"}
"""Tasks whose checker evaluates the answer with sympy's `parse_expr`."""
NAMES = re.compile(
    r"[^\W\d]|abs|exp|ln|log|pi|sqrt|sin|cos|tan|sec|csc|cot|asin|acos|atan|sinh|cosh|tanh|True|False|and|or|not"
)

for module in (binary_matrix, n_queens, spiral_matrix, string_insertion):
    vars(module)["eval"] = ast.literal_eval


def rows(
    split: str, num_rows: int, seed: int, *, task: str, config: dict[str, Any] | None = None
) -> Iterator[dict[str, Any]]:
    """Puzzles of a task as `{"prompt", "label"}`, with the task's settings in `config`. Each split has its own seeds.

    Raises ValueError if there is no such task.
    """
    if task not in DATASETS:
        raise ValueError(f"reasoning-gym has no task '{task}'; it has {', '.join(sorted(DATASETS))}.")
    of_split = (2 * seed + (split == "test")) * APART
    label = {"task": task, "config": config or {}, "seed": of_split, "size": num_rows}
    for index in range(num_rows):
        numbered = {**label, "index": index}
        yield {"prompt": puzzle(json.dumps(numbered))["question"], "label": numbered}


def score(candidate: str, label: dict[str, Any]) -> list[float]:
    """The score of the task's own checker, and the answer's brevity if that score is above 0; each 0 to 1."""
    solved = checked(candidate, label)
    return [solved, max(0.0, 1 - len(candidate) / LONGEST) if solved > 0 else 0.0]


def answers(label: dict[str, Any]) -> list[tuple[str, list[float]]]:
    """The task's own answer, if its checker accepts it."""
    answer = puzzle(json.dumps(label))["answer"]
    found = [(str(answer), score(str(answer), label))] if answer else []
    return [(text, rewards) for text, rewards in found if rewards[0] == 1]


def checked_reward(completions: Sequence[Any], label: Sequence[dict[str, Any]], **columns: Any) -> list[float]:
    """The checker as a function with trl's signature, for use as an objective beside others."""
    texts = [one if isinstance(one, str) else one[-1]["content"] for one in completions]
    return [checked(text, one) for text, one in zip(texts, label, strict=True)]


def checked(candidate: str, label: dict[str, Any]) -> float:
    """The score of an answer by the task's checker, 0 to 1; 0 also where the checker fails on the answer."""
    if label["task"] in FORMULAS and not is_expression(candidate):
        return 0.0
    named = json.dumps(label)
    dataset, entry = _dataset(named), puzzle(named)
    try:
        found = float(dataset.score_answer(candidate, entry))
    except Exception:  # many checkers expect an answer of the right kind
        return 0.0
    return min(max(found, 0.0), 1.0)


def is_expression(text: str) -> bool:
    """Whether a text is only a formula: numbers, operators, single letters and common functions."""
    names = re.findall(r"[^\W\d]\w*", text)
    attribute = re.search(r"[\w)\]]\s*\.\s*[^\W\d]", text)
    return not (attribute or re.search(r"['\"\\`@:;\[\]{}]", text) or not all(map(NAMES.fullmatch, names)))


@functools.lru_cache(maxsize=4096)
def puzzle(label: str) -> dict[str, Any]:
    """The puzzle that a JSON label names."""
    found: dict[str, Any] = _dataset(label)[json.loads(label)["index"]]
    return found


def _dataset(label: str) -> Any:
    named = json.loads(label)
    return _made(named["task"], json.dumps(named["config"]), named["seed"], named["size"])


@functools.lru_cache(maxsize=8)
def _made(task: str, config: str, seed: int, size: int) -> Any:
    return create_dataset(task, size=size, seed=seed, **json.loads(config))

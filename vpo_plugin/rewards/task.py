"""A task through its spec's Python functions: rows, checks of labels, known answers, the front, drawings.

Each function takes the spec as its first argument. Labels are those that the scorer gets (`labels.read_label`).
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from vpo_plugin.files import printable
from vpo_plugin.rewards.data import EvaluationOnly
from vpo_plugin.rewards.drawing import draw as read_drawing
from vpo_plugin.rewards.labels import read_label
from vpo_plugin.rewards.response import columns_of
from vpo_plugin.rewards.spec import RewardSpec, load_entry_point
from vpo_plugin.rewards.trace import place_of


def read_rows(spec: RewardSpec, split: str, num_rows: int, seed: int) -> Iterator[dict[str, Any]]:
    """Rows `{"prompt", "label"}` of a split; the same arguments give the same rows.

    Raises ValueError if a row of the loader lacks one of the spec's columns, or its label cannot be read.
    """
    if spec.dataset is None:
        raise ValueError(f"The spec '{spec.name}' has no dataset: name one under the key `dataset`.")
    columns = spec.dataset.columns
    needed = (columns.prompt,) if spec.label == "none" else (columns.prompt, columns.label)
    loader = load_entry_point(spec.dataset.loader)
    for number, row in enumerate(loader(split, num_rows, seed, **spec.dataset.args)):
        for column in needed:
            if not isinstance(row, Mapping) or column not in row:
                has = f"it has {sorted(row)}" if isinstance(row, Mapping) else f"it is {str(row)[:80]!r}"
                raise ValueError(
                    f"Row {number} of the split '{split}' of the spec '{spec.name}' has no '{column}'; {has}."
                )
        try:
            label = read_label(spec, row.get(columns.label))
        except ValueError as error:
            raise ValueError(f"Row {number} of the split '{split}' of the spec '{spec.name}': {error}") from error
        yield {"prompt": row[columns.prompt], "label": label}


def trial_rows(spec: RewardSpec, num_rows: int) -> list[dict[str, Any]]:
    """The first rows to train on, or the held-out ones of a spec that is for evaluation only."""
    try:
        return list(read_rows(spec, "train", num_rows, 0))
    except EvaluationOnly:
        return list(read_rows(spec, "test", num_rows, 0))


def check_label(spec: RewardSpec, label: object) -> None:
    """Raises ValueError, in one sentence, if a label lacks what the scorer needs, or the spec's code fails on it."""
    try:
        if spec.label_check:
            load_entry_point(spec.label_check)(label)
        columns_of(spec, label)
    except ValueError:
        raise
    except Exception as error:
        said = printable(f"{type(error).__name__}: {error}"[:500])
        raise ValueError(f"The code of the spec '{spec.name}' fails on the label: {said}{place_of(error)}") from error


def canonical(spec: RewardSpec, candidate: str, label: object) -> Hashable:
    """The key by which candidates are equal: the task's `canonical`, or the text."""
    return load_entry_point(spec.canonical)(candidate, label) if spec.canonical else candidate


def known_answers(spec: RewardSpec, label: object) -> list[tuple[str, Sequence[float]]]:
    """Candidates with the rewards they must get, including those of the front; empty if the task names none."""
    return [answer for path in (spec.answers, spec.front) if path for answer in load_entry_point(path)(label)]


def pareto_front(spec: RewardSpec, label: object) -> np.ndarray | None:
    """Every Pareto-optimal reward vector that a candidate can reach, shape (vectors, k), if the task has a `front`.

    If no candidate reaches anything, it is only the floor.
    """
    if spec.front is None:
        return None
    vectors = [rewards for _, rewards in load_entry_point(spec.front)(label)]
    return np.array(vectors or [[column.low for column in columns_of(spec, label)]], dtype=np.float64)


def best_reward(spec: RewardSpec, label: object) -> float | None:
    """The best deployment reward that any candidate can reach, None if the task has no `front`."""
    front = pareto_front(spec, label)
    return None if front is None else float((front @ spec.weights_of(front.shape[1])).max())


def draw(spec: RewardSpec, label: object, candidates: Iterable[str]) -> dict[str, Any] | None:
    """A prompt with its candidates as `vpo_plugin.rewards.drawing.draw` returns it; None if the task draws nothing.

    Raises ValueError if the task's function does not return a drawing; errors of the function propagate.
    """
    return read_drawing(load_entry_point(spec.drawing), label, candidates) if spec.drawing else None

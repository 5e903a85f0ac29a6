"""Score a response: its candidates become the rows of a reward matrix."""

import json
import math
import os
import time
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from vpo_plugin.rewards.formats import parse
from vpo_plugin.rewards.sandbox import SandboxError
from vpo_plugin.rewards.spec import Column, RewardSpec, load_entry_point


@dataclass(frozen=True)
class ScoredResponse:
    """One rollout, scored.

    `matrix` has shape (m, k): row s holds the rewards of candidate s, higher is better; the row of a missing
    candidate, and of one that repeats an earlier candidate, is the floor of each objective. `reward` is the mean over
    all m rows of the deployment scalarization: the scalar that the host sees.
    """

    matrix: np.ndarray
    parsed: int
    unique: int
    reward: float
    candidates: list[str | None]


def score_all(spec: RewardSpec, pairs: Sequence[tuple[str, str]], candidates: int) -> list[ScoredResponse]:
    """Score responses with their labels, some at a time, in order.

    Raises:
        RuntimeError: the scorer failed on one; the message has its beginning.
    """

    def score(pair: tuple[str, str]) -> ScoredResponse:
        try:
            return score_response(spec, *pair, candidates)
        except SandboxError:
            raise
        except Exception as error:
            raise RuntimeError(
                f"The scorer of spec {spec.name!r} failed ({type(error).__name__}: {error}) on the response "
                f"{pair[0][:300]!r} to the label {str(pair[1])[:300]}. Fix it and run the same command again."
            ) from error

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(threads.map(score, pairs))


def score_response(spec: RewardSpec, response: str, label: object, candidates: int) -> ScoredResponse:
    """The reward matrix of a response, shape (candidates, k). `label` may be its JSON text.

    Raises ValueError if the scorer returns a value that is not finite or out of its objective's range, or not one
    value an objective, and TimeoutError, between two candidates, if it has taken more than `limits.seconds`. What the
    scorer itself raises propagates.
    """
    decoded = read_label(label)
    columns = columns_of(spec, decoded)
    scorer = load_entry_point(spec.scorer)
    canonical = load_entry_point(spec.canonical) if spec.canonical else None
    deadline = time.monotonic() + spec.limits.seconds
    texts = parse(spec, response, candidates)
    matrix = np.tile(np.array([column.low for column in columns], dtype=np.float32), (candidates, 1))
    seen: set[Hashable] = set()
    for slot, candidate in enumerate(texts):
        if candidate is None:
            continue
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"Scoring took more than {spec.limits.seconds:g} s, and {slot} of {candidates} candidates are done: "
                "make the scorer faster, or raise limits.seconds in the spec."
            )
        key = canonical(candidate, decoded) if canonical else candidate
        if key in seen:
            continue
        seen.add(key)
        rewards = read_rewards(scorer(candidate, decoded), columns)
        if all(column.gate is None or reward >= column.gate for column, reward in zip(columns, rewards, strict=True)):
            matrix[slot] = rewards
    return ScoredResponse(
        matrix=matrix,
        parsed=sum(candidate is not None for candidate in texts),
        unique=len(seen),
        reward=float((matrix.astype(np.float64) @ spec.weights_of(len(columns))).mean()),
        candidates=texts,
    )


def read_rewards(values: Sequence[float], columns: Sequence[Column]) -> list[float]:
    """One reward an objective, higher is better. Raises ValueError for another number of them, or one out of range."""
    if len(values) != len(columns):
        raise ValueError(
            f"The scorer gave {len(values)} rewards for the {len(columns)} objectives {[c.key for c in columns]}."
        )
    return [_reward(float(value), column) for column, value in zip(columns, values, strict=True)]


def _reward(value: float, column: Column) -> float:
    if not math.isfinite(value) or not (column.clamped or column.low <= value <= column.high):
        raise ValueError(
            f"The scorer gave the objective '{column.key}' {value}, which is not within {column.low} to {column.high}."
        )
    value = min(max(value, column.low), column.high)
    return column.low + column.high - value if column.mirrored else value


def columns_of(spec: RewardSpec, label: object) -> list[Column]:
    """The columns of a decoded label's prompt. Raises ValueError if a ragged spec's label has too many, or none."""
    if spec.ragged is None:
        return spec.columns(len(spec.objective_keys))
    count = load_entry_point(spec.ragged.count)(label)
    if not isinstance(count, int) or not 1 <= count <= spec.ragged.max:
        raise ValueError(f"A label has {count!r} objectives, the spec '{spec.name}' allows 1 to {spec.ragged.max}.")
    return spec.columns(count)


def read_label(label: object) -> object:
    """A label as the scorer takes it: JSON text, which is how a dataset column carries it, is decoded.

    Raises ValueError if the text is not JSON.
    """
    if not isinstance(label, str):
        return label
    try:
        return json.loads(label)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"A label that is text must be JSON; {label[:80]!r} is not: {error}.") from error

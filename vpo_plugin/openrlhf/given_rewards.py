"""Reward vectors and matrices that a user's own agent or function gives, and what the host is told of a rollout."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from vpo_plugin.openrlhf import matrices
from vpo_plugin.rewards import RewardSpec
from vpo_plugin.rewards.labels import read_label
from vpo_plugin.rewards.response import ScoredResponse, columns_of, read_rewards


def read_matrix(spec: RewardSpec, given: Any, label: Any, what: str) -> np.ndarray:
    """The reward matrix (m, k), float32, of a vector (k,) or a matrix (m, k): tensor, array or list.

    Args:
        spec: names the objectives, in the order of the columns, and their ranges.
        given: what the user's code returned.
        label: the prompt's; where objectives are ragged, it says how many there are.
        what: what gave it, for the message.
    Raises:
        ValueError: it has another shape, or values that are not finite or out of range.
    """
    columns = columns_of(spec, read_label(spec, label)) if spec.ragged else spec.columns(len(spec.objective_keys))
    try:
        values = np.asarray(given.detach().cpu() if hasattr(given, "detach") else given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} is no vector or matrix of numbers: {str(given)[:200]} ({error}).") from error
    if values.ndim == 1:
        values = values[None]
    if values.ndim != 2 or values.shape[1] != len(columns) or not len(values):
        raise ValueError(
            f"{what} has the shape {np.shape(given)}. Spec {spec.name!r} names {len(columns)} objectives: give a "
            f"vector of {len(columns)} values, or a row of as many for each candidate."
        )
    return np.array([read_rewards(row, columns) for row in values.tolist()], dtype=np.float32)


def floor(spec: RewardSpec, label: Any, candidates: int) -> np.ndarray:
    """The matrix of a rollout that is worth nothing, (candidates, k)."""
    columns = columns_of(spec, read_label(spec, label)) if spec.ragged else spec.columns(len(spec.objective_keys))
    return np.tile(np.array([column.low for column in columns], dtype=np.float32), (candidates, 1))


def scored(scored: ScoredResponse) -> dict[str, Any]:
    """What the host's executors return of rewards, for a response that the spec scored."""
    return fields(scored.matrix, scored.reward, scored.parsed, scored.unique, scored.error is not None)


def given(spec: RewardSpec, matrix: np.ndarray, logs: Mapping[str, Any], failed: bool = False) -> dict[str, Any]:
    """The same for a matrix that the user's code gave, beside logs of its own."""
    reward = float((matrix.astype(np.float64) @ spec.weights_of(matrix.shape[1])).mean())
    told = fields(matrix, reward, len(matrix), len(matrix), failed)
    return told | {"extra_logs": {**logs, **told["extra_logs"]}}


def fields(matrix: np.ndarray, reward: float, parsed: int, unique: int, failed: bool) -> dict[str, Any]:
    """The scalar reward for the host's log, and the matrix where it makes no scalar metric of it."""
    return {
        "reward": reward,
        "scores": reward,
        "extra_logs": {
            matrices.INFO_KEY: matrices.pack(matrix),
            "candidates_parsed": float(parsed),
            "candidates_unique": float(unique),
            "scorer_errors": float(failed),
        },
    }

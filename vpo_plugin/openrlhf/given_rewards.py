"""Read rewards from a user's own code, and build the host's reward fields of a rollout.

The plugin calls a reward function, `reward_func(queries, prompts, labels)` in a Python file or an HTTP server, as the
host does, with one query at a time. Its `rewards` hold one entry per query: a vector or a matrix instead of a number.
Values are read like a scorer's: the specification defines their ranges, and which objectives are better when lower.
"""

import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from openrlhf.utils.agent import SingleTurnAgentExecutor

from vpo_plugin.openrlhf.matrices import INFO_KEY, pack
from vpo_plugin.openrlhf.settings import Settings
from vpo_plugin.rewards import RewardSpec
from vpo_plugin.rewards.labels import read_label
from vpo_plugin.rewards.response import columns_of, floor_response, read_rewards
from vpo_plugin.rewards.scoring import ScorerError, keep_failure
from vpo_plugin.rewards.trace import place_of


class RewardFunction:
    """The function or the servers that `--reward.remote_url` names."""

    def __init__(self, places: Sequence[str]) -> None:
        # The host's executor swallows errors of a reward function, so its inner methods are called directly.
        host = SingleTurnAgentExecutor(list(places))
        self.fetch = host._fetch_rewards_via_func if host.reward_func else host._fetch_rewards_via_http

    async def __call__(self, query: str, prompt: str, label: Any) -> tuple[Any, dict[str, Any]]:
        """The raw rewards of one query and its extra logs.

        Raises ValueError if the function returned no rewards; errors of the function propagate.
        """
        (answer,) = await self.fetch([query], [prompt], [label])
        rewards = answer.get("rewards") if isinstance(answer, dict) else None
        if rewards is None:
            raise ValueError(f'it returned {str(answer)[:200]} instead of {{"rewards": …}}')
        if not hasattr(rewards, "detach"):
            rewards = np.asarray(rewards, dtype=np.float64)
        entry = rewards[0] if rewards.ndim and len(rewards) == 1 else rewards
        return entry, answer.get("extra_logs") or {}


def read_matrix(spec: RewardSpec, given: Any, label: Any) -> np.ndarray:
    """Convert a vector (k,) or matrix (m, k), as tensor, array or list, to a reward matrix (m, k), float32.

    Args:
        spec: names the objectives in column order, with their ranges and directions.
        given: what the user's code returned.
        label: the prompt's label, which determines the number of ragged objectives.
    Raises:
        ValueError: the shape is wrong, or values are not finite or out of range.
    """
    columns = columns_of(spec, _label(spec, label))
    try:
        values = np.atleast_2d(np.asarray(given.detach().cpu().double() if hasattr(given, "detach") else given, float))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{str(given)[:200]} is not a vector or matrix of numbers ({error}).") from error
    if values.ndim != 2 or values.shape[1] != len(columns) or not len(values):
        raise ValueError(
            f"the rewards have the shape {np.shape(given)}. Spec {spec.name!r} names {len(columns)} objectives: give a "
            f"vector of {len(columns)} values, or such a row for each candidate"
        )
    return np.array([read_rewards(row, columns) for row in values.tolist()], dtype=np.float32)


def failed(run: Settings, spec: RewardSpec, query: str, label: Any, who: str, error: Exception) -> np.ndarray:
    """With `--vpo.on_scorer_error zero`, the matrix of floor values for a rollout whose rewards failed.

    Otherwise raises ScorerError, which names the file with prompt, response and traceback.
    """
    parts = {"prompt and response": query, "label": repr(label), "traceback": traceback.format_exc()}
    kept = keep_failure(run.log_dir, parts)
    if run.on_scorer_error == "zero":
        return floor_response(spec, _label(spec, label), run.candidates).matrix
    where = f" Prompt, response and traceback are in {kept}." if kept else ""
    failure = ScorerError(
        f"{who} failed on a response: {type(error).__name__}: {str(error).rstrip('.')}{place_of(error)}.{where} Fix "
        "it, or pass --vpo.on_scorer_error zero to score such responses as zero and count them."
    )
    failure.trace = parts["traceback"]
    raise failure from error


def _label(spec: RewardSpec, label: Any) -> object:
    """The label for `columns_of`, None without ragged objectives: the user's code may then use any label."""
    return read_label(spec, label) if spec.ragged else None


def host_fields(spec: RewardSpec, matrix: np.ndarray, logs: Mapping[str, Any], failed: bool = False) -> dict[str, Any]:
    """The host's reward fields for a matrix and logs from the user's code."""
    reward = float((matrix.astype(np.float64) @ spec.weights_of(matrix.shape[1])).mean())
    said = fields(matrix, reward, 0 if failed else len(matrix), 0 if failed else len(matrix), failed)
    return said | {"extra_logs": {**logs, **said["extra_logs"]}}


def fields(matrix: np.ndarray, reward: float, parsed: int, unique: int, failed: bool) -> dict[str, Any]:
    """The host's reward fields: the scalar reward for its log, and the matrix where the host does not average it."""
    return {
        "reward": reward,
        "scores": reward,
        "extra_logs": {
            INFO_KEY: pack(matrix),
            "candidates_parsed": float(parsed),
            "candidates_unique": float(unique),
            "scorer_errors": float(failed),
        },
    }

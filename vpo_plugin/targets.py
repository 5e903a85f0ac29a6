"""Targets of each prompt: the deployment weights, when a candidate solves it, and the best reachable reward."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from vpo_plugin.metrics import Floats, expected_set_reward
from vpo_plugin.rewards import RewardSpec
from vpo_plugin.rewards.response import columns_of
from vpo_plugin.rewards.task import best_reward, pareto_front

ROUNDING = 1e-6  # of stored rewards, which are float32


@dataclass(frozen=True)
class Targets:
    """The targets of P prompts with at most k objectives."""

    present: np.ndarray
    """Which objectives a prompt has, bool (P, k)."""
    weights: Floats
    """Deployment weights, (P, k), 0 where an objective is absent."""
    solved_at: Floats
    """Deployment reward from which a candidate solves the prompt, (P,)."""
    ceiling: dict[str, float] | None
    """The exact best of best@k (`best`) and of the pool's E_w (`expected_set_reward`), means over the prompts; None
    where the specification has no solver."""

    def rewards(self, vectors: ArrayLike) -> Floats:
        """Deployment rewards of reward vectors (..., P, n, k); values of absent objectives are ignored."""
        return np.einsum("...pnk,pk->...pn", np.where(self.present[:, None], vectors, 0.0), self.weights)

    def solved(self, rewards: Floats) -> np.ndarray:
        """Which candidates solve their prompt, of deployment rewards (..., P, n)."""
        return solves(rewards, self.solved_at[:, None])


def read_targets(spec: RewardSpec, rows: Sequence[Mapping[str, Any]]) -> Targets:
    """The targets of these prompts, keys `input` and `label` (JSON)."""
    labels = [json.loads(row["label"]) for row in rows]
    counts = [len(columns_of(spec, label)) for label in labels]
    present = np.arange(max(counts)) < np.array(counts)[:, None]
    weights = np.zeros(present.shape)
    for row, count in zip(weights, counts, strict=True):
        row[:count] = spec.weights_of(count)
    ceiling = None
    best = np.ones(len(labels))
    if spec.front:
        fronts = [np.asarray(pareto_front(spec, label)) for label in labels]
        best = np.array([(front @ spec.weights_of(front.shape[1])).max() for front in fronts])
        worth = [expected_set_reward(front[None], seed=0).item() for front in fronts]
        ceiling = {"best": float(best.mean()), "expected_set_reward": float(np.mean(worth))}
    return Targets(present, weights, spec.solved * best, ceiling)


def solved_at(spec: RewardSpec, label: object) -> float:
    """The deployment reward from which a candidate solves the prompt of this label."""
    best = best_reward(spec, label)
    return spec.solved * (1.0 if best is None else best)


def solves(reward: Any, at: Any) -> Any:
    """Whether a deployment reward, or each of an array, solves a prompt that is solved at `at`."""
    return reward >= at - ROUNDING

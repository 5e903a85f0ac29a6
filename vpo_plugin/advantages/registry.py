"""Advantage estimators by name.

An estimator has two halves because the host's length penalties act between them: `rollout_rewards` says what
each rollout is worth, `normalize` turns the worths of a group into advantages.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor

from vpo_plugin.advantages.normalize import group_z_norm


class RolloutRewards(Protocol):
    """`(G, N, m, k)` reward matrices -> `(G, N)` rollout rewards.

    Every estimator takes every argument and uses what it needs: `mask` as in `set_rewards`, the deployment weights
    `objective_weights`, `(k,)` or `(G, k)` (None = uniform), and `alpha`, `num_weights`, `generator` for random
    weights.
    """

    def __call__(
        self,
        reward_matrices: Tensor,
        *,
        mask: Tensor | None = None,
        objective_weights: Sequence[float] | Tensor | None = None,
        alpha: float = 1.0,
        num_weights: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor: ...


@dataclass(frozen=True)
class AdvantageEstimator:
    """A named estimator; calling it with the arguments of `RolloutRewards` gives the advantages `(G, N)`."""

    name: str
    rollout_rewards: RolloutRewards
    normalize: Callable[..., Tensor]
    """`(G, N)` rollout rewards -> `(G, N)` advantages."""
    candidates: Literal["one", "several", "any"] = "any"
    """What a response holds: one candidate and no more, a set of them, or what the run says."""
    takes_k: bool = False
    """`normalize` has an argument `k`: of how many rollouts the best counts."""
    weights_in_prompt: bool = False
    """`objective_weights` are those that each group's prompt was told, not the deployment weights."""
    relative: bool = False
    """Rollout rewards are relative to their group: some of its rollouts are always below 0."""

    def __call__(
        self,
        reward_matrices: Tensor,
        *,
        mask: Tensor | None = None,
        objective_weights: Sequence[float] | Tensor | None = None,
        alpha: float = 1.0,
        num_weights: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        rollout_rewards = self.rollout_rewards(
            reward_matrices,
            mask=mask,
            objective_weights=objective_weights,
            alpha=alpha,
            num_weights=num_weights,
            generator=generator,
        )
        return self.normalize(rollout_rewards)


_estimators: dict[str, AdvantageEstimator] = {}


def register_advantage_estimator(
    name: str,
    *,
    normalize: Callable[..., Tensor] = group_z_norm,
    candidates: Literal["one", "several", "any"] = "any",
    takes_k: bool = False,
    weights_in_prompt: bool = False,
    relative: bool = False,
) -> Callable[[RolloutRewards], RolloutRewards]:
    """Decorator that registers a `rollout_rewards` function as the estimator `name` and returns it unchanged.

    The other arguments are the fields of `AdvantageEstimator`.

    Raises:
        ValueError: the name is taken.
    """

    def register(rollout_rewards: RolloutRewards) -> RolloutRewards:
        if name in _estimators:
            raise ValueError(f"An advantage estimator named {name!r} exists already; choose another name.")
        _estimators[name] = AdvantageEstimator(
            name, rollout_rewards, normalize, candidates, takes_k, weights_in_prompt, relative
        )
        return rollout_rewards

    return register


def get_advantage_estimator(name: str, *, k: int | None = None) -> AdvantageEstimator:
    """The estimator registered as `name`, with the given `k` if it takes one (None = its default).

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    if name not in _estimators:
        known = ", ".join(advantage_estimator_names())
        raise ValueError(f"There is no advantage estimator named {name!r}; known are: {known}.")
    estimator = _estimators[name]
    return replace(estimator, normalize=partial(estimator.normalize, k=k)) if estimator.takes_k else estimator


def advantage_estimator_names() -> list[str]:
    """The names of all registered estimators, sorted."""
    return sorted(_estimators)

"""`vpo`: Vector Policy Optimization (Bahlous-Boldi et al., arXiv 2605.22817)."""

from typing import Any

import torch
from torch import Tensor

from vpo_plugin.advantages.normalize import group_z_norm
from vpo_plugin.advantages.registry import register_advantage_estimator
from vpo_plugin.advantages.set_reward import set_rewards


@register_advantage_estimator("vpo", normalize=group_z_norm, candidates="several")
def vpo(
    reward_matrices: Tensor,
    *,
    mask: Tensor | None = None,
    alpha: float = 1.0,
    num_weights: int | None = None,
    generator: torch.Generator | None = None,
    **_: Any,
) -> Tensor:
    """A rollout is worth its set reward `E_{w ~ Dir(alpha)}[max_s w·r_s]`, whatever the deployment weights.

    Degenerate cases: with one candidate this is GRPO on the mean reward; where the objectives are nearly
    collinear, or one candidate dominates, it is the mean reward of the best candidate.
    """
    return set_rewards(reward_matrices, mask=mask, alpha=alpha, num_weights=num_weights, generator=generator)


def vpo_advantages(
    reward_matrices: Tensor,
    *,
    mask: Tensor | None = None,
    alpha: float = 1.0,
    num_weights: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`set_rewards` (same arguments and errors), z-normalised in each group: `(G, N, m, k)` -> `(G, N)`."""
    return group_z_norm(
        set_rewards(reward_matrices, mask=mask, alpha=alpha, num_weights=num_weights, generator=generator)
    )

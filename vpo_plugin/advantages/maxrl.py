"""`maxrl`: maximum likelihood reinforcement learning (Tajwar et al., arXiv 2602.02710)."""

import torch
from jaxtyping import Float
from torch import Tensor

from vpo_plugin.advantages.batch import RewardBatch
from vpo_plugin.advantages.registry import register_advantage_estimator


def group_mean_norm(worth: Float[Tensor, "groups rollouts"]) -> Float[Tensor, "groups rollouts"]:
    """`A_i = (r_i - mean r) / (mean r + 1e-6)` in each group; groups with mean <= 0 get 0."""
    rewards = worth.to(torch.float64)
    mean = rewards.mean(-1, keepdim=True)
    return torch.where(mean > 0, (rewards - mean) / (mean + 1e-6), 0.0).to(worth.dtype)


@register_advantage_estimator("maxrl", normalize=group_mean_norm, candidates="one")
def maxrl(batch: RewardBatch) -> Float[Tensor, "groups rollouts"]:
    """A rollout is worth `w·r` under the deployment weights `w`, and its advantage is relative to the group's mean.

    For rewards of 0 and 1 the expected gradient is that of a truncated series of log p(success), which weighs rare
    successes by 1 / mean. Degenerate cases: groups with mean <= 0, and groups of equal rewards, get 0.
    """
    return batch.scalars().mean(-1)

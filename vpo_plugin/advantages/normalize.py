"""Turn the values of the rollouts of a group into advantages."""

import torch
from jaxtyping import Float
from torch import Tensor

NO_SPREAD = 1e-6
"""Rewards that differ less than this are the same, and advantages that are smaller are none."""


def group_z_norm(worth: Float[Tensor, "*groups rollouts"]) -> Float[Tensor, "*groups rollouts"]:
    """`A_i = (r_i - mean r) / (std r + 1e-6)` in each group, population std; 0 where the std is below 1e-6
    (arXiv 2605.22817). A group of one rollout has no spread, so its advantage is 0."""
    rewards = worth.to(torch.float64)
    centred = rewards - rewards.mean(-1, keepdim=True)
    std = centred.square().mean(-1, keepdim=True).sqrt()
    return torch.where(std < NO_SPREAD, 0.0, centred / (std + 1e-6)).to(worth.dtype)


def batch_z_norm(worth: Float[Tensor, "groups rollouts"]) -> Float[Tensor, "groups rollouts"]:
    """`group_z_norm` over the whole batch as one group: `A_i = (r_i - mean r) / (std r + 1e-6)` (the last step of GDPO,
    arXiv 2601.05242)."""
    return group_z_norm(worth.flatten()).view_as(worth)


def group_norm(worth: Float[Tensor, "groups rollouts"]) -> Float[Tensor, "groups rollouts"]:
    """The host's GRPO, `(r - mean r) / (std r + 1e-9)` with the unbiased std (OpenRLHF 0.11.2,
    `trainer/ppo_utils/experience_maker.py`, estimator `group_norm`).

    It is computed in float64. In float32, as in the host, the mean of equal rewards can have a rounding error, which
    the division blows up to advantages near 1. Here the rollouts of such a group get 0.

    Raises:
        ValueError: fewer than two rollouts in a group, whose unbiased std is undefined.
    """
    if worth.shape[-1] < 2:
        raise ValueError("group_norm needs at least 2 rollouts per prompt, but the groups have 1.")
    rewards = worth.to(torch.float64)
    centred = rewards - rewards.mean(-1, keepdim=True)
    return (centred / (rewards.std(-1, keepdim=True) + 1e-9)).to(worth.dtype)


def batch_rms_norm(advantages: Float[Tensor, "groups rollouts"]) -> Float[Tensor, "groups rollouts"]:
    """`A_i / (rms + 1e-6)` with the root mean square of the whole batch; 0 where that is below 1e-6. This keeps the
    direction of the gradient and gives it the size of z-normalised advantages."""
    rms = advantages.to(torch.float64).square().mean().sqrt()
    return torch.where(rms < NO_SPREAD, 0.0, advantages / (rms + 1e-6)).to(advantages.dtype)

"""`max_at_k`: policy gradient of the expected best of k rollouts (PKPO, Walder & Karkhanis, arXiv 2505.15201).

For continuous rewards the objective is also known as max@k (Bagirov et al., arXiv 2510.23393).
"""

from math import comb

import torch
from jaxtyping import Float
from torch import Tensor

from vpo_plugin.advantages.batch import RewardBatch
from vpo_plugin.advantages.registry import register_advantage_estimator


@register_advantage_estimator("max_at_k", normalize=None, candidates="one", takes_k=True)
def max_at_k(batch: RewardBatch) -> Float[Tensor, "groups rollouts"]:
    """`A_i = k · E_S[max(r_i - max_{j in S} r_j, 0)]`, with `S` any k-1 of the other rollouts and `r = w·r_i` the
    deployment reward.

    How much rollout i adds to the best of k, on average: the estimator with the k-1 leave-one-out baseline of arXiv
    2505.15201 (eq. 33, s^(loo-1)), times N because the host takes the mean over rollouts. That mean over the group,
    of `A_i · grad log p_i`, is an unbiased estimate of the gradient of E[max of k rollouts]: the baseline leaves out
    rollout i. So the advantages are >= 0 and must not be centred or scaled by the group. Sorted, with 0-based ranks,
    `A_i = k / C(N-1, k-1) · sum_{j < i} C(j, k-2) (r_i - r_j)`. Degenerate cases: equal rewards get 0; k = 1 is
    REINFORCE with the leave-one-out mean as its baseline.

    Raises:
        ValueError: k below 1 or above N, or N below 2.
    """
    rewards = batch.scalars().mean(-1)
    rollouts = rewards.shape[-1]
    if rollouts < 2:
        raise ValueError("max_at_k needs at least 2 rollouts per prompt, but the groups have 1.")
    k = max(2, rollouts // 2) if batch.k is None else batch.k
    if not 1 <= k <= rollouts:
        raise ValueError(f"max_at_k takes the best of k = {k} rollouts, but the groups have {rollouts}.")
    if k == 1:
        return (rewards - rewards.mean(-1, keepdim=True)) * (rollouts / (rollouts - 1))
    ranked, order = rewards.sort(-1)
    sets = rewards.new_tensor([k * comb(j, k - 2) / comb(rollouts - 1, k - 1) for j in range(rollouts)])
    gains = (ranked[..., :, None] - ranked[..., None, :]).clamp(min=0)  # (G, N, N): of rank i over rank j
    return torch.empty_like(rewards).scatter_(-1, order, gains @ sets)

"""`vpo_at_k`: Vector Policy Optimization across rollouts, which also pays a response for differing from the others."""

import torch
from jaxtyping import Float
from torch import Tensor

from vpo_plugin.advantages.batch import RewardBatch
from vpo_plugin.advantages.best_of_k import best_of_k, gains_over_others, rollouts_of_best
from vpo_plugin.advantages.normalize import batch_rms_norm
from vpo_plugin.advantages.registry import register_advantage_estimator
from vpo_plugin.advantages.set_reward import SCORES_AT_ONCE, default_num_weights, mean_positive_part


@register_advantage_estimator("vpo_at_k_derived", normalize=None, takes_k=True)
def vpo_at_k_derived(batch: RewardBatch) -> Float[Tensor, "groups rollouts"]:
    """`A_i = k · E_w E_S[max(0, v_i(w) - max_{j in S} v_j(w))]`, with `v_i(w) = max_s w·r_is`, `w ~ Dir(alpha)`, and
    `S` any k-1 of the other rollouts: how much rollout i adds to the best of k under a random weighting.

    The group mean of `A_i · grad log p_i` is an unbiased estimate of the gradient of `E_w E[max of k rollouts]`, the
    expected result of a search of k responses; see `gains_over_others`. The family: k = 1 is `vpo` without its division
    by the group's spread; one candidate and one fixed weighting is `max_at_k`; several candidates and one fixed
    weighting is `set_max` across rollouts; one candidate and random weightings needs no prompt for several answers. It
    is exact for k = 1 where the set reward is exact, for single candidates with k = 2 and alpha = 1, and for one
    objective. Otherwise it is the mean over half as many quasi-random weightings as a set reward uses. Degenerate
    cases: equal rollouts get 0; nearly collinear objectives, or a large alpha, make it `max_at_k` of the mean reward.

    Raises:
        ValueError: k below 1 or above N, or N below 2.
    """
    k = rollouts_of_best(batch)
    candidates, objectives = batch.rewards.shape[2:]
    if k == 1:
        return gains_over_others(batch.set_rewards[:, None], 1)
    if k == 2 and candidates == 1 and batch.alpha == 1.0:
        return _gains_of_pairs(batch)
    number = batch.num_weights or (1 if objectives == 1 else default_num_weights(objectives) // 2)
    return best_of_k(batch, batch.random_weights(number))


@register_advantage_estimator("vpo_at_k", normalize=None, takes_k=True)
def vpo_at_k(batch: RewardBatch) -> Float[Tensor, "groups rollouts"]:
    """`vpo_at_k_derived`, divided by the root mean square over the batch. The gradient keeps its direction and gets the
    size of `vpo`'s, so the same learning rate and KL coefficient fit."""
    return batch_rms_norm(vpo_at_k_derived(batch))


def _gains_of_pairs(batch: RewardBatch) -> Float[Tensor, "groups rollouts"]:
    """`2 / (N-1) · sum_j E_w[max(0, w·(r_i - r_j))]`, exact for uniform `w`, some groups at a time."""
    rewards, counts = batch.rewards[:, :, 0], batch.objectives.sum(-1)[:, None, None]
    _, rollouts, objectives = rewards.shape
    at_once = max(1, SCORES_AT_ONCE // (rollouts**2 * objectives))
    gains = [
        mean_positive_part(some[:, :, None] - some[:, None], number).sum(-1)
        for some, number in zip(rewards.split(at_once), counts.split(at_once), strict=True)
    ]
    return torch.cat(gains) * (2 / (rollouts - 1))

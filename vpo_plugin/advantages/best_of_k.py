"""What a rollout adds to the best of k rollouts. The family has three knobs: candidates in a response, rollouts of
which the best counts, and fixed or random weightings of the objectives."""

from math import comb

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vpo_plugin.advantages.batch import RewardBatch
from vpo_plugin.advantages.set_reward import SCORES_AT_ONCE


def rollouts_of_best(batch: RewardBatch, *, fewer: int = 0) -> int:
    """The batch's `k`, from 1 to N - `fewer` with N rollouts in a group; default: half of N, at least 2 if it may be.

    Raises:
        ValueError: k is out of range, or N is below 2.
    """
    rollouts = batch.rewards.shape[1]
    if rollouts < 2:
        raise ValueError("The best of k needs at least 2 rollouts per prompt, but the groups have 1.")
    most = rollouts - fewer
    k = min(max(2, rollouts // 2), most) if batch.k is None else batch.k
    if not 1 <= k <= most:
        raise ValueError(f"The best of {k} cannot be taken: with {rollouts} rollouts per prompt, k is 1 to {most}.")
    return k


def best_of_k(
    batch: RewardBatch, weights: Float[Tensor, "groups weightings objectives"]
) -> Float[Tensor, "groups rollouts"]:
    """`gains_over_others` of `v_i(w) = max_s w·r_is`, the reward of rollout i's best candidate under weighting `w`.

    Computed in the precision of the weights, some groups at a time to save memory. An absent candidate never wins; a
    rollout without candidates gets 0.

    Raises:
        ValueError: see `rollouts_of_best`.
    """
    k = rollouts_of_best(batch)
    groups, rollouts, candidates, objectives = batch.rewards.shape
    first = batch.candidates.int().argmax(-1)[..., None, None].expand(-1, -1, 1, objectives)
    rewards = torch.where(batch.candidates[..., None], batch.rewards, batch.rewards.gather(2, first))
    rows = rewards.to(weights.dtype).permute(2, 0, 3, 1).contiguous()  # (m, G, k, N)
    at_once = max(1, SCORES_AT_ONCE // (rollouts * candidates * weights.shape[1]))
    gains = weights.new_empty(groups, rollouts)
    for start in range(0, groups, at_once):
        chunk = slice(start, start + at_once)
        values = torch.bmm(weights[chunk], rows[0, chunk])  # (g, W, N)
        for candidate in rows[1:, chunk]:
            torch.maximum(values, torch.bmm(weights[chunk], candidate), out=values)
        gains[chunk] = gains_over_others(values, k)
    return gains


def gains_over_others(values: Float[Tensor, "groups weightings rollouts"], k: int) -> Float[Tensor, "groups rollouts"]:
    """`A_i = k · E_w E_S[max(0, v_i(w) - max_{j in S} v_j(w))]`, with `S` any k-1 of the other rollouts.

    This is rollout i's average contribution to the best of k. For each weighting it is the estimator with the k-1
    leave-one-out baseline of arXiv 2505.15201 (eq. 33, s^(loo-1)), times N because the host takes the mean over
    rollouts. The group mean of `A_i · grad log p_i` is an unbiased estimate of the gradient of `E_w E[max of k
    rollouts]`, because the baseline leaves out rollout i. The advantages are >= 0 and must not be centred or scaled by
    the group. Sorted, with 0-based ranks, `A_i = k / C(N-1, k-1) · sum_{j < i} C(j, k-2) (v_i - v_j)`. Degenerate
    cases: equal values get 0; k = 1 is REINFORCE with the leave-one-out mean as baseline, `N / (N-1) · (v_i - mean v)`.
    """
    rollouts = values.shape[-1]
    if k == 1:
        worth = values.mean(1)
        return (worth - worth.mean(-1, keepdim=True)) * (rollouts / (rollouts - 1))
    sets = np.array([k * comb(j, k - 2) / comb(rollouts - 1, k - 1) for j in range(rollouts)])
    losses = np.triu(np.repeat(sets[:, None], rollouts, 1), 1)  # of rank i, a column, to rank j below it
    return mean_by_rank(values, np.diag(losses.sum(0)) - losses).clamp_(min=0)


def mean_by_rank(
    values: Float[Tensor, "groups weightings rollouts"], matrix: np.ndarray
) -> Float[Tensor, "groups rollouts"]:
    """Mean over weightings of a linear function of the sorted values: subtract the group's lowest value, sort upwards,
    multiply by `matrix`, (ranks, ranks), and give each rollout the entry of its rank.

    Values are sorted as integers that carry the rollout in their last digits, which sorts both at once. Their step
    is 2^-20 of the group's range in float32 and 2^-52 in float64, or finer, for up to 1,024 rollouts.
    """
    flat, (weightings, rollouts) = values.flatten(1), values.shape[1:]
    lowest, highest = flat.amin(1)[:, None, None], flat.amax(1)[:, None, None]
    digits = (rollouts - 1).bit_length()
    whole, bits = (torch.int32, 30) if values.dtype == torch.float32 else (torch.int64, 62)
    span = highest - lowest
    unit = torch.where(span > 2**bits * torch.finfo(values.dtype).tiny, span, 1.0) / 2 ** (bits - digits)
    numbers = (values - lowest).mul_(1 / unit).to(whole)
    numbers.bitwise_left_shift_(digits).bitwise_or_(torch.arange(rollouts, dtype=whole, device=values.device))
    numbers = _sorted(numbers)
    found = (numbers >> digits).to(values.dtype) @ values.new_tensor(matrix)
    rollout = numbers.bitwise_and_(2**digits - 1).long()
    total = torch.zeros_like(values[:, 0]).scatter_add_(1, rollout.flatten(1), found.flatten(1))
    return total * (unit[..., 0] / weightings)


def _sorted(numbers: Int[Tensor, "groups weightings rollouts"]) -> Int[Tensor, "groups weightings rollouts"]:
    """Sort each row upwards; on a CPU with numpy, which is five times as fast on short rows."""
    return torch.from_numpy(np.sort(numbers.numpy())) if numbers.device.type == "cpu" else numbers.sort().values

"""The set reward: the expected reward of a rollout's best candidate under a random weighting of the objectives."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SCORES_AT_ONCE = 2**20  # scores held at a time: 4 MiB in float32 fit into a CPU cache, which is also fastest


def default_num_weights(objectives: int) -> int:
    """Default number of random weightings of a set reward: 1,024, or 3,200 above 8 objectives.

    Both give advantages with over 20 times less error than 100 independent weightings
    (`python -m benchmarks.estimator`). It is 3,200 and not 3,072, because rows of 4 KiB multiples contend for the same
    CPU cache lines.
    """
    return 1024 if objectives <= 8 else 3200


def set_rewards(
    rewards: Float[Tensor, "groups rollouts candidates objectives"],
    candidates: Bool[Tensor, "groups rollouts candidates"],
    objectives: Bool[Tensor, "groups objectives"],
    random_weights: Callable[[], Float[Tensor, "groups weightings objectives"]],
    *,
    uniform: bool,
) -> Float[Tensor, "groups rollouts"]:
    """Compute `RewardBatch.set_rewards`; `random_weights` is called only if no exact result is known.

    The set reward is written as `mean(r*) + E[max(0, max_s w·(r_s - r*))]`, where `r*` is the candidate with the best
    mean reward. So it is exact whenever one candidate decides: one candidate, one objective, equal candidates, or one
    candidate that dominates. Two candidates under `uniform` weights have a closed form. Otherwise the expectation is a
    mean over the random weights, in their precision.
    """
    counts = objectives.sum(-1)[:, None]  # (G, 1)
    means = (rewards.sum(-1) / counts[..., None]).masked_fill(~candidates, -torch.inf)  # (G, N, m)
    means, order = means.sort(-1, descending=True)
    best, *others = rewards.gather(2, order[..., None].expand_as(rewards)).split(1, 2)
    if not others or rewards.shape[3] == 1:
        above_best = torch.zeros_like(means[..., 0])
    else:
        gains = (torch.cat(others, 2) - best).masked_fill(means[..., 1:, None].isinf(), 0.0)  # (G, N, m - 1, k)
        if len(others) == 1 and uniform:
            above_best = mean_positive_part(gains[:, :, 0], counts)
        else:
            above_best = _mean_best_gain(gains, random_weights()).to(rewards.dtype)
    return torch.where(candidates.any(-1), means[..., 0] + above_best, 0.0)


def mean_positive_part(c: Float[Tensor, "*batch objectives"], counts: Int[Tensor, "..."]) -> Float[Tensor, "*batch"]:
    """`E_w[max(w·c, 0)]` for `w` uniform on the simplex of `counts` objectives.

    By Hermite-Genocchi this is the divided difference `T = [c_1, …, c_k] max(x, 0)^k`, divided by k. With a knot
    `b > 0` and a knot `-a < 0`, Leibniz' rule on `x·max(x, 0)^(k-1)` gives
    `T(c) = (b·T(c without -a) + a·T(c without b)) / (b + a)`. This is an average, so ties and near-ties cause no
    cancellation. Knots at 0 change nothing, so absent objectives are knots at 0.
    """
    positive, negative = c.clamp(min=0).unbind(-1), (-c).clamp(min=0).unbind(-1)
    table = [torch.zeros_like(positive[0])]  # table[i]: T of the first i positive, and of no negative knots
    for b in positive:
        table.append(table[-1] + b)
    for a in negative:  # and of one negative knot more each time
        for i, b in enumerate(positive):
            table[i + 1] = torch.where(a + b > 0, (b * table[i + 1] + a * table[i]) / (a + b), table[i])
    return table[-1] / counts


def _mean_best_gain(
    gains: Float[Tensor, "groups rollouts candidates objectives"],
    weights: Float[Tensor, "groups weightings objectives"],
) -> Float[Tensor, "groups rollouts"]:
    """`mean_w max(0, max_s w·g_s)` in the dtype of the weights (gains are small, and float32 keeps 7 digits of them in
    less time), some groups at a time to save memory."""
    groups, rollouts, candidates, _ = gains.shape
    number = weights.shape[1]
    at_once = min(groups, max(1, SCORES_AT_ONCE // (rollouts * candidates * number)))
    buffer = weights.new_empty(at_once, rollouts * candidates, number)
    worth = weights.new_empty(groups, rollouts)
    chunks = (tensor.split(at_once) for tensor in (gains.flatten(1, 2).to(weights.dtype), weights.mT, worth))
    for rows, columns, result in zip(*chunks, strict=True):
        scores = torch.bmm(rows, columns, out=buffer[: len(rows)])
        best = scores.unflatten(1, (rollouts, candidates)).amax(2).clamp_(min=0)
        torch.mean(best, dim=-1, out=result)
    return worth

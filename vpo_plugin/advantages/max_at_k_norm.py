"""`max_at_k_norm`: max@k as the authors of VPO compare with it, normalised in the group (arXiv 2605.22817)."""

from math import comb

import numpy as np
from jaxtyping import Float
from torch import Tensor

from vpo_plugin.advantages.batch import RewardBatch
from vpo_plugin.advantages.best_of_k import mean_by_rank, rollouts_of_best
from vpo_plugin.advantages.normalize import group_z_norm
from vpo_plugin.advantages.registry import register_advantage_estimator


@register_advantage_estimator("max_at_k_norm", normalize=None, candidates="one", takes_k=True)
def max_at_k_norm(batch: RewardBatch) -> Float[Tensor, "groups rollouts"]:
    """`E_S[max(r_i, max_{j in S} r_j)]`, with `S` any k-1 of the other rollouts and `r` the deployment reward, then
    z-normalised in the group.

    This is the estimator of Bagirov et al. (arXiv 2510.23393) without a baseline, followed by GRPO's normalisation. The
    authors' code differs only in its unbiased std; they use k = 4 of N = 8. Centring by the group is biased: it
    subtracts part of rollout i's own reward. Sorted, with 0-based ranks, a rollout has `(C(i, k-1) r_i + sum_{j > i}
    C(j-1, k-2) r_j) / C(N-1, k-1)`. Degenerate cases: equal rewards get 0; k = 1 is GRPO.

    Raises:
        ValueError: k below 1 or above N - 1 (with k = N all rollouts have the same best), or N below 2.
    """
    k, rollouts = rollouts_of_best(batch, fewer=1), batch.rewards.shape[1]
    sets = comb(rollouts - 1, k - 1)  # divides integers, which may be too large for a float
    own = [comb(i, k - 1) / sets for i in range(rollouts)]
    others = [comb(j - 1, k - 2) / sets if j > 0 and k > 1 else 0.0 for j in range(rollouts)]
    best = np.diag(own) + np.tril(np.repeat(np.array(others)[:, None], rollouts, 1), -1)  # of rank j, a row, to i < j
    return group_z_norm(mean_by_rank(batch.scalars().mean(-1)[:, None], best))

"""`gdpo`: group reward-decoupled normalization policy optimization (arXiv 2601.05242)."""

import torch
from jaxtyping import Float
from torch import Tensor

from vpo_plugin.advantages.batch import RewardBatch
from vpo_plugin.advantages.normalize import batch_z_norm, group_z_norm
from vpo_plugin.advantages.registry import register_advantage_estimator


@register_advantage_estimator("gdpo", normalize=batch_z_norm, candidates="one", relative=True)
def gdpo(batch: RewardBatch) -> Float[Tensor, "groups rollouts"]:
    """A rollout is worth `sum_j w_j z_j`, with `z_j` its reward on objective j, z-normalised in the group.

    Then the whole batch is normalised once. trl calls this `multi_objective_aggregation="normalize_then_sum"` and uses
    unbiased standard deviations and an epsilon of 1e-4; for groups of equal size only the epsilons make a difference.
    Degenerate cases: an objective without spread in a group adds 0 there; with one objective it is GRPO, up to the
    scale of the batch. The values are already relative to the group: their mean over the group is 0.
    """
    z = group_z_norm(batch.rewards.mean(2).mT)  # (G, k, N)
    return torch.einsum("gkn,gk->gn", z, batch.weights)

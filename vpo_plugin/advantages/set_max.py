"""`set_max`: the best of the set under the deployment weights, `vpo` without its random weightings."""

import torch
from jaxtyping import Float
from torch import Tensor

from vpo_plugin.advantages.batch import RewardBatch
from vpo_plugin.advantages.registry import register_advantage_estimator


@register_advantage_estimator("set_max", candidates="several")
def set_max(batch: RewardBatch) -> Float[Tensor, "groups rollouts"]:
    """A rollout is worth `max_s w·r_s` under the deployment weights `w` (the ablation of arXiv 2605.22817).

    If `w` is uniform, this is the limit of vpo for large alpha. Degenerate case: with one candidate it is GRPO. An
    absent candidate never wins; a rollout without candidates gets 0.
    """
    best = batch.scalars().masked_fill(~batch.candidates, -torch.inf).amax(-1)
    return torch.where(batch.candidates.any(-1), best, 0.0)

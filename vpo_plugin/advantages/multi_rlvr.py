"""`multi_rlvr`: sets of candidates under a fixed scalarization, the ablation of the max in `vpo` (arXiv 2605.22817)."""

from jaxtyping import Float
from torch import Tensor

from vpo_plugin.advantages.batch import RewardBatch
from vpo_plugin.advantages.registry import register_advantage_estimator


@register_advantage_estimator("multi_rlvr", candidates="several")
def multi_rlvr(batch: RewardBatch) -> Float[Tensor, "groups rollouts"]:
    """A rollout is worth `sum_s w·r_s`: each of its m candidates counts by itself, under the deployment weights `w`.

    Sets with the same scores get the same value, so nothing keeps candidates different. Degenerate case: with one
    candidate it is GRPO. An absent candidate adds 0.
    """
    return batch.scalars().sum(-1)

"""`grpo`: the host's GRPO, computed by the plugin; a plain check of the plumbing."""

from jaxtyping import Float
from torch import Tensor

from vpo_plugin.advantages.batch import RewardBatch
from vpo_plugin.advantages.normalize import group_norm
from vpo_plugin.advantages.registry import register_advantage_estimator


@register_advantage_estimator("grpo", normalize=group_norm)
def grpo(batch: RewardBatch) -> Float[Tensor, "groups rollouts"]:
    """A rollout is worth the mean over its m candidate slots of `w·r_s`, `w` the deployment weights: the host's reward.

    An absent candidate is a zero row among the m; an absent objective adds 0.
    """
    return batch.scalars().mean(-1)

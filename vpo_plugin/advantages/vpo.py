"""`vpo`: Vector Policy Optimization (Bahlous-Boldi et al., arXiv 2605.22817)."""

from jaxtyping import Float
from torch import Tensor

from vpo_plugin.advantages.batch import RewardBatch
from vpo_plugin.advantages.registry import register_advantage_estimator


@register_advantage_estimator("vpo", candidates="several")
def vpo(batch: RewardBatch) -> Float[Tensor, "groups rollouts"]:
    """A rollout is worth its set reward `E_{w ~ Dir(alpha)}[max_s w·r_s]`, whatever the deployment weights.

    Degenerate cases: with one candidate this is GRPO on the mean reward. If the objectives are nearly collinear, or one
    candidate dominates, it is the mean reward of the best candidate.
    """
    return batch.set_rewards

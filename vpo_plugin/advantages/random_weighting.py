"""`random_weighting`: one random scalarization for each group, single candidates (baseline of arXiv 2605.22817)."""

from jaxtyping import Float
from torch import Tensor

from vpo_plugin.advantages.batch import RewardBatch
from vpo_plugin.advantages.registry import register_advantage_estimator


@register_advantage_estimator("random_weighting", candidates="one")
def random_weighting(batch: RewardBatch) -> Float[Tensor, "groups rollouts"]:
    """A rollout is worth `w_g·r` with `w_g ~ Dir(alpha)`, one draw for all rollouts of group g.

    The draws of a batch are quasi-random: each is Dirichlet, and together they cover the simplex evenly. The policy
    does not know `w_g`, so in expectation it trains on the mean reward. `goal_conditioned` states `w_g` in the prompt.
    """
    return batch.scalars(batch.group_weights()).mean(-1)

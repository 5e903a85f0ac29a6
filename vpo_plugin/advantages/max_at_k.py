"""`max_at_k`: policy gradient of the expected best of k rollouts (PKPO, Walder & Karkhanis, arXiv 2505.15201).

For continuous rewards the objective is also known as max@k (Bagirov et al., arXiv 2510.23393).
"""

from jaxtyping import Float
from torch import Tensor

from vpo_plugin.advantages.batch import RewardBatch
from vpo_plugin.advantages.best_of_k import best_of_k
from vpo_plugin.advantages.registry import register_advantage_estimator


@register_advantage_estimator("max_at_k", normalize=None, candidates="one", takes_k=True)
def max_at_k(batch: RewardBatch) -> Float[Tensor, "groups rollouts"]:
    """`A_i = k · E_S[max(0, r_i - max_{j in S} r_j)]`, with `S` any k-1 of the other rollouts and `r_i` the deployment
    reward: `vpo_at_k` with single candidates and one fixed weighting.

    It is never below 0, and its mean over the group times `grad log p` is an unbiased estimate of the gradient of
    E[max of k rollouts]; see `gains_over_others`. Degenerate cases: equal rewards get 0; k = 1 is REINFORCE with the
    leave-one-out mean as its baseline.

    Raises:
        ValueError: k below 1 or above N, or N below 2.
    """
    return best_of_k(batch, batch.weights[:, None])

"""`RewardBatch`: the rewards of rollouts and the weights of their objectives, the only input of an estimator."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Real
from torch import Tensor

from vpo_plugin.advantages.set_reward import default_num_weights, set_rewards
from vpo_plugin.advantages.simplex import check_dirichlet, draw_seed, sample_log_gammas


@dataclass(eq=False)
class RewardBatch:
    """The checked reward matrices of a batch.

    Raises:
        ValueError: wrong shape, a mask that leaves out parts of candidates or objectives, a NaN or infinite
            reward that is not masked, alpha <= 0, or num_weights < 1.
    """

    matrices: Real[Tensor, "groups rollouts candidates objectives"]
    """Any real dtype, on any device. Masked values may be anything, even NaN."""
    mask: Bool[Tensor, "..."] | None = None
    """Broadcasts to the matrices, False = absent. It can leave out whole candidates of a rollout and whole objectives
    of a group. None: nothing is absent."""
    objective_weights: Sequence[float] | Float[Tensor, "groups objectives"] | None = None
    """Deployment weights, one per objective or a row for each group; None: equal weights in each group."""
    alpha: float = 1.0
    """Concentration of the Dirichlet distribution of the random weightings; 1 is uniform on the simplex."""
    num_weights: int | None = None
    """Number of random weightings for an expectation; None: `default_num_weights` of the objectives."""
    generator: torch.Generator | None = None
    """Seeds the random weightings, which stay the same for this batch; None: torch's global generator."""
    k: int | None = None
    """Number of rollouts of which the best counts, for estimators that use it; None: half of a group, at least 2."""
    rewards: Float[Tensor, "groups rollouts candidates objectives"] = field(init=False, repr=False)
    """The matrices in float64, 0 where absent."""
    candidates: Bool[Tensor, "groups rollouts candidates"] = field(init=False, repr=False)
    """Which candidates are present."""
    objectives: Bool[Tensor, "groups objectives"] = field(init=False, repr=False)
    """Which objectives are present; all of them in a group where everything is absent."""

    def __post_init__(self) -> None:
        self.rewards, self.candidates, self.objectives = _check(self.matrices, self.mask)
        check_dirichlet(self.alpha, self.number_of_weights, self.rewards.shape[-1])

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of advantages: float64 if the reward matrices are float64, else float32."""
        return torch.float64 if self.matrices.dtype == torch.float64 else torch.float32

    @property
    def number_of_weights(self) -> int:
        return default_num_weights(self.rewards.shape[-1]) if self.num_weights is None else self.num_weights

    @cached_property
    def weights(self) -> Float[Tensor, "groups objectives"]:
        """The deployment weights of each group.

        Raises:
            ValueError: the weights are neither one per objective nor one per group and objective.
        """
        shape = self.objectives.shape
        if self.objective_weights is None:
            return self.objectives / self.objectives.sum(-1, keepdim=True, dtype=torch.float64)
        weights = torch.as_tensor(self.objective_weights, dtype=torch.float64, device=self.objectives.device)
        if weights.shape not in (shape, shape[1:]):
            raise ValueError(
                f"objective_weights must be one per objective: {shape[1]}, but are {weights.shape[-1]}."
                if weights.ndim == 1
                else f"objective_weights must be {tuple(shape)}, a row for each group, but are {tuple(weights.shape)}."
            )
        return weights.expand(shape)

    def scalars(
        self, weights: Float[Tensor, "groups objectives"] | None = None
    ) -> Float[Tensor, "groups rollouts candidates"]:
        """`w·r_s` of every candidate, by default under the deployment weights; 0 where a candidate is absent."""
        return torch.einsum("gnmk,gk->gnm", self.rewards, self.weights if weights is None else weights)

    def group_weights(self) -> Float[Tensor, "groups objectives"]:
        """One `w ~ Dir(alpha)` per group, on its present objectives; together they cover the simplex evenly."""
        return self._log_gammas(len(self.objectives)).masked_fill(~self.objectives, -torch.inf).softmax(-1)

    def random_weights(self, number: int | None = None) -> Float[Tensor, "groups weightings objectives"]:
        """Quasi-random `w ~ Dir(alpha)`, the same for all groups with the same objectives, in the batch's dtype.

        They are scaled to have the exact mean, so that expectations of linear functions of `w` are exact.
        """
        present, pattern = self.objectives.unique(dim=0, return_inverse=True)
        log_gammas = self._log_gammas(number or self.number_of_weights).to(self.dtype)
        weights = log_gammas.masked_fill(~present[:, None], -torch.inf).softmax(-1)  # (patterns, W, k)
        mean = weights.mean(1, keepdim=True) * present.sum(-1)[:, None, None]
        weights = weights / mean.masked_fill(~present[:, None], 1.0)
        return weights.expand(len(self.rewards), -1, -1) if len(present) == 1 else weights[pattern]

    @cached_property
    def set_rewards(self) -> Float[Tensor, "groups rollouts"]:
        """Set reward `E_{w ~ Dir(alpha)}[max_s w·r_s]` of every rollout (arXiv 2605.22817), computed once.

        An absent candidate never wins; a rollout without candidates gets 0. `vpo_plugin.advantages.set_reward` says
        which cases are exact and which are quasi-random.
        """
        uniform = self.alpha == 1.0
        worth = set_rewards(self.rewards, self.candidates, self.objectives, self.random_weights, uniform=uniform)
        return worth.to(self.dtype)

    @cached_property
    def _seed(self) -> int:
        return draw_seed(self.generator)

    def _log_gammas(self, number: int) -> Float[Tensor, "number objectives"]:
        objectives = self.rewards.shape[-1]
        return sample_log_gammas(number, objectives, alpha=self.alpha, seed=self._seed).to(self.rewards.device)


def _check(
    matrices: Real[Tensor, "groups rollouts candidates objectives"], mask: Bool[Tensor, "..."] | None
) -> tuple[
    Float[Tensor, "groups rollouts candidates objectives"],
    Bool[Tensor, "groups rollouts candidates"],
    Bool[Tensor, "groups objectives"],
]:
    """`rewards`, `candidates` and `objectives` of a `RewardBatch`."""
    shape = tuple(matrices.shape)
    if len(shape) != 4 or 0 in shape:
        raise ValueError(
            "reward_matrices must have the shape (groups, rollouts, candidates, objectives), "
            f"each at least 1, but has {shape}."
        )
    if matrices.is_complex():
        raise ValueError(f"reward_matrices must hold real numbers, but are {matrices.dtype}.")
    rewards = matrices.detach().to(torch.float64)
    if mask is None:
        _check_finite(rewards)
        present = torch.ones_like(rewards, dtype=torch.bool)
        return rewards, present[..., 0], present[:, 0, 0]

    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be a bool tensor (True = present), but is {mask.dtype}.")
    try:
        mask = mask.to(rewards.device).broadcast_to(shape)
    except RuntimeError:
        raise ValueError(f"mask {tuple(mask.shape)} does not broadcast to reward_matrices {shape}.") from None
    candidates, objectives = mask.any(-1), mask.any(2).any(1)
    broken = (candidates[..., None] & objectives[:, None, None]) != mask
    if broken.any():
        raise ValueError(
            "mask may leave out whole candidates of a rollout and whole objectives of a group, but the "
            f"candidates of group {broken.nonzero()[0, 0].item()} differ in their objectives."
        )
    rewards = rewards.masked_fill(~mask, 0.0)
    _check_finite(rewards)
    return rewards, candidates, objectives | ~objectives.any(-1, keepdim=True)


def _check_finite(rewards: Float[Tensor, "groups rollouts candidates objectives"]) -> None:
    broken = (~rewards.isfinite()).nonzero()
    if len(broken):
        group, rollout, candidate, objective = broken[0].tolist()
        raise ValueError(
            f"The reward of group {group}, rollout {rollout}, candidate {candidate}, objective {objective} "
            f"is {rewards[group, rollout, candidate, objective].item()}; {len(broken)} of {rewards.numel()} "
            "rewards are not finite. Fix the scorer, or leave the candidate or objective out with the mask."
        )

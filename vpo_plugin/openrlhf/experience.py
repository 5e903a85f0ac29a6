"""From reward matrices to advantages, inside the host's trainer.

Wraps ``RemoteExperienceMaker.compute_advantages_and_returns`` (OpenRLHF 0.11, experience_maker.py): the matrices that
the agent executor sent along are taken out of the experiences, the estimator turns them into one advantage a rollout,
and the host, told of no baseline of its own, carries them to the tokens with its own KL, clipping and returns.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from openrlhf.trainer.ppo_utils.length_penalty import apply_length_penalties
from torch import Tensor

from vpo_plugin.advantages import advantage_estimator_names, get_advantage_estimator, goal_weights, set_rewards
from vpo_plugin.openrlhf.log import log_rollouts
from vpo_plugin.openrlhf.matrices import INFO_KEY, stack_groups, unpack
from vpo_plugin.openrlhf.settings import current_settings
from vpo_plugin.rewards import RewardSpec, load_spec

NO_SPREAD = 1e-6
"""Standard deviation in a group below which its rollouts count as equal."""


def compute_advantages_and_returns(maker: Any, experiences: list[Any], host: Callable[..., list[Any]]) -> list[Any]:
    """Compute the advantages of one batch with the estimator that ``--advantage`` names.

    An estimator of the host gets the batch as the host made it; the plugin's metrics are added all the same.

    Args:
        maker: the host's ``RemoteExperienceMaker``, with ``global_step`` set (0-based).
        experiences: the host's micro-batches. ``info["reward_matrix"]`` holds packed matrices; ``index`` maps rows to
            prompt order, in which groups are consecutive runs of ``n_samples_per_prompt``.
        host: the wrapped method.

    Returns:
        The experiences, with ``advantages`` and ``returns`` of shape (rows, tokens).
    """
    args = maker.args
    spec = load_spec(str(current_settings().spec))
    batch = Batch(experiences)
    packed = [row for experience in experiences for row in experience.info.pop(INFO_KEY).flatten(1)]
    in_prompt_order = [unpack(packed[i]) for i in batch.order.argsort().tolist()]
    matrices, mask = stack_groups(in_prompt_order, args.rollout.n_samples_per_prompt)

    def weighting() -> dict[str, Any]:
        """The same random weightings at each call: those of this step."""
        generator = torch.Generator().manual_seed(args.vpo.seed * 2**20 + maker.global_step)
        return {"alpha": args.vpo.alpha, "num_weights": args.vpo.num_weights, "generator": generator}

    batch.log(set_metrics(spec, matrices, mask))
    batch.log({"set_reward": set_rewards(matrices, mask=mask, **weighting())})

    name = args.algo.advantage.estimator
    if name not in advantage_estimator_names():
        return host(maker, experiences)

    estimator = get_advantage_estimator(name, k=args.vpo.k)
    weights: Any = spec.objective_weights
    if estimator.weights_in_prompt:
        labels = batch.labels[:: args.rollout.n_samples_per_prompt]
        goals = [goal_weights(label, matrices.shape[-1], alpha=args.vpo.alpha, seed=args.vpo.seed) for label in labels]
        weights = torch.tensor(goals)
    worth = estimator.rollout_rewards(matrices, mask=mask, objective_weights=weights, **weighting())

    # The host's length penalties act on the scalar reward that it logs, and on what a rollout is worth here.
    batch.rewards = batch.rewards.float()
    apply_length_penalties(experiences, args)
    logged = batch.rewards
    batch.rewards = worth.flatten()
    apply_length_penalties(experiences, args)
    worth = batch.rewards.view_as(worth)

    advantages = estimator.normalize(worth)
    batch.rewards = advantages.flatten()
    with host_passes_through(maker):
        experiences = host(maker, experiences)

    batch.rewards = logged
    spread = worth.std(-1, keepdim=True).expand_as(worth)  # unbiased, as the host logs it
    batch.log({"reward": logged, "group_reward_std": spread, "zero_spread": (spread < NO_SPREAD).float()})
    log_rollouts(
        current_settings().log_dir,
        maker.global_step + 1,
        reward_matrices=matrices.numpy(),
        mask=torch.ones_like(matrices, dtype=torch.bool).numpy() if mask is None else mask.numpy(),
        rollout_rewards=worth.numpy(),
        advantages=advantages.numpy(),
        token_advantages=batch.token_means("advantages").view_as(worth).numpy(),
        prompts=np.array([fingerprint(prompt) for prompt in batch.prompts[:: args.rollout.n_samples_per_prompt]]),
    )
    return experiences


class Batch:
    """The host's micro-batches seen as one batch in prompt order, where groups are consecutive rows."""

    def __init__(self, experiences: list[Any]) -> None:
        self.experiences = experiences
        self.order = torch.tensor([row for experience in experiences for row in experience.index])
        self.sizes = [len(experience.index) for experience in experiences]

    def _gather(self, parts: list[Tensor]) -> Tensor:
        values = torch.cat(parts)
        gathered = torch.empty_like(values)
        gathered[self.order] = values
        return gathered

    def _split(self, values: Tensor) -> list[Tensor]:
        return [part.clone() for part in values.flatten()[self.order].split(self.sizes)]

    @property
    def labels(self) -> list[Any]:
        """The prompts' labels, one a rollout."""
        return self._in_order([label for experience in self.experiences for label in experience.labels])

    @property
    def prompts(self) -> list[str]:
        """The prompts as the policy reads them, one a rollout."""
        return self._in_order([prompt for experience in self.experiences for prompt in experience.prompts])

    def _in_order(self, values: list[Any]) -> list[Any]:
        return [values[i] for i in self.order.argsort().tolist()]

    @property
    def rewards(self) -> Tensor:
        """One reward a rollout, shape (rollouts,)."""
        return self._gather([experience.rewards for experience in self.experiences])

    @rewards.setter
    def rewards(self, values: Tensor) -> None:
        for experience, part in zip(self.experiences, self._split(values), strict=True):
            experience.rewards = part

    def log(self, metrics: dict[str, Tensor]) -> None:
        """Add metrics, one value a rollout, to what the host averages and logs."""
        for key, values in metrics.items():
            for experience, part in zip(self.experiences, self._split(values), strict=True):
                experience.info[key] = part

    def token_means(self, field: str) -> Tensor:
        """Mean of a per-token field over each rollout's response tokens, shape (rollouts,)."""
        means = []
        for experience in self.experiences:
            mask = experience.action_mask
            means.append((getattr(experience, field) * mask).sum(-1) / mask.sum(-1).clamp(min=1))
        return self._gather(means)


def fingerprint(prompt: str) -> str:
    """A few digits that tell prompts apart, for the log."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


def set_metrics(spec: RewardSpec, matrices: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
    """What a person wants to see of the sets, each of shape (groups, rollouts).

    ``reward_best``: the best candidate under the deployment weights. ``set_diversity``, ``group_diversity``: distance
    between two candidates of a rollout, and of a prompt. ``objective/<key>``: mean over the set, and over all of a
    prompt's objectives where they are ragged.
    """
    present = torch.ones_like(matrices, dtype=torch.bool) if mask is None else mask
    counts = present.any(2).any(1).sum(-1)[:, None]  # objectives of each group, (groups, 1)
    if spec.objective_weights is None:
        scalars = matrices.sum(-1) / counts[..., None]
    else:
        scalars = matrices @ torch.tensor(spec.objective_weights)
    padding = matrices.shape[-1] / counts  # absent objectives are columns of zeros in a mean distance
    metrics = {
        "reward_best": scalars.masked_fill(~present.any(-1), float("-inf")).amax(-1),
        "set_diversity": mean_distance(matrices) * padding,
        "group_diversity": (mean_distance(matrices.flatten(1, 2))[:, None] * padding).expand(matrices.shape[:2]),
    }
    if spec.ragged:
        means = matrices.sum((2, 3)) / present.sum((2, 3)).clamp(min=1)
        return metrics | {f"objective/{spec.ragged.prefix}": means}
    means = matrices.sum(2) / present.sum(2).clamp(min=1)
    return metrics | {f"objective/{key}": means[..., i] for i, key in enumerate(spec.objective_keys)}


def mean_distance(vectors: Tensor) -> Tensor:
    """Mean L1 distance of two reward vectors, over the objectives: (..., n, k) -> (...), 0 for n = 1."""
    n = vectors.shape[-2]
    pairs_won_minus_lost = 2.0 * torch.arange(n) - (n - 1)  # by the i-th smallest value, against the others
    distances = (vectors.sort(-2).values * pairs_won_minus_lost[:, None]).sum(-2).mean(-1)
    return distances / max(n * (n - 1) / 2, 1)


@contextmanager
def host_passes_through(maker: Any) -> Iterator[None]:
    """Let the host carry the rewards that are there to the tokens as they are: no penalty, no baseline of its own.

    The host reads the estimator's name twice. In its arguments it picks the baseline, and stays: for a name that the
    host does not know there is none. In the maker it picks the way to the tokens, the same for all without a critic.
    """
    reward = maker.args.reward
    saved = maker.advantage_estimator, reward.overlong_buffer_len, reward.stop_properly_penalty_coef
    maker.advantage_estimator = "dr_grpo"
    reward.overlong_buffer_len = reward.stop_properly_penalty_coef = None
    try:
        yield
    finally:
        maker.advantage_estimator, reward.overlong_buffer_len, reward.stop_properly_penalty_coef = saved

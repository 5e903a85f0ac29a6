"""Turn reward matrices into advantages inside the host's trainer.

Wraps `RemoteExperienceMaker.compute_advantages_and_returns` (OpenRLHF 0.11, experience_maker.py): takes the agent
executor's matrices out of the experiences; the estimator turns them into one advantage per rollout. The host puts the
advantages on the tokens with its own KL, clipping and returns, but without its baseline.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from openrlhf.trainer.ppo_utils.length_penalty import apply_length_penalties
from torch import Tensor

from vpo_plugin.advantages import RewardBatch, advantage_estimator_names, get_advantage_estimator, goal_weights
from vpo_plugin.advantages.normalize import NO_SPREAD
from vpo_plugin.metrics import mean_pairwise_l1
from vpo_plugin.openrlhf.log import log_rollouts, log_texts
from vpo_plugin.openrlhf.matrices import INFO_KEY, stack_groups, unpack
from vpo_plugin.openrlhf.settings import current_settings
from vpo_plugin.rewards import RewardSpec, load_spec
from vpo_plugin.rewards.candidates import opened_thought
from vpo_plugin.rewards.formats import parse

load_once = cache(load_spec)


def patch_experience_maker(module: Any) -> None:
    """Wrap `compute_advantages_and_returns` of the host's `RemoteExperienceMaker`."""
    original = module.RemoteExperienceMaker.compute_advantages_and_returns

    def compute(self: Any, experiences: list[Any]) -> list[Any]:
        return compute_advantages_and_returns(self, experiences, original)

    module.RemoteExperienceMaker.compute_advantages_and_returns = compute


def compute_advantages_and_returns(maker: Any, experiences: list[Any], host: Callable[..., list[Any]]) -> list[Any]:
    """Compute the advantages of one batch with the estimator that `--advantage` names.

    An estimator of the host gets the unchanged batch; the plugin still adds its metrics and logs.

    Args:
        maker: the host's `RemoteExperienceMaker`, with `global_step` set (0-based).
        experiences: the host's micro-batches. `info["reward_matrix"]` holds packed matrices; `index` maps rows to
            prompt order, in which groups are consecutive runs of `n_samples_per_prompt`.
        host: the wrapped method.

    Returns:
        The experiences, with `advantages` and `returns` of shape (rows, tokens). With an estimator of the plugin,
        `rewards` hold its advantages; after this, the host reads only `info["reward"]`.
    """
    args, spec = maker.args, load_once(str(current_settings().spec))
    batch = Batch(experiences, args.rollout.n_samples_per_prompt)
    packed = batch.in_order([row for experience in experiences for row in experience.info.pop(INFO_KEY).flatten(1)])
    matrices, mask = stack_groups([unpack(row) for row in packed], batch.rollouts)
    labels, step = batch.of_prompts("labels"), maker.global_step
    rewards = reward_batch(args, spec, matrices, mask, labels, step=step)
    batch.log(set_metrics(spec, matrices, mask) | {"set_reward": rewards.set_rewards})

    # The host's length penalties apply to the scalar reward that it logs and to the estimator's values.
    scalars = batch.penalized(batch.gather([experience.rewards.float() for experience in experiences]), args)
    name = args.algo.advantage.estimator
    if name not in advantage_estimator_names():
        experiences = host(maker, experiences)
        log_batch(maker, batch, spec, matrices, mask, scalars, scalars, batch.token_means("advantages"))
        return experiences

    estimator = get_advantage_estimator(name)
    if estimator.normalize is None:
        worth = scalars
        advantages = estimator(reward_batch(args, spec, batch.penalized(matrices, args), mask, labels, step=step))
    else:
        worth = batch.penalized(estimator.values(rewards), args)
        advantages = estimator.normalize(worth)
    with host_passes_through(maker):
        for experience, part in zip(experiences, batch.split(advantages), strict=True):
            experience.rewards = part
        experiences = host(maker, experiences)

    spread = worth.std(-1, keepdim=True).expand_as(worth)  # unbiased, as the host logs it
    equal = (advantages.abs().amax(-1, keepdim=True) < NO_SPREAD).expand_as(worth)
    maker.groups_used = int((equal[:, 0] == 0).sum())
    batch.log({"reward": scalars, "group_reward_std": spread, "zero_spread": equal.float()})
    log_batch(maker, batch, spec, matrices, mask, scalars, worth, advantages)
    return experiences


def log_batch(
    maker: Any,
    batch: "Batch",
    spec: RewardSpec,
    matrices: Float[Tensor, "groups rollouts candidates objectives"],
    mask: Bool[Tensor, "groups rollouts candidates objectives"] | None,
    scalars: Float[Tensor, "groups rollouts"],
    worth: Float[Tensor, "groups rollouts"],
    advantages: Float[Tensor, "groups rollouts"],
) -> None:
    """Save the batch's rewards and advantages, and the texts of a few prompts.

    Args:
        scalars: the host's scalar rewards.
        worth: what the estimator values, the scalar reward for an estimator of the host.
        advantages: of the rollouts; the mean over the tokens for an estimator of the host.
    """
    log_dir, step, log_prompts = current_settings().log_dir, maker.global_step + 1, maker.args.vpo.log_prompts
    log_rollouts(
        log_dir,
        step,
        reward_matrices=matrices.numpy(),
        mask=torch.ones_like(matrices, dtype=torch.bool).numpy() if mask is None else mask.numpy(),
        rollout_rewards=worth.numpy(),
        advantages=advantages.numpy(),
        token_advantages=batch.token_means("advantages").numpy(),
        prompts=np.array([sha256(prompt.encode()).hexdigest()[:16] for prompt in batch.of_prompts("prompts")]),
    )
    texts = batch.texts(maker.tokenizer, len(worth) if log_prompts < 0 else log_prompts)
    rows = zip(matrices.flatten(0, 1), scalars.flatten(), worth.flatten(), advantages.flatten(), strict=True)
    log_texts(
        log_dir,
        step,
        [
            {
                "prompt": prompt,
                "response": response,
                "candidates": candidates_of(spec, opened_thought(prompt) + response, len(matrix)),
                "rewards": matrix.tolist(),
                "reward": float(reward),
                "rollout_reward": float(value),
                "advantage": float(advantage),
            }
            for (prompt, response), (matrix, reward, value, advantage) in zip(texts, rows, strict=False)
        ],
    )


def candidates_of(spec: RewardSpec, response: str, rows: int) -> list[str | None]:
    """The candidates of a response, one per row of its reward matrix; None where the user's code gave the rewards."""
    run = current_settings()
    return [None] * rows if run.own_agent or run.own_reward else parse(spec, response, rows)


def reward_batch(
    args: Any,
    spec: RewardSpec,
    matrices: Float[Tensor, "groups rollouts candidates objectives"],
    mask: Bool[Tensor, "groups rollouts candidates objectives"] | None,
    labels: Sequence[Any],
    *,
    step: int,
) -> RewardBatch:
    """The estimator's input: the matrices with the weights of the run, or with the weights that each prompt states.

    Args:
        args: the host's arguments.
        spec: the specification of the run.
        matrices: the rewards.
        mask: which rewards are present; None for all.
        labels: one per group.
        step: selects the random weightings (0-based).
    """
    name = args.algo.advantage.estimator
    weights: Any = spec.objective_weights
    if name in advantage_estimator_names() and get_advantage_estimator(name).weights_in_prompt:
        goals = [goal_weights(label, matrices.shape[-1], alpha=args.vpo.alpha, seed=args.vpo.seed) for label in labels]
        weights = torch.tensor(goals)
    return RewardBatch(
        matrices,
        mask,
        weights,
        alpha=args.vpo.alpha,
        num_weights=args.vpo.num_weights,
        generator=torch.Generator().manual_seed(args.vpo.seed * 2**20 + step),
        k=args.vpo.k,
    )


class Batch:
    """The host's micro-batches seen as one batch in prompt order, where groups are consecutive rows."""

    def __init__(self, experiences: list[Any], rollouts: int) -> None:
        self.experiences = experiences
        self.rollouts = rollouts
        """Rollouts of a prompt."""
        self.order = torch.tensor([row for experience in experiences for row in experience.index])
        self.sizes = [len(experience.index) for experience in experiences]

    def in_order(self, values: Sequence[Any]) -> list[Any]:
        """Values, one per row of the micro-batches, in prompt order."""
        return [values[i] for i in self.order.argsort().tolist()]

    def of_prompts(self, field: str) -> list[Any]:
        """A list field of the experiences, one value per prompt."""
        return self.in_order([one for experience in self.experiences for one in getattr(experience, field)])[
            :: self.rollouts
        ]

    def texts(self, tokenizer: Any, prompts: int) -> list[tuple[str, str]]:
        """Prompt and response of each rollout of the first few prompts, in prompt order."""
        rows = [
            (prompt, tokens[1:][mask.bool()])
            for experience in self.experiences
            for prompt, tokens, mask in zip(
                experience.prompts, experience.sequences, experience.action_mask, strict=True
            )
        ]
        chosen = self.in_order(rows)[: prompts * self.rollouts]
        end = getattr(getattr(tokenizer, "tokenizer", tokenizer), "eos_token", None) or ""  # or a processor's
        return [
            (prompt, tokenizer.decode(tokens, skip_special_tokens=False).removesuffix(end)) for prompt, tokens in chosen
        ]

    def gather(self, parts: Sequence[Float[Tensor, "rows *more"]]) -> Float[Tensor, "groups rollouts *more"]:
        """Join the tensors of the micro-batches into one in prompt order, on the CPU."""
        return torch.cat([part.cpu() for part in parts])[self.order.argsort()].unflatten(0, (-1, self.rollouts))

    def split(self, values: Float[Tensor, "groups rollouts *more"]) -> list[Float[Tensor, "rows *more"]]:
        """The opposite of `gather`: one tensor per micro-batch, on its device."""
        parts = values.flatten(0, 1)[self.order].split(self.sizes)
        return [part.clone().to(one.action_mask.device) for one, part in zip(self.experiences, parts, strict=True)]

    def penalized(
        self, values: Float[Tensor, "groups rollouts *more"], args: Any
    ) -> Float[Tensor, "groups rollouts *more"]:
        """The values after the host's length penalties, which shift, scale or replace all values of a rollout alike."""
        rows = [
            SimpleNamespace(rewards=part, info={}, response_length=one.response_length, truncated=one.truncated)
            for one, part in zip(self.experiences, self.split(values), strict=True)
        ]
        apply_length_penalties(rows, args)
        return self.gather([row.rewards for row in rows])

    def log(self, metrics: dict[str, Float[Tensor, "groups rollouts"]]) -> None:
        """Add metrics to what the host averages and logs."""
        for key, values in metrics.items():
            for experience, part in zip(self.experiences, self.split(values), strict=True):
                experience.info[key] = part

    def token_means(self, field: str) -> Float[Tensor, "groups rollouts"]:
        """Mean of a per-token field over each rollout's response tokens."""
        means = []
        for experience in self.experiences:
            mask = experience.action_mask
            means.append((getattr(experience, field).float() * mask).sum(-1) / mask.sum(-1).clamp(min=1))
        return self.gather(means)


def set_metrics(
    spec: RewardSpec,
    matrices: Float[Tensor, "groups rollouts candidates objectives"],
    mask: Bool[Tensor, "groups rollouts candidates objectives"] | None,
) -> dict[str, Float[Tensor, "groups rollouts"]]:
    """Metrics of the candidate sets, for the log.

    `reward_best`: reward of the best candidate under the deployment weights. `set_diversity`, `group_diversity`: mean
    L1 distance between two candidates of a rollout, or of a prompt. `objective/<key>`: mean over the set, and over all
    objectives of a prompt if they are ragged.
    """
    batch = RewardBatch(matrices, mask, spec.objective_weights)
    shape, scalars = matrices.shape[:2], batch.scalars()
    counts = batch.candidates.sum(-1).clamp(min=1)
    of_sets, of_groups = (
        torch.from_numpy(mean_pairwise_l1(batch.rewards.flatten(*axes), batch.candidates.flatten(*axes)))
        for axes in ((0, 1), (1, 2))
    )
    metrics = {
        "reward_best": scalars.masked_fill(~batch.candidates, float("-inf")).amax(-1),
        "set_diversity": of_sets.view(shape),
        "group_diversity": of_groups[:, None].expand(shape),
    }
    if spec.ragged:
        metrics[f"objective/{spec.ragged.prefix}"] = scalars.sum(-1) / counts
    else:
        means = (batch.rewards.sum(2) / counts[..., None]).unbind(-1)
        metrics |= {f"objective/{key}": mean for key, mean in zip(spec.objective_keys, means, strict=True)}
    return {key: values.to(batch.dtype) for key, values in metrics.items()}


@contextmanager
def host_passes_through(maker: Any) -> Iterator[None]:
    """Let the host put the rewards on the tokens unchanged, without its penalties and baseline.

    The host reads the estimator's name twice. The one in its arguments selects the baseline: it stays, as the host has
    none for an unknown name. The one in the maker selects how rewards reach the tokens, the same without a critic.
    """
    reward = maker.args.reward
    saved = maker.advantage_estimator, reward.overlong_buffer_len, reward.stop_properly_penalty_coef
    maker.advantage_estimator = "dr_grpo"
    reward.overlong_buffer_len = reward.stop_properly_penalty_coef = None
    try:
        yield
    finally:
        maker.advantage_estimator, reward.overlong_buffer_len, reward.stop_properly_penalty_coef = saved

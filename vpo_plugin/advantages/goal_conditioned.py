"""`goal_conditioned`: each prompt states random objective weights, and the reward uses the same weights."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

from vpo_plugin.advantages.batch import RewardBatch
from vpo_plugin.advantages.registry import register_advantage_estimator


@register_advantage_estimator("goal_conditioned", candidates="one", weights_in_prompt=True)
def goal_conditioned(batch: RewardBatch) -> Float[Tensor, "groups rollouts"]:
    """A rollout is worth `w_g·r` with the weights `w_g` that prompt g states (baseline of arXiv 2605.22817).

    Different processes write prompts and compute rewards. Both have the row's label, and `goal_weights` turns it into
    `w_g`. The batch's `objective_weights`, `(G, k)`, hold these weights.
    Degenerate case: with the deployment weights, `(k,)`, it is GRPO.
    """
    return batch.scalars().mean(-1)


def goal_weights(label: object, objectives: int, *, alpha: float = 1.0, seed: int = 0) -> list[float]:
    """The weights that the prompt with this label states: `objectives` hundredths that sum to 1, near `Dir(alpha)`.

    The result depends only on the arguments: a hash of `seed` and the label (as JSON, if it is not text) seeds the
    draw. Rows with the same label share their weights, and a row keeps them in every epoch. Whole hundredths let the
    prompt state the weights exactly.
    """
    text = label if isinstance(label, str) else json.dumps(label, sort_keys=True)
    digest = hashlib.sha256(f"{seed}\n{text}".encode()).digest()
    shares = 100 * np.random.default_rng(int.from_bytes(digest[:8], "big")).dirichlet([alpha] * objectives)
    hundredths = np.floor(shares)
    missing = round(100 - hundredths.sum())
    hundredths[np.argsort(hundredths - shares)[:missing]] += 1  # to the largest remainders
    return [share / 100 for share in hundredths.tolist()]


def write_goal(prompt: str, objective_keys: Sequence[str], weights: Sequence[float]) -> str:
    """The prompt and a line that states the weights, such as `Objective weights: gold 0.25, lava 0.75.`"""
    goal = ", ".join(f"{key} {weight:.2f}" for key, weight in zip(objective_keys, weights, strict=True))
    return f"{prompt.rstrip()}\nObjective weights: {goal}.\n"

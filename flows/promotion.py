"""Whether a challenger takes the champion's place: a paired comparison on the same held-out prompts."""

from typing import Any

import numpy as np
from pydantic import BaseModel

from flows.settings import RetrainSettings
from vpo_plugin.rewards import RewardSpec
from vpo_plugin.rewards.task import best_reward
from vpo_plugin.search.metrics import best_at_k, paired_difference, pass_at_k
from vpo_plugin.search.pool import Pool


class Change(BaseModel):
    """One metric of both policies, means over the same prompts, and the challenger's gain with its 95 % interval."""

    champion: float
    challenger: float
    mean: float
    low: float
    high: float


class Decision(BaseModel):
    """What the comparison says."""

    promote: bool
    reason: str
    changes: dict[str, Change]


def decide(
    champion: Pool, challenger: Pool, spec: RewardSpec, rows: list[dict[str, Any]], settings: RetrainSettings
) -> Decision:
    """Promote if best@deployment_k is better by more than the margin and no guarded metric falls too far.

    Better means that the lower end of the paired bootstrap's 95 % interval lies above ``settings.margin``. Guarded are
    pass@1 and the share of candidates that could be read; their mean may fall by their allowance at most.

    Args:
        champion, challenger: pools of the same prompts, ``rows``.

    Raises:
        ValueError: the pools hold different prompts, or fewer than ``deployment_k`` candidates a prompt.
    """
    k = settings.deployment_k
    before, after = (_per_prompt(pool, spec, rows, k) for pool in (champion, challenger))
    changes = {
        name: Change(
            champion=before[name].mean(),
            challenger=after[name].mean(),
            **paired_difference(after[name], before[name], seed=settings.seed),
        )
        for name in before
    }
    gain = changes[f"best@{k}"]
    allowances = {"pass@1": settings.pass_at_1_allowance, "format rate": settings.format_allowance}
    fallen = [
        f"{name} falls by {-changes[name].mean:.3f}, beyond its allowance of {allowance:.3f}"
        for name, allowance in allowances.items()
        if changes[name].mean < -allowance - 1e-9
    ]
    interval = f"best@{k} {gain.mean:+.3f} (95 % interval {gain.low:+.3f} to {gain.high:+.3f})"
    better = gain.low > settings.margin
    if better and not fallen:
        reason = f"{interval} lies above the margin of {settings.margin:+.3f}, and no guarded metric falls too far."
    elif better:
        reason = f"{interval} lies above the margin of {settings.margin:+.3f}, but {' and '.join(fallen)}."
    else:
        reason = f"{interval} does not lie above the margin of {settings.margin:+.3f}."
    return Decision(promote=better and not fallen, reason=reason, changes=changes)


def _per_prompt(pool: Pool, spec: RewardSpec, rows: list[dict[str, Any]], k: int) -> dict[str, np.ndarray]:
    """Each metric for each prompt, shape (prompts,)."""
    prompts, rollouts, m, _ = pool.reward_matrices.shape
    if prompts != len(rows):
        raise ValueError(f"The pool holds {prompts} prompts, {len(rows)} were held out.")
    rewards, solved = [], []
    for matrix, row in zip(pool.candidates.astype(float), rows, strict=True):
        matrix = matrix[:, ~np.isnan(matrix[0])]
        rewards.append(matrix @ spec.weights_of(matrix.shape[1]))
        best = best_reward(spec, row["label"])
        solved.append(rewards[-1] >= spec.solved * (1.0 if best is None else best) - 1e-6)
    parsed = np.zeros(prompts)
    for response in pool.responses:
        parsed[response["prompt"]] += response["parsed"]
    return {
        f"best@{k}": best_at_k(rewards, [k])[:, 0],
        "pass@1": pass_at_k(np.array(solved), [1])[:, 0],
        "format rate": parsed / (rollouts * m),
    }


def table(decision: Decision, names: tuple[str, str]) -> str:
    """The comparison as a Markdown table."""
    lines = [
        f"| metric | champion {names[0]} | challenger {names[1]} | change | 95 % interval |",
        "|---|--:|--:|--:|--:|",
    ]
    for metric, c in decision.changes.items():
        lines.append(
            f"| {metric} | {c.champion:.3f} | {c.challenger:.3f} | {c.mean:+.3f} | {c.low:+.3f} to {c.high:+.3f} |"
        )
    return "\n".join(lines)

"""Decide whether a challenger replaces the champion: a paired comparison on the same held-out prompts."""

from collections.abc import Callable
from typing import Any

import numpy as np
from pydantic import BaseModel

from flows.settings import RetrainSettings
from vpo_plugin.report.tables import markdown_table, number
from vpo_plugin.rewards import RewardSpec
from vpo_plugin.search.comparison import Comparison, Measured
from vpo_plugin.search.pool import Pool


class Change(BaseModel):
    """One metric of both policies, means over the same prompts, and the challenger's gain with its 95 % interval."""

    champion: float
    challenger: float
    mean: float
    low: float
    high: float


class Decision(BaseModel):
    """The result of the comparison."""

    promote: bool
    reason: str
    changes: dict[str, Change]


def decide(
    champion: Pool, challenger: Pool, spec: RewardSpec, rows: list[dict[str, Any]], settings: RetrainSettings
) -> Decision:
    """Promote if best@deployment_k is better by more than the margin and no guarded metric falls too far.

    Better means that the lower end of the paired bootstrap's 95 % interval lies above `settings.margin`. The guarded
    metrics are pass@1 and the share of readable candidates; their means may fall by at most their allowances.

    Args:
        champion, challenger: pools of the same prompts, `rows`.

    Raises:
        ValueError: the pools hold different prompts, or fewer than `deployment_k` candidates per prompt.
    """
    k = settings.deployment_k
    if len(champion.reward_matrices) != len(rows):
        raise ValueError(f"The pool holds {len(champion.reward_matrices)} prompts, but {len(rows)} were held out.")
    compared = Comparison({("champion", 0): champion, ("challenger", 0): challenger}, spec, rows)
    if k not in compared.ks:
        raise ValueError(f"best@{k} needs {k} candidates per prompt, but the pools have {compared.ks[-1]} in common.")
    measures: dict[str, Callable[[Measured], np.ndarray]] = {
        f"best@{k}": lambda m: m.best_at_k[..., k - 1],
        "pass@1": lambda m: m.pass_at_k[..., 0],
        "format rate": lambda m: m.parsed,
    }
    changes = {
        name: Change(
            **{policy: measure(compared.policies[policy]).mean() for policy in compared.policies},
            **compared.ahead("challenger", "champion", measure),
        )
        for name, measure in measures.items()
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


def table(decision: Decision, names: tuple[str, str]) -> str:
    """The comparison as a Markdown table."""
    return markdown_table(
        ["metric", f"champion {names[0]}", f"challenger {names[1]}", "change", "95 % interval"],
        [
            [metric, number(c.champion), number(c.challenger), f"{c.mean:+.3f}", f"{c.low:+.3f} to {c.high:+.3f}"]
            for metric, c in decision.changes.items()
        ],
    )

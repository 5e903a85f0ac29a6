"""A made-up results dictionary for the report, whole, with hostile texts where models write."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from vpo_plugin.metrics import (
    best_at_k,
    difference,
    expected_set_reward,
    figure,
    mean_pairwise_l1,
    pass_at_k,
)
from vpo_plugin.report.write import write_report

OBJECTIVES = ["completion", "gold", "diamond", "avoid_lava"]
ATTACK = (
    "</code></pre></script><script>window.attacked = 1</script><img src=x onerror=attacked=2>"
    " & $\\frac{1}{0}$ {{ 7 * 7 }}"
)
SET_KS = list(range(3, 31, 3))
OPTIONAL = {
    *("set_ks", "best_at_k_sets", "pass_at_k_sets"),
    *("prompts", "solved", "left_out", "fronts", "solved_at", "search", "only_solved_by", "prompts_shown", "overhead"),
    *("tokens_per_prompt", "tokens_per_solved", "pareto_size", "hypervolume", "coverage", "duplicates", "regret"),
}
DRAWING = {
    "width": 3,
    "height": 3,
    "tiles": [
        {"x": 0, "y": 0, "name": "start", "symbol": "S", "colour": "none"},
        {"x": 1, "y": 1, "name": "<b>wall</b>", "symbol": "", "colour": "ink"},
    ],
    "routes": {
        "RIGHT DOWN": [[0, 0], [1, 0], [1, 0]],
        "RIGHT": [[0, 0], [1, 0]],
        "DOWN": [[0, 0], [0, 1]],
    },
}


def write(results: dict[str, Any], folder: Path) -> None:
    """Write the report of made-up results."""
    shown = results.get("prompts_shown", [])
    write_report({key: value for key, value in results.items() if key != "prompts_shown"}, folder, shown)


def candidate(text: str | None, rewards: list[float]) -> dict[str, Any]:
    """A candidate as `Comparison.prompts` gives it, at equal weights."""
    value = float(np.mean(rewards))
    return {"text": text, "rewards": rewards, "value": value, "solved": value >= 0.75}


def made_up_results(prompts: int = 16, skills: tuple[tuple[float, ...], ...] | None = None) -> dict[str, Any]:
    """Three policies; the rewards are 0 or 1, drawn with the skill of each policy on each objective."""
    random = np.random.default_rng(0)
    k = len(skills[0]) if skills else len(OBJECTIVES)
    objectives = OBJECTIVES[:k] if k <= 4 else [f"test_{i + 1}" for i in range(k)]
    skills = skills or ((0.2,) * k, (0.3,) * k, (0.5,) * k)
    ks = list(range(1, 31))
    policies, best, fronts = [], {}, {}
    for name, rollouts, candidates, skill in zip(
        ("base", "grpo", "vpo"), (30, 30, 10), (1, 1, 3), skills, strict=False
    ):
        rewards = (random.random((prompts, 30, k)) < skill).astype(float)
        values = rewards.mean(-1)
        best[name] = best_at_k(values, ks)
        in_sets = best_at_k(values.reshape(prompts, rollouts, candidates).max(-1), [k // candidates for k in SET_KS])
        fronts[name] = [np.unique(pool, axis=0).tolist() for pool in rewards]
        measure = figure([random.random(prompts)])
        policies.append(
            {
                "name": name,
                "rollouts": rollouts,
                "candidates": candidates,
                "tokens_per_prompt": 1234.4,
                "tokens_per_solved": None if name == "base" else 9876.5,
                "best_at_k": figure([best[name]]),
                "best_at_k_sets": figure([in_sets]),
                "pass_at_k_sets": figure([in_sets > 0.5]),
                "pass_at_k": figure([pass_at_k(values > 0.5, ks)]),
                "expected_set_reward": figure([expected_set_reward(rewards, seed=0)]),
                "pairwise_l1": figure([mean_pairwise_l1(rewards)]),
                **{key: measure for key in ("pareto_size", "hypervolume", "coverage", "duplicates", "regret")},
                "objective_means": dict(zip(objectives, rewards.mean((0, 1)), strict=True)),
            }
        )
    last = policies[-1]["name"]
    steps = [
        {"step": i + 1, "reward": 0.3 + i / 100, "set_reward": 0.4, "group_diversity": math.nan, "seconds": 3.0}
        for i in range(20)
    ]
    good, bad = [1, 1, 0, 1] if k == 4 else [1] * k, [0] * k
    responses = [
        {
            "response": "Two of them.",
            "candidates": [candidate("RIGHT DOWN", good), candidate("DOWN", bad)],
        },
        {
            "response": f"Here: {ATTACK}",
            "candidates": [candidate("RIGHT DOWN", bad), candidate(None, bad)],
        },
    ]
    hostile = {"response": "", "candidates": [candidate(ATTACK, bad), candidate("RIGHT", bad)]}
    by_policy = [responses[:1]] * (len(policies) - 1) + [[*responses, hostile]]
    return {
        "title": "Mazes & more",
        "spec": "maze_small",
        "objectives": objectives,
        "weights": [1 / k] * k,
        "command": "make demo",
        "versions": {"openrlhf": "0.11.2"},
        "machine": "2 CPU cores",
        "prompts": prompts,
        "left_out": 2,
        "overhead": {"seconds": 12.3, "stages": 456.7},
        "solved": 0.75,
        "ks": ks,
        "set_ks": SET_KS,
        "ceiling": {"best": 0.9, "expected_set_reward": 0.95},
        "policies": policies,
        "differences": [
            {
                "a": last,
                "b": other,
                "k": 30,
                **difference([best[last][:, -1]], [best[other][:, -1]]),
            }
            for other in [policy["name"] for policy in policies[:-1]][-1:]
        ],
        "training": [{"name": last, "steps": steps}],
        "fronts": fronts,
        "solved_at": [0.75] * prompts,
        "search": [
            {
                "policy": policy["name"],
                "procedure": procedure,
                "budget": [1, 10, 100],
                "solved": {"mean": [0.1, 0.2, 0.3 + i / 10], "low": [0, 0.1, 0.2], "high": [0.2, 0.4, 0.7]},
            }
            for procedure in ("best-of-k", "evolution")
            for i, policy in enumerate(policies)
        ],
        "only_solved_by": {policy["name"]: [1, 9] if policy["name"] == last else [] for policy in policies},
        "prompts_shown": [
            {
                "number": number,
                "prompt": ATTACK if number == 0 else f"prompt {number}",
                "label": ATTACK if number == 0 else {"answer": number},
                "drawing": DRAWING if number == 0 else None,
                "policies": [
                    {
                        "name": policy["name"],
                        "pairwise_l1": number / 2,
                        "responses": mine if number == 0 else responses[:1],
                    }
                    for policy, mine in zip(policies, by_policy, strict=True)
                ],
            }
            for number in range(3)
        ],
    }

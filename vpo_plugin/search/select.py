"""`vpo select`: pick the best candidate of a pool for each prompt, under the user's own weights."""

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vpo_plugin.metrics import Floats, figure
from vpo_plugin.rewards import RewardSpec
from vpo_plugin.rewards.prompts import shown_prompt
from vpo_plugin.rewards.task import pareto_front
from vpo_plugin.search.pool import Pool
from vpo_plugin.targets import read_targets


def parse_weights(text: str, spec: RewardSpec) -> Floats:
    """Parse weights such as `gold=2,avoid_lava=1` into `(objectives,)`, for all of a spec's objectives, with sum 1.

    Raises:
        ValueError: an objective is unknown or repeated, or weights are not numbers, are negative, or are all 0.
    """
    keys = spec.objective_keys
    given: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, number = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise ValueError(f"The weights {text!r} must look like gold=2,avoid_lava=1; {part!r} does not.")
        if key not in keys or key in given:
            what = "name the objective twice:" if key in given else "name an unknown objective:"
            raise ValueError(f"The weights {text!r} {what} {key!r}; the objectives are {', '.join(keys)}.")
        try:
            given[key] = float(number)
        except ValueError as error:
            raise ValueError(f"The weight of {key} is {number!r}, which is not a number.") from error
        if not (math.isfinite(given[key]) and given[key] >= 0):
            raise ValueError(f"The weight of {key} is {number}: weights must be finite and not negative.")
    weights = np.array([given.get(key, 0.0) for key in keys])
    if not weights.sum():
        raise ValueError(f"The weights {text!r} are all 0: give at least one objective a positive weight.")
    return weights / weights.sum()


def select(pool: Pool, weights: Floats) -> tuple[list[dict[str, Any]], Floats]:
    """The best parsed candidate of each prompt (the first of equals) as rows, and their rewards, `(prompts,)`.

    A prompt without any candidate gets None, and the reward of the pool's empty slots, the floor.
    """
    keys = weights[: pool.candidates.shape[2]]
    values = np.nan_to_num(pool.candidates.astype(np.float64)) @ keys  # (prompts, candidates)
    rows, worth = [], np.empty(len(values))
    for number, of_prompt in enumerate(values):
        candidates = pool.texts(number)
        there = [i for i, text in enumerate(candidates) if text is not None]
        best = max(there, key=lambda i: of_prompt[i]) if there else 0
        vector = pool.candidates[number, best]
        worth[number] = of_prompt[best]
        rows.append(
            {
                "prompt": number,
                "input": shown_prompt(pool.rows[number]["input"]),
                "candidate": candidates[best],
                "rewards": vector[~np.isnan(vector)].round(6).tolist(),
                "value": round(float(of_prompt[best]), 6),
            }
        )
    return rows, worth


def what_it_gives_up(pool: Pool, spec: RewardSpec, weights: Floats, values: Floats) -> str:
    """Sentences on the reward of the choice, and its distance from the best possible under these weights."""
    asked = ", ".join(f"{key} {weight:.2f}" for key, weight in zip(spec.objective_keys, weights, strict=True) if weight)
    chosen = read_targets(spec, pool.rows).rewards(pool.candidates).argmax(1)
    vectors = np.nan_to_num(pool.candidates[np.arange(len(chosen)), chosen].astype(np.float64))
    by_deployment = vectors @ weights[: vectors.shape[1]]
    lines = [
        f"Weights {asked}. The best of {pool.candidates.shape[1]} candidates is worth {_mean(values)} on "
        f"{len(values)} prompts; the choice of the deployment weights is worth {_mean(by_deployment)}."
    ]
    if spec.front:
        reachable = []
        for row in pool.rows:
            front = np.asarray(pareto_front(spec, json.loads(row["label"])))
            reachable.append((front @ weights[: front.shape[1]]).max())
        given_up = np.array(reachable) - values
        share = given_up.mean() / np.mean(reachable) if np.mean(reachable) else 0.0
        lines.append(
            f"The best that any candidate can reach is {_mean(reachable)}: the pool falls short of it by "
            f"{_mean(given_up)} ({share:.1%})."
        )
    else:
        lines.append(
            f"The spec {spec.name!r} does not give the best possible reward; compare with a pool of a policy trained "
            "for these weights."
        )
    return "\n".join(lines)


def _mean(values: Sequence[float] | Floats) -> str:
    measure = figure(np.asarray(values)[None])
    return f"{measure['mean']:.3f} ({measure['low']:.3f} to {measure['high']:.3f})"

"""Analyse an experiment with several methods and seeds: the figures of its comparison, the strongest baseline, and
whether the claims of the paper hold."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vpo_plugin.advantages import parse_method
from vpo_plugin.metrics import Floats, difference
from vpo_plugin.search.comparison import BASE, Comparison, Measured

Values = Callable[[Measured], Floats]

RANDOM_WEIGHTS = ("vpo", "vpo_at_k", "vpo_at_k_derived", "random_weighting", "goal_conditioned")
"""Methods that train on random weightings; the others train on the deployment weights."""
NO_BASELINES = ("vpo", "vpo_at_k", "vpo_at_k_derived", "set_max", "multi_rlvr")
"""Set methods, which do not count as scalar baselines."""
LEVEL = 0.01
"""Differences in a reward, or in a share of prompts, up to this size count as ties."""

Curves = Mapping[str, Sequence[float]]


def analyse(
    compared: Comparison, training: Mapping[str, Sequence[Curves]] | None = None, *, candidates: int
) -> dict[str, Any]:
    """All figures of an experiment, which compares the last method with each other one.

    Args:
        training: each seed's curves by method: `tokens` and `candidates` of each step, and the plotted curves.
        candidates: m of the set methods, the budget of one response, from which the growth of a gap is measured.

    Returns:
        A JSON-serialisable dictionary: `match`, `ks` (the budgets, in candidates or tokens), `set_ks` (budgets that
        also count whole responses), `ceiling`, `methods` (measures are `{"mean", "low", "high"}`), `differences`,
        `strongest` (the gap to the strongest scalar baseline at each budget), `verdicts` and `training` (the mean
        over seeds of each step that all have: dynamic filtering makes their numbers differ).
    """
    training = training or {}
    *others, last = compared.policies
    one_set = min(candidates, len(compared.ks)) - 1
    unit = compared.tokens_per_k or 1
    ks, set_ks = ([round(k * unit) for k in some] for some in (compared.ks, compared.set_ks))
    methods = []
    for figures, m in zip(compared.figures(), compared.policies.values(), strict=True):
        trained = training.get(figures["name"], [])
        searched = float(m.bought[-1])
        methods.append(
            {
                **figures,
                "best_by_seed": m.best_at_k[..., -1].mean(1).tolist(),
                "searched": {
                    "candidates": searched,
                    "tokens": figures["tokens_per_prompt"] * searched / m.rewards.shape[-1],
                },
                "trained": {
                    key: float(np.mean([sum(curves[key]) for curves in trained]))
                    for key in ("tokens", "candidates")
                    if trained
                },
            }
        )
    measures: dict[str, Values] = {"best_at_k": lambda m: m.best_at_k}
    measures |= {"best_at_k_sets": lambda m: m.best_at_k_sets} if set_ks else {}
    measures |= {"expected_set_reward": lambda m: m.expected_set_reward}

    def grown(values: Floats) -> Floats:
        return values[..., -1] - values[..., one_set]

    results: dict[str, Any] = {
        "match": compared.match,
        "ks": ks,
        "set_ks": set_ks,
        "ceiling": compared.targets.ceiling,
        "methods": methods,
        "differences": [
            {
                "a": last,
                "b": name,
                "seeds": compared.shared_seeds(last, name),
                **{key: compared.ahead(last, name, values) for key, values in measures.items()},
                "growth": {"from_k": ks[one_set], **compared.ahead(last, name, lambda m: grown(m.best_at_k))},
            }
            for name in others
        ],
        "training": {
            name: {
                key: [float(np.mean(step)) for step in zip(*(curves[key] for curves in of_seeds), strict=False)]
                for key in of_seeds[0]
                if key not in ("tokens", "candidates")
            }
            for name, of_seeds in training.items()
        },
    }
    trained_ones = [name for name in others if not name.startswith(BASE)]
    claims: list[tuple[str, float, dict[str, Any]]] = []
    if "grpo" in others:
        claims.append((f"{last} is ahead of grpo at best@{ks[-1]}", 0, _at(compared.ahead(last, "grpo"))))
        if set_ks:
            ahead = _at(compared.ahead(last, "grpo", lambda m: m.best_at_k_sets), 0)
            claims.append((f"{last} is ahead of grpo at best@{set_ks[0]}, whole sets", 0, ahead))
    if scalars := [name for name in trained_ones if parse_method(name)[0] not in NO_BASELINES]:
        names, gap = _lead(compared, last, scalars, lambda m: m.best_at_k)
        results["strongest"] = {"names": names, **gap}
        level = "matches or beats the strongest scalar baseline"
        claims.append((f"{last} {level} ({names[-1]}) at best@{ks[-1]}", -LEVEL, _at(results["strongest"])))
        by_pass, gap = _lead(compared, last, scalars, lambda m: m.pass_at_k)
        claims.append((f"{last} {level} ({by_pass[-1]}) at pass@{ks[-1]}", -LEVEL, _at(gap)))
        growth = compared.ahead(last, names[-1], lambda m: grown(m.best_at_k))  # one baseline, not one per budget
        claims.append((f"{last}'s lead over {names[-1]} grows from best@{ks[one_set]} to best@{ks[-1]}", 0, growth))
    if fixed := [name for name in trained_ones if parse_method(name)[0] not in RANDOM_WEIGHTS]:
        [name], gap = _lead(compared, last, fixed, lambda m: m.expected_set_reward[..., None])
        claims.append((f"over all weightings {last} is ahead of every method of fixed weights ({name})", 0, _at(gap)))
    results["verdicts"] = [
        {"claim": claim, "verdict": verdict(figure, above), **figure} for claim, above, figure in claims
    ]
    return results


def verdict(figure: Mapping[str, float], above: float = 0.0) -> str:
    """Whether a difference exceeds a bar: its interval lies above it, below it, or on both sides."""
    return "holds" if figure["low"] > above else "does not hold" if figure["high"] < above else "cannot be told"


def at_their_best(compared: Mapping[float, Comparison]) -> dict[str, float]:
    """The temperature at which each policy's best@k of the whole budget is highest."""
    names = next(iter(compared.values())).policies
    worth = {
        (name, t): float(of.policies[name].best_at_k[..., -1].mean()) for t, of in compared.items() for name in names
    }
    return {name: max(compared, key=lambda t: worth[name, t]) for name in names}


def _lead(compared: Comparison, last: str, names: Sequence[str], values: Values) -> tuple[list[str], dict[str, Any]]:
    """The policy with the highest mean at each budget, and the lead of `last` over it, on the seeds that all have.

    Args:
        values: of shape (seeds, prompts, budgets).
    """
    seeds = compared.shared_seeds(last, *names)
    of = {name: compared.of_seeds(name, seeds, values) for name in (last, *names)}
    best = [max(names, key=lambda name: of[name][..., i].mean()) for i in range(of[last].shape[-1])]
    strongest = np.stack([of[name][..., i] for i, name in enumerate(best)], axis=-1)
    return best, difference(of[last], strongest)


def _at(curve: Mapping[str, Any], place: int = -1) -> dict[str, Any]:
    return {part: curve[part][place] for part in ("mean", "low", "high")}


def pack_array(array: np.ndarray) -> str:
    """Encode an array as text: a compressed .npz in base64."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, array=array)
    return base64.b64encode(buffer.getvalue()).decode()


def unpack_array(text: str) -> np.ndarray:
    """Decode the array that `pack_array` wrote."""
    with np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False) as arrays:
        return arrays["array"]

"""What an experiment of several methods and seeds says: the figures of its comparison, and the strongest baseline."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vpo_plugin.search.comparison import Comparison
from vpo_plugin.search.metrics import difference

BASE = "base"
ABLATIONS = ("set_max",)
"""Methods that are compared, but are no scalar baseline: vpo without its random weightings."""

Curves = Mapping[str, Sequence[float]]


def analyse(
    compared: Comparison, training: Mapping[str, Sequence[Curves]] | None = None, *, candidates: int
) -> dict[str, Any]:
    """All figures of an experiment. The last method is compared with each of the others.

    Args:
        training: by method the curves of each seed: `tokens` and `candidates` of each step, and what is drawn.
        candidates: m of the set methods, the budget of one response: from there on the growth of a gap is measured.

    Returns:
        A JSON-serialisable dictionary: ``match``, ``ks`` (the budgets, in candidates or in tokens), ``ceiling``,
        ``methods`` (measures are ``{"mean", "low", "high"}``), ``differences``, ``strongest`` (the gap to the strongest
        scalar baseline at each budget) and ``training``.
    """
    training = training or {}
    policies = compared.policies
    *others, last = policies
    one_set = min(candidates, len(compared.ks)) - 1
    ks = [round(k * compared.tokens_per_k) for k in compared.ks] if compared.tokens_per_k else compared.ks
    methods = []
    for figures, m in zip(compared.figures(), policies.values(), strict=True):
        trained = training.get(figures["name"], [])
        searched = float(m.bought[-1])
        methods.append(
            {
                **figures,
                "unique": float(np.mean([pool.per_response("unique") for pool in m.pools])),
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
    results: dict[str, Any] = {
        "match": compared.match,
        "ks": ks,
        "ceiling": compared.targets.ceiling,
        "methods": methods,
        "differences": [
            {
                "a": last,
                "b": name,
                "best_at_k": compared.ahead(last, name),
                "expected_set_reward": compared.ahead(last, name, lambda m: m.expected_set_reward),
                "growth": {
                    "from_k": ks[one_set],
                    **compared.ahead(last, name, lambda m: m.best_at_k[..., -1] - m.best_at_k[..., one_set]),
                },
            }
            for name in others
        ],
        "training": {
            name: {
                key: np.array([curves[key] for curves in of_seeds]).mean(0).tolist()
                for key in of_seeds[0]
                if key not in ("tokens", "candidates")
            }
            for name, of_seeds in training.items()
        },
    }
    if scalars := [name for name in others if not name.startswith(BASE) and name not in ABLATIONS]:
        curves = {name: policies[name].best_at_k.mean((0, 1)) for name in scalars}
        strongest = [max(scalars, key=lambda name: curves[name][i]) for i in range(len(ks))]
        best = np.stack([policies[name].best_at_k[..., i] for i, name in enumerate(strongest)], axis=-1)
        results["strongest"] = {"names": strongest, **difference(policies[last].best_at_k, best)}
    return results


def pack_array(array: np.ndarray) -> str:
    """An array as text: a compressed .npz in base64."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, array=array)
    return base64.b64encode(buffer.getvalue()).decode()


def unpack_array(text: str) -> np.ndarray:
    """The array that `pack_array` wrote."""
    with np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False) as arrays:
        return arrays["array"]

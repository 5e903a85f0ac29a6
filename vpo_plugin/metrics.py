"""Measures of a pool of candidates for search: unbiased estimates per prompt, intervals over prompts and seeds.

A pool holds n candidates for each of P prompts, as scalar values `(P, n)` (the deployment scalarization) or
as reward vectors `(P, n, k)`. Estimates are exact averages over all subsets, without Monte-Carlo subsets. Measures over
weightings are means over quasi-random weights `w`, uniform on the simplex. `python -m benchmarks.metrics` measures time
and memory.
"""

import functools
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import moocore
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from vpo_plugin.advantages import RewardBatch, sample_simplex_weights

Floats = NDArray[np.float64]

NUM_WEIGHTS = 1024  # random weightings of a pool, the same for every prompt
KS_AT_ONCE = 256  # of best@k: their weights are a table as wide as the pool
TIE = 1e-9
EXACT_OBJECTIVES, EXACT_VECTORS = 6, 10
"""Up to as many objectives, or vectors in the front, a hypervolume is exact; the time grows exponentially with both."""
APPROXIMATE_SAMPLES = 2048
RESAMPLES = 4000  # of a bootstrap


def best_at_k(values: ArrayLike, ks: Sequence[int]) -> Floats:
    """Best value of k candidates, mean over all k-subsets of a prompt's candidates: `(P, n)` -> `(P, len(ks))`.

    With the values sorted upwards, the i-th (from 1) is the best of C(i-1, k-1) of the C(n, k) subsets. A recurrence of
    positive products computes these weights, without cancellation or overflow at any n.

    Raises:
        ValueError: an empty pool, values that are not finite, or a k outside 1..n.
    """
    ascending = np.sort(_pool(values, "(prompts, candidates)"), axis=-1)
    n = ascending.shape[-1]
    for k in ks:
        if not 1 <= k <= n:
            raise ValueError(f"best@{k} needs 1 to {n} candidates per prompt, as many as the pool has.")
    descending = np.ascontiguousarray(ascending[:, ::-1])
    rank = np.arange(n, 1, -1, dtype=np.float64)  # weight(n) = k / n, weight(i - 1) = weight(i)·(i - k) / (i - 1)
    best = np.empty((len(descending), len(ks)))
    for start in range(0, len(ks), KS_AT_ONCE):
        chosen = np.asarray(ks[start : start + KS_AT_ONCE], dtype=np.float64).reshape(-1, 1)
        steps = np.concatenate([chosen / n, np.clip((rank - chosen) / (rank - 1), 0, None)], axis=1)
        best[:, start : start + KS_AT_ONCE] = descending @ np.cumprod(steps, axis=1).T
    return best


def pass_at_k(correct: ArrayLike, ks: Sequence[int]) -> Floats:
    """Share of the k-subsets with a correct candidate: bool `(P, n)` -> `(P, len(ks))`.

    This is `1 - C(n-c, k) / C(n, k)` (Chen et al., arXiv 2107.03374), or best@k of zeros and ones.

    Raises:
        ValueError: `correct` is not bool, or see `best_at_k`.
    """
    hits = np.asarray(correct)
    if hits.dtype != bool:
        raise ValueError(f"pass@k needs a bool for each candidate, correct or not, but got {hits.dtype}.")
    return np.clip(best_at_k(hits, ks), 0.0, 1.0)


def mean_pairwise_l1(matrices: ArrayLike, there: ArrayLike | None = None) -> Floats:
    """Mean L1 distance (summed over objectives) between two candidates of a prompt: `(P, n, k)` -> `(P,)`; 0 if n = 1.

    `there`, bool `(P, n)`, leaves out candidates.

    Raises:
        ValueError: an empty pool, or rewards that are not finite.
    """
    pool = _pool(matrices, "(prompts, candidates, objectives)")
    counted = np.ones(pool.shape[:2], dtype=bool) if there is None else np.asarray(there, dtype=bool)
    rank, n = np.arange(pool.shape[1]), counted.sum(1, keepdims=True)
    ascending = np.sort(np.where(counted[..., None], pool, np.inf), axis=1)
    ascending = np.where((rank < n)[..., None], ascending, 0.0)
    pairs_won_minus_lost = 2.0 * rank - (n - 1)  # of the i-th smallest value against the others
    return np.einsum("pn,pnk->p", pairs_won_minus_lost, ascending) / np.maximum(n * (n - 1) / 2, 1)[:, 0]


def expected_set_reward(
    matrices: ArrayLike, *, seed: int, present: ArrayLike | None = None, there: ArrayLike | None = None
) -> Floats:
    """The set reward of a prompt's whole pool, `E_w[max over its candidates of w·r]`: `(P, n, k)` -> `(P,)`.

    `present`, bool `(P, k)`, leaves out objectives that a prompt does not have, `there`, bool `(P, n)`, candidates.

    Raises:
        ValueError: an empty pool, rewards that are not finite, or see `RewardBatch`.
    """
    pool = torch.from_numpy(_pool(matrices, "(prompts, candidates, objectives)"))
    generator = torch.Generator().manual_seed(seed)
    mask = np.ones((*pool.shape[:1], 1, 1, 1), dtype=bool)
    if present is not None:
        mask = mask & np.asarray(present, dtype=bool)[:, None, None]
    if there is not None:
        mask = mask & np.asarray(there, dtype=bool)[:, None, :, None]
    batch = RewardBatch(pool[:, None], torch.from_numpy(mask), num_weights=NUM_WEIGHTS, generator=generator)
    return batch.set_rewards[:, 0].numpy()


def pareto_fronts(pools: Iterable[ArrayLike]) -> list[Floats]:
    """Pareto fronts: the distinct reward vectors of each prompt that no other vector dominates, P times
    `(n, k)` -> `(f, k)`.

    A vector dominates another if it is at least as good in every objective and better in one. The fronts' lengths are
    the Pareto-front sizes. Prompts may differ in candidates and in objectives.

    Raises:
        ValueError: a prompt without candidates, or rewards that are not finite.
    """
    fronts = []
    for number, rewards in enumerate(pools):
        vectors = np.asarray(rewards, dtype=np.float64)
        if vectors.ndim != 2 or vectors.size == 0 or not np.isfinite(vectors).all():
            raise ValueError(
                f"A front needs finite rewards (candidates, objectives), each at least 1; those of prompt {number} "
                f"have the shape {vectors.shape}."
            )
        vectors = np.unique(vectors, axis=0)
        fronts.append(vectors[moocore.is_nondominated(vectors, maximise=True)])
    return fronts


def hypervolume(front: ArrayLike, low: ArrayLike, high: ArrayLike) -> float:
    """Share of the box from `low` to `high`, each `(k,)`, that vectors `(f, k)` dominate: 0 to 1.

    Exact for at most 6 objectives or 10 vectors. Beyond that, moocore's quasi-Monte-Carlo (`Rphi-FWE+`) with 2,048
    directions: the error is 1 % at 8 objectives; at 16 only the order of magnitude is right.
    """
    floor = np.asarray(low, dtype=np.float64)
    shares = (np.asarray(front, dtype=np.float64) - floor) / (np.asarray(high, dtype=np.float64) - floor)
    shares = shares[(shares > 0).all(1)]  # a vector on the floor of any objective encloses nothing
    vectors, objectives = shares.shape
    if not vectors:
        return 0.0
    if objectives == 1:
        return float(shares.max())
    if objectives <= EXACT_OBJECTIVES or vectors <= EXACT_VECTORS:
        return float(moocore.hypervolume(shares, ref=0.0, maximise=True))
    return float(moocore.hv_approx(shares, ref=0.0, maximise=True, nsamples=APPROXIMATE_SAMPLES))


def best_for_weights(fronts: Sequence[ArrayLike], *, seed: int) -> Floats:
    """`max over a prompt's vectors of w·r` for each of the same 1,024 random weights: P times `(f, k)` -> `(P, 1024)`.

    Prompts of the same number of objectives get the same weights.
    """
    vectors = [np.asarray(front, dtype=np.float64) for front in fronts]
    weights = {k: _weights(k, seed) for k in {front.shape[1] for front in vectors}}
    return np.stack([(front @ weights[front.shape[1]]).max(0) for front in vectors])


def regrets(best: ArrayLike) -> Floats:
    """`E_w[max over policies of V(w) - V(w)]`, the loss against the best policy at each weighting. V is the best reward
    of each policy's pool under each weighting: `(policies, P, num_weights)` -> `(policies, P)`.
    """
    values = np.asarray(best, dtype=np.float64)
    return (values.max(0) - values).mean(-1)


def coverage(best: ArrayLike) -> Floats:
    """Share of the weightings at which each policy's pool has the best reward, `(policies, P, num_weights)` ->
    `(policies, P)`. The shares sum to 1 over the policies; ties are shared."""
    values = np.asarray(best, dtype=np.float64)
    winners = values >= values.max(0) - TIE
    return (winners / winners.sum(0)).mean(-1)


def duplicate_share(keys: Sequence[Hashable | None]) -> float:
    """Share of a prompt's candidates that repeat an earlier one, by their canonical forms. None is not a candidate;
    without candidates the share is 0."""
    there = [key for key in keys if key is not None]
    return 1 - len(set(there)) / len(there) if there else 0.0


def distinct_rewards(rewards: ArrayLike, keys: Sequence[Hashable | None]) -> int:
    """Number of different reward vectors, `(m, k)`, in a response, by the candidates' canonical forms: a missing
    candidate (None) and one that repeats an earlier one have no reward vector."""
    vectors = np.asarray(rewards).tolist()
    first = {key: tuple(vector) for key, vector in reversed(list(zip(keys, vectors, strict=True))) if key is not None}
    return len(set(first.values()))


@functools.lru_cache(maxsize=64)
def _weights(objectives: int, seed: int) -> Floats:
    generator = torch.Generator().manual_seed(seed)
    return sample_simplex_weights(NUM_WEIGHTS, objectives, generator=generator).numpy().T


def figure(values: ArrayLike) -> dict[str, Any]:
    """`{"mean", "low", "high"}` of values `(seeds, prompts, ...)`: the mean and its 95 % bootstrap interval.

    Prompts and seeds are resampled with replacement, crossed with each other (Owen, arXiv 0712.1111). The interval says
    how the mean would vary with other prompts and other trainings, not with other candidates. With one seed it is the
    bootstrap over prompts. The same shape gives the same draws, so a figure of differences is paired.

    Raises:
        ValueError: no seed, no prompt, or values that are not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim < 2 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"A figure needs finite values (seeds, prompts, ...), each at least 1, but got {array.shape}.")
    of_seeds, of_prompts = (_resamples(size, axis) for axis, size in enumerate(array.shape[:2]))
    means = np.tensordot(of_prompts, array, axes=([1], [1]))  # (resamples, seeds, ...), then the drawn mix of seeds
    means = np.einsum("bs,bs...->b...", of_seeds, means)
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    return {"mean": array.mean((0, 1)).tolist(), "low": low.tolist(), "high": high.tolist()}


def difference(a: ArrayLike, b: ArrayLike) -> dict[str, Any]:
    """`figure` of a - b, both `(seeds, prompts, ...)`, prompt by prompt: tighter than two separate intervals.

    If the numbers of seeds differ (an untrained policy has only one), each seed of a is compared with b's mean.

    Raises:
        ValueError: a and b have different prompts or budgets.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape[1:] != second.shape[1:]:
        raise ValueError(f"Paired values must belong to the same prompts, but are {first.shape} and {second.shape}.")
    return figure(first - (second if len(second) == len(first) else second.mean(0)))


@functools.lru_cache(maxsize=8)
def _resamples(size: int, axis: int) -> Floats:
    return np.random.default_rng([0, axis]).multinomial(size, np.full(size, 1 / size), size=RESAMPLES) / size


def _pool(values: ArrayLike, axes: str) -> Floats:
    pool = np.asarray(values, dtype=np.float64)
    if pool.ndim != axes.count(",") + 1 or pool.size == 0:
        raise ValueError(f"A pool must have the shape {axes}, each at least 1, but has {pool.shape}.")
    if not np.isfinite(pool).all():
        prompt, candidate = (int(i) for i in np.argwhere(~np.isfinite(pool))[0][:2])
        raise ValueError(f"The pool's value of prompt {prompt}, candidate {candidate} is not finite.")
    return pool

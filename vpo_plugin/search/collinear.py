"""Can VPO help on a task? Measured on scored samples: do objectives disagree, and do different candidates win?

VPO rewards sets whose best candidate depends on the weights. If objectives rise and fall together, or if one candidate
of each response wins under all weights, a set is worth no more than its best candidate.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vpo_plugin.metrics import best_for_weights, coverage
from vpo_plugin.rewards import RewardSpec
from vpo_plugin.search.pool import check_objectives, load_pool

CORRELATED = 0.95  # objectives that agree more than this count as one
WINS_ALL = 0.99  # share of the weight space that counts as all


def read_matrices(place: Path, spec: RewardSpec) -> Iterator[np.ndarray]:
    """Reward matrices: of each response in a file of `vpo score`, or of all answers to a prompt in a stored pool.

    Rows of a file that could not be scored are left out.

    Raises ValueError, which names the line or the pool, for anything that is not a matrix of this spec.
    """
    widths = range(1, len(spec.objective_keys) + 1) if spec.ragged else [len(spec.objective_keys)]
    for where, matrix in _pooled(place, spec) if place.is_dir() else _scored(place):
        if matrix.ndim != 2 or matrix.shape[1] not in widths or not np.isfinite(matrix).all():
            raise ValueError(f"{where} of {place} holds no matrix of the spec '{spec.name}': {matrix.shape}.")
        yield matrix


def _pooled(folder: Path, spec: RewardSpec) -> Iterator[tuple[str, np.ndarray]]:
    pool = load_pool(folder)
    check_objectives(str(folder), pool, spec)
    for number, rows in enumerate(pool.candidates.astype(np.float64)):
        yield f"Prompt {number}", rows[:, ~np.isnan(rows).any(0)]


def _scored(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                if isinstance(row, dict) and "error" in row:
                    continue
                yield f"Line {number}", np.array(row["matrix"], dtype=np.float64)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"Line {number} of {file} holds no matrix: {error}.") from error


def measure_disagreement(spec: RewardSpec, matrices: Sequence[np.ndarray]) -> list[str]:
    """Correlation of each pair of objectives, the weight space won by each candidate, and whether VPO can help."""
    found, verdicts = [], []
    sets = [rows for rows in (_above_floor(spec, matrix) for matrix in matrices) if len(rows)]
    found.append(
        f"{len(matrices)} matrices, {sum(map(len, sets))} candidates that score above the floor; others are left out."
    )
    if not sets:
        return [*found, "VPO cannot help here yet: no candidate scores above the floor."]
    if not spec.ragged:
        sentences, agree = _correlations(spec.objective_keys, np.concatenate(sets))
        found += sentences
        if agree:
            verdicts.append(agree)
    shares = [shares_won(rows) for rows in sets if len(rows) > 1]
    if shares:
        width = max(map(len, shares))
        mean = np.mean([np.pad(share, (0, width - len(share))) for share in shares], axis=0)
        listed = ", ".join(f"{share:.0%}" for share in mean[:8])
        found.append(
            "Share of the weight space that the candidates of a matrix win, the best first, "
            f"mean of {len(shares)}: {listed}."
        )
        if mean[0] >= WINS_ALL:
            verdicts.append("one candidate of each matrix wins whatever the weights")
    else:
        found.append("No matrix has two candidates above the floor: which one wins cannot be measured.")
    if verdicts:
        return [*found, f"VPO cannot help on these samples: {', and '.join(verdicts)}. Training would be that of GRPO."]
    return [*found, "Nothing here speaks against VPO."]


def mean_correlation(spec: RewardSpec, matrices: Sequence[np.ndarray]) -> float:
    """Mean over the pairs of objectives that vary, among the distinct candidates of each matrix above the floor; NaN if
    fewer than two vary."""
    _, correlation = _correlate(np.concatenate([_above_floor(spec, matrix) for matrix in matrices]))
    pairs = correlation[np.tril_indices(len(correlation), -1)]
    return float(pairs.mean()) if len(pairs) else float("nan")


def _above_floor(spec: RewardSpec, matrix: np.ndarray) -> np.ndarray:
    """The distinct candidates of a response that score above the floor somewhere."""
    floor = [column.low for column in spec.columns(matrix.shape[1])]
    return np.unique(matrix[(matrix > floor).any(1)], axis=0)


def _correlations(keys: Sequence[str], rows: np.ndarray) -> tuple[list[str], str | None]:
    varying, correlation = _correlate(rows)
    constant = [keys[i] for i in range(len(keys)) if i not in varying]
    found = [f"The same for all of them: {', '.join(constant)}."] if constant else []
    if len(varying) < 2:
        return found, "fewer than two objectives vary"
    pairs = [(i, j) for i in range(len(varying)) for j in range(i)]
    found += [f"Correlation of {keys[varying[j]]} and {keys[varying[i]]}: {correlation[i, j]:+.2f}." for i, j in pairs]
    found.append(f"Mean correlation: {np.mean([correlation[pair] for pair in pairs]):+.2f}.")
    agree = all(correlation[i, j] >= CORRELATED for i, j in pairs)
    return found, "the objectives rise and fall together" if agree else None


def _correlate(rows: np.ndarray) -> tuple[list[int], np.ndarray]:
    """The objectives that vary, and their correlations."""
    varying = [i for i, column in enumerate(rows.T) if np.ptp(column) > 1e-9]
    return varying, np.atleast_2d(np.corrcoef(rows[:, varying].T)) if varying else np.empty((0, 0))


def shares_won(rows: np.ndarray) -> np.ndarray:
    """Share of the simplex of weights on which each of the candidates (m, k) is the best, (m,), highest first."""
    best = best_for_weights(list(rows[:, None]), seed=0)
    return np.sort(coverage(best[:, None])[:, 0])[::-1]

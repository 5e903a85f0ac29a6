"""The search metrics against brute-force enumeration of subsets, and against known distributions."""

from fractions import Fraction
from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from benchmarks import metrics as benchmark
from vpo_plugin.metrics import (
    best_at_k,
    best_for_weights,
    coverage,
    difference,
    distinct_rewards,
    duplicate_share,
    expected_set_reward,
    figure,
    hypervolume,
    mean_pairwise_l1,
    pareto_fronts,
    pass_at_k,
    regrets,
)

rewards = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(-2, 2, width=32))
pools = st.tuples(st.integers(1, 3), st.integers(1, 7))


@given(pools.flatmap(lambda shape: hnp.arrays(np.float64, shape, elements=rewards)))
@settings(deadline=None)
def test_best_at_k_is_the_mean_over_all_subsets(values):
    ks = range(1, values.shape[1] + 1)
    expected = [[np.mean([max(s) for s in combinations(row, k)]) for k in ks] for row in values]
    np.testing.assert_allclose(best_at_k(values, ks), expected, rtol=1e-12, atol=1e-12)


@given(pools.flatmap(lambda shape: hnp.arrays(bool, shape)))
@settings(deadline=None)
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_candidate(correct):
    ks = range(1, correct.shape[1] + 1)
    expected = [[np.mean([any(s) for s in combinations(row, k)]) for k in ks] for row in correct]
    np.testing.assert_allclose(pass_at_k(correct, ks), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("correct", [0, 1, 17, 5000, 9999, 10_000])
def test_pass_at_k_is_stable_for_ten_thousand_candidates(correct):
    n, ks = 10_000, [1, 2, 30, 1000, 9999, 10_000]
    expected = [float(1 - Fraction(comb(n - correct, k), comb(n, k))) for k in ks]
    np.testing.assert_allclose(pass_at_k([np.arange(n) < correct], ks), [expected], rtol=1e-9, atol=0)


def test_best_at_k_of_ten_thousand_ranks_is_exact():
    """The expected maximum of k draws without replacement from 1..n is k (n + 1) / (k + 1)."""
    n, ks = 10_000, np.array([1, 2, 30, 1000, 9999, 10_000])
    ranks = np.random.default_rng(0).permutation(n) + 1.0
    np.testing.assert_allclose(best_at_k([ranks], ks.tolist()), [ks * (n + 1) / (ks + 1)], rtol=1e-9)


def test_best_at_k_does_not_depend_on_the_size_of_the_pool():
    """Unbiased: small pools give on average what one large pool gives."""
    values = np.random.default_rng(0).beta(1, 3, size=(4000, 8))
    np.testing.assert_allclose(
        best_at_k(values, [1, 3]).mean(0), best_at_k(values.reshape(1, -1), [1, 3])[0], atol=0.01
    )


@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 4)), elements=rewards))
@settings(deadline=None)
def test_mean_pairwise_l1_is_the_mean_over_all_pairs(matrices):
    def means(pools):
        return [np.mean([np.abs(a - b).sum() for a, b in combinations(pool, 2)] or [0]) for pool in pools]

    np.testing.assert_allclose(mean_pairwise_l1(matrices), means(matrices), rtol=1e-12, atol=1e-12)
    there = np.random.default_rng(0).random(matrices.shape[:2]) < 0.5
    expected = means([pool[kept] for pool, kept in zip(matrices, there, strict=True)])
    np.testing.assert_allclose(mean_pairwise_l1(matrices, there), expected, rtol=1e-12, atol=1e-12)


def test_the_expected_set_reward_lies_between_the_best_mean_and_the_best_of_each_objective():
    pool = np.random.default_rng(0).random((3, 90, 4))
    worth = expected_set_reward(pool, seed=0)
    assert (worth > pool.mean(-1).max(-1)).all() and (worth < pool.max(1).mean(-1)).all()
    assert expected_set_reward(np.eye(2)[None], seed=0) == pytest.approx(0.75)
    np.testing.assert_array_equal(worth, expected_set_reward(pool, seed=0))
    there = np.arange(90) % 2 == [[0], [1], [0]]
    halves = np.stack([one[kept] for one, kept in zip(pool, there, strict=True)])
    np.testing.assert_allclose(expected_set_reward(pool, seed=0, there=there), expected_set_reward(halves, seed=0))


def test_the_interval_covers_the_mean_as_often_as_it_says():
    random = np.random.default_rng(0)
    samples = random.exponential(size=(60, 300))  # each column an experiment with 60 prompts
    found = figure(samples[None])
    covered = np.mean((np.array(found["low"]) <= 1.0) & (np.array(found["high"]) >= 1.0))
    assert 0.88 < covered < 0.97


def test_the_interval_has_the_width_of_the_normal_one_for_many_prompts():
    values = np.random.default_rng(0).normal(size=(1, 2000, 3))
    found = figure(values)
    widths = np.subtract(found["high"], found["low"])
    np.testing.assert_allclose(widths / 2, 1.96 * values[0].std(0) / 2000**0.5, rtol=0.1)
    assert figure(values) == found


def test_the_interval_widens_with_the_spread_of_the_seeds():
    """Three trainings: the variance of the mean over seeds adds to that over prompts."""
    random = np.random.default_rng(0)
    alike = np.stack([random.normal(size=500)] * 3)
    apart = alike + np.array([[-0.5], [0.0], [0.5]])
    same, wide = figure(alike), figure(apart)
    assert same["mean"] == pytest.approx(wide["mean"])
    one = figure(alike[:1])
    assert same["high"] - same["low"] == pytest.approx(one["high"] - one["low"], rel=1e-6)
    assert wide["high"] - wide["low"] > 4 * (same["high"] - same["low"])
    # normal: sqrt(spread² / 3 + 1 / 500) with the population's spread of the three
    assert (wide["high"] - wide["low"]) / 2 == pytest.approx(1.96 * (0.408**2 / 3 + 1 / 500) ** 0.5, rel=0.15)


def test_equal_prompts_have_an_interval_of_no_width():
    assert figure(np.full((1, 5), 0.25)) == {"mean": 0.25, "low": 0.25, "high": 0.25}


def test_a_paired_difference_is_tighter_than_its_parts():
    random = np.random.default_rng(0)
    difficulty = random.normal(size=(1, 200))
    a, b = difficulty + 0.1 + 0.01 * random.normal(size=(1, 200)), difficulty
    gain = difference(a, b)
    assert gain["mean"] == pytest.approx(0.1, abs=0.01)
    assert 0.09 < gain["low"] < gain["high"] < 0.11
    assert figure(a)["low"] < figure(b)["high"]
    assert difference(np.concatenate([a, a + 1]), b)["mean"] == pytest.approx(gain["mean"] + 0.5)


def test_best_at_k_at_every_k_of_ten_thousand_candidates():
    """All 10,000 k at once: in parts, so that the memory stays small, and without overflow or lost digits."""
    n = 10_000
    ks = list(range(1, n + 1))
    ranks = np.arange(1.0, n + 1)
    expected = np.array(ks) * (n + 1) / (np.array(ks) + 1)
    np.testing.assert_allclose(best_at_k([ranks], ks), [expected], rtol=1e-9)


@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 7), st.integers(1, 4)), elements=rewards))
@settings(deadline=None)
def test_a_front_is_what_no_other_candidate_dominates(vectors):
    def dominates(a, b):
        return (a >= b).all() and (a > b).any()

    expected = {tuple(b) for b in vectors if not any(dominates(a, b) for a in vectors)}
    [front] = pareto_fronts([vectors])
    assert len(front) == len(expected) and {tuple(vector) for vector in front} == expected


def test_hypervolumes_of_known_sets():
    assert hypervolume([[0.5, 0.4]], [0, 0], [1, 1]) == pytest.approx(0.2)
    assert hypervolume([[1, 0.5], [0.5, 1]], [0, 0], [1, 1]) == pytest.approx(0.75)
    assert hypervolume([[10, -1], [20, -2]], [0, -2], [20, 0]) == pytest.approx(
        0.25
    )  # -2 is the floor: encloses nothing
    assert hypervolume([[0.3], [0.7]], [0], [1]) == pytest.approx(0.7)
    assert hypervolume([[0, 0, 0]], [0, 0, 0], [1, 1, 1]) == 0
    assert hypervolume(np.ones((1, 16)), np.zeros(16), np.ones(16)) == pytest.approx(1)


def test_a_hypervolume_that_is_too_dear_to_be_exact_is_close():
    random = np.random.default_rng(0)
    front = pareto_fronts([random.random((60, 8))])[0]
    assert len(front) > 10
    inside = [(front >= point).all(1).any() for point in random.random((200_000, 8))]
    assert hypervolume(front, np.zeros(8), np.ones(8)) == pytest.approx(np.mean(inside), rel=0.04)


def test_regret_and_coverage_of_policies():
    """One policy holds (1, 0), one (0, 1), one both: the last is always best, and ties with one of the others."""
    gold, diamond, both = np.eye(2)[:1], np.eye(2)[1:], np.eye(2)
    worth = np.stack([best_for_weights([front], seed=0) for front in (gold, diamond, both)])
    assert worth.shape == (3, 1, 1024)
    assert worth.mean(-1)[:, 0] == pytest.approx([0.5, 0.5, 0.75], abs=2e-3)
    assert regrets(worth)[:, 0] == pytest.approx([0.25, 0.25, 0], abs=2e-3)
    assert coverage(worth)[:, 0] == pytest.approx([0.25, 0.25, 0.5], abs=2e-3)


def test_best_for_weights_is_the_expected_set_reward_and_takes_ragged_prompts():
    random = np.random.default_rng(0)
    fronts = [random.random((5, 3)), random.random((9, 4)), random.random((1, 1))]
    worth = best_for_weights(fronts, seed=0).mean(-1)
    expected = [expected_set_reward(front[None], seed=0).item() for front in fronts]
    assert worth == pytest.approx(expected, abs=2e-3)


def test_duplicates_are_repeats_of_candidates_that_are_there():
    assert duplicate_share(["a", "b", "a", None, "a"]) == 0.5
    assert duplicate_share([None, None]) == duplicate_share([]) == 0
    assert duplicate_share(["a", None]) == 0


def test_distinct_rewards_are_of_candidates_that_are_there_and_new():
    rewards = [[1, 0], [0, 0], [0, 0], [1, 0], [0, 0]]
    assert distinct_rewards(rewards, ["a", None, "a", "b", None]) == 1  # b earns what a does
    assert distinct_rewards(rewards, ["a", "a", "c", "b", None]) == 2  # c earns nothing
    assert distinct_rewards(rewards, [None] * 5) == 0


def test_the_benchmark_measures_every_metric(capsys):
    assert benchmark.main(["--prompts", "3", "--candidates", "12", "--objectives", "7"]) == 0
    printed = capsys.readouterr().out
    assert "3 prompts x 12 candidates x 7 objectives" in printed and "MB at most" in printed


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: best_at_k(np.ones((2, 3)), [1, 4]), "best@4 needs 1 to 3 candidates"),
        (lambda: best_at_k(np.ones((2, 3)), [0]), "best@0 needs 1 to 3 candidates"),
        (lambda: pass_at_k(np.ones((2, 0), dtype=bool), [1]), r"pool must have the shape.*\(2, 0\)"),
        (lambda: pass_at_k([[0.5, np.nan]], [1]), "bool for each candidate"),
        (lambda: best_at_k(np.ones(3), [1]), r"\(prompts, candidates\)"),
        (lambda: best_at_k([[1.0, np.nan]], [1]), "prompt 0, candidate 1 is not finite"),
        (lambda: mean_pairwise_l1(np.ones((2, 0, 4))), "pool must have the shape"),
        (lambda: expected_set_reward(np.ones((0, 3, 4)), seed=0), "pool must have the shape"),
        (lambda: pareto_fronts([np.ones((2, 2)), np.ones((0, 2))]), r"those of prompt 1 have the shape \(0, 2\)"),
        (lambda: pareto_fronts([[[1.0, np.nan]]]), "finite rewards"),
        (lambda: figure([[]]), "each at least 1"),
        (lambda: figure([1.0, 2.0]), "seeds, prompts"),
        (lambda: figure([[1.0, np.inf]]), "finite"),
        (lambda: difference([[1.0, 2.0]], [[1.0]]), "same prompts"),
    ],
)
def test_bad_pools_are_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()

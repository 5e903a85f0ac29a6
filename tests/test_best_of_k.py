"""What a rollout adds to the best of k: the family of `max_at_k` and `vpo_at_k` against all subsets, in float64."""

import itertools
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from vpo_plugin.advantages import RewardBatch, get_advantage_estimator, group_z_norm
from vpo_plugin.advantages.best_of_k import best_of_k, gains_over_others

settings.register_profile("best_of_k", deadline=None, max_examples=50)
settings.load_profile("best_of_k")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def advantages_of(name: str, reward_matrices: Tensor, **more: Any) -> Tensor:
    return get_advantage_estimator(name)(RewardBatch(reward_matrices, generator=seeded(), **more))


def by_subsets(values: np.ndarray, k: int) -> np.ndarray:
    """`k · E_w E_S[max(0, v_i(w) - max of S)]` by its definition, (weightings, rollouts) -> (rollouts,).

    For k = 1 there is nothing in S: the baseline is the mean of the others.
    """
    rollouts = values.shape[1]
    gains = np.zeros(rollouts)
    for i in range(rollouts):
        others = [j for j in range(rollouts) if j != i]
        if k == 1:
            gains[i] = (values[:, i] - values[:, others].mean(1)).mean()
            continue
        subsets = [values[:, list(some)].max(1) for some in itertools.combinations(others, k - 1)]
        gains[i] = k * np.mean([np.maximum(values[:, i] - best, 0).mean() for best in subsets])
    return gains


some_values = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(2, 7)),
    elements=st.one_of(st.sampled_from([0.0, 0.5, 0.5 + 1e-9, 1.0]), st.floats(-3, 3), st.floats(0, 1, width=32)),
)


@given(some_values, st.data())
def test_gains_against_all_subsets(values: np.ndarray, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, values.shape[2]))
    expected = np.stack([by_subsets(of_group, k) for of_group in values])
    gains = gains_over_others(torch.from_numpy(values), k)
    np.testing.assert_allclose(gains.numpy(), expected, rtol=1e-9, atol=1e-12)
    single = gains_over_others(torch.from_numpy(values).float(), k)
    np.testing.assert_allclose(single.numpy(), expected, rtol=1e-4, atol=1e-5)
    assert k == 1 or (gains >= 0).all()


@pytest.mark.parametrize("rollouts", [64, 300])
def test_gains_of_many_rollouts(rollouts: int) -> None:
    """With k = 2 the definition is a mean over pairs; with k = N only the best of all gains."""
    values = torch.rand(2, 3, rollouts, dtype=torch.float64, generator=seeded())
    pairs = (values[..., :, None] - values[..., None, :]).clamp(min=0).sum(-1) * 2 / (rollouts - 1)
    torch.testing.assert_close(gains_over_others(values, 2), pairs.mean(1), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gains_over_others(values.float(), 2).double(), pairs.mean(1), rtol=1e-3, atol=1e-4)
    best, second = values.topk(2).values.unbind(-1)
    expected = torch.zeros_like(values).scatter_(2, values.argmax(-1, keepdim=True), (best - second)[..., None])
    torch.testing.assert_close(gains_over_others(values, rollouts), rollouts * expected.mean(1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, -1e6, 1e-42])
def test_equal_values_gain_nothing(dtype: torch.dtype, value: float) -> None:
    values = torch.full((2, 3, 5), value, dtype=dtype)
    for k in range(2, 6):
        assert torch.equal(gains_over_others(values, k), torch.zeros(2, 5, dtype=dtype))


@st.composite
def reward_batches(draw: st.DrawFn) -> RewardBatch:
    """Matrices with absent candidates and objectives, garbage where the mask is False."""
    groups, rollouts = draw(st.tuples(st.integers(1, 3), st.integers(2, 5)))
    m, objectives = draw(st.tuples(st.integers(1, 3), st.integers(1, 4)))
    random = seeded(draw(st.integers(0, 10**6)))
    there = torch.rand(groups, rollouts, m, generator=random) < 0.8
    known = torch.rand(groups, objectives, generator=random) < 0.8
    known[torch.arange(groups), torch.randint(objectives, (groups,), generator=random)] = True
    mask = there[..., None] & known[:, None, None]
    rewards = torch.randint(-3, 4, mask.shape, generator=random).double() / 3
    k = draw(st.integers(2, rollouts))
    return RewardBatch(
        rewards.masked_fill(~mask, math.nan), mask, num_weights=16, generator=seeded(1), k=k, alpha=draw(ALPHAS)
    )


ALPHAS = st.sampled_from([0.5, 1.0, 3.0])


@given(reward_batches())
def test_vpo_at_k_against_all_subsets(batch: RewardBatch) -> None:
    """Its own weightings, ragged batches: `v_i(w) = max_s w·r_is` over what is there, 0 where nothing is."""
    weights = batch.random_weights().numpy()
    expected = []
    for group, rewards in enumerate(batch.rewards.numpy()):
        values = np.zeros((weights.shape[1], rewards.shape[0]))
        for rollout, there in enumerate(batch.candidates[group].numpy()):
            if there.any():
                values[:, rollout] = (weights[group] @ rewards[rollout][there].T).max(1)
        expected.append(by_subsets(values, int(batch.k or 0)))
    np.testing.assert_allclose(best_of_k(batch, batch.random_weights()).numpy(), expected, rtol=1e-9, atol=1e-12)
    exact = batch.k == 2 and batch.rewards.shape[2] == 1 and batch.alpha == 1.0
    if not exact:
        derived = get_advantage_estimator("vpo_at_k_derived")(batch).numpy()
        np.testing.assert_allclose(derived, expected, rtol=1e-9, atol=1e-12)


# Exact cases


@pytest.mark.parametrize("objectives", [1, 2, 5])
def test_pairs_of_single_candidates_are_exact(objectives: int) -> None:
    """In closed form, whatever the number of weightings: against 2^16 of them, and with absent objectives."""
    rewards = torch.rand(3, 5, 1, objectives + 1, dtype=torch.float64, generator=seeded())
    mask = torch.arange(objectives + 1) < objectives
    exact = advantages_of("vpo_at_k_derived", rewards, mask=mask, k=2, num_weights=1)
    batch = RewardBatch(rewards[..., :objectives], num_weights=2**16, generator=seeded(), k=2)
    torch.testing.assert_close(exact, best_of_k(batch, batch.random_weights()), rtol=0, atol=2e-4)


def test_one_objective_is_max_at_k() -> None:
    rewards = torch.rand(3, 6, 1, 1, dtype=torch.float64, generator=seeded())
    derived = advantages_of("vpo_at_k_derived", rewards)
    torch.testing.assert_close(derived, advantages_of("max_at_k", rewards), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("m", [1, 2, 3])
def test_best_of_1_is_vpo_without_its_scale(m: int) -> None:
    rewards = torch.rand(3, 6, m, 4, dtype=torch.float64, generator=seeded())
    derived = advantages_of("vpo_at_k_derived", rewards, k=1)
    worth = RewardBatch(rewards, generator=seeded()).set_rewards
    torch.testing.assert_close(derived, (worth - worth.mean(-1, keepdim=True)) * 6 / 5)
    torch.testing.assert_close(group_z_norm(derived), advantages_of("vpo", rewards), rtol=1e-4, atol=0)


def test_large_alpha_and_single_candidates_are_max_at_k() -> None:
    rewards = torch.rand(4, 8, 1, 5, dtype=torch.float64, generator=seeded())
    for k in (2, 4, 8):
        derived = advantages_of("vpo_at_k_derived", rewards, k=k, alpha=1e12)
        torch.testing.assert_close(derived, advantages_of("max_at_k", rewards, k=k), rtol=0, atol=1e-5)


def test_a_fixed_weighting_and_sets_are_max_at_k_of_set_max() -> None:
    rewards = torch.rand(4, 6, 3, 4, dtype=torch.float64, generator=seeded())
    weights = [0.4, 0.3, 0.2, 0.1]
    batch = RewardBatch(rewards, objective_weights=weights, k=3)
    best = get_advantage_estimator("set_max").values(batch)
    expected = gains_over_others(best[:, None], 3)
    torch.testing.assert_close(best_of_k(batch, batch.weights[:, None]), expected)


# Invariances


@settings(max_examples=10)
@given(st.integers(0, 10**6), st.sampled_from([1, 3]), st.randoms(use_true_random=False))
def test_order_offset_and_scale(seed: int, m: int, random: Any) -> None:
    rewards = torch.rand(2, 5, m, 3, dtype=torch.float64, generator=seeded(seed))
    derived = advantages_of("vpo_at_k_derived", rewards, k=3)
    candidates = random.sample(range(m), m)
    torch.testing.assert_close(advantages_of("vpo_at_k_derived", rewards[:, :, candidates], k=3), derived)
    rollouts = random.sample(range(5), 5)
    torch.testing.assert_close(advantages_of("vpo_at_k_derived", rewards[:, rollouts], k=3), derived[:, rollouts])
    objectives = random.sample(range(3), 3)
    turned = advantages_of("vpo_at_k_derived", rewards[..., objectives], k=3)
    torch.testing.assert_close(turned, derived, rtol=0, atol=5e-3)
    moved = advantages_of("vpo_at_k_derived", 7 * rewards - 2, k=3)
    torch.testing.assert_close(moved, 7 * derived)


def test_a_rollout_like_another_earns_less_than_one_that_differs() -> None:
    """Single answers of the same mean reward: vpo sees no difference, vpo_at_k pays the one that is alone."""
    group = torch.tensor([[[[1.0, 0.0]], [[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]]])
    assert torch.equal(advantages_of("vpo", group), torch.zeros(1, 4))
    alone = advantages_of("vpo_at_k", group)[0]
    assert alone[3] > 2 * alone[0] > 0


# The scale


def test_the_default_scale_keeps_the_direction_at_the_size_of_vpos() -> None:
    rewards = torch.rand(8, 6, 3, 4, dtype=torch.float64, generator=seeded()) / 50
    derived, scaled = (advantages_of(name, rewards) for name in ("vpo_at_k_derived", "vpo_at_k"))
    torch.testing.assert_close(scaled, derived * (scaled.sum() / derived.sum()))
    assert scaled.square().mean().sqrt().item() == pytest.approx(1, rel=1e-3)


def test_a_batch_of_equal_rollouts_gets_nothing() -> None:
    rewards = torch.rand(2, 1, 3, 4, generator=seeded()).expand(-1, 5, -1, -1)
    for name in ("vpo_at_k", "vpo_at_k_derived", "max_at_k", "max_at_k_norm"):
        for k in (2, 4):
            given_rewards = rewards if name.startswith("vpo") else rewards[:, :, :1]
            assert advantages_of(name, given_rewards, k=k).abs().max() < 1e-6


# The gradient


@pytest.mark.parametrize(("k", "n"), [(1, 3), (2, 2), (2, 4), (3, 4), (4, 4)])
@pytest.mark.parametrize("m", [1, 2])
def test_the_gradient_of_a_table_policy_is_unbiased(k: int, n: int, m: int) -> None:
    """Over all groups of n draws of a softmax policy its mean is the exact gradient of E_w E[max of k draws]."""
    answers = torch.tensor([[0.0, 1.0], [0.7, 0.4], [1.0, 0.1], [0.2, 0.2]], dtype=torch.float64)
    responses = torch.stack([answers[[i, (i + 1) % 3]][:m] for i in range(3)] + [answers[[3, 3]][:m]])  # (4, m, 2)
    weights = torch.tensor([[0.1, 0.9], [0.4, 0.6], [0.8, 0.2]], dtype=torch.float64)
    values = (responses @ weights.T).amax(1)  # (4, weightings)
    logits = torch.tensor([0.5, 0.1, -0.8, 0.3], dtype=torch.float64, requires_grad=True)
    policy = logits.softmax(0)
    draws = torch.tensor(list(itertools.product(range(4), repeat=k)))
    best_of_draws = (policy[draws].prod(1) * values[draws].amax(1).mean(-1)).sum()
    (exact,) = torch.autograd.grad(best_of_draws, logits)

    p = policy.detach()
    groups = torch.tensor(list(itertools.product(range(4), repeat=n)))
    batch = RewardBatch(responses[groups], k=k)
    advantages = best_of_k(batch, weights.expand(len(groups), -1, -1))
    scores = torch.eye(4, dtype=torch.float64)[groups] - p  # grad log p of each draw
    estimate = (p[groups].prod(1)[:, None] * (advantages[..., None] * scores).mean(1)).sum(0)
    torch.testing.assert_close(estimate, exact, rtol=1e-9, atol=1e-12)


# max_at_k and its normalised form


def max_at_k(rollout_rewards: Tensor, k: int | None = None) -> Tensor:
    """The advantages of single rewards, (groups, rollouts)."""
    return advantages_of("max_at_k", rollout_rewards[..., None, None], k=k)


@given(st.lists(st.sampled_from([0.0, 0.25, 1.0]) | st.floats(-1, 1, width=32), min_size=2, max_size=7), st.data())
def test_max_at_k_against_all_subsets(rewards: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(rewards)))
    advantages = max_at_k(torch.tensor([rewards], dtype=torch.float64), k=k)[0]
    np.testing.assert_allclose(advantages, by_subsets(np.array([rewards]), k), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["max_at_k", "vpo_at_k"])
def test_k_is_half_of_the_rollouts_by_default(name: str) -> None:
    rewards = torch.rand(2, 6, 1, 3, generator=seeded())
    assert torch.equal(advantages_of(name, rewards), advantages_of(name, rewards, k=3))
    assert torch.equal(advantages_of(name, rewards[:, :3]), advantages_of(name, rewards[:, :3], k=2))


@pytest.mark.parametrize("name", ["max_at_k", "max_at_k_norm", "vpo_at_k"])
@pytest.mark.parametrize(("k", "n"), [(0, 4), (5, 4), (2, 1)])
def test_a_k_that_the_group_does_not_have_is_an_error(name: str, k: int, n: int) -> None:
    with pytest.raises(
        ValueError, match=r"best of (\d cannot be taken: with 4 rollouts.* 1 to [34]|k needs at least 2)"
    ):
        advantages_of(name, torch.rand(1, n, 1, 2), k=k)


@given(st.lists(st.sampled_from([0.0, 0.25, 1.0]) | st.floats(-1, 1, width=32), min_size=2, max_size=7), st.data())
def test_max_at_k_norm_against_all_subsets(rewards: list[float], data: st.DataObject) -> None:
    """Its worth is the mean best of the k-subsets that hold a rollout; then GRPO's normalisation."""
    k = data.draw(st.integers(1, len(rewards) - 1))
    subsets = list(itertools.combinations(range(len(rewards)), k))
    worth = np.array([np.mean([max(rewards[j] for j in s) for s in subsets if i in s]) for i in range(len(rewards))])
    if 0 < abs(worth.std() - 1e-6) < 1e-9:
        return  # a rounding error decides whether the group counts as equal
    advantages = advantages_of("max_at_k_norm", torch.tensor(rewards, dtype=torch.float64)[None, :, None, None], k=k)
    np.testing.assert_allclose(advantages[0], group_z_norm(torch.from_numpy(worth)[None])[0], rtol=1e-6, atol=1e-8)


def test_max_at_k_norm_of_all_rollouts_is_refused() -> None:
    with pytest.raises(ValueError, match="The best of 4 cannot be taken: with 4 rollouts per prompt, k is 1 to 3"):
        advantages_of("max_at_k_norm", torch.rand(1, 4, 1, 2), k=4)
    assert advantages_of("max_at_k_norm", torch.rand(1, 2, 1, 2)).abs().min() > 0.9  # of two it is GRPO


def test_max_at_k_norm_of_more_rollouts_than_a_float_can_count() -> None:
    """C(1099, 549) is above the largest float. Ranks decide, so the advantages rise with the reward."""
    rewards = torch.linspace(0, 1, 1100, dtype=torch.float64)
    advantages = advantages_of("max_at_k_norm", rewards[None, :, None, None], k=550)[0]
    assert advantages.isfinite().all() and (advantages.diff() >= 0).all()


# Precision, memory, devices


def test_the_default_weightings_are_within_a_hundredth() -> None:
    rewards = torch.rand(6, 16, 3, 5, generator=seeded())
    reference = advantages_of("vpo_at_k_derived", rewards.double(), num_weights=2**15)
    errors = [
        get_advantage_estimator("vpo_at_k_derived")(RewardBatch(rewards, generator=seeded(seed))) - reference
        for seed in range(1, 5)
    ]
    error = torch.stack(errors).square().mean().sqrt() / reference.square().mean().sqrt()
    assert error < 0.01  # measured: 0.006


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_batch_is_computed_in_bounded_memory() -> None:
    script = """
import re, torch
from vpo_plugin.advantages import RewardBatch, get_advantage_estimator
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
vpo_at_k = get_advantage_estimator("vpo_at_k")
vpo_at_k(RewardBatch(torch.rand(2, 16, 3, 5)))
before = peak()
vpo_at_k(RewardBatch(torch.rand(1024, 16, 3, 5)))
vpo_at_k(RewardBatch(torch.rand(1024, 16, 1, 5), k=2))
print(peak() - before)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 300_000


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("m", [1, 3])
def test_on_a_cuda_device(m: int) -> None:
    rewards = torch.rand(4, 8, m, 4, generator=seeded())
    on_cuda = advantages_of("vpo_at_k", rewards.cuda())
    assert on_cuda.is_cuda
    torch.testing.assert_close(on_cuda.cpu(), advantages_of("vpo_at_k", rewards), rtol=1e-4, atol=1e-4)

"""The estimators against the exact facts of the set reward and against float64 brute force."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vpo_plugin.advantages import (
    RewardBatch,
    advantage_estimator_names,
    get_advantage_estimator,
    group_z_norm,
    parse_method,
    register_advantage_estimator,
    sample_simplex_weights,
)

EXACT = {"rtol": 1e-9, "atol": 1e-12}
QMC = {"rtol": 0.0, "atol": 5e-3}  # 1,024 points, rewards in [0, 1], up to 5 objectives
settings.register_profile("estimator", deadline=None, max_examples=60)
settings.load_profile("estimator")


def matrices(candidates=(1, 4), objectives=(1, 5), values=None):
    """Reward matrices (G, N, m, k) in [0, 1], with many ties and near-ties."""
    values = values or st.one_of(st.sampled_from([0.0, 0.5, 0.5 + 1e-9, 1.0]), st.floats(0, 1, width=32))
    shape = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(*candidates), st.integers(*objectives))
    return shape.flatmap(lambda s: hnp.arrays(np.float64, s, elements=values)).map(torch.from_numpy)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def set_rewards(reward_matrices, **settings):
    return RewardBatch(reward_matrices, **settings).set_rewards


def advantages_of(name, reward_matrices, **settings):
    return get_advantage_estimator(name)(RewardBatch(reward_matrices, **settings))


def worth_of(name, reward_matrices, **settings):
    return get_advantage_estimator(name).values(RewardBatch(reward_matrices, **settings))


def brute_force(reward_matrices, num_weights=2**18, alpha=1.0):
    """The plain definition, with i.i.d. weights from NumPy: a mean over weights of a max over candidates."""
    k = reward_matrices.shape[-1]
    weights = torch.from_numpy(np.random.default_rng(7).dirichlet([alpha] * k, num_weights))
    flat = reward_matrices.double().reshape(-1, *reward_matrices.shape[2:])
    return torch.stack([(r @ weights.T).amax(0).mean() for r in flat]).reshape(reward_matrices.shape[:2])


# One candidate, one objective, equal candidates, a dominating one: exact for any alpha


@given(matrices(candidates=(1, 1)), st.sampled_from([0.1, 1.0, 7.0]))
def test_one_candidate_is_worth_its_mean_reward(rewards, alpha):
    torch.testing.assert_close(set_rewards(rewards, alpha=alpha), rewards.mean((2, 3)), **EXACT)


@given(matrices(objectives=(1, 1)), st.sampled_from([0.1, 1.0, 7.0]))
def test_one_objective_is_worth_the_best_candidate(rewards, alpha):
    torch.testing.assert_close(set_rewards(rewards, alpha=alpha), rewards.amax((2, 3)), **EXACT)


@given(matrices(candidates=(1, 1)), st.integers(2, 4), st.sampled_from([0.1, 1.0, 7.0]))
def test_equal_candidates_are_worth_one_of_them(rewards, copies, alpha):
    repeated = rewards.repeat(1, 1, copies, 1)
    torch.testing.assert_close(set_rewards(repeated, alpha=alpha), rewards.mean((2, 3)), **EXACT)


@given(matrices(), st.sampled_from([0.1, 1.0, 7.0]))
def test_a_dominating_candidate_is_all_that_counts(rewards, alpha):
    best = rewards.amax(2, keepdim=True)
    rewards = torch.cat([rewards, best], dim=2)
    torch.testing.assert_close(set_rewards(rewards, alpha=alpha), best.mean((2, 3)), **EXACT)


def test_equal_candidates_are_exact_beside_rollouts_that_are_not():
    rewards = torch.rand(2, 3, 4, 5, dtype=torch.float64, generator=seeded())
    rewards[1, 2] = rewards[1, 2, 0]
    assert set_rewards(rewards, num_weights=8)[1, 2].item() == pytest.approx(rewards[1, 2, 0].mean().item(), 1e-12)


# Two candidates at alpha = 1: the closed form


def test_two_opposite_candidates_are_worth_three_quarters():
    assert set_rewards(torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]]), num_weights=1).item() == 0.75


def test_three_opposite_candidates_are_worth_eleven_eighteenths():
    worth = set_rewards(torch.eye(3)[None, None], num_weights=2**16)
    assert worth.item() == pytest.approx((1 + 1 / 2 + 1 / 3) / 3, abs=1e-4)


@given(matrices(candidates=(2, 2), objectives=(1, 16)))
def test_the_closed_form_swaps_and_bounds(rewards):
    worth = set_rewards(rewards, num_weights=1)
    torch.testing.assert_close(set_rewards(rewards.flip(2), num_weights=1), worth, **EXACT)
    torch.testing.assert_close(set_rewards(rewards.flip(3), num_weights=1), worth, **EXACT)
    assert (worth >= rewards.mean(-1).amax(-1) - 1e-12).all()
    assert (worth <= rewards.amax(2).mean(-1) + 1e-12).all()


@given(st.lists(st.integers(-8, 8), min_size=1, max_size=16, unique=True))
def test_the_closed_form_is_the_divided_difference(differences):
    """Against `[c_1, …, c_k] max(x, 0)^k / k` by its explicit sum over distinct knots, in exact fractions."""
    from fractions import Fraction

    k = len(differences)
    terms = (Fraction(max(x, 0) ** k, math.prod(x - y for y in differences if y != x) or 1) for x in differences)
    expected = float(sum(terms, Fraction(0)) / k)
    rewards = torch.tensor([differences, [0] * k], dtype=torch.float64)[None, None]
    assert set_rewards(rewards, num_weights=1).item() == pytest.approx(expected, rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("k", [2, 4, 16])
def test_near_ties_change_the_closed_form_by_no_more_than_themselves(k):
    tied = torch.randint(0, 3, (20, 8, 2, k), generator=seeded()).double() / 2
    near = tied + 1e-10 * torch.rand(tied.shape, dtype=torch.float64, generator=seeded())
    torch.testing.assert_close(set_rewards(near), set_rewards(tied), rtol=0, atol=1e-10)


@pytest.mark.parametrize("k", [2, 4, 16])
def test_the_closed_form_against_brute_force(k):
    rewards = torch.rand(4, 2, 2, k, generator=seeded())
    torch.testing.assert_close(set_rewards(rewards).double(), brute_force(rewards), rtol=0, atol=1e-3)


# Three candidates and more: quasi-Monte-Carlo


@pytest.mark.parametrize(("m", "k", "alpha"), [(3, 4, 1.0), (5, 5, 1.0), (5, 16, 1.0), (3, 4, 0.3), (3, 4, 20.0)])
def test_set_rewards_against_brute_force(m, k, alpha):
    rewards = torch.rand(3, 2, m, k, generator=seeded())
    rewards[0] = rewards[0].round()
    worth = set_rewards(rewards, alpha=alpha, generator=seeded()).double()
    torch.testing.assert_close(worth, brute_force(rewards, alpha=alpha), rtol=0, atol=5e-3)


def test_advantages_at_1024_weights_are_within_a_hundredth():
    rewards = torch.rand(64, 8, 3, 4, dtype=torch.float64, generator=seeded())
    reference = advantages_of("vpo", rewards, num_weights=2**16, generator=seeded(1))
    errors = [
        advantages_of("vpo", rewards, num_weights=2**10, generator=seeded(seed)) - reference for seed in range(2, 6)
    ]
    assert torch.stack(errors).square().mean().sqrt() < 0.005  # measured: 0.0017


@given(matrices(candidates=(1, 4)), st.integers(0, 3))
def test_adding_a_candidate_never_lowers_the_worth(rewards, row):
    more = torch.cat([rewards, rewards.flip(0, 1)[:, :, row % rewards.shape[2], None]], dim=2)
    assert (set_rewards(more, generator=seeded()) >= set_rewards(rewards, generator=seeded()) - QMC["atol"]).all()


@given(matrices(), st.randoms(use_true_random=False))
def test_the_order_of_candidates_and_objectives_does_not_matter(rewards, random):
    worth = set_rewards(rewards, generator=seeded())
    candidates = random.sample(range(rewards.shape[2]), rewards.shape[2])
    torch.testing.assert_close(set_rewards(rewards[:, :, candidates], generator=seeded()), worth, **EXACT)
    objectives = random.sample(range(rewards.shape[3]), rewards.shape[3])
    torch.testing.assert_close(set_rewards(rewards[..., objectives], generator=seeded()), worth, **QMC)


@given(matrices())
def test_the_max_is_inside_the_mean(rewards):
    worth = set_rewards(rewards, generator=seeded())
    assert (worth >= rewards.mean(-1).amax(-1) - 1e-12).all()
    assert (worth <= rewards.amax(2).mean(-1) + QMC["atol"]).all()


@given(matrices(), st.floats(0.1, 10), st.floats(-5, 5))
def test_worth_moves_with_the_scale_and_the_offset_of_the_rewards(rewards, scale, offset):
    moved = set_rewards(rewards * scale + offset, generator=seeded())
    torch.testing.assert_close(moved, set_rewards(rewards, generator=seeded()) * scale + offset, **QMC)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 3.0, 100.0])
def test_two_opposite_candidates_at_any_alpha(alpha):
    """E[max(w, 1 - w)] for w ~ Beta(alpha, alpha) is 1/2 + 1 / (2^(2 alpha) alpha B(alpha, alpha))."""
    beta = math.exp(2 * math.lgamma(alpha) - math.lgamma(2 * alpha))
    expected = 0.5 + 1 / (4**alpha * alpha * beta)
    opposite = torch.tensor([[[[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]]])
    assert set_rewards(opposite, alpha=alpha, generator=seeded()).item() == pytest.approx(expected, abs=2e-3)


def test_small_alpha_tends_to_the_best_per_objective_and_large_alpha_to_the_best_mean():
    rewards = torch.rand(2, 3, 4, 5, dtype=torch.float64, generator=seeded())
    vertices = set_rewards(rewards, alpha=1e-3, num_weights=2**13, generator=seeded())
    torch.testing.assert_close(vertices, rewards.amax(2).mean(-1), rtol=0, atol=5e-3)
    centre = set_rewards(rewards, alpha=1e6, generator=seeded())
    torch.testing.assert_close(centre, rewards.mean(-1).amax(-1), rtol=0, atol=1e-3)


# The weights


@given(st.integers(1, 64), st.integers(1, 16), st.sampled_from([1e-3, 0.1, 1.0, 2.5, 100.0]), st.integers(0, 9))
def test_weights_lie_on_the_simplex_and_repeat_with_their_seed(num_weights, k, alpha, seed):
    weights = sample_simplex_weights(num_weights, k, alpha=alpha, generator=seeded(seed))
    assert weights.shape == (num_weights, k)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(num_weights, dtype=torch.float64))
    assert torch.equal(weights, sample_simplex_weights(num_weights, k, alpha=alpha, generator=seeded(seed)))


@pytest.mark.parametrize("alpha", [0.1, 1.0, 2.5, 100.0])
def test_weights_have_the_moments_of_the_dirichlet(alpha):
    k = 4
    weights = sample_simplex_weights(2**14, k, alpha=alpha, generator=seeded())
    variance = (k - 1) / (k**2 * (k * alpha + 1))
    covariance = torch.full((k, k), -variance / (k - 1), dtype=torch.float64).fill_diagonal_(variance)
    torch.testing.assert_close(weights.mean(0), torch.full((k,), 1 / k, dtype=torch.float64), rtol=0, atol=1e-3)
    torch.testing.assert_close(weights.T.cov(), covariance, rtol=0.02, atol=1e-4)


def test_the_worth_repeats_with_the_seed_and_moves_with_it():
    rewards = torch.rand(2, 3, 3, 4, generator=seeded())
    first, again = (set_rewards(rewards, generator=seeded(5)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, set_rewards(rewards, generator=seeded(6)))
    torch.manual_seed(5)
    assert torch.equal(first, set_rewards(rewards))  # no generator: torch's own


def test_rollouts_of_a_group_share_their_weights():
    """Permuted candidates are the same set, so with common weights they are worth exactly the same."""
    rows = torch.rand(4, 4, dtype=torch.float64, generator=seeded())
    group = torch.stack([rows[list(order)] for order in itertools.permutations(range(4))])[None]
    worth = set_rewards(group, num_weights=16)
    torch.testing.assert_close(worth, worth[:, :1].expand_as(worth), **EXACT)
    assert torch.equal(advantages_of("vpo", group, num_weights=16), torch.zeros(1, 24, dtype=torch.float64))


# Masks


@st.composite
def ragged(draw):
    """A reward matrix batch with absent candidates and objectives, garbage where the mask is False."""
    groups, rollouts, m, k = draw(st.tuples(*[st.integers(1, 3)] * 2, st.integers(1, 4), st.integers(1, 5)))
    random = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    candidates = torch.rand(groups, rollouts, m, generator=random) < 0.7
    objectives = torch.rand(groups, k, generator=random) < 0.7
    objectives[torch.arange(groups), torch.randint(k, (groups,), generator=random)] = True
    mask = candidates[..., None] & objectives[:, None, None]
    rewards = torch.randint(-3, 4, mask.shape, generator=random).double() / 3
    garbage = torch.tensor([math.nan, math.inf, 5.0], dtype=torch.float64)
    return torch.where(mask, rewards, garbage[torch.randint(3, mask.shape, generator=random)]), mask


@given(ragged(), st.sampled_from([1.0, 0.5]))
def test_a_ragged_batch_is_its_rollouts_computed_one_by_one(batch, alpha):
    rewards, mask = batch
    worth = set_rewards(rewards, mask=mask, alpha=alpha, generator=seeded())
    for group, rollout in np.ndindex(*worth.shape):
        present = mask[group, rollout].any(-1)
        objectives = mask[group].any(1).any(0)
        if not present.any():
            assert worth[group, rollout] == 0
            continue
        alone = rewards[group, rollout][present][:, objectives][None, None]
        expected = set_rewards(alone, alpha=alpha, num_weights=2**14)
        torch.testing.assert_close(worth[group, rollout], expected[0, 0], **QMC)
        if len(alone[0, 0]) == 1 or alone.shape[-1] == 1:
            torch.testing.assert_close(worth[group, rollout], expected[0, 0], **EXACT)


@given(ragged())
def test_two_ragged_candidates_are_exact(batch):
    rewards, mask = batch[0][:, :, [0, -1]], batch[1][:, :, [0, -1]]
    if not mask.any(1).any(1).eq(batch[1].any(1).any(1)).all():
        return  # an objective got lost with the other candidates
    worth = set_rewards(rewards, mask=mask, num_weights=1)
    for group in range(len(worth)):
        objectives = mask[group].any(1).any(0)
        full = mask[group].any(-1).all(-1)
        if full.any() and objectives.any():
            alone = rewards[group][full][None][..., objectives]
            torch.testing.assert_close(worth[group][full], set_rewards(alone, num_weights=1)[0], **EXACT)


def test_a_mask_may_broadcast():
    rewards = torch.rand(2, 3, 3, 4, generator=seeded())
    objectives = torch.tensor([True, False, True, True])
    expected = set_rewards(rewards[..., objectives], num_weights=2**14)
    torch.testing.assert_close(set_rewards(rewards, mask=objectives), expected, **QMC)


def test_a_group_without_anything_present_is_worth_nothing():
    rewards = torch.full((1, 2, 2, 2), math.nan)
    mask = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    for name in advantage_estimator_names():
        assert torch.equal(worth_of(name, rewards, mask=mask), torch.zeros(1, 2))
        assert torch.equal(advantages_of(name, rewards, mask=mask), torch.zeros(1, 2))


# Advantages


@given(hnp.arrays(np.float64, (3, 4), elements=st.floats(0, 1, width=32)))
def test_z_norm_has_mean_zero_and_unit_population_std_or_is_zero(rewards):
    advantages = group_z_norm(torch.from_numpy(rewards))
    std = np.std(rewards, axis=-1)
    expected = (rewards - rewards.mean(-1, keepdims=True)) / (std[:, None] + 1e-6)
    expected[std < 1e-6] = 0
    np.testing.assert_allclose(advantages.numpy(), expected, rtol=1e-6, atol=1e-9)


def test_z_norm_ignores_a_spread_that_is_only_rounding():
    rewards = torch.tensor([[0.3, 0.3 + 6e-8, 0.3, 0.3], [0.0, 0.0, 0.0, 1.0]])
    advantages = group_z_norm(rewards)
    assert torch.equal(advantages[0], torch.zeros(4))
    torch.testing.assert_close(advantages[1], torch.tensor([-1.0, -1, -1, 3]) / 3**0.5, rtol=1e-5, atol=0)


def test_vpo_advantages_prefer_the_diverse_rollout():
    """Equal mean rewards, so GRPO sees no difference; VPO rewards the rollout that covers both objectives."""
    same = [[0.5, 0.5], [0.5, 0.5]]
    diverse = [[1.0, 0.0], [0.0, 1.0]]
    group = torch.tensor([[same, diverse]])
    torch.testing.assert_close(advantages_of("vpo", group), torch.tensor([[-1.0, 1.0]]), rtol=1e-5, atol=0)
    assert torch.equal(advantages_of("grpo", group), torch.zeros(1, 2))
    assert torch.equal(advantages_of("vpo", group), advantages_of("vpo", group))


def test_grpo_is_the_hosts_group_norm():
    rewards = torch.rand(6, 8, 3, 4, generator=seeded())
    weights = [0.4, 0.3, 0.2, 0.1]
    advantages = advantages_of("grpo", rewards, objective_weights=weights)
    scalar = (rewards * torch.tensor(weights)).sum(-1).mean(-1)
    host = (scalar - scalar.mean(-1, keepdim=True)) / (scalar.std(-1, keepdim=True) + 1e-9)
    torch.testing.assert_close(advantages, host, rtol=1e-4, atol=1e-5)


def test_grpo_counts_absent_candidates_as_zero_rows_and_absent_objectives_not_at_all():
    rewards = torch.tensor([[[[0.6, 9.0, 0.2], [math.nan, 0.0, 0.0]]]])
    mask = torch.tensor([[[True], [False]]]) & torch.tensor([True, False, True])
    worth = worth_of("grpo", rewards, mask=mask)
    assert worth.item() == pytest.approx((0.6 + 0.2) / 2 / 2)
    worth = worth_of("grpo", rewards, mask=mask, objective_weights=[0.5, 0.3, 0.2])
    assert worth.item() == pytest.approx((0.5 * 0.6 + 0.2 * 0.2) / 2)


@given(matrices(candidates=(1, 1), objectives=(2, 4)))
def test_vpo_with_one_candidate_orders_rollouts_as_grpo(rewards):
    rewards = torch.cat([rewards, rewards.flip(-1) / 2], dim=1)  # at least two rollouts
    vpo, grpo = (worth_of(name, rewards) for name in ("vpo", "grpo"))
    torch.testing.assert_close(vpo, grpo, **EXACT)


# Registry


def test_an_unknown_estimator_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"no advantage estimator named 'vpoo'; known are: .*grpo, .*vpo"):
        get_advantage_estimator("vpoo")


def test_a_name_can_be_registered_once():
    with pytest.raises(ValueError, match="'vpo' exists already"):
        register_advantage_estimator("vpo")(get_advantage_estimator("vpo").function)


def test_a_method_may_name_the_candidates_of_a_response():
    assert parse_method("vpo_at_k") == ("vpo_at_k", None)
    assert parse_method("vpo_at_k:1") == ("vpo_at_k", 1)
    assert parse_method("rloo:3") == ("rloo", 3)
    for method in ("vpo:", "vpo:0", "vpo:-1", "vpo:two", "vpo:1:2"):
        with pytest.raises(ValueError, match="the number of candidates in a response follows"):
            parse_method(method)
    with pytest.raises(ValueError, match="'maxrl:2' is not a method: maxrl rewards one candidate"):
        parse_method("maxrl:2")


def test_an_estimator_of_ones_own(monkeypatch):
    from vpo_plugin.advantages import registry

    monkeypatch.setattr(registry, "_estimators", dict(registry._estimators))

    @register_advantage_estimator("best_mean")
    def best_mean(batch):
        return batch.rewards.mean(-1).amax(-1)

    rewards = torch.rand(2, 4, 3, 4, dtype=torch.float64, generator=seeded())
    assert {"best_mean", "grpo", "vpo"} <= set(advantage_estimator_names())
    assert torch.equal(advantages_of("best_mean", rewards), group_z_norm(rewards.mean(-1).amax(-1)))


# Types, devices, memory, errors


@pytest.mark.parametrize("name", ["vpo", "grpo"])
@pytest.mark.parametrize(
    ("given_dtype", "dtype"),
    [(torch.float64,) * 2, (torch.float32,) * 2]
    + [(t, torch.float32) for t in (torch.float16, torch.bfloat16, torch.int64, torch.bool)],
)
def test_computed_in_at_least_float32(name, given_dtype, dtype):
    rewards = torch.randint(0, 2, (2, 3, 3, 4), generator=seeded()).to(given_dtype)
    worth = worth_of(name, rewards, generator=seeded())
    assert worth.dtype == advantages_of(name, rewards).dtype == dtype
    expected = worth_of(name, rewards.double(), generator=seeded())
    torch.testing.assert_close(worth.double(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("m", [1, 2, 3])
def test_on_a_cuda_device(m):
    rewards = torch.rand(4, 8, m, 4, generator=seeded())
    mask = torch.tensor([True, True, False, True])
    on_cuda = advantages_of("vpo", rewards.cuda(), mask=mask.cuda(), generator=seeded())
    assert on_cuda.is_cuda
    torch.testing.assert_close(on_cuda.cpu(), advantages_of("vpo", rewards, mask=mask, generator=seeded()))
    generator = torch.Generator("cuda").manual_seed(0)
    assert set_rewards(rewards.cuda(), generator=generator).is_cuda


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_batch_is_computed_in_bounded_memory():
    """1,024 groups of 16 rollouts of 5 candidates at 1,024 weights are 0.7 GB of scores."""
    script = """
import re, torch
from vpo_plugin.advantages import RewardBatch, get_advantage_estimator
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
vpo = get_advantage_estimator("vpo")
vpo(RewardBatch(torch.rand(2, 16, 5, 16)))
before = peak()
vpo(RewardBatch(torch.rand(1024, 16, 5, 16)))
print(peak() - before)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 300_000


BAD = torch.full((2, 3, 2, 4), 0.5)
NAN, INF = BAD.clone(), BAD.clone()
NAN[1, 2, 0, 3] = math.nan
INF[0, 1, 1, 2] = -math.inf


@pytest.mark.parametrize("name", ["vpo", "grpo"])
@pytest.mark.parametrize(
    ("rewards", "arguments", "message"),
    [
        (NAN, {}, "group 1, rollout 2, candidate 0, objective 3 is nan; 1 of 48"),
        (INF, {}, "group 0, rollout 1, candidate 1, objective 2 is -inf"),
        (NAN, {"mask": torch.ones(4, dtype=torch.bool)}, "group 1, rollout 2, candidate 0, objective 3"),
        (BAD[0], {}, r"\(groups, rollouts, candidates, objectives\).*\(3, 2, 4\)"),
        (BAD[:, :, :0], {}, r"each at least 1, but has \(2, 3, 0, 4\)"),
        (BAD * 1j, {}, "real numbers"),
        (BAD, {"mask": torch.ones(4)}, "bool"),
        (BAD, {"mask": torch.ones(5, dtype=torch.bool)}, r"\(5,\) does not broadcast"),
        (BAD, {"mask": torch.eye(2, 4, dtype=torch.bool)}, "candidates of group 0 differ"),
    ],
)
def test_bad_rewards_are_errors(name, rewards, arguments, message):
    with pytest.raises(ValueError, match=message):
        advantages_of(name, rewards, **arguments)


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 0.0}, "alpha.*positive"),
        ({"alpha": -1.0}, "alpha.*positive"),
        ({"alpha": math.nan}, "alpha.*positive"),
        ({"alpha": math.inf}, "alpha.*finite"),
        ({"num_weights": 0}, "num_weights"),
    ],
)
def test_bad_settings_are_errors_whatever_the_shape(m, arguments, message):
    with pytest.raises(ValueError, match=message):
        set_rewards(torch.rand(1, 2, m, 2), **arguments)


def test_objective_weights_of_another_length_are_an_error():
    with pytest.raises(ValueError, match="one per objective: 4, but are 3"):
        advantages_of("grpo", BAD, objective_weights=[0.5, 0.25, 0.25])


def test_group_norm_of_single_rollouts_is_an_error():
    with pytest.raises(ValueError, match="at least 2 rollouts"):
        advantages_of("grpo", torch.rand(3, 1, 1, 1))


def test_the_estimators_import_neither_host_nor_ray():
    script = "import sys, vpo_plugin.advantages; print(sorted({'ray', 'openrlhf'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"

"""The exact example: its integrals, its gradient, and that every policy ends at the optimum of its own objective."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from vpo_plugin.advantages import RewardBatch, get_advantage_estimator
from vpo_plugin.cli import explain
from vpo_plugin.cli.explain import ANSWERS, METHODS, Policy, expected_best, set_value

FRONT = ("fast", "thorough", "compromise")


@pytest.fixture(scope="module")
def policies() -> dict[str, Policy]:
    return {method: explain.train(method) for method in METHODS}


def test_the_value_of_a_set_is_its_set_reward() -> None:
    for answers in itertools.combinations(ANSWERS, 2):
        matrix = torch.tensor([ANSWERS[name] for name in answers], dtype=torch.float64)
        assert set_value(answers) == pytest.approx(
            RewardBatch(matrix[None, None]).set_rewards.item(), rel=1e-12
        )  # closed form
    # max(w, 0.65, 1 - w) over w in [0, 1]: two ramps from 0.65 to 1 and a floor between them
    assert set_value(FRONT) == pytest.approx(2 * (1 - 0.65**2) / 2 + (2 * 0.65 - 1) * 0.65, rel=1e-12)
    assert set_value(list(ANSWERS)) == pytest.approx(0.7725, rel=1e-12)


def test_the_best_of_several_responses_against_sampling() -> None:
    random = np.random.default_rng(0)
    responses = explain.every_response(2)
    policy = Policy(responses, random.dirichlet(np.ones(len(responses))))
    drawn = random.choice(len(responses), size=(200_000, 3), p=policy.probabilities)
    w = random.random(200_000)
    weights = np.stack([w, 1 - w], 1)
    best = np.einsum("nrmk,nk->nrm", policy.rewards[drawn], weights).max((1, 2))
    assert expected_best(policy, 3) == pytest.approx(best.mean(), abs=4 * best.std() / 200_000**0.5)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "vpo_at_k"])
def test_a_policy_ends_at_the_optimum_of_its_estimator(method: str, policies: dict[str, Policy]) -> None:
    policy = policies[method]
    batch = RewardBatch(torch.from_numpy(policy.rewards)[None], num_weights=2**14)
    worth = get_advantage_estimator(method).values(batch)[0].numpy()
    assert policy.probabilities @ worth == pytest.approx(worth.max(), abs=2e-3)
    assert policy.probabilities.sum() == pytest.approx(1)
    undecided = worth.mean()
    assert policy.probabilities @ worth > undecided + 0.05


def test_grpo_and_multi_rlvr_collapse_on_the_compromise(policies: dict[str, Policy]) -> None:
    """The known optimum of the mean reward: the one answer whose mean is the highest."""
    for method in ("grpo", "multi_rlvr"):
        all_compromise = ("compromise",) * METHODS[method]
        assert policies[method].probabilities[policies[method].responses.index(all_compromise)] > 0.99
        assert expected_best(policies[method], 10) == pytest.approx(0.65, abs=5e-3)


def test_vpo_covers_the_front(policies: dict[str, Policy]) -> None:
    """The known optimum of the set reward: among all 125 sets it is the front, in any of its 6 orders."""
    policy = policies["vpo"]
    values = {response: set_value(response) for response in policy.responses}
    best = {response for response, value in values.items() if value > max(values.values()) - 1e-9}
    assert best == set(itertools.permutations(FRONT))
    chance = dict(zip(policy.responses, policy.probabilities, strict=True))
    assert sum(chance[response] for response in best) > 0.99
    assert expected_best(policy, 1) == pytest.approx(0.7725, abs=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_the_estimators_mean_is_the_gradient_of_the_best_of_k(seed: int) -> None:
    """Exactly, up to the weightings: the objective's integral over them is exact, the estimator's has 2^14 points."""
    across = explain.AcrossRollouts()
    probabilities = np.random.default_rng(seed).dirichlet(np.ones(5))
    objective = explain.objective_gradient(Policy(across.responses, probabilities), explain.ROLLOUTS)
    assert np.abs(objective).max() > 1e-3
    np.testing.assert_allclose(across.gradient(probabilities), objective, atol=1e-5)


def test_vpo_at_k_spreads_single_answers_over_the_front(policies: dict[str, Policy]) -> None:
    """Its optimum: no direction improves the best of k, and a search of several answers finds what vpo's sets hold."""
    policy = policies["vpo_at_k"]
    assert all(policy.chance_of(name) > 0.25 for name in FRONT)
    assert sum(policy.chance_of(name) for name in FRONT) > 0.99
    assert np.abs(explain.objective_gradient(policy, explain.ROLLOUTS)).max() < 1e-3
    assert expected_best(policy, 30) == pytest.approx(0.7725, abs=1e-4)
    grpo, vpo = (expected_best(policies[name], budget) for name, budget in (("grpo", 3), ("vpo", 1)))
    assert grpo + 0.05 < expected_best(policy, 3) < vpo


def test_set_max_keeps_the_compromise_and_leaves_the_rest_to_chance(policies: dict[str, Policy]) -> None:
    policy = policies["set_max"]
    assert policy.chance_of("compromise") > 0.99
    others = [policy.chance_of(name) for name in ANSWERS if name != "compromise"]
    assert max(others) - min(others) < 1e-6, "the useless answer is kept as often as the specialists"
    assert 0.2 < others[0] < 0.8
    assert expected_best(policy, 1) < expected_best(policies["vpo"], 1) - 0.05


def test_the_command_says_it_and_draws_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain.main(["--output", str(tmp_path / "new")]) == 0
    said = capsys.readouterr().out
    assert "the policy collapses on it" in said
    assert "0.7725" in said
    assert str(tmp_path / "new" / "explain.png") in said
    assert (tmp_path / "new" / "explain.png").stat().st_size > 10_000

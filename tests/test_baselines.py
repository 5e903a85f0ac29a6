"""The baseline estimators against direct float64 transcriptions, and their way through the host."""

import copy
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Training, write_prompts
from host import host_arguments, host_parser, importable_host
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vpo_plugin.advantages import (
    RewardBatch,
    get_advantage_estimator,
    goal_weights,
    sample_simplex_weights,
    write_goal,
)
from vpo_plugin.openrlhf import launcher
from vpo_plugin.openrlhf.prompts import patch_prompts
from vpo_plugin.openrlhf.settings import VARIABLE, Settings
from vpo_plugin.rewards import load_spec

SINGLE = ["gdpo", "goal_conditioned", "max_at_k", "max_at_k_norm", "maxrl", "random_weighting"]
SETS = ["multi_rlvr", "set_max", "vpo", "vpo_at_k"]
settings.register_profile("baselines", deadline=None, max_examples=50)
settings.load_profile("baselines")

rewards_in_groups = hnp.arrays(
    np.float64,
    st.tuples(st.integers(1, 3), st.integers(2, 5), st.integers(1, 3), st.integers(1, 4)),
    elements=st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1, width=32)),
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def advantages_of(name: str, reward_matrices: torch.Tensor, **settings: Any) -> torch.Tensor:
    return get_advantage_estimator(name)(RewardBatch(reward_matrices, **settings))


def worth_of(name: str, reward_matrices: torch.Tensor, **settings: Any) -> torch.Tensor:
    return get_advantage_estimator(name).values(RewardBatch(reward_matrices, **settings))


def some_weights(k: int) -> np.ndarray:
    return np.arange(1, k + 1) / (k * (k + 1) / 2)


def z_norm(values: np.ndarray) -> np.ndarray:
    centred, std = values - values.mean(), values.std()
    return centred / (std + 1e-6) if std >= 1e-6 else np.zeros_like(values)


# Each estimator, written out rollout by rollout


def direct_multi_rlvr(rewards: np.ndarray, w: np.ndarray) -> np.ndarray:
    return np.stack([z_norm(np.array([sum(w @ row for row in rollout) for rollout in group])) for group in rewards])


def direct_set_max(rewards: np.ndarray, w: np.ndarray) -> np.ndarray:
    return np.stack([z_norm(np.array([max(w @ row for row in rollout) for rollout in group])) for group in rewards])


def direct_maxrl(rewards: np.ndarray, w: np.ndarray) -> np.ndarray:
    advantages = []
    for group in rewards:
        worth = np.array([np.mean([w @ row for row in rollout]) for rollout in group])
        advantages.append((worth - worth.mean()) / (worth.mean() + 1e-6) if worth.mean() > 0 else 0 * worth)
    return np.stack(advantages)


def direct_gdpo(rewards: np.ndarray, w: np.ndarray) -> np.ndarray:
    worth = np.zeros(rewards.shape[:2])
    for g, group in enumerate(rewards):
        for j, weight in enumerate(w):
            worth[g] += weight * z_norm(np.array([rollout[:, j].mean() for rollout in group]))
    return z_norm(worth.ravel()).reshape(worth.shape)


@pytest.mark.parametrize("direct", [direct_multi_rlvr, direct_set_max, direct_maxrl, direct_gdpo])
@given(rewards=rewards_in_groups)
def test_against_a_direct_transcription(direct: Callable[..., np.ndarray], rewards: np.ndarray) -> None:
    w = some_weights(rewards.shape[-1])
    estimator = get_advantage_estimator(direct.__name__.removeprefix("direct_"))
    batch = RewardBatch(torch.from_numpy(rewards), objective_weights=w)
    worth = estimator.values(batch)
    if (worth.std(-1, correction=0) - 1e-6).abs().min() < 1e-9 or 0 < worth.mean(-1).abs().min() < 1e-9:
        return  # a rounding error decides whether the group counts as equal
    np.testing.assert_allclose(estimator(batch).numpy(), direct(rewards, w), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", [*SINGLE, *SETS])
def test_batched_groups_are_the_groups_one_by_one(name: str) -> None:
    rewards = torch.rand(3, 6, 1 if name in SINGLE else 3, 4, dtype=torch.float64, generator=seeded())
    estimator = get_advantage_estimator(name)
    worth = worth_of(name, rewards, generator=seeded(1))
    if name not in ("random_weighting", "vpo_at_k"):  # groups have weights of their own, or share their scale
        for group, alone in zip(rewards, worth, strict=True):
            expected = worth_of(name, group[None], generator=seeded(1))[0]
            torch.testing.assert_close(alone, expected, rtol=1e-12, atol=1e-12)
    if estimator.normalize is not None and name != "gdpo":  # which normalises the batch
        one_by_one = torch.cat([estimator.normalize(group[None]) for group in worth])
        torch.testing.assert_close(estimator.normalize(worth), one_by_one, rtol=1e-12, atol=1e-12)
    assert advantages_of(name, rewards).abs().max() > 0.01


def test_maxrl_of_a_rare_success_and_of_none() -> None:
    rewards = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0], [-1, 0, 0, 0]], dtype=torch.float64)[:, :, None, None]
    expected = torch.tensor([[3.0, -1, -1, -1], [0] * 4, [0] * 4], dtype=torch.float64)
    torch.testing.assert_close(advantages_of("maxrl", rewards), expected, rtol=1e-5, atol=0)


def test_gdpo_hears_an_objective_of_small_scale() -> None:
    """Where grpo sees the wide objective alone, the narrow one counts as much here (arXiv 2601.05242)."""
    rewards = torch.tensor([[0.0, 0.01], [1.0, 0.0], [0.0, 0.0], [1.0, 0.01]], dtype=torch.float64)[None, :, None]
    advantages = advantages_of("gdpo", rewards)[0]
    expected = torch.tensor([0.0, 0.0, -(2**0.5), 2**0.5], dtype=torch.float64)
    torch.testing.assert_close(advantages, expected, rtol=0, atol=1e-3)
    grpo = advantages_of("grpo", rewards)[0]
    assert grpo[1] - grpo[0] > 1.5


def test_gdpo_leaves_absent_objectives_out() -> None:
    rewards = torch.rand(2, 5, 1, 3, dtype=torch.float64, generator=seeded())
    mask = torch.tensor([[True, True, False], [True, True, True]])[:, None, None].expand_as(rewards)
    worth = worth_of("gdpo", rewards.masked_fill(~mask, math.nan), mask=mask)
    alone = worth_of("gdpo", rewards[:1, ..., :2])
    torch.testing.assert_close(worth[:1], alone, rtol=1e-12, atol=1e-12)


def test_absent_candidates_add_nothing_and_never_win() -> None:
    rewards = torch.tensor([[[[-0.5], [math.nan]], [[-0.2], [-0.3]]]], dtype=torch.float64)
    mask = ~rewards.isnan()
    worth = worth_of("set_max", rewards, mask=mask)
    torch.testing.assert_close(worth, torch.tensor([[-0.5, -0.2]], dtype=torch.float64))
    worth = worth_of("multi_rlvr", rewards, mask=mask)
    torch.testing.assert_close(worth, torch.tensor([[-0.5, -0.5]], dtype=torch.float64))


def test_multi_rlvr_is_indifferent_to_diversity_and_set_max_to_what_is_not_best() -> None:
    copies, diverse = [[0.5, 0.5], [0.5, 0.5]], [[1.0, 0.0], [0.0, 1.0]]
    group = torch.tensor([[copies, diverse]])
    for name in ("multi_rlvr", "set_max"):
        assert torch.equal(advantages_of(name, group), torch.zeros(1, 2))
    assert advantages_of("vpo", group)[0, 1] > 0.9
    best_and_nothing = torch.tensor([[copies, [[0.5, 0.5], [0.0, 0.0]]]])
    assert torch.equal(advantages_of("set_max", best_and_nothing), torch.zeros(1, 2))
    assert advantages_of("multi_rlvr", best_and_nothing)[0, 0] > 0.9


def test_set_max_is_vpo_at_a_large_alpha() -> None:
    rewards = torch.rand(2, 4, 3, 4, dtype=torch.float64, generator=seeded())
    vpo = worth_of("vpo", rewards, alpha=1e6, generator=seeded())
    torch.testing.assert_close(worth_of("set_max", rewards), vpo, rtol=0, atol=1e-3)


# Random weights


def test_random_weighting_is_one_draw_a_group() -> None:
    rewards = torch.rand(5, 4, 1, 3, dtype=torch.float64, generator=seeded())
    worth = worth_of("random_weighting", rewards, alpha=0.7, generator=seeded(3))
    weights = sample_simplex_weights(5, 3, alpha=0.7, generator=seeded(3))
    for g, n in np.ndindex(5, 4):
        assert worth[g, n].item() == pytest.approx(float(weights[g] @ rewards[g, n, 0]), 1e-12)
    other = worth_of("random_weighting", rewards, alpha=0.7, generator=seeded(4))
    assert not torch.allclose(worth, other)


def test_random_weighting_weighs_present_objectives_alone() -> None:
    rewards = torch.tensor([[[[0.3, 0.3, math.nan]], [[0.6, 0.6, math.nan]]]], dtype=torch.float64)
    worth = worth_of("random_weighting", rewards, mask=~rewards.isnan())
    torch.testing.assert_close(worth, torch.tensor([[0.3, 0.6]], dtype=torch.float64))


@given(st.text() | st.dictionaries(st.text(), st.integers()), st.integers(1, 8), st.sampled_from([0.01, 1.0, 50.0]))
def test_goal_weights_are_hundredths_on_the_simplex(label: object, objectives: int, alpha: float) -> None:
    weights = goal_weights(label, objectives, alpha=alpha, seed=3)
    hundredths = [100 * weight for weight in weights]
    assert len(weights) == objectives
    assert all(weight >= 0 and hundredth == pytest.approx(round(hundredth), abs=1e-9)
               for weight, hundredth in zip(weights, hundredths, strict=True))  # fmt: skip
    assert sum(map(round, hundredths)) == 100
    again = json.loads(json.dumps(label))
    assert goal_weights(again, objectives, alpha=alpha, seed=3) == weights


def test_goal_weights_are_dirichlet_and_move_with_label_and_seed() -> None:
    draws = np.array([goal_weights(f"maze {row}", 4, seed=0) for row in range(4000)])
    np.testing.assert_allclose(draws.mean(0), 0.25, atol=0.015)
    np.testing.assert_allclose(draws.var(0), 3 / (16 * 5), atol=0.004)
    assert goal_weights("maze 0", 4, seed=1) != goal_weights("maze 0", 4, seed=0)


def test_goal_conditioned_rewards_each_group_by_its_own_weights() -> None:
    rewards = torch.rand(3, 4, 1, 2, dtype=torch.float64, generator=seeded())
    weights = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.25, 0.75]], dtype=torch.float64)
    worth = worth_of("goal_conditioned", rewards, objective_weights=weights)
    torch.testing.assert_close(worth[0], rewards[0, :, 0, 0])
    torch.testing.assert_close(worth[1], rewards[1, :, 0, 1])
    torch.testing.assert_close(worth[2], 0.25 * rewards[2, :, 0, 0] + 0.75 * rewards[2, :, 0, 1])
    with pytest.raises(ValueError, match=r"must be \(3, 2\), a row for each group, but are \(2, 2\)"):
        worth_of("goal_conditioned", rewards, objective_weights=weights[:2])


def test_the_prompt_says_the_weights() -> None:
    prompt = write_goal("Find a way.\n", ("gold", "lava"), [0.25, 0.75])
    assert prompt == "Find a way.\nObjective weights: gold 0.25, lava 0.75.\n"


# Through the host


@pytest.fixture(scope="module")
def host() -> Iterator[None]:
    with importable_host():
        yield


@pytest.fixture
def run_settings(host: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    run = Settings("maze_small", 1, "raise", tmp_path, on_cpu=True, goal=(1.0, 7))
    monkeypatch.setenv(VARIABLE, run.dump())
    return run


def carry(name: str, rewards: torch.Tensor, labels: list[str], *flags: str) -> torch.Tensor:
    """The token advantages that the host makes of these rewards, one per rollout, (groups, rollouts)."""
    from test_experience import compute, make_maker, make_samples, with_forward_results

    groups, rollouts = rewards.shape[:2]
    args: SimpleNamespace = host_arguments(
        *("--advantage", name, "--vpo.spec", "maze_small", "--vpo.seed", "7", "--algo.kl.init_coef", "0"),
        *("--rollout.n_samples_per_prompt", str(rollouts), "--rollout.micro_batch_size", "5", *flags),
    )
    samples = make_samples(args, list(rewards.flatten(0, 1)))
    for row, sample in enumerate(samples):
        sample.labels = [labels[row // rollouts]]
    maker = make_maker(args)
    experiences = compute(maker, with_forward_results(maker.split_rollout_samples(samples)))
    carried = torch.empty(groups * rollouts)
    for experience in experiences:
        for i, row in enumerate(experience.index):
            tokens = experience.advantages[i][experience.action_mask[i].bool()]
            assert tokens.max() - tokens.min() < 1e-6
            carried[row] = tokens.mean()
    return carried.view(groups, rollouts)


@pytest.mark.parametrize("name", [*SINGLE, *SETS])
def test_the_host_carries_the_advantages_as_they_are(run_settings: Settings, name: str) -> None:
    """No baseline of the host's own: max_at_k's advantages are all >= 0, and stay so."""
    rewards = torch.rand(3, 4, 1 if name in SINGLE else 3, 4, generator=seeded())
    labels = ["one", "two", "three"]
    spec = load_spec("maze_small")
    weights: Any = spec.objective_weights
    if name == "goal_conditioned":
        weights = [goal_weights(label, 4, seed=7) for label in labels]
    expected = advantages_of(name, rewards, objective_weights=weights, generator=seeded(7 * 2**20), k=3)
    flags = ["--vpo.k", "3"] if get_advantage_estimator(name).takes_k else []
    carried = carry(name, rewards, labels, *flags)
    torch.testing.assert_close(carried, expected, rtol=1e-4, atol=1e-5)
    if name == "max_at_k":
        assert carried.min() >= 0
        assert carried.mean() > 0.05


def test_prompt_and_reward_agree_on_the_weights(run_settings: Settings) -> None:
    """What the patched dataset writes into a row's prompt is what the hook rewards its rollouts by."""
    spec = load_spec("maze_small")
    module = SimpleNamespace(
        preprocess_data=lambda data, template, input_key, label_key, chat: (data[input_key], label_key)
    )
    patch_prompts(module)
    labels = ['{"maze": 1}', '{"maze": 2}']
    told = []
    for label in labels:
        prompt, _ = module.preprocess_data({"q": "Find a way.", "a": label}, None, "q", "a")
        line = prompt.splitlines()[-1].removeprefix("Objective weights: ").removesuffix(".")
        pairs = [entry.split() for entry in line.split(", ")]
        assert tuple(key for key, _ in pairs) == spec.objective_keys
        told.append([float(weight) for _, weight in pairs])
    assert told[0] != told[1]
    rewards = torch.rand(2, 4, 1, 4, generator=seeded())
    expected = advantages_of("goal_conditioned", rewards, objective_weights=torch.tensor(told))
    torch.testing.assert_close(carry("goal_conditioned", rewards, labels), expected, rtol=1e-4, atol=1e-5)


def test_prompts_of_other_estimators_tell_no_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, Settings("maze_small", 1, "raise", tmp_path, on_cpu=True).dump())
    module = SimpleNamespace(preprocess_data=lambda data, template, input_key, label_key, chat: data[input_key])
    patch_prompts(module)
    assert "weights" not in module.preprocess_data({"q": "Find a way."}, None, "q")


# Refusals


@pytest.fixture
def refusal(host: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    policy = tmp_path / "model"
    policy.mkdir()
    (policy / "tokenizer.json").write_text("{}")
    training = Training(tmp_path / "output", write_prompts(tmp_path / "prompts", 3), str(policy))

    def refuse(*flags: str) -> str:
        """The sentence of the refusal, or nothing."""
        parser = host_parser()
        try:
            launcher.check_arguments(parser, training.command(*flags)[3:], on_cpu=True)
        except SystemExit:
            return capsys.readouterr().err
        return ""

    return refuse


@pytest.mark.parametrize("name", SINGLE)
def test_several_candidates_are_refused_where_one_is_meant(refusal: Callable[..., str], name: str) -> None:
    assert f"--vpo.candidates is 3: {name} rewards one candidate per response" in refusal("--advantage", name)
    assert refusal("--advantage", name, "--vpo.candidates", "1") == ""


@pytest.mark.parametrize("name", [*SETS, "grpo"])
def test_set_methods_take_several_candidates(refusal: Callable[..., str], name: str) -> None:
    assert refusal("--advantage", name) == ""


def test_vpo_at_k_takes_single_candidates(refusal: Callable[..., str]) -> None:
    assert refusal("--advantage", "vpo_at_k", "--vpo.k", "4", "--vpo.candidates", "1") == ""


def test_max_at_k_norm_needs_a_rollout_beside_the_best_of_k(refusal: Callable[..., str]) -> None:
    flags = ["--advantage", "max_at_k_norm", "--vpo.candidates", "1", "--vpo.k"]
    assert "with 4 rollouts per prompt, k is 1 to 3" in refusal(*flags, "4")
    assert refusal(*flags, "3") == ""


@pytest.mark.parametrize(("k", "allowed"), [("0", False), ("1", True), ("4", True), ("5", False)])
def test_k_is_at_most_the_group(refusal: Callable[..., str], k: str, allowed: bool) -> None:
    sentence = refusal("--advantage", "max_at_k", "--vpo.candidates", "1", "--vpo.k", k)
    assert (sentence == "") == allowed
    said = f"--vpo.k {k} and --rollout.n_samples_per_prompt 4 do not fit: The best of {k} cannot be taken"
    assert allowed or said in sentence


def test_gdpo_refuses_to_scale_what_is_below_zero(refusal: Callable[..., str]) -> None:
    flags = ["--vpo.candidates", "1", "--reward.stop_properly_penalty_coef", "0.5"]
    assert "--reward.stop_properly_penalty_coef scales" in refusal("--advantage", "gdpo", *flags)
    assert refusal("--advantage", "maxrl", *flags) == ""


def test_goal_conditioned_refuses_objectives_that_differ_in_number(
    refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = load_spec("maze_small").model_dump()
    ragged = {"prefix": "test", "description": "a test", "max": 3, "count": "builtins:len"}
    spec |= {"objectives": {"ragged": ragged}, "weights": {}, "name": "ragged"}
    monkeypatch.setattr(launcher, "load_spec", lambda name: type(load_spec("maze_small"))(**copy.deepcopy(spec)))
    sentence = refusal("--advantage", "goal_conditioned", "--vpo.candidates", "1")
    assert "names the objectives in the prompt, but in spec 'ragged' their number differs" in sentence


def test_single_candidate_estimators_have_one_by_default(host: None, tmp_path: Path) -> None:
    policy = tmp_path / "model"
    policy.mkdir()
    (policy / "tokenizer.json").write_text("{}")
    command = Training(tmp_path / "output", write_prompts(tmp_path / "prompts", 3), str(policy)).command()
    at = command.index("--vpo.candidates")
    parser = host_parser()
    flags = [*command[3:at], *command[at + 2 :], "--advantage", "maxrl"]
    args, _ = launcher.check_arguments(parser, flags, on_cpu=True)
    assert vars(args)["vpo.candidates"] == 1
    assert vars(args)["reward.clip_range"] == (-math.inf, math.inf), "advantages have no range of rewards"

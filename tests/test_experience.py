"""From reward matrices to the advantages on the tokens, through the host's own experience maker (no Ray, no models)."""

import copy
import itertools
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from host import OLDER, host_arguments, importable_host
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vpo_plugin.advantages import RewardBatch, group_z_norm, register_advantage_estimator, registry
from vpo_plugin.advantages.set_reward import set_rewards
from vpo_plugin.openrlhf import cpu, matrices, trainer
from vpo_plugin.openrlhf.log import read_texts
from vpo_plugin.openrlhf.settings import VARIABLE, Settings
from vpo_plugin.rewards import load_spec

SPEC = load_spec("maze_small")
GROUPS, ROLLOUTS, CANDIDATES, OBJECTIVES = 3, 4, 3, 4
MAX_NEW_TOKENS = 12
SEED = 7


@pytest.fixture(scope="module", autouse=True)
def run_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """The host importable, and this process in a run of SPEC."""
    run = Settings("maze_small", CANDIDATES, "raise", tmp_path_factory.mktemp("vpo"), on_cpu=True)
    with importable_host(), pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, run.dump())
        yield run


@pytest.fixture(scope="module")
def defaults(run_settings: Settings) -> SimpleNamespace:
    return host_arguments(
        *("--advantage", "vpo", "--vpo.spec", "maze_small", "--vpo.seed", str(SEED)),
        *("--rollout.n_samples_per_prompt", str(ROLLOUTS), "--rollout.micro_batch_size", "4"),
        *("--rollout.max_new_tokens", str(MAX_NEW_TOKENS), "--algo.kl.init_coef", "0"),
    )


@pytest.fixture
def args(defaults: SimpleNamespace) -> SimpleNamespace:
    """The host's arguments, a test's own to change."""
    return copy.deepcopy(defaults)


def random_matrices(seed: int = 0) -> Tensor:
    return torch.rand(GROUPS, ROLLOUTS, CANDIDATES, OBJECTIVES, generator=torch.Generator().manual_seed(seed))


def response_length(row: int) -> int:
    """Lengths that differ, out of order, up to MAX_NEW_TOKENS."""
    return 3 + row * 7 % (MAX_NEW_TOKENS - 2)


def is_truncated(row: int) -> bool:
    return row % 3 == 1


def make_maker(args: SimpleNamespace, kl_coef: float = 0.0, step: int = 0) -> Any:
    from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker
    from openrlhf.trainer.ppo_utils.kl_controller import FixedKLController

    tokenizer = SimpleNamespace(pad_token_id=0, decode=lambda tokens, **more: " ".join(map(str, tokens.tolist())))
    strategy = SimpleNamespace(args=args)
    maker = RemoteExperienceMaker(None, None, None, None, FixedKLController(kl_coef), strategy, tokenizer)
    maker.global_step = step  # as the patch of train_step does
    return maker


def make_samples(args: SimpleNamespace, reward_matrices: list[Tensor]) -> list[Any]:
    """Rollouts as the host makes them of what the agent executor returns, in prompt order; the label is the row."""
    from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator

    generator = SamplesGenerator(SimpleNamespace(args=args), None, None, None, None)
    samples = []
    for row, matrix in enumerate(reward_matrices):
        prompt, length = 4 + row % 2, response_length(row)
        reward = float((matrix @ torch.tensor(SPEC.objective_weights)[: matrix.shape[1]]).mean())
        response = {
            "prompt": "prompt",
            "label": str(row),
            "observation_tokens": list(range(1, 1 + prompt + length)),
            "action_ranges": [(prompt, prompt + length)],
            "rollout_log_probs": None,
            "reward": reward,
            "scores": reward,
            "truncated": is_truncated(row),
            "extra_logs": {matrices.INFO_KEY: matrices.pack(matrix.numpy()), "candidates_parsed": 3.0},
        }
        samples.append(generator._process_response_into_experience(response, max_len=64))
    return samples


def with_forward_results(experiences: list[Any], kl: Tensor | None = None) -> list[Any]:
    """What `make_experience` adds from the models: KL and values of shape (rows, tokens); `kl` is in prompt order."""
    for experience in experiences:
        shape = experience.action_mask.shape
        experience.kl = torch.zeros(shape) if kl is None else kl[experience.index, : shape[1]] * experience.action_mask
        experience.values = torch.linspace(0, 1, shape[1]).expand(shape)
        experience.info["kl"] = experience.kl.mean(-1)
    return experiences


def compute(maker: Any, experiences: list[Any]) -> list[Any]:
    """The plugin's hook around the host's method."""
    from vpo_plugin.openrlhf.experience import compute_advantages_and_returns

    return compute_advantages_and_returns(maker, experiences, type(maker).compute_advantages_and_returns)


def run(args: SimpleNamespace, reward_matrices: Tensor, **kl: Any) -> list[Any]:
    """One batch, from rollouts to advantages."""
    maker = make_maker(args, kl.pop("kl_coef", 0.0))
    samples = make_samples(args, list(reward_matrices.flatten(0, 1)))
    return compute(maker, with_forward_results(maker.split_rollout_samples(samples), **kl))


def by_row(experiences: list[Any], value: Callable[[Any], Any]) -> dict[int, Tensor]:
    """A per-row value in prompt order; per-token values on the response's tokens only."""
    found = {}
    for experience in experiences:
        for i, label in enumerate(experience.labels):
            row = value(experience)[i]
            found[int(label)] = row[experience.action_mask[i].bool()] if row.ndim else row
    return dict(sorted(found.items()))


def assert_tokens_equal(experiences: list[Any], expected: Tensor, **tolerance: float) -> None:
    """Every token of a response carries its rollout's advantage, shape (groups, rollouts)."""
    tokens = by_row(experiences, lambda experience: experience.advantages)
    assert list(tokens) == list(range(expected.numel()))
    for row, advantages in tokens.items():
        assert len(advantages) == response_length(row)
        torch.testing.assert_close(
            advantages, expected.flatten()[row].expand_as(advantages), **({"atol": 1e-5, "rtol": 0} | tolerance)
        )


def expected_set_rewards(reward_matrices: Tensor, step: int = 0, **mask: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(SEED * 2**20 + step)
    return RewardBatch(reward_matrices, generator=generator, **mask).set_rewards


@pytest.mark.parametrize("micro_batch_size", [1, 3, 4, 5, 12])
def test_tokens_carry_the_set_rewards_advantage(args: SimpleNamespace, micro_batch_size: int) -> None:
    args.rollout.micro_batch_size = micro_batch_size
    rewards = random_matrices()
    experiences = run(args, rewards)
    assert len(experiences) == math.ceil(GROUPS * ROLLOUTS / micro_batch_size)
    expected = group_z_norm(expected_set_rewards(rewards))
    assert expected.abs().min() > 1e-3
    assert_tokens_equal(experiences, expected)


@pytest.mark.parametrize("gpus", [1, 2])
def test_dynamic_batches(args: SimpleNamespace, gpus: int) -> None:
    """The host sorts rollouts into batches by length, and again over the actors: the advantages go along."""
    from openrlhf.trainer.ppo_utils.experience import balance_experiences

    args.train.dynamic_batch_enable = True
    args.rollout.max_tokens_per_gpu = 40
    args.actor.num_gpus_per_node = gpus
    rewards = random_matrices(1)
    experiences = run(args, rewards)
    order = [row for experience in experiences for row in experience.index]
    assert len(experiences) > 1
    assert order != sorted(order), "the rows must be out of order for this test to say anything"
    expected = group_z_norm(expected_set_rewards(rewards))
    assert_tokens_equal(experiences, expected)

    balanced = balance_experiences(experiences, args)
    assert len(balanced) == gpus
    assert_tokens_equal(balanced, expected)


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(GROUPS * ROLLOUTS)), cuts=st.sets(st.integers(1, GROUPS * ROLLOUTS - 1)))
def test_any_order_in_any_batches(defaults: SimpleNamespace, order: list[int], cuts: set[int]) -> None:
    from openrlhf.trainer.ppo_utils.experience import Experience

    args = copy.deepcopy(defaults)
    rewards = random_matrices(2)
    samples = make_samples(args, list(rewards.flatten(0, 1)))
    for row, sample in enumerate(samples):
        sample.index = [row]
    edges = [0, *sorted(cuts), len(order)]
    batches = [order[start:end] for start, end in itertools.pairwise(edges)]
    experiences = [Experience.concat_experiences([samples[row] for row in batch], 0) for batch in batches]
    compute(make_maker(args), with_forward_results(experiences))
    assert_tokens_equal(experiences, group_z_norm(expected_set_rewards(rewards)))


def test_grpo_is_the_hosts_group_norm(args: SimpleNamespace) -> None:
    """On the plugin's path from the matrices, and on the host's from its scalar reward."""
    rewards = random_matrices(3)
    args.algo.advantage.estimator = "grpo"
    ours = by_row(run(args, rewards), lambda experience: experience.advantages)

    args.algo.advantage.estimator = "group_norm"
    maker = make_maker(args)
    samples = make_samples(args, list(rewards.flatten(0, 1)))
    host = maker.compute_advantages_and_returns(with_forward_results(maker.split_rollout_samples(samples)))
    theirs = by_row(host, lambda experience: experience.advantages)
    assert len(ours) == len(theirs) == GROUPS * ROLLOUTS
    for row in ours:
        torch.testing.assert_close(ours[row], theirs[row], atol=1e-5, rtol=0)


def test_kl_in_the_reward(args: SimpleNamespace) -> None:
    """The host's KL of each token lies on top of the advantages: what its dr_grpo makes of the same rewards."""
    rewards = random_matrices(4)
    kl = torch.rand(GROUPS * ROLLOUTS, 64, generator=torch.Generator().manual_seed(0))
    ours = by_row(run(args, rewards, kl=kl, kl_coef=0.3), lambda experience: experience.advantages)

    args.algo.advantage.estimator = "dr_grpo"
    maker = make_maker(args, kl_coef=0.3)
    samples = make_samples(args, list(rewards.flatten(0, 1)))
    for sample, advantage in zip(samples, group_z_norm(expected_set_rewards(rewards)).flatten(), strict=True):
        sample.rewards = advantage[None]
    host = maker.compute_advantages_and_returns(with_forward_results(maker.split_rollout_samples(samples), kl))
    theirs = by_row(host, lambda experience: experience.advantages)
    for row in range(GROUPS * ROLLOUTS):
        torch.testing.assert_close(ours[row], theirs[row], atol=1e-5, rtol=0)
        assert (ours[row][:-1] - ours[row][1:]).abs().min() > 0, "the KL must differ from token to token"


def test_kl_in_the_loss(args: SimpleNamespace) -> None:
    """With --algo.kl.use_loss the host hands over no KL here, whatever its coefficient."""
    rewards = random_matrices(4)
    args.algo.kl.use_loss = True
    experiences = run(args, rewards, kl_coef=0.3)
    assert_tokens_equal(experiences, group_z_norm(expected_set_rewards(rewards)))


def overlong(args: SimpleNamespace, worth: Tensor) -> Tensor:
    """DAPO: from 4 tokens below the limit on, up to 1.5 off."""
    args.reward.overlong_buffer_len, args.reward.overlong_penalty_factor = 4, 1.5
    lengths = torch.tensor([response_length(row) for row in range(worth.numel())])
    excess = (lengths - (MAX_NEW_TOKENS - 4)).clamp(0, 4)
    assert excess.any()
    return worth - (excess / 4 * 1.5).view_as(worth)


def scale_truncated(args: SimpleNamespace, worth: Tensor) -> Tensor:
    args.reward.stop_properly_penalty_coef = 0.25
    truncated = torch.tensor([is_truncated(row) for row in range(worth.numel())]).view_as(worth)
    return torch.where(truncated, worth * 0.25, worth)


def override_truncated(args: SimpleNamespace, worth: Tensor) -> Tensor:
    args.reward.stop_properly_penalty_coef = -0.5
    truncated = torch.tensor([is_truncated(row) for row in range(worth.numel())]).view_as(worth)
    return torch.where(truncated, -0.5, worth)


@pytest.mark.parametrize("penalty", [overlong, scale_truncated, override_truncated])
@pytest.mark.parametrize("estimator", ["vpo", "grpo"])
def test_length_penalties(args: SimpleNamespace, penalty: Callable[..., Tensor], estimator: str) -> None:
    """Once each: on what a rollout is worth, before it is normalised, and on the reward that is logged."""
    from vpo_plugin.advantages import get_advantage_estimator

    rewards = random_matrices(5)
    args.algo.advantage.estimator = estimator
    scalar = (rewards @ torch.tensor(SPEC.objective_weights)).mean(-1)
    worth = expected_set_rewards(rewards) if estimator == "vpo" else scalar
    expected_worth, expected_reward = penalty(args, worth), penalty(args, scalar)
    before = copy.deepcopy(args)
    experiences = run(args, rewards)
    normalized = get_advantage_estimator(estimator).normalize
    assert not torch.allclose(normalized(expected_worth), normalized(worth), atol=1e-2)
    assert_tokens_equal(experiences, normalized(expected_worth))
    logged = torch.stack(list(by_row(experiences, lambda e: e.info["reward"]).values()))
    torch.testing.assert_close(logged, expected_reward.flatten(), atol=1e-6, rtol=0)
    spread = torch.stack(list(by_row(experiences, lambda e: e.info["group_reward_std"]).values()))
    torch.testing.assert_close(spread, expected_worth.std(-1).repeat_interleave(ROLLOUTS), atol=1e-6, rtol=0)
    assert args == before


@pytest.mark.parametrize("penalty", [overlong, scale_truncated, override_truncated])
def test_length_penalties_before_values_that_are_advantages(
    args: SimpleNamespace, penalty: Callable[..., Tensor]
) -> None:
    """`max_at_k` makes advantages of penalised rewards; it is not penalised afterwards."""
    from vpo_plugin.advantages import get_advantage_estimator

    max_at_k = get_advantage_estimator("max_at_k")
    rewards = random_matrices(5)[:, :, :1]
    args.algo.advantage.estimator = "max_at_k"
    scalar = (rewards @ torch.tensor(SPEC.objective_weights)).mean(-1)
    expected = max_at_k(RewardBatch(penalty(args, scalar)[..., None, None]))
    assert not torch.allclose(expected, max_at_k(RewardBatch(scalar[..., None, None])), atol=1e-2)
    experiences = run(args, rewards)
    assert_tokens_equal(experiences, expected)
    logged = torch.stack(list(by_row(experiences, lambda e: e.info["reward"]).values()))
    torch.testing.assert_close(logged, penalty(args, scalar).flatten(), atol=1e-6, rtol=0)


def test_the_set_reward_is_computed_once(args: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the log and for the advantages."""
    from vpo_plugin.advantages import batch

    calls = []
    monkeypatch.setattr(batch, "set_rewards", lambda *given, **more: calls.append(1) or set_rewards(*given, **more))
    run(args, random_matrices())
    assert calls == [1]


def test_reward_clip_range(args: SimpleNamespace) -> None:
    """The host clips what it lays on the last token; here that is the advantage."""
    rewards = random_matrices(6)
    args.reward.clip_range = (-0.5, 0.25)
    expected = group_z_norm(expected_set_rewards(rewards))
    assert expected.max() > 0.25
    assert_tokens_equal(run(args, rewards), expected.clamp(-0.5, 0.25))


@pytest.mark.parametrize(
    "estimator",
    [
        *("gae", "reinforce", "rloo", "reinforce_baseline", "group_norm", "dr_grpo"),
        *([] if OLDER else ["flash_reinforce"]),
    ],
)
def test_host_estimators_are_the_hosts(args: SimpleNamespace, run_settings: Settings, estimator: str) -> None:
    """Same numbers as without the plugin, penalties and KL included; only the plugin's metrics and logs come along."""
    shutil.rmtree(run_settings.log_dir, ignore_errors=True)
    rewards = random_matrices(7)
    kl = torch.rand(GROUPS * ROLLOUTS, 64, generator=torch.Generator().manual_seed(1))
    args.algo.advantage.estimator = estimator
    overlong(args, torch.zeros(GROUPS, ROLLOUTS))
    hosts_args = copy.deepcopy(args)
    ours = run(args, rewards, kl=kl, kl_coef=0.1)

    maker = make_maker(hosts_args, kl_coef=0.1)
    samples = make_samples(hosts_args, list(rewards.flatten(0, 1)))
    theirs = maker.compute_advantages_and_returns(with_forward_results(maker.split_rollout_samples(samples), kl))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.advantages, other.advantages, rtol=0, atol=0)
        torch.testing.assert_close(one.returns, other.returns, rtol=0, atol=0)
        torch.testing.assert_close(one.rewards, other.rewards, rtol=0, atol=0)
        assert matrices.INFO_KEY not in one.info
        for key in set(other.info) - {matrices.INFO_KEY}:
            torch.testing.assert_close(one.info[key], other.info[key], rtol=0, atol=0)
        assert {"set_reward", "set_diversity", "objective/gold"} <= set(one.info)
    tokens, scalars = by_row(theirs, lambda e: e.advantages), by_row(theirs, lambda e: e.rewards)
    texts = read_texts(run_settings.log_dir, 1)
    assert len(texts) == len(tokens)
    for row, text in enumerate(texts):
        np.testing.assert_allclose(text["rewards"], rewards.flatten(0, 1)[row], rtol=1e-6)
        assert text["advantage"] == pytest.approx(float(tokens[row].mean()), abs=1e-6)
        assert text["reward"] == text["rollout_reward"] == pytest.approx(float(scalars[row]), abs=1e-6)
    with np.load(run_settings.log_dir / "rollouts" / "step_000001.npz") as logged:
        np.testing.assert_allclose(logged["reward_matrices"], rewards)


def test_estimator_whose_advantages_have_a_mean(args: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registered estimator need not centre: the host takes no mean off what it is handed."""
    monkeypatch.setattr(registry, "_estimators", dict(registry._estimators))

    @register_advantage_estimator("raw", normalize=None)
    def raw(batch: RewardBatch) -> Tensor:
        return batch.rewards.mean((-1, -2))

    args.algo.advantage.estimator = "raw"
    rewards = random_matrices(8)
    assert_tokens_equal(run(args, rewards), rewards.mean((-1, -2)))


@pytest.mark.parametrize("estimator", ["vpo", "grpo", "group_norm"])
def test_info_is_what_the_host_trains_with(args: SimpleNamespace, estimator: str) -> None:
    """One value a row under each key, so the host splits, buffers and averages it."""
    from openrlhf.trainer.ppo_utils.experience import make_experience_batch
    from openrlhf.trainer.ppo_utils.replay_buffer import NaiveReplayBuffer

    args.algo.advantage.estimator = estimator
    args.rollout.micro_batch_size = 5
    buffer = NaiveReplayBuffer(sample_batch_size=4)
    for experience in run(args, random_matrices(9)):
        for key, values in experience.info.items():
            assert key != matrices.INFO_KEY
            assert isinstance(values, torch.Tensor)
            assert values.shape == (len(experience.labels),), key
        buffer.append(experience)
    assert len(buffer) == GROUPS * ROLLOUTS
    batch = make_experience_batch(buffer.items)
    assert batch.advantages.shape == batch.action_mask.shape
    assert all(math.isfinite(float(value)) for values in batch.info.values() for value in values)


def test_metrics(args: SimpleNamespace) -> None:
    rewards = random_matrices(10)
    rewards[1] = rewards[1, :1]  # a group without spread
    experiences = run(args, rewards)
    logged = {
        key: torch.stack(list(by_row(experiences, lambda e, key=key: e.info[key]).values())).view(GROUPS, ROLLOUTS)
        for key in ("set_reward", "zero_spread", "reward_best", "objective/gold", "candidates_parsed", "reward")
    }
    torch.testing.assert_close(logged["set_reward"], expected_set_rewards(rewards), atol=1e-6, rtol=0)
    assert logged["zero_spread"].tolist() == [[0.0] * 4, [1.0] * 4, [0.0] * 4]
    weighted = rewards @ torch.tensor(SPEC.objective_weights)
    torch.testing.assert_close(logged["reward_best"], weighted.amax(-1), atol=1e-6, rtol=0)
    torch.testing.assert_close(logged["reward"], weighted.mean(-1), atol=1e-6, rtol=0)
    torch.testing.assert_close(logged["objective/gold"], rewards[..., 1].mean(-1), atol=1e-6, rtol=0)
    assert (logged["candidates_parsed"] == 3).all()
    advantages = by_row(experiences, lambda experience: experience.advantages)
    assert all((advantages[row] == 0).all() for row in range(ROLLOUTS, 2 * ROLLOUTS))


@pytest.mark.parametrize("micro_batch_size", [1, 5])
def test_ragged_matrices(args: SimpleNamespace, run_settings: Settings, micro_batch_size: int) -> None:
    """Candidates that differ from rollout to rollout, objectives that differ from group to group."""
    args.rollout.micro_batch_size = micro_batch_size
    rewards = random_matrices(11)
    mask = torch.ones_like(rewards, dtype=torch.bool)
    ragged = []
    for group in range(GROUPS):
        for rollout in range(ROLLOUTS):
            candidates, objectives = 1 + (group + rollout) % CANDIDATES, OBJECTIVES - group % 2
            ragged.append(rewards[group, rollout, :candidates, :objectives])
            mask[group, rollout, candidates:] = False
            mask[group, rollout, :, objectives:] = False
    maker = make_maker(args, step=40)
    samples = make_samples(args, ragged)
    experiences = compute(maker, with_forward_results(maker.split_rollout_samples(samples)))
    expected = expected_set_rewards(rewards, step=40, mask=mask)
    assert_tokens_equal(experiences, group_z_norm(expected))
    with np.load(run_settings.log_dir / "rollouts" / "step_000041.npz") as logged:
        np.testing.assert_array_equal(logged["mask"], mask)
        np.testing.assert_allclose(logged["reward_matrices"], rewards * mask)


def test_texts_of_a_step(args: SimpleNamespace, run_settings: Settings) -> None:
    """Prompts, responses and their rewards stand together, whatever micro-batch the host had them in."""
    rewards = random_matrices()
    run(args, rewards)
    rows = read_texts(run_settings.log_dir, 1)
    with np.load(run_settings.log_dir / "rollouts" / "step_000001.npz") as logged:
        for row, text in enumerate(rows):
            group, rollout = divmod(row, ROLLOUTS)
            assert text["response"].split()[0] == str(5 + row % 2), "the first token after the prompt's 4 or 5"
            assert len(text["response"].split()) == response_length(row)
            np.testing.assert_allclose(text["rewards"], rewards[group, rollout], rtol=1e-6)
            assert text["advantage"] == pytest.approx(logged["advantages"][group, rollout], abs=1e-6)
            assert text["rollout_reward"] == pytest.approx(logged["rollout_rewards"][group, rollout], abs=1e-6)
            assert text["candidates"] == [None] * CANDIDATES
    assert len(rows) == GROUPS * ROLLOUTS
    with pytest.raises(FileNotFoundError, match="has no texts of step 9: it has those of steps 1 to"):
        read_texts(run_settings.log_dir, 9)


def test_logged_rollouts_of_a_resumed_run(args: SimpleNamespace, run_settings: Settings) -> None:
    """The file and the random weightings are those of the host's step, which a resumed run counts on."""
    rewards = random_matrices(12)
    overlong(args, torch.zeros(GROUPS, ROLLOUTS))
    maker = make_maker(args, step=20)
    samples = make_samples(args, list(rewards.flatten(0, 1)))
    experiences = compute(maker, with_forward_results(maker.split_rollout_samples(samples)))
    worth = overlong(args, expected_set_rewards(rewards, step=20))
    assert not torch.equal(expected_set_rewards(rewards, step=20), expected_set_rewards(rewards, step=0))
    assert_tokens_equal(experiences, group_z_norm(worth))
    with np.load(run_settings.log_dir / "rollouts" / "step_000021.npz") as logged:
        np.testing.assert_allclose(logged["reward_matrices"], rewards)
        assert logged["mask"].all()
        np.testing.assert_allclose(logged["rollout_rewards"], worth, atol=1e-6)
        np.testing.assert_allclose(logged["advantages"], group_z_norm(worth), atol=1e-5)
        np.testing.assert_allclose(logged["token_advantages"], group_z_norm(worth), atol=1e-5)


def test_arguments_are_restored_when_the_host_fails(args: SimpleNamespace) -> None:
    overlong(args, torch.zeros(GROUPS, ROLLOUTS))
    args.reward.stop_properly_penalty_coef = 0.5
    before = copy.deepcopy(args)
    maker = make_maker(args)
    experiences = with_forward_results(
        maker.split_rollout_samples(make_samples(args, list(random_matrices().flatten(0, 1))))
    )
    for experience in experiences:
        experience.kl = None  # the host multiplies with it
    with pytest.raises(TypeError):
        compute(maker, experiences)
    assert args == before
    assert maker.advantage_estimator == "vpo"


def test_a_step_has_its_log_although_the_actor_reports_nothing(run_settings: Settings) -> None:
    """Of fewer rollouts than a micro-batch. A reward function that failed on a rollout logs nothing there."""
    seen: list[set[str]] = []

    class Trainer:
        init_checkpoint_states = save_logs_and_checkpoints = save_best_checkpoint = None
        args = SimpleNamespace(rollout=SimpleNamespace(n_samples_per_prompt=2))
        experience_maker = SimpleNamespace()
        unread = 0

        def train_step(self, samples: list[Any], step: int) -> Any:
            seen.extend(set(sample.info) for sample in samples)
            return {"rollout/reward_mean": 0.5, "rollout/response_length_mean": 7.0}, step + 1

    trainer.patch_trainer(SimpleNamespace(BasePPOTrainer=Trainer))
    logs = {"candidates_parsed": torch.ones(1), "scorer_errors": torch.zeros(1)}
    samples = [SimpleNamespace(info={**logs, "length": torch.ones(1)}), SimpleNamespace(info=logs)]
    status, _ = Trainer().train_step(samples, 0)
    assert (status["reward"], status["response_length"], status["groups"]) == (0.5, 7.0, 1)
    assert seen == [set(logs), set(logs)]


def test_incomplete_group(args: SimpleNamespace) -> None:
    maker = make_maker(args)
    samples = make_samples(args, list(random_matrices().flatten(0, 1)))[:-1]
    with pytest.raises(ValueError, match="11 rollouts do not fill groups of 4"):
        compute(maker, with_forward_results(maker.split_rollout_samples(samples)))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_reward_that_is_not_finite(args: SimpleNamespace, bad: float) -> None:
    rewards = random_matrices()
    rewards[1, 2, 0, 3] = bad
    with pytest.raises(ValueError, match="group 1"):
        run(args, rewards)


PATCHES = """
import inspect, os, pickle, sys
from pathlib import Path
from vpo_plugin.openrlhf.settings import VARIABLE, Settings
from vpo_plugin.openrlhf.worker import setup
os.environ[VARIABLE] = Settings("maze_small", 3, "raise", Path(sys.argv[1]), on_cpu=sys.argv[2] == "cpu").dump()
setup()
assert "openrlhf" not in sys.modules and "torch" not in sys.modules, "setting up a worker must import nothing heavy"

actors = pickle.loads(Path(sys.argv[1], "actors.pkl").read_bytes())
from openrlhf.trainer.ppo_trainer import BasePPOTrainer, RemoteExperienceMaker
from openrlhf.datasets import prompts_dataset
for actor in actors:
    assert inspect.unwrap(actor.train_step) is BasePPOTrainer.train_step, actor
assert BasePPOTrainer.train_step.__module__ == "vpo_plugin.openrlhf.trainer"
assert RemoteExperienceMaker.compute_advantages_and_returns.__module__ == "vpo_plugin.openrlhf.experience"

prompt, label = prompts_dataset.preprocess_data({"q": "Find a way.", "a": "x"}, None, "q", "a")
assert "<route_1>" in prompt and "3" in prompt and prompt.startswith("Find a way.") and label == "x"
rows = {"q": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Find a way."}]}
chat, _ = prompts_dataset.preprocess_data(rows, None, "q", None, lambda messages, **rest: messages)
assert chat[0]["content"] == "Be brief." and "<route_1>" in chat[1]["content"]
assert rows["q"][1]["content"] == "Find a way.", "the dataset's row must stay as it is"

import deepspeed, torch
from openrlhf.utils.deepspeed import deepspeed as host

class Full(deepspeed.DeepSpeedEngine):  # whose disk is full
    __init__ = __del__ = lambda self: None

    def save_checkpoint(self, *args, **more):
        torch.save(torch.randn(100_000), "/dev/full")


host.torch_dist_barrier_and_cuda_sync = lambda: None
strategy = object.__new__(host.DeepspeedStrategy)
strategy.is_rank_0 = lambda: False
try:
    strategy.save_ckpt(Full(), ".", "global_step2")
except RuntimeError as error:
    assert "The checkpoint global_step2 could not be written to ., where " in str(error) and "make room" in str(error)
else:
    raise AssertionError("the disk is full")
"""


def test_worker_patches_both_trainers(tmp_path: Path) -> None:
    """The actors that an unpatched driver hands to Ray have the patches where a worker unpickles them."""
    from openrlhf.trainer.ppo_trainer import PPOTrainer
    from openrlhf.trainer.ppo_trainer_async import TrainingActor
    from ray import cloudpickle

    actors = [actor.__ray_metadata__.modified_class for actor in (PPOTrainer, TrainingActor)]
    (tmp_path / "actors.pkl").write_bytes(cloudpickle.dumps(actors))
    machine = "cuda" if cpu.cuda_available() else "cpu"
    command = [sys.executable, "-c", PATCHES, str(tmp_path), machine]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]

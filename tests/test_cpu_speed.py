"""What makes a training step cheaper on a CPU changes no log-probability, no gradient and no sum over a step."""

import copy
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from host import importable_host
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from vpo_plugin.models import TINY, resolve_policy
from vpo_plugin.openrlhf.cpu_speed import PromptsTogether, idle_cores, log_probs_from_logits
from vpo_plugin.openrlhf.shared_prompts import Rollout, fits, lay_out, read, share

SMALL = LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=1)


@pytest.fixture(scope="module")
def actors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, object]]:
    """The host's actor around the tiny policy, in float32 and in bf16."""
    path = resolve_policy(TINY, tmp_path_factory.mktemp("policy"))
    with importable_host():
        from openrlhf.models import Actor

        made = {name: Actor(path, attn_implementation="sdpa", temperature=0.7) for name in ("fp32", "bf16")}
        made["fp32"].float()
        yield made


def rollouts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sequences, action mask and attention mask of four rollouts: prompts of 30, 30, 21 and 40 of 64 tokens."""
    generator = torch.Generator().manual_seed(0)
    sequences = torch.randint(3, 60, (4, 64), generator=generator)
    actions, attention = torch.zeros(4, 63, dtype=torch.long), torch.ones(4, 64, dtype=torch.long)
    for row, (prompt, end) in enumerate([(30, 64), (30, 50), (21, 40), (40, 64)]):
        actions[row, prompt - 1 : end - 1] = 1
        attention[row, end:] = 0
    return sequences, actions, attention


def groups() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The masks of nine rollouts: three of a prompt of 30 tokens, four of 22, one of 25, and one without a response.

    Of the first, an environment wrote five tokens; the last of the second has one token, and some padding on its left.
    """
    generator = torch.Generator().manual_seed(1)
    sequences = torch.randint(3, 60, (9, 64), generator=generator)
    actions, attention = torch.zeros(9, 63, dtype=torch.long), torch.ones(9, 64, dtype=torch.long)
    prompts = [(30, 64), (30, 50), (30, 41), (22, 40), (22, 64), (22, 33), (22, 23), (25, 60), (64, 64)]
    for row, (prompt, end) in enumerate(prompts):
        actions[row, prompt - 1 : end - 1] = 1
        attention[row, end:] = 0
    sequences[1:3, :30] = sequences[0, :30]
    sequences[4:7, :22] = sequences[3, :22]
    actions[0, 40:45] = 0
    for tensor in (sequences[6], attention[6]):
        tensor[:] = tensor.roll(4)
    actions[6] = actions[6].roll(4)
    attention[6, :4] = 0
    return sequences, actions, attention


def expected(model: torch.nn.Module, sequences: torch.Tensor, actions: torch.Tensor, attention: torch.Tensor):  # type: ignore[no-untyped-def]
    """Each response token's log-probability, from the logits of the whole sequence."""
    positions = (attention.cumsum(-1) - 1).masked_fill(attention == 0, 1)
    logits = model(sequences, attention_mask=attention, position_ids=positions).logits.float() / 0.7
    log_probs = torch.log_softmax(logits, -1)[:, :-1].gather(-1, sequences[:, 1:, None]).squeeze(-1)
    return log_probs * actions


def test_log_probabilities_and_gradients_are_those_of_all_logits(actors: dict) -> None:
    actor, (sequences, actions, attention) = actors["fp32"], rollouts()
    found, output = actor(sequences, actions, attention_mask=attention, return_output=True)
    wanted = expected(actor.model, sequences, actions, attention)
    assert output["logits"].shape[1] == 64 - 20, "logits of the longest response and the token before it, no more"
    assert found.shape == (4, 63)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)

    def gradients(loss: torch.Tensor) -> list[torch.Tensor]:
        return torch.autograd.grad(loss, list(actor.model.parameters()))

    advantages = torch.tensor([1.0, -0.5, 2.0, -1.5])[:, None]
    for one, other in zip(gradients((found * advantages).sum()), gradients((wanted * advantages).sum()), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_a_prompt_is_computed_once_for_its_responses(actors: dict) -> None:
    actor, (sequences, actions, attention) = actors["fp32"], groups()
    found, output = actor(sequences, actions, attention_mask=attention, return_output=True)
    assert output["logits"].shape[:2] == (3, 18 + 42 + 11 + 1), "a row for each prompt, only responses"
    wanted = expected(actor.model, sequences, actions, attention)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)

    advantages = torch.linspace(-1, 2, 9)[:, None]
    parameters = list(actor.model.parameters())
    gradients = [torch.autograd.grad((values * advantages).sum(), parameters) for values in (found, wanted)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("lora", [False, True])
def test_learned_positions_and_a_short_prompt_beside_a_long_one(lora: bool, actors: dict) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=800, n_embd=16, n_layer=2, n_head=2))
    model.set_attn_implementation("sdpa")
    if lora:
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, fan_in_fan_out=True))
    actor = type(actors["fp32"])(model.eval(), temperature=0.7)
    actor.packing_samples = False
    sequences = torch.randint(3, 60, (4, 740), generator=torch.Generator().manual_seed(2))
    actions, attention = torch.zeros(4, 739, dtype=torch.long), torch.ones(4, 740, dtype=torch.long)
    for row, (prompt, end) in enumerate([(700, 720), (700, 740), (20, 60), (20, 30)]):
        actions[row, prompt - 1 : end - 1] = 1
        attention[row, end:] = 0
        sequences[row, :prompt] = sequences[row // 2 * 2, :prompt]
    found, output = actor(sequences, actions, attention_mask=attention, return_output=True)
    assert len(output["logits"]) == 2
    torch.testing.assert_close(found, expected(model, sequences, actions, attention), rtol=1e-4, atol=1e-4)
    found.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.requires_grad)


def test_a_prompt_is_computed_once_with_checkpoints_of_activations(actors: dict) -> None:
    actor, (sequences, actions, attention) = actors["fp32"], groups()
    actor.gradient_checkpointing_enable()
    try:
        actor.train()
        found = actor(sequences, actions, attention_mask=attention)
        found.sum().backward()
    finally:
        actor.eval()
        actor.gradient_checkpointing_disable()
        actor.zero_grad()
    torch.testing.assert_close(found, expected(actor.model, sequences, actions, attention), rtol=1e-4, atol=1e-4)


def test_a_model_that_shared_rows_do_not_fit_is_given_a_row_for_each_rollout(actors: dict) -> None:
    actor, (sequences, actions, attention) = actors["fp32"], groups()
    actor.model.config.sliding_window, before = 16, getattr(actor.model.config, "sliding_window", None)
    try:
        _, output = actor(sequences, actions, attention_mask=attention, return_output=True)
    finally:
        actor.model.config.sliding_window = before
    assert len(output["logits"]) == 9


@pytest.mark.parametrize(
    ("change", "fitting"),
    [
        ({}, True),
        ({"layer_types": ["full_attention", "full_attention"]}, True),
        ({"layer_types": ["full_attention", "linear_attention"]}, False),
        ({"sliding_window": 4096}, False),
        ({"sliding_window": 4096, "use_sliding_window": False}, True),
        ({"alibi": True}, False),
        ({"output_router_logits": True}, False),
        ({"_attn_implementation": "eager"}, False),
    ],
)
def test_which_models_shared_rows_fit(change: dict, fitting: bool) -> None:
    model = LlamaForCausalLM(copy.deepcopy(SMALL))
    model.set_attn_implementation("sdpa")
    for name, value in change.items():
        setattr(model.config, name, value)
    assert fits(model) is fitting
    model._is_stateful = True
    assert not fits(model)


def test_a_models_own_code_is_given_a_row_for_each_rollout() -> None:
    class Own(LlamaForCausalLM):
        pass

    assert not fits(Own(SMALL))


def test_short_responses_share_a_row_and_long_ones_do_not() -> None:
    def rollouts(size: int, tokens: int) -> list[Rollout]:
        return [Rollout((1,) * 100, [2] * tokens, (row, 0)) for row in range(size)]

    smollm2 = SimpleNamespace(hidden_size=576, num_hidden_layers=30, vocab_size=49152)
    assert [len(row) for row in share(rollouts(8, 40), smollm2)] == [8]
    assert [len(row) for row in share(rollouts(8, 2000), smollm2)] == [1] * 8
    assert 1 < len(share(rollouts(64, 75), smollm2)[0]) < 64


def test_a_rows_responses_are_short_and_long_ones() -> None:
    rollouts = [Rollout((1,) * 100, [2] * tokens, (row, 0)) for row, tokens in enumerate([10, 10, 10, 90, 90, 90])]
    rows = share(rollouts, SimpleNamespace(hidden_size=8, num_hidden_layers=30, vocab_size=8))
    lengths = [sum(len(rollout.response) for rollout in row) for row in rows]
    assert 1 < len(rows) < 6
    assert max(lengths) - min(lengths) <= 80


def test_rows_place_each_response_token_once() -> None:
    sequences, actions, attention = groups()
    rollouts = read(sequences, actions, attention)
    assert [rollout.place[0] for rollout in rollouts] == list(range(8))
    assert [len(rollout.prompt) for rollout in rollouts] == [30, 30, 30, 22, 22, 22, 22, 25]
    rows = lay_out(share(rollouts, SMALL))
    places = list(zip(*(part.tolist() for part in rows.places), strict=True))
    assert len(set(places)) == len(places) == sum(len(rollout.response) for rollout in rollouts)
    assert set(places) >= {tuple(place) for place in actions.nonzero().tolist()}
    labels = rows.labels[rows.labels != -100]
    assert labels.tolist() == [int(sequences[row, column + 1]) for row, column in places]


def test_a_batch_without_a_response_has_log_probabilities_of_zero(actors: dict) -> None:
    sequences, actions, attention = rollouts()
    found = actors["fp32"](sequences, torch.zeros_like(actions), attention_mask=attention)
    assert found.shape == (4, 63)
    assert not found.any()


def test_entropy_is_the_hosts(actors: dict) -> None:
    sequences, actions, attention = rollouts()
    _, output = actors["fp32"](sequences, actions, attention_mask=attention, return_output=True, return_entropy=True)
    assert output.entropy.shape == (4, 63)


def test_losses_of_bf16_agree_with_float32(actors: dict) -> None:
    sequences, actions, attention = rollouts()
    losses = {
        dtype: -(actor(sequences, actions, attention_mask=attention).sum() / actions.sum()).item()
        for dtype, actor in actors.items()
    }
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.01)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_log_probabilities_from_the_logits_of_the_last_tokens(temperature: float) -> None:
    logits, labels = torch.randn(2, 5, 11), torch.randint(0, 11, (2, 9))
    wanted = torch.log_softmax(logits / temperature, -1).gather(-1, labels[:, 4:, None]).squeeze(-1)
    torch.testing.assert_close(log_probs_from_logits(logits.clone(), labels, temperature), wanted)


def kept_rollout(prompt: int, length: int) -> SimpleNamespace:
    """A rollout of the host's replay buffer, whose prompt is ten times the same token."""
    sequences = torch.tensor([prompt] * 10 + [7] * (length - 10))
    actions = torch.tensor([0] * 9 + [1] * (length - 10))
    return SimpleNamespace(
        sequences=sequences,
        action_mask=actions,
        attention_mask=torch.ones_like(sequences),
        total_length=torch.tensor(length),
    )


def test_micro_batches_are_of_like_lengths_and_hold_every_rollout_once() -> None:
    lengths = [70, 12, 65, 14, 90, 13, 66, 11]
    batches = list(PromptsTogether([kept_rollout(20 + row, length) for row, length in enumerate(lengths)], 2))
    assert sorted(index for batch in batches for index in batch) == list(range(8))
    assert [[lengths[index] for index in batch] for batch in batches] == [[11, 12], [13, 14], [65, 66], [70, 90]]


def test_micro_batches_keep_the_rollouts_of_a_prompt_together() -> None:
    rollouts = [(1, 30), (2, 12), (3, 40), (2, 50), (1, 11), (3, 41)]
    batches = list(PromptsTogether([kept_rollout(*rollout) for rollout in rollouts], 2))
    assert [[rollouts[index] for index in batch] for batch in batches] == [
        [(1, 11), (1, 30)],
        [(3, 40), (3, 41)],
        [(2, 12), (2, 50)],
    ]


@pytest.mark.parametrize(
    ("busy", "own", "threads"),
    [
        ([10, 10], [0, 1], 2),
        ([55, 55], [0, 1], 1),
        ([100, 100], [0, 1], 1),
        ([100] * 3 + [0] * 5, range(8), 5),
        ([100] * 8, range(8), 4),
        ([0], [0], 1),
        ([0] * 64, [4, 5], 2),  # a container's share of a large machine
        ([100] * 4 + [0] * 60, [4, 5], 2),
    ],
)
def test_threads_are_no_more_than_the_idle_cores_that_the_process_may_use(
    busy: list[float], own: list[int], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(own))
    monkeypatch.setattr("psutil.cpu_percent", lambda interval, percpu: busy)
    assert idle_cores() == threads

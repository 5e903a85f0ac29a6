"""What makes a training step cheaper on a CPU changes no log-probability, no gradient and no sum over a step."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from host import importable_host

from vpo_plugin.models import TINY, resolve_policy
from vpo_plugin.openrlhf.cpu_speed import LikeLengths, idle_cores, log_probs_from_logits


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


def test_micro_batches_are_of_like_lengths_and_hold_every_rollout_once() -> None:
    lengths = [70, 12, 65, 14, 90, 13, 66, 11]
    batches = list(LikeLengths([SimpleNamespace(total_length=torch.tensor(n)) for n in lengths], 2))
    assert sorted(index for batch in batches for index in batch) == list(range(8))
    assert [[lengths[index] for index in batch] for batch in batches] == [[11, 12], [13, 14], [65, 66], [70, 90]]


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

"""Save work in a training step on a machine without CUDA. Used by `cpu.install`; nothing here changes a loss.

===================================== ================================================================================
symbol (OpenRLHF 0.11.1 and 0.11.2)   why
===================================== ================================================================================
`Actor.forward`                       also computes logits of the prompt, whose log-probabilities are multiplied by
                                      zero: now computes only those of the response
`models.actor.log_probs_from_logits`  makes several copies of the logits: torch's cross entropy makes one
`ppo_actor.DataLoader`                mixes long and short rollouts in a micro-batch, padded to the longest
===================================== ================================================================================
"""

import inspect
import os
from collections.abc import Iterator
from typing import Any

import psutil


def idle_cores() -> int:
    """Of the cores that this process may use, those that nothing uses for half a second, at least half of them.

    With more threads than idle cores, each operation waits until all threads have had a turn. On 2 cores with a load of
    12, a step of a tiny policy then took five times as long. The load average still counts the last stage.
    """
    percents = psutil.cpu_percent(interval=0.5, percpu=True)
    own = [percents[core] for core in os.sched_getaffinity(0)]
    return max(1, len(own) // 2, len(own) - round(sum(own) / 100))


def patch_actor(module: Any) -> None:
    """Patch `openrlhf.models.actor`: compute only the response's logits, with one pass over them."""
    if module.log_probs_from_logits is log_probs_from_logits:  # patched already
        return
    forward = module.Actor.forward

    def response_only(self: Any, sequences: Any, action_mask: Any = None, *rest: Any, **more: Any) -> Any:
        if action_mask is None or more.get("return_entropy") or self.packing_samples or not _keeps_logits(self.model):
            return forward(self, sequences, action_mask, *rest, **more)
        width = action_mask.shape[1]
        used = action_mask.any(dim=0).nonzero()
        first = int(used[0]) if len(used) else width - 1
        kept = width - first
        found = forward(self, sequences, action_mask[:, first:], *rest, **more, logits_to_keep=kept + 1)
        log_probs, *output = found if isinstance(found, tuple) else (found,)
        log_probs = module.torch.nn.functional.pad(log_probs, (first, 0))
        return (log_probs, *output) if output else log_probs

    module.Actor.forward = response_only
    module.log_probs_from_logits = log_probs_from_logits


def log_probs_from_logits(logits: Any, labels: Any, temperature: float = 1.0) -> Any:
    """Log-probabilities of the labels of the last `kept` tokens, shape (batch, kept).

    Args:
        logits: shape (batch, kept, words); divided by the temperature in place, as the host does.
        labels: shape (batch, tokens), tokens >= kept.
    """
    import torch

    if temperature != 1.0:
        logits.div_(temperature)
    kept, words = logits.shape[-2:]
    labels = labels[:, -kept:]
    losses = torch.nn.functional.cross_entropy(logits.reshape(-1, words), labels.reshape(-1), reduction="none")
    return -losses.view(labels.shape)


def _keeps_logits(model: Any) -> bool:
    """Whether the model can compute only the last tokens' logits, as transformers' models can."""
    model = getattr(model, "module", model)  # inside DeepSpeed's engine
    if hasattr(model, "get_base_model"):  # inside a peft model
        model = model.get_base_model()
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def patch_loader(module: Any) -> None:
    """Patch `openrlhf.trainer.ray.ppo_actor`: micro-batches of similar lengths if one step takes all rollouts."""
    loader = module.DataLoader

    def like_lengths(dataset: Any, *, batch_size: int, shuffle: bool, drop_last: bool, **more: Any) -> Any:
        if not shuffle or not getattr(dataset, "one_step", False):
            return loader(dataset, batch_size=batch_size, shuffle=shuffle, drop_last=drop_last, **more)
        return loader(dataset, batch_sampler=LikeLengths(dataset, batch_size), **more)

    ppo_train = module.ActorPPOTrainer.ppo_train

    def knowing_the_step(self: Any, *rest: Any, **more: Any) -> Any:
        per_step = self.strategy.accumulated_gradient * self.micro_train_batch_size
        self.replay_buffer.one_step = len(self.replay_buffer) == per_step
        return ppo_train(self, *rest, **more)

    module.DataLoader, module.ActorPPOTrainer.ppo_train = like_lengths, knowing_the_step


class LikeLengths:
    """Indices of micro-batches, with rollouts sorted by length. The order does not change the sum over a step."""

    def __init__(self, rollouts: Any, batch_size: int) -> None:
        self.batch_size = batch_size
        self.order = sorted(range(len(rollouts)), key=lambda index: int(rollouts[index].total_length))

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield self.order[start : start + self.batch_size]

    def __len__(self) -> int:
        return len(self.order) // self.batch_size

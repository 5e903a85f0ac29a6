"""Save work in a training step on a machine without CUDA. Used by `cpu.install`.

Nothing here changes a loss, except by what dropout drops (see `shared_prompts`).

===================================== ================================================================================
symbol (OpenRLHF 0.11.1 and 0.11.2)   why
===================================== ================================================================================
`Actor.forward`                       computes a prompt again for each of its responses, and its logits, whose
                                      log-probabilities are multiplied by zero: now computes it once for several
                                      responses (`shared_prompts`), and only the responses' logits
`models.actor.log_probs_from_logits`  makes several copies of the logits: torch's cross entropy makes one
`ppo_actor.DataLoader`                mixes prompts, and long and short rollouts, in a micro-batch: now keeps rollouts
                                      of a prompt, and those of similar lengths, together
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
    """Patch `openrlhf.models.actor`: a prompt once for its responses, and only the responses' logits, in one pass."""
    if module.log_probs_from_logits is log_probs_from_logits:  # patched already
        return
    from vpo_plugin.openrlhf import shared_prompts  # imports torch, before which `cpu.install` has to set its threads

    forward = module.Actor.forward

    def responses_only(
        self: Any, sequences: Any, action_mask: Any = None, attention_mask: Any = None, **more: Any
    ) -> Any:
        model = _unwrapped(self.model)
        if (
            action_mask is None
            or more.get("return_entropy")
            or self.packing_samples
            or "logits_to_keep" not in inspect.signature(model.forward).parameters
        ):
            return forward(self, sequences, action_mask, attention_mask, **more)
        rollouts = shared_prompts.read(sequences, action_mask, attention_mask)
        if rollouts and not getattr(self, "is_vlm", False) and shared_prompts.fits(model):
            rows = shared_prompts.share(rollouts, model.config.get_text_config())
            if len(rows) < len(rollouts):
                found = _forward_shared(self, shared_prompts.lay_out(rows), action_mask)
                return found if more.get("return_output") else found[0]
        width = action_mask.shape[1]
        first = min((rollout.place[1] for rollout in rollouts), default=width - 1)
        kept = width - first
        found = forward(self, sequences, action_mask[:, first:], attention_mask, **more, logits_to_keep=kept + 1)
        log_probs, *output = found if isinstance(found, tuple) else (found,)
        log_probs = module.torch.nn.functional.pad(log_probs, (first, 0))
        return (log_probs, *output) if output else log_probs

    module.Actor.forward = responses_only
    module.log_probs_from_logits = log_probs_from_logits


def _forward_shared(actor: Any, rows: Any, action_mask: Any) -> tuple[Any, Any]:
    """What `Actor.forward` returns, from `shared_prompts.Rows`."""
    import torch

    from vpo_plugin.openrlhf import shared_prompts

    hidden = torch.zeros(rows.attention.shape, dtype=_unwrapped(actor.model).dtype)
    output = actor.model(
        rows.sequences,
        # Of the model's type: torch would make one from a boolean mask in every layer, and keep it for the gradients.
        attention_mask=hidden.masked_fill_(~rows.attention, -torch.inf),
        position_ids=rows.positions,
        logits_to_keep=rows.labels.shape[1],
    )
    output["logits"] = output["logits"].float()
    log_probs = log_probs_from_logits(output["logits"], rows.labels, actor.temperature)
    found = log_probs[rows.labels != shared_prompts.IGNORED]
    placed = log_probs.new_zeros(action_mask.shape).index_put(rows.places, found)
    return placed * action_mask.float(), output


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


def _unwrapped(model: Any) -> Any:
    """The transformers model inside DeepSpeed's engine and peft's model."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def patch_loader(module: Any) -> None:
    """Patch `openrlhf.trainer.ray.ppo_actor`: prompts and similar lengths together, if one step takes all."""
    loader = module.DataLoader

    def together(dataset: Any, *, batch_size: int, shuffle: bool, drop_last: bool, **more: Any) -> Any:
        if not shuffle or not getattr(dataset, "one_step", False):
            return loader(dataset, batch_size=batch_size, shuffle=shuffle, drop_last=drop_last, **more)
        return loader(dataset, batch_sampler=PromptsTogether(dataset, batch_size), **more)

    ppo_train = module.ActorPPOTrainer.ppo_train

    def knowing_the_step(self: Any, *rest: Any, **more: Any) -> Any:
        per_step = self.strategy.accumulated_gradient * self.micro_train_batch_size
        # A mixture of experts' auxiliary loss is no sum over rollouts: it depends on the micro-batch.
        self.replay_buffer.one_step = len(self.replay_buffer) == per_step and not self.aux_loss
        return ppo_train(self, *rest, **more)

    module.DataLoader, module.ActorPPOTrainer.ppo_train = together, knowing_the_step


class PromptsTogether:
    """Indices of micro-batches, in which rollouts of a prompt and of similar lengths are together.

    The order does not change the sum over a step.
    """

    def __init__(self, rollouts: Any, batch_size: int) -> None:
        self.batch_size = batch_size
        prompts = [_prompt(rollouts[index]) for index in range(len(rollouts))]
        lengths = [int(rollouts[index].total_length) for index in range(len(rollouts))]
        longest: dict[tuple[int, ...], int] = {}
        for prompt, length in zip(prompts, lengths, strict=True):
            longest[prompt] = max(length, longest.get(prompt, 0))
        self.order = sorted(range(len(prompts)), key=lambda at: (longest[prompts[at]], prompts[at], lengths[at]))

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield self.order[start : start + self.batch_size]

    def __len__(self) -> int:
        return len(self.order) // self.batch_size


def _prompt(rollout: Any) -> tuple[int, ...]:
    """The tokens of a rollout of the replay buffer before its first action."""
    from vpo_plugin.openrlhf import shared_prompts

    found = shared_prompts.read(rollout.sequences[None], rollout.action_mask[None], rollout.attention_mask[None])
    return found[0].prompt if found else ()

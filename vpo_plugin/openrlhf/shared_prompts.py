"""Compute a prompt once for all its responses, in one row: the prompt, then the responses, none of which sees another.

A row of two responses holds the tokens `p1 p2 | p3 r1 r2 | p3 s1`. Each response begins with its own copy of the
prompt's last token and ends before its last token, so each of its positions predicts one token of it. Attention and
positions are those of a row per rollout, so log-probabilities and gradients are the same, up to rounding. (With
dropout, the responses of a row share what it drops of their prompt.)
"""

import math
from dataclasses import dataclass
from typing import Any

import torch

IGNORED = -100  # the label that torch's cross entropy leaves out


@dataclass(frozen=True)
class Rollout:
    """A rollout's tokens, and where a batch has its response."""

    prompt: tuple[int, ...]
    """The tokens before the first action."""
    response: list[int]
    """From the first action to the last, with what an environment wrote between them."""
    place: tuple[int, int]
    """The row and the first column of the response in the action mask."""


@dataclass(frozen=True)
class Rows:
    """What a model reads, padded on the left, and where the log-probabilities of its last `kept` positions belong."""

    sequences: torch.Tensor
    """Shape (rows, length)."""
    positions: torch.Tensor
    """Shape (rows, length)."""
    attention: torch.Tensor
    """Which positions a position sees, shape (rows, 1, length, length), boolean."""
    labels: torch.Tensor
    """Shape (rows, kept), `IGNORED` where no token is predicted."""
    places: tuple[torch.Tensor, ...]
    """Rows and columns of the action mask to which the labels other than `IGNORED` belong, in their order."""


def read(sequences: torch.Tensor, action_mask: torch.Tensor, attention_mask: torch.Tensor) -> list[Rollout]:
    """Split each rollout into prompt and response; rollouts without an action are left out.

    Args:
        sequences: token ids, shape (batch, tokens).
        action_mask: shape (batch, width), right-aligned: its last column stands for the last token.
        attention_mask: shape (batch, tokens), 1 for the tokens of a rollout, which have no gap.
    """
    offset = sequences.shape[1] - action_mask.shape[1]
    rollouts = []
    for row, (tokens, actions, attended) in enumerate(zip(sequences, action_mask, attention_mask, strict=True)):
        columns = actions.nonzero().flatten()
        if len(columns):
            first, last = int(columns[0]), int(columns[-1])
            start = int(attended.nonzero()[0])
            prompt = tuple(tokens[start : first + offset].tolist())
            rollouts.append(Rollout(prompt, tokens[first + offset : last + offset + 1].tolist(), (row, first)))
    return rollouts


def share(rollouts: list[Rollout], config: Any) -> list[list[Rollout]]:
    """Rollouts of one prompt in rows, with as many responses in each as make the batch cheapest to compute.

    More responses save copies of the prompt, and make rows longer, in which each position is compared with each. A
    layer costs a position about 24 hidden² operations and 4 hidden more for each position of its row, and the output
    layer costs each of a response 2 hidden · vocabulary.

    Args:
        rollouts: at least one.
        config: the model's, with `hidden_size`, `num_hidden_layers` and `vocab_size`.
    """
    groups: dict[tuple[int, ...], list[Rollout]] = {}
    for rollout in rollouts:
        groups.setdefault(rollout.prompt, []).append(rollout)

    for group in groups.values():
        group.sort(key=lambda rollout: len(rollout.response))

    def split(size: int) -> list[list[Rollout]]:
        counts = {prompt: math.ceil(len(group) / size) for prompt, group in groups.items()}
        return [group[at :: counts[prompt]] for prompt, group in groups.items() for at in range(counts[prompt])]

    def cost(size: int) -> float:
        rows = split(size)
        length, kept = _widths(rows)
        output = kept * config.vocab_size / (2 * config.num_hidden_layers)
        return len(rows) * (length * (6 * config.hidden_size + length) + output)

    return split(min(range(1, max(map(len, groups.values())) + 1), key=cost))


def _responses(row: list[Rollout]) -> int:
    """Tokens of the responses of a row."""
    return sum(len(rollout.response) for rollout in row)


def _widths(rows: list[list[Rollout]]) -> tuple[int, int]:
    """Positions of the longest row, and of the longest responses of a row."""
    return max(len(row[0].prompt) - 1 + _responses(row) for row in rows), max(map(_responses, rows))


def lay_out(rows: list[list[Rollout]]) -> Rows:
    """Tensors of rows; all rollouts of a row have the same prompt, of at least one token."""
    length, kept = _widths(rows)
    sequences, positions = torch.zeros(2, len(rows), length, dtype=torch.long)
    owner = torch.full((len(rows), length), -1)  # 0 for the prompt, from 1 on for the responses, -1 for padding
    labels = torch.full((len(rows), kept), IGNORED)
    places = []
    for number, row in enumerate(rows):
        prompt = row[0].prompt
        end = length - _responses(row)
        here = slice(end - len(prompt) + 1, end)
        sequences[number, here], owner[number, here] = torch.tensor(prompt[:-1], dtype=torch.long), 0
        positions[number, here] = torch.arange(len(prompt) - 1)
        for index, rollout in enumerate(row, start=1):
            size = len(rollout.response)
            here = slice(end, end + size)
            sequences[number, here] = torch.tensor([prompt[-1], *rollout.response[:-1]])
            positions[number, here] = torch.arange(len(prompt) - 1, len(prompt) - 1 + size)
            owner[number, here] = index
            at = end - (length - kept)
            labels[number, at : at + size] = torch.tensor(rollout.response)
            source, first = rollout.place
            places += [(source, first + token) for token in range(size)]
            end += size
    query, key = owner[:, :, None], owner[:, None, :]
    attention = ((key == query) | ((key == 0) & (query > 0))).tril()[:, None]
    return Rows(sequences, positions, attention, labels, torch.tensor(places).unbind(1))


def fits(model: Any) -> bool:
    """Whether a model, out of its wrappers, can read such rows: what a token sees is what the mask allows."""
    config = model.config.get_text_config()
    sliding = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return (
        type(model).__module__.startswith("transformers.")  # a model's own code may make its own mask
        and config._attn_implementation == "sdpa"  # takes any mask
        and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        and not sliding
        and not getattr(config, "alibi", False)  # positions from a mask of two dimensions
        and not getattr(config, "output_router_logits", False)  # their loss reads a mask of two dimensions
        and not model._is_stateful  # recurrent layers
    )

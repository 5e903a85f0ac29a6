"""Your own reward function, with OpenRLHF's signature, that returns a vector instead of a number.

    examples/train.sh --reward.remote_url examples/reward.py --vpo.candidates 1

The specification names the objectives, their order and ranges, and which are better when lower: here protein, price
(`direction: minimize`) and greens of examples/menu. Its `scorer` and `dataset` may be null.
"""

import json
import re

import torch

from examples.menu.menu import score


def reward_func(queries: list[str], prompts: list[str], labels: list[str]) -> dict[str, torch.Tensor]:
    """The rewards of responses, shape (queries, objectives); a query is a prompt with its response."""
    rewards = []
    for query, prompt, label in zip(queries, prompts, labels, strict=True):
        orders = re.findall(r"<order_1>(.*?)</order_1>", query.removeprefix(prompt), re.DOTALL)
        rewards.append(score(orders[-1] if orders else "", json.loads(label)))
    return {"rewards": torch.tensor(rewards)}

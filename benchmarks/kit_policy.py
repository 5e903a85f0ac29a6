"""Make the tiny warm-started policy of the kit task: `python -m benchmarks.kit_policy --output DIR`.

The examples are kits that are good for random weightings of the needs, with noise. The prompts do not state the
weighting of a kit, so the policy learns to pack for many weightings.
"""

import random
from collections.abc import Iterator

import numpy as np

from benchmarks.tiny_policy import make_policy
from reward_specs.kit import kit
from vpo_plugin.advantages import goal_weights, write_goal
from vpo_plugin.rewards import RewardSpec
from vpo_plugin.rewards.formats import render_prompt, write_response
from vpo_plugin.rewards.task import read_rows

NOISE = 1.0
"""Scale of the Gumbel noise on an item's value under a weighting, in units of values from 0 to 9."""
KITS_PER_ROW = 8


def sft_examples(spec: RewardSpec, num_rows: int, seed: int) -> Iterator[dict[str, str]]:
    """`num_rows` prompts with responses, half of them of one kit, half of `spec.candidates` different kits.

    One example in eight states objective weights, which its kit ignores, for `goal_conditioned`.
    """
    rng = random.Random(f"warm start {seed}")
    draws = np.random.default_rng(seed)
    rows = list(read_rows(spec, "train", -(-num_rows // KITS_PER_ROW), seed))
    order = [row for row in rows for _ in range(KITS_PER_ROW)]
    rng.shuffle(order)
    for i, row in enumerate(order[:num_rows]):
        candidates = 1 if i % 2 else spec.candidates
        prompt = render_prompt(spec, row["prompt"], candidates)
        if i % 8 == 1:
            keys = spec.objective_keys
            prompt = write_goal(prompt, keys, goal_weights(f"{i} kit", len(keys), seed=seed))
        yield {"prompt": prompt, "response": write_response(spec, random_kits(row["label"], candidates, draws))}


def random_kits(label: dict, candidates: int, draws: np.random.Generator) -> list[str]:
    """Different kits, each with the best items for its own random weighting, with noise."""
    worth = kit.values(label)
    kits: list[str] = []
    while len(kits) < candidates:
        noisy = worth @ draws.dirichlet(np.ones(worth.shape[1])) + draws.gumbel(scale=NOISE, size=len(worth))
        packed = " ".join(kit.ITEMS[i] for i in np.argsort(-noisy)[: kit.SIZE])
        if packed not in kits:
            kits.append(packed)
    return kits


if __name__ == "__main__":
    make_policy(__doc__, "kit", sft_examples)

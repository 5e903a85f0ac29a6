"""`python -m benchmarks.sizing`: calculate the traffic and cost of a step on 1 to 64 nodes.

The assumptions are the constants below; docs/scaling.md explains them and shows the table.
"""

from collections.abc import Sequence
from dataclasses import dataclass

GPUS_PER_NODE = 8
FLOPS = 989e12 * 0.4
"""Operations per second of one H100 in bf16, at 40 % of its peak."""
MEMORY = 3.35e12 * 0.6
"""Bytes per second at which a decoding step reads weights."""
STEP_SECONDS = 0.005
"""Fixed time of a decoding step for any model: attention, sampling, scheduling."""
NETWORK = 50e9
"""Bytes per second of one 400 Gb/s link."""
STATE_BYTES = 16
"""Training state per parameter: weights and gradients in bf16, weights and two moments in float32."""
TOKEN_BYTES = 5.0
"""Size of a token on its way from the engine to the trainer (a pickled int above 65,535; smaller ones take 3)."""
REWARD_BYTES = 9.0
"""Size of a reward on its way (a pickled float)."""
HOOK_SECONDS = 1e-4
"""A trainer core's time per rollout in the plugin's hook, measured by `simulate step` (5 candidates, 16 objectives);
the estimator takes less than a tenth of it."""
PROMPT_TOKENS, RESPONSE_TOKENS = 512, 2048


@dataclass(frozen=True)
class Layout:
    """A training of a model on some nodes; policy and engines take turns on every GPU."""

    nodes: int
    model: str
    parameters: float
    zero_stage: int
    tensor_parallel: int
    rollouts: int
    candidates: int
    objectives: int

    @property
    def gpus(self) -> int:
        return self.nodes * GPUS_PER_NODE

    @property
    def engines(self) -> int:
        return self.gpus // self.tensor_parallel

    @property
    def tokens(self) -> float:
        """Tokens of all rollouts of a step."""
        return self.rollouts * (PROMPT_TOKENS + RESPONSE_TOKENS)


LAYOUTS = (
    Layout(1, "Qwen3-1.7B", 1.7e9, 2, 1, 1024, 3, 4),
    Layout(2, "Qwen3-8B", 8.2e9, 3, 1, 1024, 3, 5),
    Layout(8, "Qwen3-32B", 32.8e9, 3, 4, 2048, 5, 16),
    Layout(64, "72B", 72.7e9, 3, 8, 8192, 5, 16),
)


def state_gb(layout: Layout) -> float:
    """Training state per GPU: ZeRO 2 shards gradients and optimizer, ZeRO 3 also the weights."""
    if layout.zero_stage == 3:
        return STATE_BYTES * layout.parameters / layout.gpus / 1e9
    return (2 * layout.parameters + (STATE_BYTES - 2) * layout.parameters / layout.gpus) / 1e9


def table() -> list[tuple[str, list[str]]]:
    """Titles, and a cell per layout."""
    rows: list[tuple[str, list[str]]] = []

    def row(title: str, cell: Sequence[float | str], form: str = "") -> None:
        rows.append((title, [format(value, form) for value in cell]))

    weights = [2 * layout.parameters for layout in LAYOUTS]
    decoding = [b / a.tensor_parallel / MEMORY + STEP_SECONDS for a, b in zip(LAYOUTS, weights, strict=True)]
    generation = [RESPONSE_TOKENS * seconds for seconds in decoding]
    gathered = [b if a.zero_stage == 3 else 0.0 for a, b in zip(LAYOUTS, weights, strict=True)]
    training = [(6 + 2 + 2) * a.parameters * a.tokens / (FLOPS * a.gpus) for a in LAYOUTS]
    sync = [bytes_ / NETWORK for bytes_ in gathered]
    hook = [HOOK_SECONDS * a.rollouts for a in LAYOUTS]
    step = [sum(parts) for parts in zip(generation, training, sync, hook, strict=True)]

    row("nodes of 8 GPUs", [a.nodes for a in LAYOUTS])
    row("model", [a.model for a in LAYOUTS])
    row("ZeRO stage", [a.zero_stage for a in LAYOUTS])
    row("engines x tensor parallel", [f"{a.engines} x {a.tensor_parallel}" for a in LAYOUTS])
    row("rollouts per step (m, k)", [f"{a.rollouts} ({a.candidates}, {a.objectives})" for a in LAYOUTS])
    row("training state on a GPU, GB", [state_gb(a) for a in LAYOUTS], ".0f")
    row("engine's weights on a GPU, GB", [2 * a.parameters / a.tensor_parallel / 1e9 for a in LAYOUTS], ".0f")
    row("weight sync: received by each GPU, GB", [bytes_ / 1e9 for bytes_ in gathered], ".0f")
    row("  the same, engines on their own GPUs, GB", [bytes_ / 1e9 for bytes_ in weights], ".0f")
    row("rollouts to the trainer, MB", [TOKEN_BYTES * a.tokens / 1e6 for a in LAYOUTS], ".1f")
    row(
        "reward matrices to the trainer, MB",
        [REWARD_BYTES * a.rollouts * (2 + a.candidates * a.objectives) / 1e6 for a in LAYOUTS],
        ".2f",
    )
    row("generation, s", generation, ".0f")
    row("log-probabilities and training, s", training, ".0f")
    row("weight sync, s", sync, ".1f")
    row("VPO's hook in the trainer, s", hook, ".2f")
    row("VPO's share of the step, %", [100 * h / s for h, s in zip(hook, step, strict=True)], ".2f")
    return rows


def main() -> None:
    for title, cells in table():
        print(title.ljust(38), *(cell.rjust(14) for cell in cells))


if __name__ == "__main__":
    main()

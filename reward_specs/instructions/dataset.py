"""The published prompts of IFEval and IFBench, for evaluation."""

from collections.abc import Iterator
from typing import Any

from reward_specs.instructions.checkers import LEFT_OUT
from vpo_plugin.rewards.data import on_hub, read_dataset, shuffled


def benchmark(
    split: str, num_rows: int, seed: int, *, name: str, source: str, published: str
) -> Iterator[dict[str, Any]]:
    """At most `num_rows` prompts of a benchmark, the same for either split: all are for evaluation.

    Leaves out prompts with an instruction of `LEFT_OUT` or with a checker that the package lacks.

    Args:
        name: `ifeval` or `ifbench`.
        source: a hub id or a file, as in `vpo_plugin.rewards.data.read_dataset`.
        published: the split's name on the hub.
    """
    from datasets import concatenate_datasets

    if on_hub(source):
        dataset = read_dataset(source, split, splits={"train": published, "test": published})
    else:  # a file holds all rows, read as two parts
        dataset = concatenate_datasets([read_dataset(source, part) for part in ("train", "test")])
    dataset = dataset.filter(lambda ids: not LEFT_OUT.keys() & set(ids), input_columns="instruction_id_list")
    for row in shuffled(dataset, num_rows, seed):
        instructions = [
            {"id": name, "arguments": {key: value for key, value in (arguments or {}).items() if value is not None}}
            for name, arguments in zip(row["instruction_id_list"], row["kwargs"], strict=True)
        ]
        yield {
            "prompt": row["prompt"],
            "label": {"benchmark": name, "instructions": instructions, "prompt": row["prompt"]},
        }

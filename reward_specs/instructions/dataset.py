"""The published prompts of IFEval and IFBench, for evaluation only."""

from collections.abc import Iterator
from typing import Any

from reward_specs.instructions.checkers import LEFT_OUT, make
from vpo_plugin.rewards.data import EvaluationOnly, on_hub, read_dataset, shuffled


def benchmark(
    split: str, num_rows: int, seed: int, *, name: str, source: str, published: str
) -> Iterator[dict[str, Any]]:
    """At most `num_rows` prompts of a benchmark, all of which are held out.

    Leaves out prompts with an instruction of `LEFT_OUT`, and those for which an official checker draws arguments at
    random: it takes `#` for no letter, and a start of 0 for none.

    Args:
        name: `ifeval` or `ifbench`.
        source: a hub id or a file, as in `vpo_plugin.rewards.data.read_dataset`.
        published: the split's name on the hub.

    Raises:
        EvaluationOnly: the split is not `test`.
    """
    from datasets import concatenate_datasets

    if split != "test":
        raise EvaluationOnly(f"The prompts of {name} are for evaluation only: train on others, such as `instructions`.")
    if on_hub(source):
        dataset = read_dataset(source, split, splits={"test": published})
    else:  # a file holds all rows, read as two parts
        dataset = concatenate_datasets([read_dataset(source, part) for part in ("train", "test")])
    dataset = dataset.filter(lambda row: _usable(name, _instructions(row)))
    for row in shuffled(dataset, num_rows, seed):
        yield {"prompt": row["prompt"], "label": {"benchmark": name, "instructions": _instructions(row)}}


def _instructions(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"id": name, "arguments": {key: value for key, value in (arguments or {}).items() if value is not None}}
        for name, arguments in zip(row["instruction_id_list"], row["kwargs"], strict=True)
    ]


def _usable(name: str, instructions: list[dict[str, Any]]) -> bool:
    return not any(one["id"] in LEFT_OUT or make(name, one["id"], one["arguments"])[1] for one in instructions)

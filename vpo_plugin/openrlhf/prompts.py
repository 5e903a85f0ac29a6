"""Render a run's prompts for the policy: with the instruction for m candidates, in the chat template."""

import math
from functools import partial
from typing import TYPE_CHECKING, Any

from vpo_plugin.advantages import goal_weights, write_goal
from vpo_plugin.openrlhf.settings import Settings, current_settings
from vpo_plugin.rewards import RewardSpec, load_spec
from vpo_plugin.rewards.data import open_dataset
from vpo_plugin.rewards.formats import render_prompt
from vpo_plugin.rewards.labels import pack_label, read_label, unpack_label
from vpo_plugin.rewards.prompts import pack_prompt, with_instruction

if TYPE_CHECKING:
    from datasets import Dataset


def open_parts(names: str, split: str | None, most: float = math.inf) -> "list[tuple[str, Dataset]]":
    """The datasets that a flag names, at most `most` rows of each; `NAME@FOLDER` is a folder of a hub dataset.

    Raises DatasetError or ValueError, as `open_dataset` does.
    """
    parts = []
    for name in names.split(","):
        source, _, folder = name.strip().partition("@")
        rows = open_dataset(source.strip(), split or None, data_dir=folder.strip() or None)
        parts.append((name.strip(), rows.select(range(int(min(most, len(rows)))))))
    return parts


def patch_datasets(module: Any) -> None:
    """Wrap `blending_datasets` of the host's `openrlhf.trainer.ppo_trainer`: read datasets as the checks do."""
    original = module.blending_datasets

    def blending_datasets(
        datasets: str,
        probabilities: str | None = None,
        strategy: Any = None,
        seed: int = 42,
        max_count: float = 1e8,
        stopping_strategy: Any = "all_exhausted",
        dataset_split: str = "train",
    ) -> Any:
        from datasets import concatenate_datasets, interleave_datasets

        if strategy.args.use_ms:
            return original(datasets, probabilities, strategy, seed, max_count, stopping_strategy, dataset_split)
        parts = [rows for _, rows in open_parts(datasets, dataset_split, max_count)]
        if probabilities is None:
            return concatenate_datasets(parts)
        shares = [float(share) for share in probabilities.split(",")]
        return interleave_datasets(parts, shares, seed=seed, stopping_strategy=stopping_strategy)

    module.blending_datasets = blending_datasets


def _with_prompt(spec: RewardSpec, run: Settings) -> bool:
    """Whether labels travel with their prompts: functions in trl's signature get the original prompt."""
    return bool(spec.functions) and not (run.own_agent or run.own_reward)


def label_of(spec: RewardSpec, run: Settings, label: Any) -> tuple[object, str | None]:
    """The scorer's label of a rollout as the host carries it, and the packed original prompt if it travels with it."""
    return unpack_label(label) if _with_prompt(spec, run) else (read_label(spec, label), None)


def patch_prompts(module: Any) -> None:
    """Wrap `preprocess_data` of the host's `openrlhf.datasets.prompts_dataset`."""
    run = current_settings()
    spec = load_spec(str(run.spec))
    original = module.preprocess_data

    def preprocess_data(
        data: Any,
        input_template: Any = None,
        input_key: str = "input",
        label_key: str | None = None,
        apply_chat_template: Any = None,
    ) -> Any:
        label = "" if label_key is None else data[label_key]
        if _with_prompt(spec, run):
            label = pack_label(read_label(spec, label), pack_prompt(data[input_key]))

        def render(text: str) -> str:
            text = render_prompt(spec, text, run.candidates)
            if run.goal is None:
                return text
            alpha, seed = run.goal
            keys = spec.objective_keys
            return write_goal(text, keys, goal_weights(label, len(keys), alpha=alpha, seed=seed))

        if apply_chat_template and run.chat_template_kwargs:
            apply_chat_template = partial(apply_chat_template, **run.chat_template_kwargs)
        data = {**data, input_key: with_instruction(data[input_key], render)}
        return original(data, input_template, input_key, None, apply_chat_template)[0], label

    module.preprocess_data = preprocess_data

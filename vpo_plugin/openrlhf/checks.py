"""Find mistakes in a training command before anything starts.

Each check looks at one thing and yields one sentence per mistake.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from vpo_plugin.advantages import AdvantageEstimator, RewardBatch, advantage_estimator_names, get_advantage_estimator
from vpo_plugin.openrlhf import cpu
from vpo_plugin.openrlhf.flags import ESTIMATOR
from vpo_plugin.openrlhf.output import check_output
from vpo_plugin.openrlhf.prompts import open_parts
from vpo_plugin.rewards import RewardSpec
from vpo_plugin.rewards.fit import budget_mistake, column_mistake, naming_mistake
from vpo_plugin.rewards.labels import read_label
from vpo_plugin.rewards.prompts import ask
from vpo_plugin.rewards.task import check_label

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")

COUNTS = (
    *("rollout.batch_size", "rollout.micro_batch_size", "rollout.vllm_generate_batch_size"),
    *("rollout.n_samples_per_prompt", "train.batch_size", "train.micro_batch_size", "train.num_episodes"),
    *("train.max_epochs", "actor.num_nodes", "actor.num_gpus_per_node", "ds.ring_attn_size"),
    *("ds.tensor_parallel_size", "vpo.num_weights"),
)
"""Flags with a number of things, of which a run needs one."""

FEW_GOALS = 100
"""A policy that sees fewer weightings than this in training is told so."""

Flags = Mapping[str, Any]
"""The values of all flags, by name without the dashes."""


def find_mistakes(given: Flags, spec: RewardSpec | None, on_cpu: bool) -> list[str]:
    """A sentence for each mistake of a command.

    Args:
        given: the flags, with `vpo.candidates` filled in.
        spec: the specification that `--vpo.spec` names; None if the run uses only the host, or if the specification
            cannot be read.
        on_cpu: whether the run's machines have no CUDA.
    """
    mistakes = [*check_engines(given), *(check_cuda(given) if on_cpu else ())]
    if given["vpo.spec"] is not None:
        mistakes.extend(mistake for check in FLAG_CHECKS for mistake in check(given))
    if spec is not None:
        mistakes.extend(mistake for check in SPEC_CHECKS for mistake in check(given, spec))
    return mistakes


def plugin_estimator(given: Flags) -> AdvantageEstimator | None:
    """The plugin's estimator that the command names; None for an estimator of the host."""
    name = given[ESTIMATOR]
    return get_advantage_estimator(name) if name in advantage_estimator_names() else None


def check_cuda(given: Flags) -> Iterator[str]:
    for flag, (most, reason) in cpu.HOST_LIMITS.items():
        if given[flag] > most:
            yield f"--{flag} {given[flag]} needs CUDA, which this machine does not have: {reason}."
    if given["train.partial_rollout_enable"] and given["vllm.enable_prefix_caching"]:
        yield (
            "--vllm.enable_prefix_caching needs CUDA with --train.partial_rollout_enable: vLLM keeps what it "
            "cached with old weights while responses are unfinished. Drop one of them."
        )


def check_engines(given: Flags) -> Iterator[str]:
    if not given["vllm.num_engines"]:
        yield "--vllm.num_engines is missing: how many vLLM engines write the responses."


def check_gpus(given: Flags, devices: int) -> Iterator[str]:
    """Check that Ray can place the actor and the engines: it would wait forever for GPUs that are not there.

    Args:
        given: the flags.
        devices: GPUs that the run's Ray will have.
    """
    if not given["vllm.num_engines"]:  # see check_engines
        return
    actor = given["actor.num_nodes"] * given["actor.num_gpus_per_node"]
    engines = given["vllm.num_engines"] * given["vllm.tensor_parallel_size"]
    shared = given["train.colocate_all"] and not given["train.async_enable"]
    needed = max(actor, engines) if shared else actor + engines
    if needed > devices:
        advice = (
            "On one GPU, give --actor.num_gpus_per_node 1 --ref.num_gpus_per_node 1 --vllm.num_engines 1 "
            "--train.colocate_all --vllm.enable_sleep."
            if devices == 1
            else "Ask for fewer, or join a Ray cluster with more (RAY_ADDRESS)."
        )
        yield (
            f"The actor (--actor.num_nodes times --actor.num_gpus_per_node) takes {actor} GPUs and the engines "
            f"(--vllm.num_engines times --vllm.tensor_parallel_size) {engines}, {needed} in all, but this machine has "
            f"{devices}. {advice}"
        )


def check_rewards(given: Flags) -> Iterator[str]:
    """Check the user's own agent or reward function."""
    agent, reward = given["train.agent_func_path"], given["reward.remote_url"]
    if agent and reward:
        yield "The rewards of an agent come from the agent or the spec: drop --reward.remote_url."
    if agent and not agent.endswith(".py"):
        yield f"--train.agent_func_path {agent} is not a Python file."
    for flag, places in (("train.agent_func_path", [agent]), ("reward.remote_url", (reward or "").split(","))):
        for place in places:
            if place and place.endswith(".py") and not Path(place).is_file():
                yield f"--{flag} {place} does not exist."


def check_scorer(given: Flags, spec: RewardSpec) -> Iterator[str]:
    if not (spec.scores or given["reward.remote_url"] or given["train.agent_func_path"]):
        yield (
            f"--vpo.spec {given['vpo.spec']} has no scorer: name the function that gives the rewards with "
            "--reward.remote_url, or the agent with --train.agent_func_path."
        )


def check_numbers(given: Flags) -> Iterator[str]:
    if given["vpo.candidates"] is not None and given["vpo.candidates"] < 1:
        yield f"--vpo.candidates is {given['vpo.candidates']}: a response needs at least 1 candidate."
    if not given["vpo.alpha"] > 0:
        yield f"--vpo.alpha is {given['vpo.alpha']}: a Dirichlet parameter must be above 0."
    if not given["rollout.temperature"] > 0:
        yield (
            f"--rollout.temperature is {given['rollout.temperature']}: it must be above 0. At 0 all rollouts of a "
            "prompt are the same, and teach nothing."
        )
    for flag in too_small(given):
        yield f"--{flag} is {given[flag]}: it must be at least 1."


def too_small(given: Flags) -> list[str]:
    """The flags of `COUNTS` below 1."""
    return [flag for flag in COUNTS if given.get(flag) is not None and given[flag] < 1]


def check_estimator(given: Flags, spec: RewardSpec) -> Iterator[str]:
    """Check for flags that do not fit the plugin's estimator."""
    estimator = plugin_estimator(given)
    if estimator is None:
        return
    name, rollouts = estimator.name, given["rollout.n_samples_per_prompt"]
    if rollouts == 1:
        yield (
            f"--rollout.n_samples_per_prompt is {rollouts}: {name} compares the rollouts of one prompt with each other "
            "and needs at least 2."
        )
    if estimator.candidates == "one" and given["vpo.candidates"] > 1:
        yield (
            f"--vpo.candidates is {given['vpo.candidates']}: {name} rewards one candidate per response. Set it to 1 "
            "and multiply the rollouts by the old value to keep the number of candidates."
        )
    if estimator.takes_k and rollouts >= 2:
        try:
            estimator(RewardBatch(torch.zeros(1, rollouts, 1, 1), k=given["vpo.k"]))
        except ValueError as error:
            yield f"--vpo.k {given['vpo.k']} and --rollout.n_samples_per_prompt {rollouts} do not fit: {error}"
    if estimator.weights_in_prompt and spec.label == "none":
        yield f"{name} draws the weights of a prompt from its label, and without labels (label: none) all are the same."
    if estimator.weights_in_prompt and (mistake := naming_mistake(spec, f"--advantage {name}")):
        yield mistake
    if estimator.relative and given["reward.stop_properly_penalty_coef"] is not None:
        yield (
            f"--reward.stop_properly_penalty_coef scales or replaces rewards from 0 up, but {name} normalises each "
            "objective in the group first: scaling would raise a negative reward. Use --reward.overlong_buffer_len."
        )


def check_weightings(given: Flags, spec: RewardSpec) -> Iterator[str]:
    if given["vpo.num_weights"] == 1 and len(spec.objective_keys) > 1:
        yield (
            "--vpo.num_weights is 1: random weightings are scaled to equal weights on average, so a single one is the "
            "equal weighting. Give at least 2, or leave the flag out."
        )


def check_budget(given: Flags, spec: RewardSpec) -> Iterator[str]:
    """Check that the candidates fit in a response."""
    if given["train.agent_func_path"]:  # an agent divides --data.max_len among its turns
        return
    for flag in ("rollout.max_new_tokens", "data.max_len"):
        if given[flag] and (mistake := budget_mistake(spec, given["vpo.candidates"], given[flag], f"--{flag}")):
            yield mistake


def check_model(given: Flags) -> Iterator[str]:
    if not given["actor.model_name_or_path"]:
        yield "--actor.model_name_or_path is missing."
        return
    model = Path(given["actor.model_name_or_path"])
    if model.is_absolute() and not model.is_dir():
        yield f"--actor.model_name_or_path {model} is not a folder."
    if model.is_dir() and not any((model / name).exists() for name in TOKENIZER_FILES):
        yield f"The model folder {model} has no tokenizer (none of {', '.join(TOKENIZER_FILES)})."


def rollouts_per_step(given: Flags) -> int:
    return given["rollout.batch_size"] * given["rollout.n_samples_per_prompt"]


def ranks(given: Flags) -> int:
    """Data-parallel ranks of the actor, as the host counts them."""
    gpus = given["actor.num_nodes"] * given["actor.num_gpus_per_node"]
    return max(gpus // given["ds.ring_attn_size"] // given["ds.tensor_parallel_size"], 1)


def batch_sizes(given: Flags) -> list[int]:
    """The values of `--train.batch_size` that divide a step's rollouts evenly, largest first."""
    rollouts, least = rollouts_per_step(given), ranks(given) * given["train.micro_batch_size"]
    return [size for size in range(rollouts, 0, -1) if rollouts % size == 0 and size % least == 0]


def check_updates(given: Flags) -> Iterator[str]:
    """Check that each step updates the policy: the host accumulates gradients until `--train.batch_size` is full."""
    if given["train.dynamic_batch_enable"] or too_small(given):
        return
    rollouts, batch, micro = rollouts_per_step(given), given["train.batch_size"], given["train.micro_batch_size"]
    least = ranks(given) * micro
    fitting = ", ".join(map(str, batch_sizes(given)[:4]))
    hint = (
        f"Sizes that fit {rollouts} rollouts: {fitting}."
        if fitting
        else f"No size fits: {least} must divide the {rollouts} rollouts of a step."
    )
    if batch > rollouts:
        yield (
            f"--train.batch_size is {batch}, but a step has {rollouts} rollouts (--rollout.batch_size times "
            f"--rollout.n_samples_per_prompt): most steps would update nothing. {hint}"
        )
    elif batch < least or batch % least:
        yield (
            f"--train.batch_size is {batch}, not a multiple of {least}, --train.micro_batch_size {micro} on "
            f"{ranks(given)} ranks. {hint}"
        )


def find_remarks(given: Flags, spec: RewardSpec) -> Iterator[str]:
    """Warnings: one sentence for each thing that is allowed but that the user should know."""
    parts, size = read_parts(given, "data.prompt_dataset", "data.prompt_split"), given["rollout.batch_size"]
    prompts = sum(len(rows) for _, rows in parts)
    estimator = plugin_estimator(given)
    if estimator and estimator.weights_in_prompt and not spec.functions:  # whose labels travel with their prompts
        labels = {json.dumps(label, sort_keys=True) for _, rows in parts for label in rows[given["data.label_key"]]}
        if len(labels) < min(prompts, FEW_GOALS):
            yield (
                f"{given[ESTIMATOR]} states one weighting for each label, and the {prompts} prompts have {len(labels)} "
                f"different ones: the policy does not see other weightings."
            )
    if given["algo.dynamic_filtering_enable"] and tuple(given["algo.dynamic_filtering_range"]) != (0, 1):
        yield (
            "--algo.dynamic_filtering_range is not used: with --vpo.spec a prompt is dropped if its rollouts all get "
            "the same advantage."
        )
    if given["train.dynamic_batch_enable"]:
        return
    rollouts, batch = rollouts_per_step(given), given["train.batch_size"]
    if rollouts % batch:
        sizes = ", ".join(map(str, batch_sizes(given)[:4]))
        yield (
            f"--train.batch_size {batch} does not divide the {rollouts} rollouts of a step: the gradients of the last "
            f"{rollouts % batch} go into the next step's update. Sizes that fit: {sizes or 'none'}."
        )
    last = prompts % size * given["rollout.n_samples_per_prompt"]
    if 0 < last < batch and not given["algo.dynamic_filtering_enable"]:
        yield (
            f"The {prompts} prompts do not fill steps of {size}: the last step of an episode has {last} rollouts, "
            f"fewer than --train.batch_size {batch}, and takes no optimizer step. --data.max_samples "
            f"{prompts - prompts % size} leaves them out."
        )


def check_lora(given: Flags) -> Iterator[str]:
    """Check that LoRA weights can be merged (see `lora`)."""
    if not given["ds.lora.rank"]:
        return
    for flag, most in (("ds.zero_stage", 2), ("ds.tensor_parallel_size", 1), ("ds.load_in_4bit", False)):
        if given[flag] > most:
            yield (
                f"--{flag} {given[flag]} with --ds.lora.rank: the engines get merged weights, so a rank must hold "
                f"whole weights. Leave --{flag} out, or set it to {most:d}."
            )


def check_data(given: Flags, spec: RewardSpec) -> Iterator[str]:
    if not given["data.prompt_dataset"]:
        yield "--data.prompt_dataset is missing."
    for flag, split in (("data.prompt_dataset", "data.prompt_split"), ("eval.dataset", "eval.split")):
        if given[flag]:
            yield from check_rows(given, spec, flag, split)


@cache
def _read_parts(names: str, split: str, most: int, use_ms: bool) -> list[tuple[str, Any]]:
    if not use_ms:
        return open_parts(names, split, most)
    from openrlhf.datasets.utils import blending_datasets

    quiet = SimpleNamespace(print=lambda *message: None, is_rank_0=lambda: False, args=SimpleNamespace(use_ms=use_ms))
    return [(names, blending_datasets(names, None, quiet, max_count=most, dataset_split=split))]


def read_parts(given: Flags, flag: str, split: str) -> list[tuple[str, Any]]:
    """The names and rows of a flag's datasets, as the trainer reads them."""
    return _read_parts(given[flag], given[split], given["data.max_samples"], given["use_ms"])


def check_rows(given: Flags, spec: RewardSpec, flag: str, split: str) -> Iterator[str]:
    """Find the first row whose prompt cannot be used or whose label lacks what the scorer needs."""
    try:
        parts = read_parts(given, flag, split)
    except (OSError, ValueError) as error:
        yield f"--{flag} {given[flag]} cannot be read: {error}"
        return
    for name, rows in parts:
        if (mistake := _bad_row(given, spec, rows)) is not None:
            yield f"--{flag} {name}: {mistake}"
            return


def _bad_row(given: Flags, spec: RewardSpec, rows: Any) -> str | None:
    """What is wrong with a dataset, in a sentence that names the row; None if nothing is."""
    prompts, labels = given["data.input_key"], given["data.label_key"]
    if mistake := column_mistake(spec, rows.column_names, prompts, labels, "--data."):
        return mistake
    read = [None] * len(rows) if spec.label == "none" else rows[labels]
    for number, (prompt, label) in enumerate(zip(rows[prompts], read, strict=True), start=1):
        try:
            ask(spec, prompt, max(given["vpo.candidates"], 1))
            if not (isinstance(prompt, str) or given["data.apply_chat_template"]):
                raise ValueError("The prompt is a chat, which needs --data.apply_chat_template.")
            if spec.scores and not given["reward.remote_url"]:
                check_label(spec, read_label(spec, label))
        except ValueError as error:
            return f"row {number} cannot be used: {error}"
    return None


def check_template(given: Flags) -> Iterator[str]:
    """Check that the model has the chat template that the run applies."""
    if not given["data.apply_chat_template"] or not Path(str(given["actor.model_name_or_path"])).is_dir():
        return
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(given["actor.model_name_or_path"])
    except Exception:  # any error of tokenizers; another check or the host reports it
        return
    if not tokenizer.chat_template:
        yield f"--data.apply_chat_template: the model {given['actor.model_name_or_path']} has no chat template."


FLAG_CHECKS: tuple[Callable[[Flags], Iterator[str]], ...] = (
    check_rewards,
    check_numbers,
    check_updates,
    check_lora,
    check_model,
    check_template,
)
"""The checks of a run with a specification, in the order of their sentences; these come first."""
SPEC_CHECKS: tuple[Callable[[Flags, RewardSpec], Iterator[str]], ...] = (
    check_scorer,
    check_estimator,
    check_weightings,
    check_budget,
    check_data,
    check_output,
)
"""Checks that need the specification itself."""

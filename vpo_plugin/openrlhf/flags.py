"""Add the plugin's flags to the host's parser, and read a command line with a sentence for each mistake."""

import argparse
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vpo_plugin.advantages import advantage_estimator_names
from vpo_plugin.openrlhf import cpu

ESTIMATOR = "algo.advantage.estimator"

RENAMED = {
    "actor_learning_rate": "actor.adam.lr",
    "async_train": "train.async_enable",
    "bf16": "ds.param_dtype",
    "colocate_all_models": "train.colocate_all",
    "critic_learning_rate": "critic.adam.lr",
    "critic_pretrain": "critic.model_name_or_path",
    "deepspeed_enable_sleep": "ds.enable_sleep",
    "dynamic_filtering": "algo.dynamic_filtering_enable",
    "dynamic_filtering_reward_range": "algo.dynamic_filtering_range",
    "enable_vllm_is_correction": "algo.advantage.is_correction_level",
    "entropy_loss_coef": "actor.entropy_coef",
    "flash_attn": "ds.attn_implementation",
    "freezing_actor_steps": "critic.freezing_steps",
    "generate_max_len": "rollout.max_new_tokens",
    "gradient_checkpointing": "actor.gradient_checkpointing_enable",
    "gradient_checkpointing_use_reentrant": "actor.gradient_checkpointing_reentrant",
    "l2": "actor.adam.weight_decay",
    "load_checkpoint": "ckpt.load_enable",
    "pretrain": "actor.model_name_or_path",
    "prompt_data": "data.prompt_dataset",
    "prompt_max_len": "data.max_len",
    "ref_reward_offload": "ref.offload",
    "remote_rm_url": "reward.remote_url",
    "reward_pretrain": "reward.model_name_or_path",
    "save_path": "ckpt.output_dir",
    "use_dynamic_batch": "train.dynamic_batch_enable",
    "use_tensorboard": "logger.tensorboard_dir",
    "use_wandb": "logger.wandb.key",
    "vllm_is_truncated_threshold": "algo.advantage.is_correction_threshold",
}
"""Flags of host versions 0.8 to 0.10 whose new names cannot be found by shared words."""

ON_ONE_GPU = {
    "train.colocate_all": True,
    "vllm.num_engines": 1,
    "vllm.enable_sleep": True,
    "vllm.enforce_eager": True,
    "vllm.gpu_memory_utilization": 0.3,
    **{f"{model}.num_gpus_per_node": 1 for model in ("actor", "ref", "reward", "critic")},
}
"""The host's flags for one GPU, which training and engine share in turns."""


def words(flags: Mapping[str, Any]) -> list[str]:
    """Flags as the words of a command; True stands for a flag without a value."""
    return [
        word
        for flag, value in flags.items()
        for word in ([f"--{flag}"] if value is True else [f"--{flag}", str(value)])
    ]


def add_flags(parser: argparse.ArgumentParser, on_cpu: bool) -> None:
    """Add the plugin's flags to the host's parser, and defaults that fit a machine without CUDA."""
    # argparse has no public way to read or extend the choices of an existing flag, or to put a group first.
    estimator = next((a for a in parser._actions if a.dest == ESTIMATOR), None)
    if estimator is None or estimator.choices is None:
        raise RuntimeError(f"The host has no --{ESTIMATOR} with choices: this version of the host is not supported.")
    estimator.choices = [*estimator.choices, *advantage_estimator_names()]
    parser.prog = "vpo_plugin.train_ppo_ray"
    parser.usage = "python -m vpo_plugin.train_ppo_ray [flags]; --help lists the flags"
    group = parser.add_argument_group("Vector Policy Optimization (vpo_plugin)")
    parser._action_groups.insert(0, parser._action_groups.pop())
    group.add_argument(
        "--advantage",
        choices=estimator.choices,
        help=f"estimator of the plugin or of the host; same as --{ESTIMATOR}",
    )
    group.add_argument(
        "--vpo.spec",
        metavar="SPEC",
        help="reward specification: a name under reward_specs/ or a path; the plugin's estimators need it",
    )
    group.add_argument(
        "--vpo.candidates",
        type=int,
        metavar="M",
        help="candidates in one response (default: that of the specification, or 1 if the estimator needs 1)",
    )
    group.add_argument("--vpo.alpha", type=float, default=1.0, help="Dirichlet parameter of the random weightings")
    group.add_argument(
        "--vpo.num_weights",
        type=int,
        help="number of random weightings (default: 1,024, or 3,200 above 8 objectives; half of that for vpo_at_k)",
    )
    group.add_argument(
        "--vpo.k",
        type=int,
        metavar="K",
        help="vpo_at_k, max_at_k, max_at_k_norm: the best of K of the N rollouts counts, 1 to N, or to N - 1 for "
        "max_at_k_norm (default: half of N; at least 2, if that is allowed)",
    )
    group.add_argument("--vpo.seed", type=int, default=0, help="seed of the random weightings")
    group.add_argument(
        "--vpo.on_scorer_error",
        choices=["raise", "zero"],
        default="raise",
        help="if the scorer fails on a response: stop the run, or score zeros and count it in the log",
    )
    group.add_argument("--vpo.traceback", action="store_true", help="if the scorer stops the run: print its traceback")
    group.add_argument(
        "--vpo.log_prompts",
        type=int,
        default=4,
        metavar="N",
        help="number of prompts per step whose responses are kept as text (vpo show); -1 for all",
    )
    group.add_argument(
        "--vpo.chat_template_kwargs",
        type=json_object,
        default={},
        metavar="JSON",
        help="""options for the chat template, such as '{"enable_thinking": false}' for Qwen3""",
    )
    if on_cpu:
        parser.set_defaults(**cpu.HOST_DEFAULTS)


def json_object(text: str) -> dict[str, Any]:
    """Parse the value of a flag as a JSON object."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'{text!r} is not a JSON object such as {{"enable_thinking": false}}')
    return value


def read_flags(parser: argparse.ArgumentParser, command: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse a whole command line, even if it has mistakes.

    Returns:
        The arguments, with the default for a flag that cannot be read, and one sentence per mistake.
    """
    names = sorted(parser._option_string_actions)
    mistakes, words = [], list(command)
    for word in [word for word in words if word.startswith("--") and len(word) > 2]:
        flag = word.split("=")[0]
        meant = [flag] if flag in names else [name for name in names if name.startswith(flag)]
        if len(meant) != 1:
            mistakes.append(unknown_flag(flag, meant, names))
            words = without(words, {flag})

    parser.exit_on_error = False
    estimator = next(action for action in parser._actions if action.dest == ESTIMATOR)
    default, estimator.default = estimator.default, None  # to tell whether it is given
    while True:
        try:
            args, stray = parser.parse_known_args(words)
            break
        except argparse.ArgumentError as error:
            flags = set((error.argument_name or "").split("/"))
            mistakes.append(f"{error.argument_name}: {error.message}".removesuffix(".") + ".")
            words = without(words, {f for f in words if any(flag.startswith(f.split("=")[0]) for flag in flags)})
    if stray:
        mistakes.append(f"{' '.join(stray)} does not belong to any flag.")
    host = getattr(args, ESTIMATOR)
    if args.advantage and host not in (None, args.advantage):
        mistakes.append(
            f"--advantage {args.advantage} and --{ESTIMATOR} {host} are two names of one flag: drop one of them."
        )
    setattr(args, ESTIMATOR, args.advantage or host or default)
    del args.advantage
    return args, mistakes


def without(words: list[str], flags: set[str]) -> list[str]:
    """A command line without some flags and their values."""
    kept, dropping = [], False
    for word in words:
        if word.startswith("--"):
            dropping = word in flags or word.split("=")[0] in flags
        if not dropping:
            kept.append(word)
    return kept


def unknown_flag(flag: str, meant: list[str], names: list[str]) -> str:
    """A sentence on an unknown or ambiguous flag; it names the most likely flag."""
    if meant:
        return f"{flag} may be {', '.join(meant[:-1])} or {meant[-1]}: write it in full."
    if (new := new_name(flag.removeprefix("--"), names)) is not None:
        return f"There is no flag {flag}: OpenRLHF 0.11 names it {new}."
    close = difflib.get_close_matches(flag, names, n=1, cutoff=0.7)
    return f"There is no flag {flag}: did you mean {close[0]}?" if close else f"There is no flag {flag} (see --help)."


def new_name(old: str, names: list[str]) -> str | None:
    """The host's current name of a flag of its versions 0.8 to 0.10, None for an unknown flag."""
    if old in RENAMED:
        return f"--{RENAMED[old]}"
    parts = set(old.split("_"))
    words = {name: set(re.split(r"[._]", name.removeprefix("--"))) for name in names if not name.startswith("--vpo.")}
    same = [name for name in words if words[name] == parts]
    # If several end with the old name, prefer the actor's or the rollout's, which the old flag set.
    ends = [name for name in words if name.endswith(f".{old}")]
    ends.sort(key=lambda name: not name.startswith(("--actor.", "--rollout.")))
    more = [name for name in words if words[name] > parts and len(parts) > 1]
    return next(iter([*same, *ends, *more]), None)

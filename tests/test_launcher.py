"""The training command's flags, and the sentence with which bad input ends before anything is started."""

import argparse
import importlib.metadata
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import SPEC, Training, write_prompts
from datasets import Dataset, DatasetDict
from host import host_parser, importable_host
from reward_server import NAMES_ONLY

from vpo_plugin.openrlhf import cpu, launcher
from vpo_plugin.openrlhf.checks import check_gpus, find_remarks
from vpo_plugin.openrlhf.flags import ON_ONE_GPU, new_name, read_flags, words
from vpo_plugin.openrlhf.log import log_step
from vpo_plugin.openrlhf.output import claim_output, how_to_resume
from vpo_plugin.openrlhf.settings import VARIABLE, Settings
from vpo_plugin.rewards import RewardSpec, load_spec
from vpo_plugin.rewards.scoring import ScorerError
from vpo_plugin.rewards.task import read_rows

SMALL_BATCH = ["--train.batch_size", "4", "--train.micro_batch_size", "4"]


@pytest.fixture(scope="module", autouse=True)
def host() -> Iterator[None]:
    with importable_host():
        yield


@pytest.fixture
def training(tmp_path: Path) -> Training:
    """A training that would start, with a folder that looks like a policy."""
    policy = tmp_path / "model"
    policy.mkdir()
    (policy / "tokenizer.json").write_text("{}")
    return Training(tmp_path / "output", write_prompts(tmp_path / "prompts", 3), str(policy))


def check(training: Training, *flags: str, on_cpu: bool = True) -> tuple[RewardSpec | None, argparse.Namespace]:
    """Parse and check a command's flags as the command does, without starting anything."""
    parser = host_parser()
    args, spec = launcher.check_arguments(parser, training.command(*flags)[3:], on_cpu)
    if spec is not None:
        claim_output(parser, vars(args), spec)
    return spec, args


@pytest.fixture
def refusal(training: Training, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one sentence with which a command's flags are refused."""

    def refuse(*flags: str, on_cpu: bool = True) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            check(training, *flags, on_cpu=on_cpu)
        assert stopped.value.code == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        usage, *sentence = printed.err.strip().splitlines()
        assert usage.startswith("usage: ")
        assert len(sentence) == 1, sentence
        return sentence[0].removeprefix("vpo_plugin.train_ppo_ray: error: ")

    return refuse


def run_command(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_help_lists_the_flags_of_both() -> None:
    done = run_command([sys.executable, "-m", "vpo_plugin.train_ppo_ray", "--help"])
    assert done.returncode == 0, done.stderr
    for flag in ("--rollout.n_samples_per_prompt", "--algo.kl.init_coef", "--ds.zero_stage", "--train.async_enable"):
        assert flag in done.stdout
    for flag in ("--advantage", "--vpo.spec", "--vpo.candidates", "--vpo.alpha", "--vpo.num_weights", "--vpo.seed"):
        assert flag in done.stdout
    assert "group_norm" in done.stdout
    assert done.stdout.index("--vpo.spec") < done.stdout.index("--ref.num_nodes"), "the plugin's flags come first"


def test_command_refuses_before_any_start(training: Training) -> None:
    """The command itself ends with code 2, the sentence last, and neither Ray nor an output folder behind it."""
    done = run_command(training.command("--vpo.spec", "no_such_spec"))
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert "There is no spec 'no_such_spec'" in last
    assert "maze_small" in last, "the known ones are named"
    assert "Ray" not in done.stderr
    assert "Traceback" not in done.stderr
    assert not training.output.exists()


def test_good_flags(training: Training) -> None:
    spec, args = check(training)
    assert spec is not None
    assert spec.name == SPEC
    assert vars(args)["vpo.candidates"] == 3
    assert json.loads((training.output / "vpo" / "run.json").read_text()) == {"spec": SPEC, "candidates": 3}


def test_what_the_host_prints_of_its_arguments_shows_no_key(training: Training) -> None:
    from openrlhf.utils.config import hierarchize

    _, args = check(training, "--logger.wandb.key", "HIDDEN")
    sent = pickle.loads(pickle.dumps(hierarchize(args)))  # as to the trainer's process
    assert "HIDDEN" not in f"{args} {sent}" and sent.logger.wandb.key == "HIDDEN"
    assert sent.data.input_key == "input"


def test_candidates_are_the_specs_by_default(training: Training) -> None:
    command = training.command()
    at = command.index("--vpo.candidates")
    args, _ = launcher.check_arguments(host_parser(), command[3:at] + command[at + 2 :], on_cpu=True)
    assert vars(args)["vpo.candidates"] == load_spec(SPEC).candidates


@pytest.mark.parametrize(
    ("flags", "estimator"),
    [
        ([], "gae"),
        (["--advantage", "vpo"], "vpo"),
        (["--algo.advantage.estimator", "vpo"], "vpo"),
        (["--advantage", "group_norm"], "group_norm"),
        (["--advantage", "vpo", "--algo.kl.init_coef", "0"], "vpo"),
        (["--advantage", "vpo", "--algo.advantage.estimator", "vpo"], "vpo"),
    ],
)
def test_two_names_for_one_flag(flags: list[str], estimator: str) -> None:
    """Either sets the estimator, and neither's default overrides the other."""
    args, mistakes = read_flags(host_parser(), flags)
    assert vars(args)["algo.advantage.estimator"] == estimator
    assert mistakes == []
    assert "advantage" not in vars(args), "the host gets its own flags only"


@pytest.mark.parametrize("host", ["group_norm", "gae"])
def test_two_names_of_different_values(refusal: Callable[..., str], host: str) -> None:
    """One that an earlier script left behind must not win in silence, in whatever order."""
    for flags in (["--advantage", "vpo", "--algo.advantage.estimator", host], ["--algo.advantage.estimator", host]):
        assert f"--advantage vpo and --algo.advantage.estimator {host} are two names of one flag" in refusal(*flags)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--pretrain", "x"], "There is no flag --pretrain: OpenRLHF 0.11 names it --actor.model_name_or_path."),
        (["--lora_rank=8"], "There is no flag --lora_rank: OpenRLHF 0.11 names it --ds.lora.rank."),
        (["--vpo.candiates", "3"], "There is no flag --vpo.candiates: did you mean --vpo.candidates?"),
        (["--wholly_unknown"], "There is no flag --wholly_unknown (see --help)."),
        (["--vpo.s", "maze"], "--vpo.s may be --vpo.seed or --vpo.spec: write it in full."),
        (["--train.async_enable", "true"], "true does not belong to any flag."),
    ],
)
def test_unknown_flags(refusal: Callable[..., str], flags: list[str], sentence: str) -> None:
    assert refusal(*flags) == sentence


# The flags of OpenRLHF 0.9.9 that 0.11 has under other names, and some of its new names.
OLD_FLAGS = """
actor_num_nodes vllm_num_engines vllm_tensor_parallel_size enforce_eager async_train eval_steps save_steps
ckpt_path save_hf_ckpt disable_ds_ckpt max_ckpt_num load_checkpoint zero_stage gradient_checkpointing bf16 adam_offload
attn_implementation packing_samples use_dynamic_batch lora_rank target_modules save_path num_episodes rollout_batch_size
micro_rollout_batch_size prompt_max_len generate_max_len max_len max_norm l2 eps_clip micro_train_batch_size
train_batch_size normalize_reward top_p temperature seed n_samples_per_prompt actor_learning_rate critic_learning_rate
lr_warmup_ratio kl_target init_kl_coef kl_estimator adam_betas reward_clip_range advantage_estimator use_kl_loss
no_advantage_std_norm ring_attn_size ring_head_stride pretrain reward_pretrain remote_rm_url critic_pretrain
agent_func_path prompt_data input_key apply_chat_template use_wandb wandb_project dynamic_filtering use_tensorboard"""
NEW_FLAGS = {
    "micro_rollout_batch_size": "--rollout.micro_batch_size",
    "temperature": "--rollout.temperature",
    "n_samples_per_prompt": "--rollout.n_samples_per_prompt",
    "seed": "--train.seed",
    "max_norm": "--actor.max_norm",
    "adam_betas": "--actor.adam.betas",
    "eps_clip": "--actor.eps_clip",
    "kl_estimator": "--algo.kl.estimator",
    "advantage_estimator": "--algo.advantage.estimator",
    "normalize_reward": "--reward.normalize_enable",
    "wandb_project": "--logger.wandb.project",
}


def test_old_names_of_the_host() -> None:
    names = sorted(host_parser()._option_string_actions)
    new = {old: new_name(old, names) for old in OLD_FLAGS.split()}
    assert set(new.values()) <= set(names), "each has a new name that is a flag"
    assert {old: new[old] for old in NEW_FLAGS} == NEW_FLAGS


@pytest.mark.parametrize("flag", ["--advantage", "--algo.advantage.estimator"])
def test_unknown_estimator(refusal: Callable[..., str], flag: str) -> None:
    sentence = refusal(flag, "vpoo")
    assert "invalid choice: 'vpoo'" in sentence
    assert all(repr(name) in sentence for name in ("vpo", "grpo", "group_norm", "rloo"))


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--vpo.candidates", "0"], "--vpo.candidates is 0"),
        (["--vpo.candidates", "-1"], "--vpo.candidates is -1"),
        (["--vpo.candidates", "three"], "invalid int value: 'three'"),
        (["--rollout.n_samples_per_prompt", "1", *SMALL_BATCH], "--rollout.n_samples_per_prompt is 1"),
        (["--vpo.alpha", "0"], "--vpo.alpha is 0.0"),
        (["--vpo.alpha", "nan"], "--vpo.alpha is nan"),
        (["--vpo.num_weights", "0"], "--vpo.num_weights is 0"),
        (["--vpo.num_weights", "1"], "--vpo.num_weights is 1: random weightings are scaled"),
        (["--rollout.temperature", "0"], "--rollout.temperature is 0.0: it must be above 0."),
        *(
            ([f"--{flag}", "0"], f"--{flag} is 0: it must be at least 1.")
            for flag in ("train.batch_size", "train.micro_batch_size", "rollout.batch_size", "rollout.micro_batch_size")
        ),
        (["--rollout.n_samples_per_prompt", "0"], "--rollout.n_samples_per_prompt is 0: it must be at least 1."),
        (["--ds.ring_attn_size", "0"], "--ds.ring_attn_size is 0: it must be at least 1."),
        (["--rollout.max_new_tokens", "59"], "--rollout.max_new_tokens is 59"),
        (["--rollout.max_new_tokens", "500", "--data.max_len", "30"], "--data.max_len is 30"),
        (
            ["--vpo.candidates", "4", "--rollout.max_new_tokens", "64"],
            "4 candidates of spec 'maze_small' take up to 80",
        ),
        (["--train.agent_func_path", "no_agent.py"], "--train.agent_func_path no_agent.py does not exist"),
        (["--train.agent_func_path", "agent"], "--train.agent_func_path agent is not a Python file"),
        (["--reward.remote_url", "no_reward.py"], "--reward.remote_url no_reward.py does not exist"),
        (["--reward.remote_url", "http://localhost", "--train.agent_func_path", __file__], "drop --reward.remote_url"),
        (["--actor.model_name_or_path", ""], "--actor.model_name_or_path is missing"),
        (["--actor.model_name_or_path", "/no/such/policy"], "/no/such/policy is not a folder"),
        (["--data.prompt_dataset", ""], "--data.prompt_dataset is missing"),
        (["--data.label_key", "answer"], "has no column 'answer' (it has input, label)"),
        (["--data.input_key", "question"], "has no column 'question' (it has input, label)"),
        (["--vpo.on_scorer_error", "ignore"], "invalid choice: 'ignore'"),
    ],
)
def test_refused_flags(refusal: Callable[..., str], training: Training, flags: list[str], sentence: str) -> None:
    assert sentence in refusal(*flags)
    assert not training.output.exists()


def test_spec_that_only_names_the_objectives(refusal: Callable[..., str], training: Training, tmp_path: Path) -> None:
    """It needs a reward function or an agent, and no labels that its scorer could read."""
    (tmp_path / "spec.yaml").write_text(NAMES_ONLY)
    flags = ["--vpo.spec", str(tmp_path), "--vpo.candidates", "1", "--data.label_key", "input"]
    assert f"--vpo.spec {tmp_path} has no scorer: name the function" in refusal(*flags)
    for own in (["--reward.remote_url", "http://localhost"], ["--train.agent_func_path", __file__]):
        check(training, *flags, *own)


def test_mistakes_of_a_command_that_is_not_run(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a dry run looks for them, whatever machine the training will have."""
    monkeypatch.setattr(sys, "argv", [""])
    rank = ["--ds.packing_samples", "--actor.num_gpus_per_node", "2"]
    assert launcher.find_command_mistakes(training.command(*rank)[3:]) == []
    for flags in (["--vpo.k", "99", "--vpo.alpha", "0"], ["--vpo.alpha", "0"]):  # no command changes the next one
        mistakes = launcher.find_command_mistakes(training.command("--advantage", "max_at_k", *flags)[3:])
        assert "--vpo.alpha is 0.0" in mistakes[0] and len(mistakes) == len(flags) // 2 + 1
    assert not training.output.exists()


def test_a_command_for_one_gpu_is_complete(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a flow adds on a machine with GPUs; the host's own defaults ask for eight, and for no engine."""
    monkeypatch.setattr(sys, "argv", [""])
    monkeypatch.setattr(launcher.cpu, "own_gpus", lambda: 1)
    plain = training.command()[3:]
    assert "--vllm.num_engines is missing" in launcher.find_command_mistakes(plain)[0]
    assert launcher.find_command_mistakes([*plain, *words(ON_ONE_GPU)]) == []


def test_all_mistakes_at_once(training: Training, capsys: pytest.CaptureFixture[str]) -> None:
    """A script with five mistakes hears of them in one go."""
    with pytest.raises(SystemExit) as stopped:
        check(
            training,
            *("--vpo.candidates", "0", "--vpo.alpha", "-1", "--ds.zero_stage", "three", "--pretrain", "x"),
            *("--actor.model_name_or_path", "/no/such/policy"),
        )
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "error: 5 mistakes:\n" in said
    for part in (
        "- --ds.zero_stage: invalid int value: 'three'.",
        "- There is no flag --pretrain",
        "- --vpo.candidates is 0",
        "- --vpo.alpha is -1.0",
        "/no/such/policy",
    ):
        assert part in said
    assert not training.output.exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--train.batch_size", "64"], "but a step has 16 rollouts"),
        (["--train.batch_size", "64"], "Sizes that fit 16 rollouts: 16, 8."),
        (["--train.batch_size", "12"], "--train.batch_size is 12, not a multiple of 8"),
        (["--train.batch_size", "4"], "--train.batch_size is 4, not a multiple of 8"),
        (["--train.micro_batch_size", "5"], "No size fits: 5 must divide the 16 rollouts of a step."),
        (["--actor.num_gpus_per_node", "2", "--train.batch_size", "8"], "--train.micro_batch_size 8 on 2 ranks"),
    ],
)
def test_steps_that_would_update_nothing(refusal: Callable[..., str], flags: list[str], sentence: str) -> None:
    """The host runs them to their end with a gradient norm of 0, or fails in DeepSpeed after the start."""
    assert sentence in refusal(*flags)


@pytest.mark.parametrize(
    ("flags", "remark"),
    [
        ([], "The 3 prompts do not fill steps of 4: the last step of an episode has 12 rollouts, fewer than"),
        (["--rollout.batch_size", "3", "--train.batch_size", "8"], "does not divide the 12 rollouts of a step: the"),
        (["--rollout.batch_size", "1", "--train.batch_size", "4", "--train.micro_batch_size", "4"], None),
        (["--algo.dynamic_filtering_enable", "--algo.dynamic_filtering_range", "0.1", "0.9"], "is not used"),
    ],
)
def test_remarks(training: Training, flags: list[str], remark: str | None) -> None:
    _, args = check(training, *flags)
    said = list(find_remarks(vars(args), load_spec(SPEC)))
    assert len(said) == (remark is not None)
    assert remark is None or remark in said[0]


@pytest.mark.parametrize("same", [True, False])
def test_few_labels_state_few_weightings(same: bool, training: Training, tmp_path: Path) -> None:
    rows = [{"input": f"Say {i}.", "label": json.dumps(i % 2 if same else i)} for i in range(4)]
    Dataset.from_list(rows).save_to_disk(str(tmp_path / "few"))
    flags = {"algo.advantage.estimator": "goal_conditioned", "data.prompt_dataset": str(tmp_path / "few")}
    said = list(find_remarks(vars(check(training)[1]) | flags, load_spec(SPEC)))
    sentence = "states one weighting for each label, and the 4 prompts have 2 different ones: the policy"
    assert len(said) == same and all(sentence in remark for remark in said)


def test_specification_that_is_not_there_hides_no_other_mistake(
    training: Training, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        check(training, "--vpo.spec", "maze_smal", "--actor.model_name_or_path", "/no/such/policy")
    said = capsys.readouterr().err
    assert "There is no spec 'maze_smal'" in said
    assert "/no/such/policy is not a folder" in said


def test_missing_label_key(training: Training, capsys: pytest.CaptureFixture[str]) -> None:
    command = training.command()
    at = command.index("--data.label_key")
    with pytest.raises(SystemExit):
        launcher.check_arguments(host_parser(), command[3:at] + command[at + 2 :], on_cpu=True)
    assert "--data.label_key" in capsys.readouterr().err


def test_missing_spec(training: Training, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        launcher.check_arguments(host_parser(), ["--advantage", "vpo"], on_cpu=True)
    assert "--advantage vpo needs --vpo.spec" in capsys.readouterr().err


def test_host_alone_needs_no_spec() -> None:
    assert launcher.check_arguments(host_parser(), ["--advantage", "group_norm"], on_cpu=True)[1] is None


def test_one_sample_for_a_host_estimator(training: Training) -> None:
    """Only the plugin's estimators compare rollouts; the host looks after its own."""
    spec, _ = check(training, "--advantage", "reinforce", "--rollout.n_samples_per_prompt", "1", *SMALL_BATCH)
    assert spec is not None


@pytest.mark.parametrize(
    "flags",
    [
        ["--ds.packing_samples"],
        ["--train.dynamic_batch_enable"],
        ["--ds.ring_attn_size", "2"],
        ["--ds.zero_stage", "3"],
    ],
)
def test_what_needs_cuda(training: Training, refusal: Callable[..., str], flags: list[str]) -> None:
    assert f"{flags[0]} " in (sentence := refusal(*flags))
    assert "needs CUDA" in sentence
    check(training, *flags, on_cpu=False)


@pytest.mark.parametrize("flags", [["--ds.zero_stage", "3"], ["--ds.tensor_parallel_size", "2"], ["--ds.load_in_4bit"]])
def test_lora_that_cannot_be_merged(refusal: Callable[..., str], flags: list[str]) -> None:
    assert f"{flags[0]} " in (sentence := refusal("--ds.lora.rank", "8", *flags, on_cpu=False))
    assert "with --ds.lora.rank" in sentence


def test_spec_that_is_no_yaml(refusal: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("objectives: [")
    assert "This is not YAML" in refusal("--vpo.spec", str(tmp_path))


def test_model_without_tokenizer(refusal: Callable[..., str], training: Training) -> None:
    (Path(training.policy) / "tokenizer.json").rename(Path(training.policy) / "config.json")
    assert f"{training.policy} has no tokenizer" in refusal()


@pytest.mark.parametrize("flag", ["--data.prompt_dataset", "--eval.dataset"])
def test_label_that_cannot_be_scored(refusal: Callable[..., str], tmp_path: Path, flag: str) -> None:
    rows = [{"input": r["prompt"], "label": r["label"]} for r in read_rows(load_spec(SPEC), "train", 3, seed=1)]
    labels = [rows[0]["label"], rows[1]["label"], {k: v for k, v in rows[2]["label"].items() if k != "grid"}]
    data = [{"input": "x", "label": json.dumps(label)} for label in labels]
    Dataset.from_list(data).save_to_disk(str(tmp_path / "bad"))
    sentence = refusal(flag, str(tmp_path / "bad"))
    assert f"{flag} {tmp_path / 'bad'}: row 3 cannot be used: " in sentence
    assert "grid" in sentence


@pytest.mark.parametrize(
    ("prompts", "flags", "reason"),
    [
        (["x", None], [], "The prompt is null."),
        (["x", ""], [], "The prompt is empty."),
        ([[{"role": "user", "content": "x"}]], [], "The prompt is a chat, which needs --data.apply_chat_template."),
        ([[{"role": "system", "content": "x"}]], ["--data.apply_chat_template"], "has no user message"),
        ([[{"from": "human", "value": "x"}]], ["--data.apply_chat_template"], "['from', 'value']: it needs 'role'"),
        ([7], ["--data.apply_chat_template"], "neither a text nor a list of messages: '7'"),
    ],
)
def test_prompt_that_cannot_be_asked(
    refusal, tmp_path: Path, prompts: list[Any], flags: list[str], reason: str
) -> None:
    label = json.dumps(next(iter(read_rows(load_spec(SPEC), "train", 1, seed=1)))["label"])
    Dataset.from_list([{"input": p, "label": label} for p in prompts]).save_to_disk(str(tmp_path / "bad"))
    sentence = refusal("--data.prompt_dataset", str(tmp_path / "bad"), *flags)
    assert f"--data.prompt_dataset {tmp_path / 'bad'}: row {len(prompts)} cannot be used: " in sentence
    assert reason in sentence


@pytest.mark.parametrize("text", ["", '{"input": "a", "label": "{}"}\n{"input": "b", "la'])
def test_file_that_is_no_dataset(
    training: Training, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(SystemExit):
        check(training, "--data.prompt_dataset", str(tmp_path / "bad.jsonl"))
    last = capsys.readouterr().err.strip().splitlines()[-1]  # the library's own lines are before it
    assert f"--data.prompt_dataset {tmp_path / 'bad.jsonl'} cannot be read: " in last


@pytest.mark.parametrize("value", ["enable_thinking", "[1]", "{"])
def test_template_options_that_are_no_object(refusal: Callable[..., str], value: str) -> None:
    assert "--vpo.chat_template_kwargs: " in refusal("--vpo.chat_template_kwargs", value)


def test_rows_that_are_not_trained_on(training: Training, tmp_path: Path) -> None:
    good = write_prompts(tmp_path / "good", 1)
    label = json.loads(Dataset.load_from_disk(str(good))[0]["label"])
    data = [{"input": "x", "label": json.dumps(label)}, {"input": "x", "label": "{}"}]
    Dataset.from_list(data).save_to_disk(str(tmp_path / "mixed"))
    check(training, "--data.prompt_dataset", str(tmp_path / "mixed"), "--data.max_samples", "1")


def test_dataset_that_cannot_be_read(refusal: Callable[..., str], tmp_path: Path) -> None:
    sentence = refusal("--data.prompt_dataset", str(tmp_path / "none.jsonl"))
    assert f"--data.prompt_dataset {tmp_path / 'none.jsonl'} cannot be read" in sentence


def test_dataset_with_splits(training: Training, tmp_path: Path) -> None:
    """The split that the host will take is the one that is checked."""
    good = Dataset.load_from_disk(str(training.prompts))
    bad = Dataset.from_list([{"input": "x", "label": "{}"}])
    DatasetDict(train=bad, rl=good).save_to_disk(str(tmp_path / "splits"))
    check(training, "--data.prompt_dataset", str(tmp_path / "splits"), "--data.prompt_split", "rl")


def test_output_that_is_a_file(refusal: Callable[..., str], training: Training) -> None:
    training.output.write_text("my notes")
    assert f"--ckpt.output_dir {training.output} cannot be written: " in refusal()
    assert training.output.read_text() == "my notes"


def test_full_disk(refusal: Callable[..., str], training: Training) -> None:
    training.output.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(training.output)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a file system of a page needs the right to mount one")
    try:
        (training.output / "full").write_bytes(b"x" * 4096)
        assert "No space left on device" in refusal()
        (training.output / "full").unlink()
        check(training)  # what the failed try left behind is in nobody's way
    finally:
        subprocess.run(["umount", str(training.output)], check=True)


def test_folder_of_another_spec(refusal: Callable[..., str], training: Training) -> None:
    check(training)
    (training.output / "vpo" / "metrics.jsonl").write_text("{}\n")
    for flags in (["--vpo.spec", "maze", "--rollout.max_new_tokens", "180"], ["--vpo.candidates", "2"]):
        assert "holds a run of spec 'maze_small' with 3 candidates" in refusal(*flags, "--data.max_len", "600")
    assert (training.output / "vpo" / "metrics.jsonl").exists(), "the earlier run's log is still there"


def test_folder_of_the_same_run(training: Training) -> None:
    """A new run starts with an empty log; a resumed one goes on with it."""
    check(training)
    log = training.output / "vpo" / "metrics.jsonl"
    log.write_text("{}\n")
    check(training, "--ckpt.load_enable")
    assert log.exists()
    check(training)
    assert not log.exists()


def test_folder_of_something_else(refusal: Callable[..., str], training: Training) -> None:
    """Files that no run wrote are not removed."""
    notes = training.output / "vpo" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    assert "that is not from a run" in refusal()
    assert notes.read_text() == "mine"


def test_host_version_that_was_not_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.12.0")
    with pytest.raises(SystemExit, match=r"OpenRLHF 0\.12\.0 is installed.*install openrlhf==0\.11\.2"):
        launcher.main()


def test_defaults_without_cuda() -> None:
    """One process a model on a machine without CUDA; the user's own value wins; with CUDA the host's defaults stay."""
    parser = host_parser()
    launcher_defaults = vars(read_flags(parser, [])[0])
    if not cpu.cuda_available():
        assert launcher_defaults["actor.num_gpus_per_node"] == 1
        assert launcher_defaults["vllm.sync_backend"] == "gloo"
    assert vars(read_flags(parser, ["--actor.num_gpus_per_node", "2"])[0])["actor.num_gpus_per_node"] == 2


def test_without_cuda_the_engines_read_a_prompt_once_for_its_responses(training: Training) -> None:
    """Not with partial rollouts, of which some are unfinished when the host empties the cache, nor with CUDA."""

    def cached(*flags: str, on_cpu: bool = True) -> bool:
        args, _, _ = launcher.read_arguments(host_parser(), training.command(*flags)[3:], on_cpu)
        return vars(args)["vllm.enable_prefix_caching"]

    assert cached()
    assert not cached("--train.async_enable", "--train.partial_rollout_enable")
    assert not cached(on_cpu=False)
    both = ["--train.async_enable", "--train.partial_rollout_enable", "--vllm.enable_prefix_caching"]
    _, _, mistakes = launcher.read_arguments(host_parser(), training.command(*both)[3:], on_cpu=True)
    assert any("Drop one of them" in mistake for mistake in mistakes)


@pytest.mark.parametrize(
    ("flags", "devices", "sentence"),
    [
        (["--vllm.num_engines", "8"], 8, "takes 8 GPUs and the engines (--vllm.num_engines times"),
        (["--vllm.num_engines", "8", "--train.colocate_all"], 8, None),
        (["--vllm.num_engines", "8", "--train.colocate_all", "--train.async_enable"], 8, "16 in all"),
        (["--vllm.num_engines", "1", "--train.colocate_all"], 1, "8 in all, but this machine has 1. On one GPU, give"),
        (["--vllm.num_engines", "1", "--train.colocate_all", "--actor.num_gpus_per_node", "1"], 1, None),
        (["--vllm.num_engines", "2", "--vllm.tensor_parallel_size", "2"], 8, "12 in all, but this machine has 8. Ask"),
    ],
)
def test_gpus_that_a_machine_does_not_have(flags: list[str], devices: int, sentence: str | None) -> None:
    """Ray would wait for them forever. The defaults are the host's, of 8 GPUs, as on a machine with CUDA."""
    parser = host_parser()
    given = vars(read_flags(parser, flags)[0])
    if "--actor.num_gpus_per_node" not in flags:
        given["actor.num_gpus_per_node"] = 8
    mistakes = list(check_gpus(given, devices))
    assert len(mistakes) == (sentence is not None) and (sentence or "") in "".join(mistakes)


def test_a_command_without_engines_is_refused(training: Training) -> None:
    """On a cluster too, whose GPUs nobody counts; the host would load all models first."""
    parser = host_parser()
    parser.set_defaults(**{"vllm.num_engines": None})
    *_, mistakes = launcher.read_arguments(parser, training.command()[3:], False)
    assert mistakes[0].startswith("--vllm.num_engines is missing")


def test_a_link_keeps_its_name(training: Training, tmp_path: Path) -> None:
    """What it points to may have another name, as in a cache."""
    (blob := tmp_path / "blobs" / "0123").mkdir(parents=True)
    (blob / "content").write_text(NAMES_ONLY)
    (tmp_path / "spec.yaml").symlink_to(blob / "content")
    (tmp_path / "reward.py").symlink_to(blob / "content")
    flags = ["--vpo.spec", str(tmp_path), "--reward.remote_url", str(tmp_path / "reward.py")]
    args, spec, _ = launcher.read_arguments(host_parser(), training.command(*flags)[3:], True)
    settings = launcher.run_settings(vars(args), spec, True)
    assert settings.own_reward == (str(tmp_path / "reward.py"),)
    assert load_spec(str(settings.spec)).name == spec.name  # type: ignore[union-attr]


def test_a_command_is_refused_for_gpus_that_are_missing(training: Training, capsys: pytest.CaptureFixture[str]) -> None:
    command = training.command("--actor.num_gpus_per_node", "2", "--vllm.num_engines", "1")[3:]
    launcher.check_arguments(host_parser(), command, False, 3)
    with pytest.raises(SystemExit):
        launcher.check_arguments(host_parser(), command, False, 2)
    assert "3 in all, but this machine has 2" in capsys.readouterr().err


def test_prompt_without_what_the_instruction_replaces(tmp_path: Path, training: Training, refusal) -> None:
    spec = tmp_path / "replacing"
    spec.mkdir()
    (spec / "spec.yaml").write_text("name: replacing\nextends: maze_small\nprompt: {replace: 'steps=\\d+'}\n")
    assert check(training, "--vpo.spec", str(spec))[0] is not None
    (spec / "spec.yaml").write_text("name: replacing\nextends: maze_small\nprompt: {replace: 'WRITE HERE'}\n")
    sentence = refusal("--vpo.spec", str(spec))
    assert "row 1 cannot be used" in sentence and "has no match for 'WRITE HERE'" in sentence


def test_environment_of_a_ray_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Variables that the job sets itself are left to it; Ray would refuse them, of equal values too."""
    from ray.runtime_env.runtime_env import _merge_runtime_env

    job = {"env_vars": {"NCCL_DEBUG": "WARN", "TOKENIZERS_PARALLELISM": "false", "MINE": "1"}, "working_dir": "/"}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": job, "metadata": {}}))
    run = Settings(None, 1, "raise", tmp_path, on_cpu=False)
    merged = _merge_runtime_env(job, launcher.runtime_environment(run))
    assert merged is not None
    assert merged["env_vars"] == {
        **job["env_vars"],
        "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS": "1",
        VARIABLE: run.dump(),
    }
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    assert launcher.runtime_environment(run)["env_vars"]["NCCL_DEBUG"] == "INFO"


def handed_on(cause: Exception) -> Exception:
    """An error of an actor as Ray raises it in the process that called the actor."""
    from ray.exceptions import RayTaskError

    return RayTaskError("fit", "Ray's traceback", cause).as_instanceof_cause()


def test_a_scorer_that_fails_ends_the_command_with_its_sentence(
    training: Training, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As at every other door: no traceback, unless it is asked for."""
    failure = ScorerError("A response of the policy: the scorer failed: KeyError: 'x' (own.py:3).")
    failure.trace = "Traceback of own.py"
    monkeypatch.setattr(launcher, "start", lambda *_: (_ for _ in ()).throw(handed_on(handed_on(failure))))
    for flags, shown in ((), ""), (("--vpo.traceback",), failure.trace + "\n"):
        monkeypatch.setattr(sys, "argv", training.command(*flags)[2:])
        with pytest.raises(SystemExit) as stopped:
            launcher.main()
        assert stopped.value.code == f"{launcher.FAILURE}{failure}"  # printed, with exit code 1
        assert capsys.readouterr().err == shown
    assert launcher.scorer_failure(handed_on(RuntimeError(str(failure)))) is None


def test_zeros_are_counted_over_a_whole_training_and_said_at_its_end(tmp_path: Path) -> None:
    for step, zeros in enumerate((2, 0, 3), start=1):
        log_step(tmp_path, step, {"reward": 0.5, "scorer_errors": zeros / 16, "scorer_zeros": zeros})
    said = launcher.closing_remark(load_spec(SPEC), tmp_path)
    assert said == (
        f"5 responses scored zero because the scorer of the spec '{load_spec(SPEC).name}' failed; the first are in "
        f"{tmp_path}/scorer_error_*.txt."
    )
    log_step(tmp_path / "clean", 1, {"reward": 0.5, "scorer_zeros": 0})
    assert launcher.closing_remark(load_spec(SPEC), tmp_path / "clean") is None
    assert str(launcher.closing_remark(load_spec(SPEC), tmp_path / "none")).startswith("No step was taken")


def test_what_counts_as_a_part_that_died(tmp_path: Path) -> None:
    """An actor or an engine, directly or through the actor that asked it; not an error of the run itself."""
    from ray.exceptions import ActorDiedError, RayActorError

    class EngineDeadError(Exception):
        """What vLLM's engines raise once their core is gone."""

    other_rank = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    gone = (ActorDiedError(), handed_on(ActorDiedError()), handed_on(handed_on(EngineDeadError("gone"))))
    for error in (*gone, handed_on(other_rank)):
        assert launcher.part_died(error)
    cannot_start = RayActorError("0", "the spec is not there", actor_init_failed=True)
    for error in (handed_on(RuntimeError("the scorer failed")), cannot_start, handed_on(cannot_start)):
        assert not launcher.part_died(error)

    given = {"ckpt.path": str(tmp_path)}
    assert "starts from the beginning" in how_to_resume(given)
    (tmp_path / "_actor" / "global_step3").mkdir(parents=True)
    assert f"resumes from the last checkpoint in {tmp_path}" in how_to_resume(given)

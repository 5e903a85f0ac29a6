"""The host's training command with the plugin's flags.

The host builds its parser and calls ``train`` under ``if __name__ == "__main__"`` (openrlhf/cli/train_ppo_ray.py), so
the module is run as it is and one thing is wrapped: the parser's ``parse_args``. When the host calls it, the plugin's
flags join the host's, the arguments are checked, and Ray is started with the plugin in every worker; the host then
finds Ray initialized and goes its own way.
"""

import argparse
import importlib.metadata
import json
import math
import os
import runpy
import shutil
import signal
import sys
import traceback
import uuid
from pathlib import Path
from typing import Any, NoReturn

from vpo_plugin.advantages import advantage_estimator_names, get_advantage_estimator
from vpo_plugin.openrlhf import cpu
from vpo_plugin.openrlhf.checkpoints import rewind
from vpo_plugin.openrlhf.log import REMARK, own
from vpo_plugin.openrlhf.settings import VARIABLE, Settings
from vpo_plugin.openrlhf.worker import SETUP
from vpo_plugin.rewards import RewardSpec, load_spec
from vpo_plugin.rewards.files import spec_file

HOST_MODULE = "openrlhf.cli.train_ppo_ray"
TESTED_HOSTS = ("0.11.1", "0.11.2")
AGENT = Path(__file__).with_name("agent.py")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


def main() -> None:
    """Run the host's command on ``sys.argv``. Bad arguments end with one sentence and exit code 2 before any start."""
    try:
        version = importlib.metadata.version("openrlhf")
    except importlib.metadata.PackageNotFoundError:
        sys.exit(f"OpenRLHF is not installed: install openrlhf=={TESTED_HOSTS[-1]}.")
    if version not in TESTED_HOSTS:
        sys.exit(
            f"OpenRLHF {version} is installed, and this plugin wraps parts of the host that were tested in "
            f"{', '.join(TESTED_HOSTS)} only: install openrlhf=={TESTED_HOSTS[-1]}."
        )
    on_cpu = not cpu.cuda_available()
    if on_cpu:
        cpu.install()
    host_parse_args = argparse.ArgumentParser.parse_args
    given: dict[str, Any] = {}

    def parse_args(parser: argparse.ArgumentParser, *rest: Any) -> argparse.Namespace:
        argparse.ArgumentParser.parse_args = host_parse_args  # type: ignore[method-assign]
        add_flags(parser, on_cpu)
        args = host_parse_args(parser, *rest)
        given.update(vars(args))
        spec = check_arguments(parser, args, on_cpu)
        resume(args)
        start_ray(args, spec, on_cpu)
        return args

    argparse.ArgumentParser.parse_args = parse_args  # type: ignore[method-assign, assignment]
    sys.argv[0] = HOST_MODULE
    try:
        runpy.run_module(HOST_MODULE, run_name="__main__")
    except Exception as error:
        if not part_died(error):
            raise
        traceback.print_exc()
        sys.exit(f"A process or a node of the run died, see above. {how_to_go_on(given)}")
    finally:
        stop_ray()


def part_died(error: Exception) -> bool:
    """Whether an actor, its node or an engine is gone, and not the run at fault: an actor that cannot start is."""
    from ray.exceptions import LocalRayletDiedError, NodeDiedError, ObjectLostError, RayActorError, WorkerCrashedError

    lost = (LocalRayletDiedError, NodeDiedError, ObjectLostError, RayActorError, WorkerCrashedError)
    cause: BaseException | None = error
    while cause is not None:  # what an actor raised, or the one that it had asked
        if isinstance(cause, lost):
            return not getattr(cause, "actor_init_failed", False)
        # vLLM's error, and what a rank gets that was talking to one that is gone (with gloo a plain RuntimeError).
        names = {cls.__name__ for cls in type(cause).__mro__}
        if names & {"EngineDeadError", "DistBackendError"} or "third_party/gloo" in str(cause):
            return True
        cause = getattr(cause, "cause", None)
    return False


def how_to_go_on(given: dict[str, Any]) -> str:
    """A sentence on what is left of a run that was cut short."""
    if any(Path(given["ckpt.path"]).glob("_actor/*global_step*")):
        return f"The same command with --ckpt.load_enable goes on from the last checkpoint in {given['ckpt.path']}."
    return f"It had saved no checkpoint in {given['ckpt.path']} yet (--ckpt.save_steps), so it begins afresh."


def add_flags(parser: argparse.ArgumentParser, on_cpu: bool) -> None:
    """Add the plugin's flags to the host's parser, and defaults that fit a machine without CUDA."""
    # argparse has no public way to read or extend the choices of a flag that is there.
    estimator = next((a for a in parser._actions if a.dest == "algo.advantage.estimator"), None)
    if estimator is None or estimator.choices is None:
        raise RuntimeError(
            f"{HOST_MODULE} has no --algo.advantage.estimator with choices: this version of the host is not supported."
        )
    estimator.choices = [*estimator.choices, *advantage_estimator_names()]
    parser.prog = "vpo_plugin.train_ppo_ray"
    parser.usage = "python -m vpo_plugin.train_ppo_ray [flags], where --help lists the flags"
    group = parser.add_argument_group("Vector Policy Optimization (vpo_plugin)")
    group.add_argument(
        "--advantage",
        dest=estimator.dest,
        choices=estimator.choices,
        default=estimator.default,
        help="same as --algo.advantage.estimator: an estimator of the plugin or of the host",
    )
    group.add_argument(
        "--vpo.spec",
        metavar="SPEC",
        help="reward specification: a name under reward_specs/ or a path; needed by the plugin's estimators",
    )
    group.add_argument(
        "--vpo.candidates",
        type=int,
        metavar="M",
        help="candidates in one response (default: the specification's, or 1 for an estimator of single candidates)",
    )
    group.add_argument("--vpo.alpha", type=float, default=1.0, help="Dirichlet parameter of the random weightings")
    group.add_argument(
        "--vpo.num_weights",
        type=int,
        help="random weightings for each set reward (default: 1,024, or 3,200 above 8 objectives)",
    )
    group.add_argument(
        "--vpo.k", type=int, help="max_at_k: of how many rollouts the best counts (default: half of a prompt's)"
    )
    group.add_argument("--vpo.seed", type=int, default=0, help="seed of the random weightings")
    group.add_argument(
        "--vpo.on_scorer_error",
        choices=["raise", "zero"],
        default="raise",
        help="a response whose scorer raises: stop the run, or score zeros and count it in the log",
    )
    if on_cpu:
        parser.set_defaults(**cpu.HOST_DEFAULTS)


def check_arguments(parser: argparse.ArgumentParser, args: argparse.Namespace, on_cpu: bool) -> RewardSpec | None:
    """Refuse what cannot work before anything is started, with one sentence and exit code 2.

    Returns:
        The specification of the run, or None for a run that is the host's alone.
    """
    given = vars(args)
    if on_cpu:
        for flag, (most, reason) in cpu.HOST_LIMITS.items():
            if given[flag] > most:
                parser.error(f"--{flag} {given[flag]} needs CUDA, which this machine does not have: {reason}.")
    estimator = given["algo.advantage.estimator"]
    ours = estimator in advantage_estimator_names()
    if given["vpo.spec"] is None:
        if ours:
            parser.error(f"--advantage {estimator} needs --vpo.spec, the specification of the reward vector.")
        return None
    if given["train.agent_func_path"] or given["reward.remote_url"]:
        parser.error("--vpo.spec scores the responses: drop --train.agent_func_path and --reward.remote_url.")
    try:
        spec = load_spec(given["vpo.spec"])
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))

    if given["vpo.candidates"] is None:
        single = ours and get_advantage_estimator(estimator).candidates == "one"
        given["vpo.candidates"] = 1 if single else spec.candidates
    candidates = given["vpo.candidates"]
    if candidates < 1:
        parser.error(f"--vpo.candidates is {candidates}: a response holds at least 1 candidate.")
    if ours and given["rollout.n_samples_per_prompt"] < 2:
        parser.error(
            f"--rollout.n_samples_per_prompt is {given['rollout.n_samples_per_prompt']}: {estimator} compares the "
            "rollouts of one prompt with each other and needs at least 2."
        )
    if ours:
        check_estimator(parser, spec, given)
        if given["reward.clip_range"] == parser.get_default("reward.clip_range"):
            # The host clips what it lays on the last token: here advantages, for which its default is not meant.
            given["reward.clip_range"] = (-math.inf, math.inf)
    if not given["vpo.alpha"] > 0:
        parser.error(f"--vpo.alpha is {given['vpo.alpha']}: a Dirichlet parameter is above 0.")
    if given["vpo.num_weights"] is not None and given["vpo.num_weights"] < 1:
        parser.error(f"--vpo.num_weights is {given['vpo.num_weights']}: at least 1 weighting is needed.")
    budget = min(given["rollout.max_new_tokens"] or given["data.max_len"], given["data.max_len"])
    needed = candidates * spec.limits.tokens_per_candidate
    if budget < needed:
        parser.error(
            f"A response may have {budget} tokens (--rollout.max_new_tokens, --data.max_len), and {candidates} "
            f"candidates of spec {spec.name!r} take up to {needed} ({spec.limits.tokens_per_candidate} each): raise "
            "the limit or lower --vpo.candidates."
        )
    for flag in ("actor.model_name_or_path", "data.prompt_dataset"):
        if not given[flag]:
            parser.error(f"--{flag} is missing.")
    model = Path(given["actor.model_name_or_path"])
    if model.is_absolute() and not model.is_dir():
        parser.error(f"--actor.model_name_or_path {model} is not a folder.")
    if model.is_dir() and not any((model / name).exists() for name in TOKENIZER_FILES):
        parser.error(f"The model folder {model} has no tokenizer (none of {', '.join(TOKENIZER_FILES)}).")
    check_labels(parser, spec, given)
    claim_output(parser, spec, given)
    return spec


def check_estimator(parser: argparse.ArgumentParser, spec: RewardSpec, given: dict[str, Any]) -> None:
    """Refuse what the plugin's estimator of this run cannot be combined with."""
    estimator = get_advantage_estimator(given["algo.advantage.estimator"])
    name, rollouts = estimator.name, given["rollout.n_samples_per_prompt"]
    if estimator.candidates == "one" and given["vpo.candidates"] > 1:
        parser.error(
            f"--vpo.candidates is {given['vpo.candidates']}: {name} rewards one candidate a response. Set it to 1, "
            "with as many times the rollouts for the same number of candidates."
        )
    if estimator.takes_k and given["vpo.k"] is not None and not 1 <= given["vpo.k"] <= rollouts:
        parser.error(
            f"--vpo.k is {given['vpo.k']}: {name} takes the best of 1 to {rollouts} rollouts, those of a prompt "
            "(--rollout.n_samples_per_prompt)."
        )
    if estimator.weights_in_prompt and spec.ragged:
        parser.error(
            f"--advantage {name} names the objectives in the prompt, and those of spec {spec.name!r} differ in number "
            "from prompt to prompt."
        )
    if estimator.relative and given["reward.stop_properly_penalty_coef"] is not None:
        parser.error(
            f"--reward.stop_properly_penalty_coef scales or replaces rewards from 0 up, and {name} normalises each "
            "objective in the group before: a scaled reward below 0 would rise. Use --reward.overlong_buffer_len."
        )


def check_labels(parser: argparse.ArgumentParser, spec: RewardSpec, given: dict[str, Any]) -> None:
    """Refuse a prompt dataset in which a prompt is missing or a label lacks what the scorer needs."""
    from types import SimpleNamespace

    from openrlhf.datasets.utils import blending_datasets

    quiet = SimpleNamespace(
        print=lambda *message: None, is_rank_0=lambda: False, args=SimpleNamespace(use_ms=given["use_ms"])
    )
    for flag, split in (("data.prompt_dataset", "data.prompt_split"), ("eval.dataset", "eval.split")):
        if not given[flag]:
            continue
        try:
            rows = blending_datasets(
                given[flag], None, quiet, max_count=given["data.max_samples"], dataset_split=given[split]
            )
        except (OSError, ValueError) as error:
            parser.error(f"--{flag} {given[flag]} cannot be read: {error}")
        for key in (given["data.input_key"], given["data.label_key"]):
            if key not in rows.column_names:
                parser.error(
                    f"--{flag} {given[flag]} has no column {key!r} (it has {', '.join(rows.column_names)}): name the "
                    "prompt's and the label's with --data.input_key and --data.label_key."
                )
        prompts, labels = rows[given["data.input_key"]], rows[given["data.label_key"]]
        for number, (prompt, label) in enumerate(zip(prompts, labels, strict=True)):
            try:
                spec.check_label(label)
                if spec.prompt.replace is not None:
                    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
                    spec.render_prompt(text, given["vpo.candidates"])
            except ValueError as error:
                parser.error(f"Row {number} of --{flag} {given[flag]} cannot be scored: {error}")


def claim_output(parser: argparse.ArgumentParser, spec: RewardSpec, given: dict[str, Any]) -> None:
    """Mark the output folder as this run's, and refuse one that holds a run of another specification.

    What an earlier run of the same specification logged there is removed, unless this run resumes it.
    """
    output = given["ckpt.output_dir"]
    folder = log_dir(output)
    run = {"spec": spec.name, "candidates": given["vpo.candidates"]}
    marker = folder / "run.json"
    try:
        if marker.exists():  # empty where the disk was full
            earlier = json.loads(marker.read_text() or "null")
            if earlier not in (None, run):
                parser.error(
                    f"--ckpt.output_dir {output} holds a run of spec {earlier['spec']!r} with {earlier['candidates']} "
                    f"candidates, and this run is of {spec.name!r} with {run['candidates']}: name another folder, or "
                    "delete that one."
                )
            if not given["ckpt.load_enable"]:
                shutil.rmtree(folder)
        elif folder.is_dir() and any(folder.iterdir()):
            parser.error(
                f"--ckpt.output_dir {output} holds a folder {folder.name!r} that is not of such a run, and this run "
                "would write there: name another folder."
            )
        folder.mkdir(parents=True, exist_ok=True)
        marker.write_text(json.dumps(run))
    except OSError as error:
        parser.error(f"--ckpt.output_dir {output} cannot be written: {error.strerror}.")


def resume(args: argparse.Namespace) -> None:
    """With ``--ckpt.load_enable``, go on from the newest checkpoint that is whole, and say which; from none, afresh."""
    given = vars(args)
    if not given["ckpt.load_enable"]:
        return
    step, passed_over = rewind(Path(given["ckpt.path"]))
    for sentence in passed_over:
        print(f"{REMARK}{sentence}", flush=True)
    if step:
        print(f"{REMARK}Going on after step {step}, from its checkpoint in {given['ckpt.path']}.", flush=True)
    given["ckpt.load_enable"] = step > 0


def log_dir(output_dir: str) -> Path:
    """Where a run that saves its model to ``output_dir`` keeps its metrics and matrices."""
    return Path(output_dir).resolve() / "vpo"


def start_ray(args: argparse.Namespace, spec: RewardSpec | None, on_cpu: bool) -> None:
    """Start or join Ray with the plugin set up in every worker process of this run."""
    import ray

    given = vars(args)
    name = given["algo.advantage.estimator"]
    tells_weights = name in advantage_estimator_names() and get_advantage_estimator(name).weights_in_prompt
    settings = Settings(
        spec=None if spec is None else str(spec_file(given["vpo.spec"]).resolve()),
        candidates=given["vpo.candidates"] or 1,
        on_scorer_error=given["vpo.on_scorer_error"],
        log_dir=log_dir(given["ckpt.output_dir"]),
        on_cpu=on_cpu,
        run=uuid.uuid4().hex,
        goal=(given["vpo.alpha"], given["vpo.seed"]) if tells_weights else None,
    )
    if spec is not None:
        given["train.agent_func_path"] = str(AGENT)
        own(settings.log_dir, settings.run)

    runtime_env: dict[str, Any] = {
        "worker_process_setup_hook": SETUP,
        # What the host passes when it starts Ray itself (openrlhf/cli/train_ppo_ray.py, train).
        "env_vars": {
            "TOKENIZERS_PARALLELISM": os.environ.get("TOKENIZERS_PARALLELISM", "true"),
            "NCCL_DEBUG": os.environ.get("NCCL_DEBUG", "WARN"),
            "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS": os.environ.get("RAY_ENABLE_ZERO_COPY_TORCH_TENSORS", "1"),
            VARIABLE: settings.dump(),
        },
    }
    if on_cpu:
        runtime_env["env_vars"] |= {name: os.environ[name] for name in cpu.ENVIRONMENT}
    signal.signal(signal.SIGTERM, _exit_on_sigterm)  # what Ray has started by then is stopped, see stop_ray
    if on_cpu and not os.environ.get("RAY_ADDRESS"):
        cpu.start_private_ray(runtime_env)
    else:
        ray.init(runtime_env=runtime_env)
    signal.signal(signal.SIGTERM, _exit_on_sigterm)  # in the place of Ray's own


def _exit_on_sigterm(signum: int, frame: Any) -> NoReturn:
    sys.exit(128 + signum)


def stop_ray() -> None:
    """Stop a Ray that was this run's own, and every process of it, or leave a cluster that was joined.

    What the workers still had to say is printed before this returns, so that the run's own last words come last.
    """
    import ray

    if cpu.ray_folder is None:
        ray.shutdown()
        return
    for signum in (signal.SIGINT, signal.SIGTERM):  # a second Ctrl-C must not cut the clean-up short
        signal.signal(signum, signal.SIG_IGN)
    cpu.stop_private_ray()

"""Run the host's training command with the plugin's flags.

The host builds its parser and calls `train` under `if __name__ == "__main__"` (openrlhf/cli/train_ppo_ray.py). So the
launcher runs the unchanged module and wraps only the parser's `parse_args`. When the host calls it, the launcher adds
the plugin's flags (`flags`), checks the arguments (`checks`), claims the output folder (`output`), and starts Ray with
the plugin in every worker. The host then finds Ray initialized and continues as usual.
"""

import argparse
import contextlib
import importlib.metadata
import json
import math
import os
import runpy
import signal
import sys
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from vpo_plugin.openrlhf import cpu
from vpo_plugin.openrlhf.checks import Flags, check_gpus, find_mistakes, find_remarks, plugin_estimator
from vpo_plugin.openrlhf.flags import add_flags, read_flags
from vpo_plugin.openrlhf.log import FAILURE, REMARK, own, read_steps
from vpo_plugin.openrlhf.output import claim_output, find_checkpoint, how_to_resume, log_dir
from vpo_plugin.openrlhf.settings import VARIABLE, Settings
from vpo_plugin.openrlhf.worker import SETUP
from vpo_plugin.provenance import SECRET, Secret
from vpo_plugin.rewards import RewardSpec, load_spec
from vpo_plugin.rewards.files import spec_file
from vpo_plugin.rewards.scoring import ScorerError, say_zeros

HOST_MODULE = "openrlhf.cli.train_ppo_ray"
TESTED_HOSTS = ("0.11.1", "0.11.2")
HOST_ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "true", "NCCL_DEBUG": "WARN", "RAY_ENABLE_ZERO_COPY_TORCH_TENSORS": "1"}
"""Variables that the host passes to its workers when it starts Ray itself (openrlhf/cli/train_ppo_ray.py, train)."""


def main() -> None:
    """Run the host's command on `sys.argv`. If arguments are bad, print all mistakes and exit with code 2."""
    check_host_version()
    on_cpu = not cpu.cuda_available()
    if on_cpu:
        cpu.install()
    devices = cpu.own_gpus()
    given: dict[str, Any] = {}

    def parse(parser: argparse.ArgumentParser, command: Sequence[str]) -> argparse.Namespace:
        add_flags(parser, on_cpu)
        args, spec = check_arguments(parser, command, on_cpu, devices)
        given.update(vars(args), spec=spec)
        return start(parser, args, spec, on_cpu)

    try:
        run_host(parse)
        if given["spec"] and (remark := closing_remark(given["spec"], log_dir(given["ckpt.output_dir"]))):
            print(f"{REMARK}{remark}", flush=True)
    except Exception as error:
        if failure := scorer_failure(error):
            if given["vpo.traceback"]:
                print(failure.trace, file=sys.stderr)
            sys.exit(f"{FAILURE}{failure}")
        if not part_died(error):
            raise
        traceback.print_exc()
        sys.exit(f"{FAILURE}A process or a node of the run died, see above. {how_to_resume(given)}")
    except KeyboardInterrupt:
        if not cpu.raylet_died:
            raise
        sys.exit(f"{FAILURE}Ray's node died, see above. {how_to_resume(given)}")
    finally:
        stop_ray()


def run_host(parse: Callable[[argparse.ArgumentParser, Sequence[str]], argparse.Namespace]) -> None:
    """Run the host's command with `parse` for its parser's `parse_args`."""
    host_parse_args = argparse.ArgumentParser.parse_args

    def parse_args(parser: argparse.ArgumentParser, command: Sequence[str] | None = None) -> argparse.Namespace:
        argparse.ArgumentParser.parse_args = host_parse_args  # type: ignore[method-assign]
        return parse(parser, sys.argv[1:] if command is None else command)

    argparse.ArgumentParser.parse_args = parse_args  # type: ignore[method-assign, assignment]
    sys.argv[0] = HOST_MODULE
    runpy.run_module(HOST_MODULE, run_name="__main__")


class _Read(Exception):
    """The host's parser has read a command, which is not run."""


def find_command_mistakes(command: Sequence[str]) -> list[str]:
    """The mistakes of a command's flags, on a machine with or without CUDA, in sentences; starts nothing."""
    mistakes: list[str] = []
    devices = cpu.own_gpus()

    def read(parser: argparse.ArgumentParser, _words: Sequence[str]) -> NoReturn:
        add_flags(parser, on_cpu=devices is None)  # for a cluster too: one GPU refuses the fewest batches
        args, _spec, found = read_arguments(parser, command, on_cpu=False)
        mistakes.extend(found if devices is None else [*found, *check_gpus(vars(args), devices)])
        raise _Read

    with contextlib.suppress(_Read):
        run_host(read)
    return mistakes


def print_mistakes() -> None:
    """Print the mistakes of each command that the input has (JSON: name to flags) as a line of JSON."""
    check_host_version()
    if not cpu.cuda_available():
        cpu.install()
    print(json.dumps({name: find_command_mistakes(command) for name, command in json.load(sys.stdin).items()}))


def check_host_version() -> None:
    """Exit with a sentence unless the installed host is a tested version."""
    try:
        version = importlib.metadata.version("openrlhf")
    except importlib.metadata.PackageNotFoundError:
        sys.exit(f"OpenRLHF is not installed: install openrlhf=={TESTED_HOSTS[-1]}.")
    if version not in TESTED_HOSTS:
        sys.exit(
            f"OpenRLHF {version} is installed, but this plugin wraps parts of the host that were tested in "
            f"{', '.join(TESTED_HOSTS)} only: install openrlhf=={TESTED_HOSTS[-1]}."
        )


def check_arguments(
    parser: argparse.ArgumentParser, command: Sequence[str], on_cpu: bool, devices: int | None = None
) -> tuple[argparse.Namespace, RewardSpec | None]:
    """Check the arguments before anything starts; print a sentence for each mistake and exit with code 2.

    Args:
        parser: the host's parser with the plugin's flags.
        command: the flags and their values.
        on_cpu: whether the run's machines have no CUDA.
        devices: GPUs of the Ray that the run starts; None if it joins a cluster, or has no CUDA.
    Returns:
        The arguments, with defaults that depend on other flags filled in, and the specification of the run (None if
        the run uses only the host).
    """
    args, spec, mistakes = read_arguments(parser, command, on_cpu)
    if devices is not None:
        mistakes += check_gpus(vars(args), devices)
    if len(mistakes) > 1:
        parser.error("\n".join([f"{len(mistakes)} mistakes:", *(f"- {mistake}" for mistake in mistakes)]))
    if mistakes:
        parser.error(mistakes[0])
    return args, spec


def read_arguments(
    parser: argparse.ArgumentParser, command: Sequence[str], on_cpu: bool
) -> tuple[argparse.Namespace, RewardSpec | None, list[str]]:
    """What `check_arguments` returns, and a sentence for each mistake."""
    args, mistakes = read_flags(parser, command)
    given = vars(args)
    estimator, spec = plugin_estimator(given), None
    try:
        if given["vpo.spec"] is not None:
            spec = load_spec(given["vpo.spec"])
        elif estimator is not None:
            mistakes.append(f"--advantage {estimator.name} needs --vpo.spec, the specification of the reward vector.")
    except (ValueError, FileNotFoundError) as error:
        mistakes.append(str(error))

    defaults: dict[str, Any] = {}
    if spec is not None and given["vpo.candidates"] is None:
        defaults["vpo.candidates"] = 1 if estimator and estimator.candidates == "one" else spec.candidates
    if estimator is not None and given["reward.clip_range"] == parser.get_default("reward.clip_range"):
        # The host clips what it puts on the last token. Its default is not meant for advantages, which go there.
        defaults["reward.clip_range"] = (-math.inf, math.inf)
    if on_cpu and not given["train.partial_rollout_enable"]:
        # The engines read a prompt once for all its responses. When the weights change, the cache is emptied, which
        # vLLM cannot do while it writes responses.
        defaults["vllm.enable_prefix_caching"] = True
    # The host prints its arguments, and sends them to W&B.
    secrets = {flag: value and Secret(value) for flag, value in given.items() if SECRET.fullmatch(f"--{flag}")}
    args = argparse.Namespace(**given | defaults | secrets)

    return args, spec, mistakes + find_mistakes(vars(args), spec, on_cpu)


def start(
    parser: argparse.ArgumentParser, args: argparse.Namespace, spec: RewardSpec | None, on_cpu: bool
) -> argparse.Namespace:
    """Claim the output folder, find the checkpoint and start Ray; return the arguments for the host."""
    given = vars(args)
    changes: dict[str, Any] = {}
    if spec is not None:
        for remark in find_remarks(given, spec):
            print(f"{REMARK}{remark}", flush=True)
        claim_output(parser, given, spec)
        changes["train.agent_func_path"] = str(Path(__file__).with_name("agent.py"))
        changes["ckpt.load_enable"] = find_checkpoint(parser, given)
    settings = run_settings(given, spec, on_cpu)
    if spec is not None:
        own(settings.log_dir, settings.run)
    start_ray(settings)
    return argparse.Namespace(**given | changes)


def run_settings(given: Flags, spec: RewardSpec | None, on_cpu: bool) -> Settings:
    """The settings for the run's workers."""
    estimator = plugin_estimator(given)
    tells_weights = estimator is not None and estimator.weights_in_prompt
    return Settings(
        spec=None if spec is None else str(spec_file(given["vpo.spec"]).absolute()),
        candidates=given["vpo.candidates"] or 1,
        on_scorer_error=given["vpo.on_scorer_error"],
        log_dir=log_dir(given["ckpt.output_dir"]),
        on_cpu=on_cpu,
        run=uuid.uuid4().hex,
        chat_template_kwargs=given["vpo.chat_template_kwargs"],
        own_agent=given["train.agent_func_path"] and absolute(given["train.agent_func_path"]),
        own_reward=tuple(absolute(url) for url in (given["reward.remote_url"] or "").split(",") if url),
        spec_data=None if spec is None else spec.model_dump(mode="json"),
        engines=given["vllm.num_engines"],
        goal=(given["vpo.alpha"], given["vpo.seed"]) if tells_weights else None,
    )


def runtime_environment(settings: Settings) -> dict[str, Any]:
    """Ray's runtime environment for a run's workers: the setup hook and variables, without those a Ray job sets."""
    names = [*HOST_ENVIRONMENT, *(cpu.environment() if settings.on_cpu else ())]
    variables = {name: os.environ.get(name, HOST_ENVIRONMENT.get(name, "")) for name in names}
    # Ray merges both and refuses a key that both have, even with equal values (ray/_private/runtime_env, 2.55).
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")).get("runtime_env", {}).get("env_vars", {})
    variables = {name: value for name, value in variables.items() if name not in job}
    return {"worker_process_setup_hook": SETUP, "env_vars": variables | {VARIABLE: settings.dump()}}


def absolute(url: str) -> str:
    """The address of a reward function, or the absolute path of a Python file, for workers in other folders.

    A link keeps its own name: the file that it points to may have none that ends in `.py`.
    """
    return str(Path(url).absolute()) if url.endswith(".py") else url


def start_ray(settings: Settings) -> None:
    """Start or join Ray with the plugin set up in every worker process of this run."""
    import ray

    runtime_env = runtime_environment(settings)
    signal.signal(signal.SIGTERM, _exit_on_sigterm)  # so that stop_ray stops what Ray has started by then
    cluster = cpu.joined_cluster()
    if settings.on_cpu and cluster is None:
        cpu.start_private_ray(runtime_env)
    else:
        if cluster is not None:
            print(f"{REMARK}Joining the Ray cluster at {cluster}.", flush=True)
        ray.init(runtime_env=runtime_env)
    signal.signal(signal.SIGTERM, _exit_on_sigterm)  # instead of Ray's own


def _exit_on_sigterm(signum: int, frame: Any) -> NoReturn:
    if cpu.raylet_died:
        raise KeyboardInterrupt  # the one exception that leaves every call of Ray
    sys.exit(128 + signum)


def stop_ray() -> None:
    """Stop a private Ray and all its processes, or leave the joined cluster.

    Remaining output of the workers is printed before this returns, so that the run's own last message comes last.
    """
    import ray

    if cpu.ray_folder is None:
        ray.shutdown()
        return
    for signum in (signal.SIGINT, signal.SIGTERM):  # a second Ctrl-C must not cut the clean-up short
        signal.signal(signum, signal.SIG_IGN)
    cpu.stop_private_ray()


def closing_remark(spec: RewardSpec, log_dir: Path) -> str | None:
    """What a person should know at the end of a training with a specification, if there is anything."""
    steps = read_steps(log_dir)
    if not steps:
        return "No step was taken: there were no prompts, or dynamic filtering dropped them all."
    zeros = sum(int(step.get("scorer_zeros", 0)) for step in steps)
    return say_zeros(zeros, spec.name, log_dir) if zeros else None


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error that Ray raises, then the error of the actor that it called, and so on."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = getattr(cause, "cause", None)


def scorer_failure(error: Exception) -> ScorerError | None:
    """The user's scorer, reward function or agent failed: the error as it was raised in the actor."""
    return next((cause for cause in causes(error) if type(cause) is ScorerError), None)


def part_died(error: Exception) -> bool:
    """Whether an actor, its node or an engine died; an actor that failed to start does not count."""
    from ray.exceptions import LocalRayletDiedError, NodeDiedError, ObjectLostError, RayActorError, WorkerCrashedError

    lost = (LocalRayletDiedError, NodeDiedError, ObjectLostError, RayActorError, WorkerCrashedError)
    for cause in causes(error):
        if isinstance(cause, lost):
            return not getattr(cause, "actor_init_failed", False)
        # vLLM's error, and the error of a rank whose peer died (with gloo, a plain RuntimeError).
        names = {cls.__name__ for cls in type(cause).__mro__}
        if names & {"EngineDeadError", "DistBackendError"} or "third_party/gloo" in str(cause):
            return True
    return False

"""The training stage: the host's own command, as a process with a private Ray or as a job of a Ray cluster."""

import json
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from prefect import get_client, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger

from flows.hooks import as_url, show_picture
from flows.process import run_logged
from flows.settings import PipelineSettings
from flows.stage import code_version, file_digest, skip, working_on
from vpo_plugin.advantages import advantage_estimator_names, get_advantage_estimator, goal_weights, parse_method
from vpo_plugin.files import digest, model_digest
from vpo_plugin.models import micro_batch_size
from vpo_plugin.openrlhf import cpu
from vpo_plugin.openrlhf.checkpoints import remove_checkpoints
from vpo_plugin.openrlhf.flags import ON_ONE_GPU, words
from vpo_plugin.openrlhf.log import read_steps, remark_of, training_curve
from vpo_plugin.provenance import masked
from vpo_plugin.report.plots import live
from vpo_plugin.rewards import load_spec
from vpo_plugin.rewards.files import spec_digest, spec_files

PROGRESS_SECONDS = 10.0
DRAW_SECONDS = 60.0
# Flags for places and save intervals: they do not change the training.
PLACES = (
    "vpo.spec",
    "actor.model_name_or_path",
    "data.prompt_dataset",
    "ckpt.output_dir",
    "ckpt.path",
    "ckpt.save_steps",
)


@task(task_run_name="train-{method}")
def train(settings: PipelineSettings, method: str, candidates: int, base: str, data: Path) -> str:
    """Train one policy with the host's own command; return its folder.

    An interrupted training resumes from its last checkpoint; a running one is followed.

    Raises:
        RuntimeError: the training failed; the message has its last error.
    """
    folder = settings.folder / "train" / method
    policy = folder / "policy"
    flags = training_flags(settings, method, candidates, base, data, policy)
    inputs = {
        "spec": spec_digest(load_spec(settings.spec)),
        "data": file_digest(data / "train"),
        "policy": model_digest(base),
        "code": code_version("advantages", "openrlhf", "rewards"),
        "flags": {flag: value for flag, value in flags.items() if flag not in PLACES},
        "host_flags": settings.host_flags,
    }
    if skip(folder, inputs):
        remove_checkpoints(folder / "checkpoints")
        return str(policy)
    command = host_command(settings, flags)
    get_run_logger().info("Training with %s: %s", method, shlex.join(masked(command)))
    log, trained, what = folder / "train.log", policy / "config.json", f"Training with {method}"
    progress = TrainingProgress(log, policy / "vpo", settings.steps, method)
    with working_on(folder, inputs, resume=True):
        if settings.cluster is None:
            run_logged(command, log, what=what, on_poll=progress.show)
        else:
            from flows.ray_jobs import resolve_cluster, run_job

            run_job(
                command,
                log,
                cluster=resolve_cluster(settings.cluster),
                name=f"vpo-{settings.name}-{method}-{digest([masked(inputs), folder.resolve()])}",
                result=trained,
                what=what,
                on_poll=progress.show,
            )
        if not trained.exists():
            raise RuntimeError(
                f"{what} ended without a policy in {policy}: on a cluster, that folder must be one that its nodes "
                "share with this machine."
            )
    remove_checkpoints(folder / "checkpoints")  # when the stage is done: without them it would train again
    return str(policy)


def training_flags(
    settings: PipelineSettings, method: str, candidates: int, base: str, data: Path, output: Path
) -> dict[str, Any]:
    """The host's flags to train one method, with one optimizer step per batch of fresh rollouts."""
    from transformers import AutoTokenizer

    from vpo_plugin.search.policy import as_chat, most_tokens
    from vpo_plugin.search.pool import full_prompt, load_prompts

    spec = load_spec(settings.spec)
    tokenizer = AutoTokenizer.from_pretrained(base)
    told = tells_weights(method)

    def asked(row: dict[str, Any]) -> Any:
        goal = goal_weights(row["label"], len(spec.objective_keys), seed=settings.seed) if told else None
        return full_prompt(spec, row["input"], candidates, goal)

    rows = load_prompts(spec, data / "train")
    texts = as_chat([asked(row) for row in rows], tokenizer, settings.chat_template_kwargs)
    longest = most_tokens(texts, tokenizer)
    m = settings.candidates or spec.candidates
    rollouts = settings.rollouts_per_prompt * m // candidates
    batch = settings.prompts_per_step * rollouts
    micro_batch = micro_batch_size(batch, (longest + settings.max_new_tokens) * len(tokenizer))
    named = settings.spec in spec_files()
    flags: dict[str, Any] = {
        "advantage": parse_method(method)[0],
        "vpo.spec": settings.spec if named else Path(settings.spec).absolute(),
        "vpo.candidates": candidates,
        "vpo.seed": settings.seed,
        "actor.model_name_or_path": Path(base).resolve() if Path(base).is_dir() else base,
        "data.prompt_dataset": (data / "train").resolve(),
        "data.input_key": "input",
        "data.label_key": "label",
        "data.max_len": longest + settings.max_new_tokens,
        "rollout.max_new_tokens": settings.max_new_tokens,
        "rollout.temperature": settings.temperature,
        "rollout.batch_size": settings.prompts_per_step,
        "rollout.n_samples_per_prompt": rollouts,
        "rollout.micro_batch_size": micro_batch,
        "train.batch_size": batch,
        "train.micro_batch_size": micro_batch,
        "train.seed": settings.seed,
        "actor.adam.lr": settings.learning_rate,
        "actor.lr_scheduler": "constant",
        "algo.kl.init_coef": settings.kl_loss,
        "algo.kl.estimator": "k3",
        "ckpt.output_dir": output.resolve(),
        "ckpt.path": output.resolve().parent / "checkpoints",
        "ckpt.save_steps": settings.save_steps or max(1, settings.steps // 10),
        "ckpt.load_enable": True,
    }
    if settings.on_scorer_error == "zero":
        flags["vpo.on_scorer_error"] = "zero"
    if settings.kl_loss:
        flags["algo.kl.use_loss"] = True
    if tokenizer.chat_template:
        flags["data.apply_chat_template"] = True
    if settings.chat_template_kwargs:
        flags["vpo.chat_template_kwargs"] = json.dumps(settings.chat_template_kwargs)
    return flags


def check_commands(commands: Mapping[str, list[str]], *, on_cluster: bool) -> None:
    """Check the host's commands of several methods before the first one starts, in a process that imports the host.

    On a cluster, whose nodes have other files, a mistake counts only if the first command does not have it too: its
    training starts at once, and checks itself. Where the host cannot be imported, nothing is checked.

    Raises:
        ValueError: a training would refuse its flags.
    """
    program = "from vpo_plugin.openrlhf.launcher import print_mistakes; print_mistakes()"
    given = json.dumps({method: command[3:] for method, command in commands.items()})
    done = subprocess.run([sys.executable, "-c", program], input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        return
    found: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    first = next(iter(found.values())) if on_cluster else []
    for method, mistakes in found.items():
        for mistake in mistakes:
            if mistake not in first:
                raise ValueError(f"The training with {method} would be refused: {mistake}")


def tells_weights(method: str) -> bool:
    """Whether a method's prompts state objective weights, in training and in search."""
    name, _candidates = parse_method(method)
    return name in advantage_estimator_names() and get_advantage_estimator(name).weights_in_prompt


def host_command(settings: PipelineSettings, flags: dict[str, Any]) -> list[str]:
    """The host's command with these flags and the settings' `host_flags`; on a cluster, with its nodes' `python`.

    On this machine's GPUs it uses one, unless `host_flags` say how many engines there are.
    """
    command = ["python" if settings.cluster else sys.executable, "-m", "vpo_plugin.train_ppo_ray", *words(flags)]
    placed = any("num_engines" in flag for flag in settings.host_flags)
    if settings.cluster is None and not placed and cpu.own_gpus() is not None:
        command += words(ON_ONE_GPU)
    return command + settings.host_flags


class TrainingProgress:
    """Reports a training's progress now and then: a line in the log, and Prefect's progress bar with a small plot.

    Passes on the plugin's remarks in the training's output, such as the step it resumes from.
    """

    def __init__(self, log: Path, log_dir: Path, steps: int, method: str) -> None:
        self.log, self.log_dir, self.steps, self.method = log, log_dir, steps, method
        self.logger = get_run_logger()
        self.artifact = create_progress_artifact(0.0, description=f"Training with {method}")
        self.plot: UUID | None = None
        self.drawn_at = 0.0
        self.read = log.stat().st_size if log.exists() else 0
        self.shown, self.shown_at = 0, time.monotonic()

    def show(self) -> None:
        """Report if there is a new step and the last report is some seconds old, or the last step is done."""
        self._pass_remarks_on()
        done = read_steps(self.log_dir)
        due = time.monotonic() - self.shown_at >= PROGRESS_SECONDS or len(done) == self.steps
        if not due or len(done) <= self.shown:
            return
        self.shown, self.shown_at = len(done), time.monotonic()
        last, times = done[-1], [step["time"] for step in done[-10:]]
        said = f"{self.method}: step {len(done)}/{self.steps}, reward {last['reward']:.3f}"
        if "set_reward" in last:
            said += f", set reward {last['set_reward']:.3f}"
        if len(done) < self.steps and times[1:]:  # the median ignores a long pause before a step
            left = statistics.median(b - a for a, b in pairwise(times)) * (self.steps - len(done))
            said += f", {timedelta(seconds=round(left))} left"
        self.logger.info(said)
        try:
            update_progress_artifact(self.artifact, 100.0 * len(done) / self.steps)
            if self.plot is None or len(done) == self.steps or time.monotonic() - self.drawn_at >= DRAW_SECONDS:
                self._draw()
        except (httpx.HTTPError, ObjectNotFound) as error:
            self.logger.warning("Prefect's server rejects the progress (%s). The training continues.", error)

    def _draw(self) -> None:
        self.drawn_at = time.monotonic()
        curve = live({self.method: training_curve(self.log_dir)})
        if self.plot is None:
            key = re.sub(r"[^a-z0-9]+", "-", f"training-{self.method}".lower())
            self.plot = show_picture(key, curve, f"Training with {self.method}, by step.")
            return
        with get_client(sync_client=True) as client:
            client.update_artifact(self.plot, ArtifactUpdate(data=as_url(curve)))

    def _pass_remarks_on(self) -> None:
        if not self.log.exists():
            return
        if self.log.stat().st_size < self.read:  # a new log
            self.read = 0
        with self.log.open("rb") as file:
            file.seek(self.read)
            complete = file.read().rpartition(b"\n")[0]
        self.read += len(complete) + 1 if complete else 0
        for line in complete.decode(errors="replace").splitlines():
            if (remark := remark_of(line)) is not None:
                self.logger.info(remark)

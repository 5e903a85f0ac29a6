"""The pipeline: specification -> prompts -> policy -> training -> pools -> report.

Each stage writes into its own folder under ``runs/<name>/`` and is skipped when it has finished with the same inputs.
"""

import json
import math
import os
import platform
import shlex
import shutil
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.logging import get_run_logger

from flows.policy import check_policy, resolve_policy
from flows.process import run_logged
from flows.settings import PipelineSettings
from flows.stage import digest, file_digest, is_done, working_on
from vpo_plugin.advantages import advantage_estimator_names, get_advantage_estimator, goal_weights
from vpo_plugin.openrlhf.log import read_steps
from vpo_plugin.rewards import RewardSpec, check_spec, load_spec

PROGRESS_SECONDS = 10.0
FREE_BYTES = 200 << 20
VERSIONS = ("vpo-plugin", "openrlhf", "torch", "deepspeed", "transformers", "ray", "prefect")


@flow(name="vpo-pipeline", flow_run_name="{settings.name}")
def vpo_pipeline(settings: PipelineSettings) -> Path:
    """Train a policy with each method and compare them, and the policy they started from, as search would use them.

    Returns:
        The folder of the report.
    """
    spec = check_specification(settings)
    data = prepare_data(settings)
    base = prepare_policy(settings)
    m = settings.candidates or spec.candidates

    policies = {"base": (base, 1)}
    for method in settings.methods:
        candidates = m if trains_sets(method) else 1
        policies[method] = (train(settings, method, candidates, base, data), candidates)
    pools = {
        name: evaluate(settings, name, policy, candidates, data) for name, (policy, candidates) in policies.items()
    }
    return report(settings, pools, data)


@task(task_run_name="check-spec")
def check_specification(settings: PipelineSettings) -> RewardSpec:
    """Check the specification on its own data, and the settings against it and the run's folder."""
    spec = load_spec(settings.spec)
    check_settings(settings, spec)
    for finding in check_spec(spec):
        get_run_logger().info(finding)
    (settings.folder / "run.json").write_text(json.dumps({"spec": spec.name}))
    return spec


@task(task_run_name="prepare-data")
def prepare_data(settings: PipelineSettings, test_seed: int | None = None) -> Path:
    """Write the prompts, train and held out, as ``datasets`` datasets; the fingerprint is in ``stage.json``.

    Runs that are given the same ``test_seed`` share their held-out prompts, whatever the seeds of their settings.
    """
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    folder = settings.folder / "data"
    sizes = {"train": settings.steps * settings.prompts_per_step, "test": settings.eval_prompts}
    seeds = {"train": settings.seed, "test": settings.seed if test_seed is None else test_seed}
    inputs = {"spec": load_spec(settings.spec).model_dump(mode="json"), "sizes": sizes, "seeds": seeds}
    if skip(folder, inputs):
        return folder
    spec = load_spec(settings.spec)
    with working_on(folder, inputs):
        for split, size in sizes.items():
            rows = [
                {"input": row["prompt"], "label": json.dumps(row["label"])}
                for row in spec.rows(split, size, seeds[split])
            ]
            if len(rows) < size:
                raise ValueError(f"The {split} split of spec {spec.name!r} has {len(rows)} rows, {size} are needed.")
            dataset = Dataset.from_list(rows)
            dataset.save_to_disk(str(folder / split))
            get_run_logger().info(f"{size} {split} prompts, fingerprint {digest(rows)}")
    return folder


@task(task_run_name="prepare-policy")
def prepare_policy(settings: PipelineSettings) -> str:
    """Find or build the policy to start from."""
    return resolve_policy(settings.model, settings.folder / "policy", settings.seed)


@task(task_run_name="train-{method}")
def train(settings: PipelineSettings, method: str, candidates: int, base: str, data: Path) -> str:
    """Train one policy with the host's own command; returns the checkpoint's folder."""
    folder = settings.folder / "train" / method
    command = train_command(settings, method, candidates, base, data, folder / "policy")
    inputs = {"command": command, "data": file_digest(data / "train"), "policy": policy_digest(base)}
    if skip(folder, inputs):
        return str(folder / "policy")
    logger = get_run_logger()
    logger.info("Training with %s: %s", method, shlex.join(command))
    progress = TrainingProgress(folder / "policy" / "vpo", settings.steps, method)
    with working_on(folder, inputs):
        run_logged(command, folder / "train.log", what=f"Training with {method}", on_poll=progress.show)
    return str(folder / "policy")


@task(task_run_name="evaluate-{name}")
def evaluate(settings: PipelineSettings, name: str, policy: str, candidates: int, data: Path) -> Path:
    """Sample and score a pool of candidates for each held-out prompt; returns the pool's folder."""
    folder = settings.folder / "eval" / name
    command = [
        *(sys.executable, "-m", "vpo_plugin.cli", "evaluate"),
        *("--model", policy),
        *("--spec", settings.spec),
        *("--data", str(data / "test")),
        *("--output", str(folder / "pool")),
        *("--rollouts", str(settings.eval_candidates // candidates)),
        *("--candidates", str(candidates)),
        *("--max-new-tokens", str(settings.max_new_tokens)),
        *("--temperature", str(settings.temperature)),
        *("--seed", str(settings.seed)),
        *(["--tell-weights"] if tells_weights(name) else []),
    ]
    inputs = {"command": command, "data": file_digest(data / "test"), "policy": policy_digest(policy)}
    if not skip(folder, inputs):
        get_run_logger().info(
            "Sampling %s candidates for each of %s prompts", settings.eval_candidates, settings.eval_prompts
        )
        with working_on(folder, inputs):
            run_logged(command, folder / "eval.log", what=f"The evaluation of {name}")
    return folder / "pool"


@task(task_run_name="report")
def report(settings: PipelineSettings, pools: dict[str, Path], data: Path) -> Path:
    """Compare the pools and write report.json, report.html and best_at_k.png into the run's folder."""
    from vpo_plugin.search.compare import compare_pools
    from vpo_plugin.search.pool import load_pool, load_prompts
    from vpo_plugin.search.report import format_table, write_report

    rows = load_prompts(data / "test")
    results = compare_pools(
        {name: load_pool(folder) for name, folder in pools.items()}, load_spec(settings.spec), rows, seed=settings.seed
    )
    results |= {
        "title": f"{settings.name}: {', '.join(settings.methods)} on {settings.spec}",
        "command": shlex.join(
            ["python", "-m", "flows.pipeline", json.dumps(settings.model_dump(mode="json", exclude_defaults=True))]
        ),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in VERSIONS}},
        "training": [
            {"name": method, "steps": training_curve(settings.folder / "train" / method / "policy" / "vpo")}
            for method in settings.methods
        ],
    }
    write_report(results, settings.folder)
    table = format_table(results)
    create_markdown_artifact(
        f"```\n{table}\n```\n\n[report.html]({(settings.folder / 'report.html').resolve().as_uri()})", key="report"
    )
    print(f"\n{table}\n\nReport: {settings.folder / 'report.html'}")
    return settings.folder


def trains_sets(method: str) -> bool:
    """Whether a method's responses hold several candidates; with every other one, the host's too, they hold one."""
    return method in advantage_estimator_names() and get_advantage_estimator(method).candidates == "several"


def tells_weights(method: str) -> bool:
    """Whether a method's prompts tell objective weights, in training and in the search."""
    return method in advantage_estimator_names() and get_advantage_estimator(method).weights_in_prompt


def check_settings(settings: PipelineSettings, spec: RewardSpec) -> None:
    """Refuse, before anything is spent, settings that cannot work and a folder that cannot be used.

    Raises:
        ValueError: a method that the specification does not fit, candidates that responses do not fill or that a
            response cannot hold, a folder of another specification.
        OSError: the policy's folder has no model, the run's folder cannot be written, or its disk is full.
    """
    check_policy(settings.model)
    for method in settings.methods:
        if tells_weights(method) and spec.ragged:
            raise ValueError(
                f"{method} names the objectives in the prompt, and those of spec {spec.name!r} differ in number from "
                "prompt to prompt."
            )
    m = settings.candidates or spec.candidates
    if settings.eval_candidates % m:
        raise ValueError(
            f"eval_candidates is {settings.eval_candidates}, which responses of {m} candidates do not fill: make it a "
            f"multiple of {m}."
        )
    needed = m * spec.limits.tokens_per_candidate
    if settings.max_new_tokens < needed:
        raise ValueError(
            f"max_new_tokens is {settings.max_new_tokens}, {m} candidates of spec {spec.name!r} take up to {needed}."
        )
    marker = settings.folder / "run.json"
    if marker.exists() and (earlier := json.loads(marker.read_text())["spec"]) != spec.name:
        raise ValueError(
            f"{settings.folder} holds a run of spec {earlier!r}, and this run is of {spec.name!r}: give the run "
            "another name, or delete that folder."
        )
    settings.folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(settings.folder).free
    if free < FREE_BYTES:
        raise OSError(f"The disk of {settings.folder} has {free >> 20} MiB left, a run needs {FREE_BYTES >> 20} MiB.")


def skip(folder: Path, inputs: dict[str, Any]) -> bool:
    """Whether a stage has nothing to do, said in the log."""
    done = is_done(folder, inputs)
    if done:
        get_run_logger().info("Skipped: finished before with the same inputs (%s).", folder)
    return done


def policy_digest(policy: str) -> str:
    """What identifies a policy's weights: the files of a folder, or the id of one that the hub holds."""
    weights = sorted(Path(policy).glob("*.safetensors"))
    return digest([file_digest(file) for file in weights]) if weights else policy


def train_command(
    settings: PipelineSettings, method: str, candidates: int, base: str, data: Path, output: Path
) -> list[str]:
    """The host's command that trains one method: one optimizer step for each batch of fresh rollouts."""
    from transformers import AutoTokenizer

    from vpo_plugin.search.pool import load_prompts, render_prompts

    spec = load_spec(settings.spec)
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = load_prompts(data / "train")
    goals = None
    if tells_weights(method):
        goals = [goal_weights(row["label"], len(spec.objective_keys), seed=settings.seed) for row in rows]
    texts = render_prompts(spec, [row["input"] for row in rows], candidates, tokenizer, goals)
    longest = max(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))
    m = settings.candidates or spec.candidates
    rollouts = settings.rollouts_per_prompt * m // candidates
    batch = settings.prompts_per_step * rollouts
    micro_batch = math.gcd(batch, 32)
    flags: dict[str, Any] = {
        "advantage": method,
        "vpo.spec": settings.spec,
        "vpo.candidates": candidates,
        "vpo.seed": settings.seed,
        "actor.model_name_or_path": base,
        "data.prompt_dataset": data / "train",
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
        "ckpt.output_dir": output,
        "ckpt.path": output.parent / "checkpoints",
    }
    command = [sys.executable, "-m", "vpo_plugin.train_ppo_ray"]
    for flag, value in flags.items():
        command += [f"--{flag}", str(value)]
    if settings.kl_loss:
        command.append("--algo.kl.use_loss")
    if tokenizer.chat_template:
        command.append("--data.apply_chat_template")
    return command + settings.host_flags


class TrainingProgress:
    """Says now and then how far a training is: a line in the log, and Prefect's progress bar."""

    def __init__(self, log_dir: Path, steps: int, method: str) -> None:
        self.log_dir, self.steps, self.method = log_dir, steps, method
        self.logger = get_run_logger()
        self.artifact = create_progress_artifact(0.0, description=f"Training with {method}")
        self.shown, self.shown_at = 0, time.monotonic()

    def show(self) -> None:
        """Report if there is a new step and the last report is some seconds old, or the last step is done."""
        done = read_steps(self.log_dir)
        due = time.monotonic() - self.shown_at >= PROGRESS_SECONDS or len(done) == self.steps
        if not due or len(done) <= self.shown:
            return
        self.shown, self.shown_at = len(done), time.monotonic()
        last = done[-1]
        per_step = (last["time"] - done[0]["time"]) / max(len(done) - 1, 1)
        left = time.strftime("%M:%S", time.gmtime(per_step * (self.steps - len(done))))
        self.logger.info(
            f"{self.method}: step {len(done)}/{self.steps}, reward {last['reward']:.3f}, "
            f"set reward {last['set_reward']:.3f}, {left} left"
        )
        update_progress_artifact(self.artifact, 100.0 * len(done) / self.steps)


def training_curve(log_dir: Path) -> list[dict[str, float]]:
    """The logged steps as the report draws them."""
    steps = read_steps(log_dir)
    starts = [step["time"] for step in steps[:1] + steps[:-1]]  # a step starts when the one before it ends
    return [
        {
            "step": step["step"],
            "reward": step["reward"],
            "set_reward": step["set_reward"],
            "diversity": step["group_diversity"],
            "seconds": step["time"] - start,
        }
        for step, start in zip(steps, starts, strict=True)
    ]


def run(settings: PipelineSettings) -> None:
    """Run the pipeline for a person at a terminal: what is wrong is said in one last sentence, with exit code 1."""
    try:
        check_settings(settings, load_spec(settings.spec))
        vpo_pipeline(settings)
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"\n{error}")


if __name__ == "__main__":
    run(PipelineSettings(**json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}))

"""The pipeline: specification -> prompts -> policy -> training -> pools -> report.

Each stage writes into its own folder under `runs/<name>/` and is skipped if it finished before with the same inputs.
"""

import json
import shlex
import shutil
import sys
from pathlib import Path

from prefect import task
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.logging import get_run_logger
from prefect.states import Completed

from flows.hooks import show_results
from flows.parameters import settings_flow
from flows.process import run_logged
from flows.settings import PipelineSettings, RunSettings
from flows.stage import (
    code_version,
    file_digest,
    overhead,
    skip,
    timed,
    working_on,
)
from flows.train import check_commands, host_command, tells_weights, train, training_flags
from vpo_plugin.advantages import advantage_estimator_names, get_advantage_estimator, parse_method
from vpo_plugin.cli.settings import flags
from vpo_plugin.files import model_digest, write
from vpo_plugin.models import check_policy, resolve_policy
from vpo_plugin.openrlhf.checks import check_estimator
from vpo_plugin.openrlhf.flags import ESTIMATOR
from vpo_plugin.openrlhf.log import training_curve
from vpo_plugin.provenance import masked, provenance
from vpo_plugin.rewards import RewardSpec, check_spec, load_spec
from vpo_plugin.rewards.files import spec_digest
from vpo_plugin.rewards.fit import budget_mistake
from vpo_plugin.rewards.labels import write_prompts
from vpo_plugin.rewards.scoring import Scoring
from vpo_plugin.rewards.task import read_rows
from vpo_plugin.search.warm_start import READABLE

FREE_BYTES = 200 << 20
SAMPLING = ("search/evaluate.py", "search/policy.py", "search/pool.py")


@settings_flow(PipelineSettings, name="pipeline")
def pipeline(settings: PipelineSettings) -> State:
    """Train a policy with each method; compare these policies and the initial one as search would use them."""
    data, policies = train_all(settings)
    pools = {
        name: evaluate(settings, name, policy, candidates, data, tell_weights=tells_weights(name))
        for name, (policy, candidates) in policies.items()
    }
    return Completed(message=report(settings, pools, data))


def train_all(settings: PipelineSettings) -> tuple[Path, dict[str, tuple[str, int]]]:
    """Check everything, and train a policy with each method.

    Returns the data, and the place and number of candidates of each policy, after those of the initial one, `base`.
    """
    spec = check_specification(settings)
    data = prepare_data(settings)
    base = prepare_policy(settings)
    check_trainings(settings, spec, base, data)
    policies = {"base": (base, 1)}
    for method in settings.methods:
        candidates = candidates_of(method, settings.candidates or spec.candidates)
        first = first_policy(settings, base, candidates)
        policies[method] = (train(settings, method, candidates, first, data), candidates)
    return data, policies


@task(task_run_name="check-spec")
def check_specification(settings: PipelineSettings) -> RewardSpec:
    """Check the specification on its own data, and the settings against the specification and the run's folder."""
    spec = load_spec(settings.spec)
    check_settings(settings, spec)
    settings.folder.mkdir(parents=True, exist_ok=True)
    with timed(), Scoring(spec, on_error=settings.on_scorer_error) as scoring:
        for finding in [*check_spec(spec, scoring), *filter(None, [scoring.summary()])]:
            get_run_logger().info(finding)
    write(settings.folder / "run.json", json.dumps({"spec": spec.name}))
    return spec


@task(task_run_name="prepare-data")
def prepare_data(settings: RunSettings, test_seed: int | None = None) -> Path:
    """Write training and held-out prompts as `datasets` datasets; the fingerprint is in `stage.json`.

    Runs with the same `test_seed` share their held-out prompts, whatever the seeds of their settings.
    """
    folder = settings.folder / "data"
    sizes = {"train": settings.train_prompts, "test": settings.eval_prompts}
    spec = load_spec(settings.spec)
    seeds = {"train": settings.seed, "test": settings.seed if test_seed is None else test_seed}
    inputs = {"spec": spec_digest(spec), "sizes": sizes, "seeds": seeds}
    if spec.label == "text":
        inputs["labels"] = "text"  # earlier versions packed them
    if skip(folder, inputs):
        return folder
    with working_on(folder, inputs):
        for split, size in sizes.items():
            if not size:
                continue
            rows = list(read_rows(spec, split, size, seeds[split]))
            if len(rows) < size:
                raise ValueError(f"The {split} split of spec {spec.name!r} has {len(rows)} rows, but needs {size}.")
            fingerprint = write_prompts(spec, rows, folder / split)
            get_run_logger().info(f"{size} {split} prompts, fingerprint {fingerprint}")
    return folder


@task(task_run_name="prepare-policy")
def prepare_policy(settings: PipelineSettings) -> str:
    """Find or build the policy to start from."""
    with timed():
        return resolve_policy(settings.model, settings.folder / "policy")


def check_trainings(settings: PipelineSettings, spec: RewardSpec, base: str, data: Path) -> None:
    """Check what `host_flags` make of the trainings before anything is sampled or trained."""
    if settings.host_flags:
        with timed():
            training_commands(settings, spec, base, data)


def training_commands(settings: PipelineSettings, spec: RewardSpec, base: str, data: Path) -> dict[str, list[str]]:
    """The host's command of each method, checked as its training does.

    Without `host_flags` the checks of `check_settings` are enough; the host takes seconds to import.

    Raises:
        ValueError: a training would refuse its flags.
    """
    commands = {}
    for method in settings.methods:
        candidates = candidates_of(method, settings.candidates or spec.candidates)
        output = settings.folder / "train" / method / "policy"
        commands[method] = host_command(settings, training_flags(settings, method, candidates, base, data, output))
    if settings.host_flags:
        check_commands(commands, on_cluster=settings.cluster is not None)
    return commands


def first_policy(settings: PipelineSettings, base: str, candidates: int) -> str:
    """The policy that a method starts from, by the number of candidates in its responses."""
    taught = taught_policy(settings, candidates)
    return base if taught is None else teach_format(settings, base, candidates, taught)


def taught_policy(settings: PipelineSettings, candidates: int) -> Path | None:
    """The folder of the policy that a warm start teaches to write that many candidates; None without a warm start."""
    return settings.folder / f"warm_start_{candidates}" / "policy" if settings.warm_start and candidates > 1 else None


@task(task_run_name="warm-start-{candidates}")
def teach_format(settings: PipelineSettings, base: str, candidates: int, policy: Path) -> str:
    """Warm-start a policy to write that many candidates, into the folder `policy`; return that folder."""
    folder = policy.parent
    command = [
        *(sys.executable, "-m", "vpo_plugin.cli", "warm_start", "--spec", settings.spec, "--model", base),
        *("--output", str(policy), "--candidates", str(candidates), "--seed", str(settings.seed)),
        *("--max_new_tokens", str(settings.max_new_tokens // candidates)),
        *(["--chat_template_kwargs", json.dumps(options)] if (options := settings.chat_template_kwargs) else []),
        *(["--on_scorer_error", "zero"] if settings.on_scorer_error == "zero" else []),
    ]
    inputs = {
        "spec": spec_digest(load_spec(settings.spec)),
        "policy": model_digest(base),
        "code": code_version("rewards", *SAMPLING, "search/warm_start.py", "train_sft.py"),
        "command": command,
    }
    if not skip(folder, inputs):
        with working_on(folder, inputs, resume=True):
            run_logged(command, log := folder / "warm_start.log", what="The warm start")
            get_run_logger().info(next(line for line in log.read_text().splitlines() if READABLE in line))
    return str(policy)


@task(task_run_name="evaluate-{name}")
def evaluate(
    settings: PipelineSettings,
    name: str,
    policy: str,
    candidates: int,
    data: Path,
    temperature: float | None = None,
    tell_weights: bool = False,
) -> Path:
    """Sample and score a pool of candidates for each held-out prompt; return the pool's folder.

    A `temperature` other than that of the settings gets its own folder.
    """
    usual = settings.eval_temperature or settings.temperature
    temperature = temperature or usual
    folder = settings.folder / "eval" / (name if temperature == usual else f"{name}-T{temperature:g}")
    command = [
        *(sys.executable, "-m", "vpo_plugin.cli", "evaluate"),
        *("--model", policy),
        *("--spec", settings.spec),
        *("--data", str(data / "test")),
        *("--output", str(folder / "pool")),
        *("--rollouts", str(settings.eval_candidates // candidates)),
        *("--candidates", str(candidates)),
        *("--max_new_tokens", str(settings.max_new_tokens)),
        *("--temperature", str(temperature)),
        *("--seed", str(settings.seed)),
        *(["--tell_weights"] if tell_weights else []),
        *(["--on_scorer_error", "zero"] if settings.on_scorer_error == "zero" else []),
        *(["--chat_template_kwargs", json.dumps(options)] if (options := settings.chat_template_kwargs) else []),
    ]
    inputs = {
        "spec": spec_digest(load_spec(settings.spec)),
        "data": file_digest(data / "test"),
        "policy": model_digest(policy),
        "code": code_version("rewards", *SAMPLING),
        "command": command,
    }
    if not skip(folder, inputs):
        get_run_logger().info(
            "Sampling %s candidates for each of %s prompts", settings.eval_candidates, settings.eval_prompts
        )
        with working_on(folder, inputs, resume=True):
            run_logged(command, folder / "eval.log", what=f"The evaluation of {name}")
    return folder / "pool"


@task(task_run_name="report")
def report(settings: PipelineSettings, pools: dict[str, Path], data: Path) -> str:
    """Compare the pools and write report.json, report.html and best_at_k.png; return the result as a sentence."""
    command = ["vpo", "run", "pipeline", *flags(settings)]
    training = {
        method: training_curve(settings.folder / "train" / method / "policy" / "vpo") for method in settings.methods
    }
    return report_pools(settings, pools, data, shlex.join(command), training)


def report_pools(
    settings: RunSettings, pools: dict[str, Path], data: Path, command: str, training: dict[str, list[dict[str, float]]]
) -> str:
    """Write the report of these pools into the run's folder, show it, and return the result as a sentence."""
    from vpo_plugin.report.tables import format_table
    from vpo_plugin.report.write import write_report
    from vpo_plugin.search.comparison import Comparison
    from vpo_plugin.search.pool import load_pool, load_prompts

    added = overhead(FlowRunContext.get().start_time.timestamp())
    spec = load_spec(settings.spec)
    rows = load_prompts(spec, data / "test")
    loaded = {(name, settings.seed): load_pool(folder) for name, folder in pools.items()}
    compared = Comparison(loaded, spec, rows)
    results = compared.results() | {
        "title": f"{settings.name}: {', '.join(training or pools)} on {settings.spec}",
        **provenance(command),
        "settings": masked(settings.model_dump(mode="json")),
        "overhead": added,
        "training": [{"name": method, "steps": steps} for method, steps in training.items()],
    }
    write_report(results, settings.folder, compared.prompts())
    table = format_table(results)
    *_, sentence = table.splitlines()
    if not results["differences"]:
        best = results["policies"][0]["best_at_k"]["mean"]
        sentence = f"{next(iter(pools))}: best@1 {best[0]:.3f}, best@{len(best)} {best[-1]:.3f}"
    show_results(settings.folder, results, sentence)
    print(f"\n{table}\n\nReport: {settings.folder / 'report.html'}")
    return f"{sentence}. Report: {settings.folder / 'report.html'}"


def candidates_of(method: str, m: int) -> int:
    """Candidates in a method's response: the number in its name (`vpo_at_k:1`), m if it rewards sets, else 1."""
    name, candidates = parse_method(method)
    if candidates is not None:
        return candidates
    if name not in advantage_estimator_names():
        return 1
    estimator = get_advantage_estimator(name)
    # Estimators for any number use the best candidate, except grpo, which uses the mean and gains nothing from a set.
    rewards_sets = estimator.candidates == "several" or (estimator.candidates == "any" and estimator.takes_k)
    return m if rewards_sets else 1


def check_settings(settings: PipelineSettings, spec: RewardSpec) -> None:
    """Check the settings and the run's folder before anything is spent.

    Raises:
        ValueError: a method does not fit the specification, numbers of candidates do not divide evenly or do not fit
            in a response, or the folder belongs to another specification.
        OSError: the policy's folder has no model, the Ray cluster does not answer, or the disk of the run's folder is
            full.
    """
    check_policy(settings.model)
    m = settings.candidates or spec.candidates
    for candidates in sorted({candidates_of(method, m) for method in settings.methods}):
        if settings.eval_candidates % candidates:
            raise ValueError(
                f"eval_candidates is {settings.eval_candidates}, but responses have {candidates} candidates: make it "
                f"a multiple of {candidates}."
            )
        if settings.rollouts_per_prompt * m % candidates:
            raise ValueError(
                f"A prompt has {settings.rollouts_per_prompt * m} candidates (rollouts_per_prompt times {m}), which is "
                f"not a multiple of {candidates}, so methods would get different numbers: change rollouts_per_prompt."
            )
        if mistake := budget_mistake(spec, candidates, settings.max_new_tokens, "max_new_tokens"):
            raise ValueError(mistake)
    for method in settings.methods:
        candidates = candidates_of(method, m)
        given = {
            ESTIMATOR: parse_method(method)[0],
            "vpo.candidates": candidates,
            "rollout.n_samples_per_prompt": settings.rollouts_per_prompt * m // candidates,
            "vpo.k": None,
            "reward.stop_properly_penalty_coef": None,
        }
        for mistake in check_estimator(given, spec):
            raise ValueError(f"The training with {method} would be refused: {mistake}")
    marker = settings.folder / "run.json"
    if marker.exists() and (earlier := json.loads(marker.read_text())["spec"]) != spec.name:
        raise ValueError(
            f"{settings.folder} holds a run of spec {earlier!r}, but this run has {spec.name!r}: give the run "
            "another name, or delete that folder."
        )
    if settings.cluster is not None:
        from flows.ray_jobs import connect, resolve_cluster

        connect(resolve_cluster(settings.cluster))
    check_disk(settings.folder.resolve())


def check_disk(folder: Path) -> None:
    """Raise OSError if the disk of a folder, which need not exist, is full."""
    free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free
    if free < FREE_BYTES:
        raise OSError(f"The disk of {folder} has {free >> 20} MiB free; a run needs {FREE_BYTES >> 20} MiB.")

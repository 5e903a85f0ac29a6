"""Retraining: a copy of the champion learns from prompts that no version has seen, and replaces it if better."""

import shlex
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.states import Completed

from flows import registry
from flows.hooks import how_to_open
from flows.mlflow_mirror import check_mlflow, mirror
from flows.parameters import settings_flow
from flows.pipeline import (
    candidates_of,
    check_settings,
    check_specification,
    evaluate,
    report_pools,
)
from flows.promotion import Decision, decide, table
from flows.registry import ChampionChanged, Version
from flows.settings import PipelineSettings, RetrainSettings
from flows.stage import skip, working_on
from flows.train import tells_weights, train
from vpo_plugin.cli.settings import flags
from vpo_plugin.files import digest, model_digest
from vpo_plugin.models import check_policy, resolve_policy
from vpo_plugin.openrlhf.log import training_curve
from vpo_plugin.provenance import masked
from vpo_plugin.report.tables import markdown_table
from vpo_plugin.rewards import RewardSpec, load_spec
from vpo_plugin.rewards.fit import budget_mistake
from vpo_plugin.rewards.labels import write_prompts
from vpo_plugin.rewards.task import read_rows
from vpo_plugin.search.pool import load_pool, load_prompts

Rows = list[dict[str, Any]]


@settings_flow(RetrainSettings, name="retrain")
def retrain(settings: RetrainSettings) -> State:
    """Train a challenger from the champion on new prompts, and promote it if it is better on held-out ones."""
    check_retraining(settings)
    settings.registry.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(settings.registry / "retraining.lock", timeout=0):
            return challenge(settings)
    except Timeout:
        return skipped(f"another retraining works on the registry {settings.registry}.")


def check_retraining(settings: RetrainSettings) -> None:
    """Check the method, and for a first champion the other settings, before anything is spent.

    Raises:
        ValueError: the method states weights in prompts, or see `check_settings`.
        OSError: see `check_settings`.
        RuntimeError: see `check_mlflow`.
    """
    if tells_weights(settings.method):
        raise ValueError(
            f"{settings.method} states weights in each prompt, but a champion gets none: it cannot retrain."
        )
    check_mlflow()
    if not registry.history(settings.registry):
        check_settings(settings.training(), load_spec(settings.spec))


def challenge(settings: RetrainSettings) -> State:
    """Run one retraining, with the registry's lock held."""
    champion = find_champion(settings)
    fresh, held_out = choose_prompts(settings)
    if len(fresh) < settings.min_new_prompts:
        return skipped(
            f"{len(fresh)} prompts that no version was trained on, but at least {settings.min_new_prompts} are needed "
            f"(min_new_prompts). {champion.version} stays champion."
        )
    fresh = fresh[: len(fresh) // settings.prompts_per_step * settings.prompts_per_step]  # whole steps
    training = challenger_settings(settings, champion, fresh, held_out)
    spec = check_specification(training)
    data = write_data(training, fresh, held_out)
    m = candidates_of(settings.method, settings.candidates or spec.candidates)
    if mistake := budget_mistake(spec, champion.candidates, settings.max_new_tokens, "max_new_tokens"):
        raise ValueError(f"The champion {champion.version} cannot be evaluated: {mistake}")
    if settings.eval_candidates % champion.candidates:
        raise ValueError(
            f"eval_candidates is {settings.eval_candidates}, but responses of the champion {champion.version} have "
            f"{champion.candidates} candidates: make it a multiple of {champion.candidates}."
        )
    policy = train(training, settings.method, m, champion.policy, data)
    pools = {
        "champion": evaluate(training, "champion", champion.policy, champion.candidates, data),
        "challenger": evaluate(training, "challenger", policy, m, data),
    }
    decision = compare(settings, training, pools, data)
    name, why = record(settings, training, champion, policy, m, decision, fresh)
    return Completed(name=name, message=f"{name}: {why}")


@task(task_run_name="find-champion")
def find_champion(settings: RetrainSettings) -> Version:
    """The champion; in a new registry, the model of the settings becomes the first."""
    if done := registry.repair(settings.registry):
        get_run_logger().warning(done)
    spec = load_spec(settings.spec)
    champion = registry.champion(settings.registry)
    if champion is None:
        m = candidates_of(settings.method, settings.candidates or spec.candidates)
        policy = resolve_policy(settings.model, settings.registry / "policies")
        first = registry.add_version(
            settings.registry, policy=absolute(policy), spec=spec.name, candidates=m, run=f"first {settings.model}"
        )
        registry.promote(settings.registry, first.version, over=None, why="the first")
        champion = registry.read_version(settings.registry, first.version)
        get_run_logger().info("The registry is new: %s is its first champion, %s.", settings.model, first.version)
    if champion.spec != spec.name:
        raise ValueError(
            f"The champion {champion.version} of {settings.registry} has spec {champion.spec!r}, but this retraining "
            f"has {spec.name!r}: give each spec its own registry."
        )
    if winner := registry.pending(settings.registry, champion):
        why = f"{winner.evaluation['reason']} (Its retraining ended before it was promoted.)"  # type: ignore[index]
        registry.promote(settings.registry, winner.version, over=champion.version, why=why)
        get_run_logger().warning("%s beat %s earlier and is promoted now: %s", winner.version, champion.version, why)
        champion = winner
    check_policy(champion.policy)
    get_run_logger().info("The champion is %s: %s", champion.version, champion.policy)
    return champion


@task(task_run_name="choose-prompts")
def choose_prompts(settings: RetrainSettings) -> tuple[Rows, Rows]:
    """Training prompts and held-out prompts; no version was trained on any of them."""
    spec = load_spec(settings.spec)
    seen = {prompt for version in registry.versions(settings.registry) for prompt in version.prompts}
    held_out = unseen(spec, "test", settings.eval_prompts, settings.seed, seen)
    if len(held_out) < settings.eval_prompts:
        raise ValueError(
            f"The test split of spec {spec.name!r} has {len(held_out)} prompts that no version was trained on, but "
            f"needs {settings.eval_prompts} (eval_prompts)."
        )
    kept_out = {fingerprint(row) for row in held_out}
    fresh = unseen(spec, "train", settings.train_prompts, settings.seed, seen | kept_out)
    get_run_logger().info(
        "%s prompts were trained on before; %s are new, %s held out", len(seen), len(fresh), len(held_out)
    )
    return fresh, held_out


@task(task_run_name="write-prompts")
def write_data(training: PipelineSettings, fresh: Rows, held_out: Rows) -> Path:
    """Write the prompts for training and evaluation."""
    folder = training.folder / "data"
    splits = {"train": fresh, "test": held_out}
    inputs = {split: digest(rows) for split, rows in splits.items()}
    if not skip(folder, inputs):
        with working_on(folder, inputs):
            spec = load_spec(training.spec)
            for split, rows in splits.items():
                write_prompts(spec, rows, folder / split)
    return folder


@task(task_run_name="compare")
def compare(settings: RetrainSettings, training: PipelineSettings, pools: dict[str, Path], data: Path) -> Decision:
    """Decide between both policies, and write their report."""
    spec = load_spec(settings.spec)
    champion, challenger = (load_pool(pools[name]) for name in ("champion", "challenger"))
    decision = decide(champion, challenger, spec, load_prompts(spec, data / "test"), settings)
    command = ["vpo", "run", "retrain", *flags(settings)]
    log = training.folder / "train" / settings.method / "policy" / "vpo"
    report_pools(training, pools, data, shlex.join(command), {settings.method: training_curve(log)})
    get_run_logger().info(decision.reason)
    return decision


@task(task_run_name="record")
def record(
    settings: RetrainSettings,
    training: PipelineSettings,
    champion: Version,
    policy: str,
    candidates: int,
    decision: Decision,
    fresh: Rows,
) -> tuple[str, str]:
    """Add the challenger to the registry and promote it if it won; return `Promoted` or `Kept`, and why."""
    challenger = registry.add_version(
        settings.registry,
        policy=absolute(policy),
        spec=champion.spec,
        candidates=candidates,
        parent=champion.version,
        run=training.name,
        prompts=[fingerprint(row) for row in fresh],
        evaluation=decision.model_dump(),
    )
    name, outcome = "Kept", f"{champion.version} stays champion; {challenger.version} is in the registry."
    if decision.promote:
        try:
            registry.promote(settings.registry, challenger.version, over=champion.version, why=decision.reason)
            name, outcome = "Promoted", f"{challenger.version} is champion instead of {champion.version}."
        except ChampionChanged as error:
            outcome = str(error)
    if mirrored := mirror(settings.registry):
        get_run_logger().info(mirrored)
    versions = markdown_table(registry.HEADER, registry.overview(settings.registry))
    create_markdown_artifact(
        f"**{name}.** {decision.reason}\n\n{outcome}\n\n{table(decision, (champion.version, challenger.version))}\n"
        f"The registry `{settings.registry}`, the champion marked:\n\n{versions}\n{how_to_open(training.folder)}",
        key="decision",
        description="Whether the challenger replaced the champion, and all versions.",
    )
    return name, f"{decision.reason} {outcome}"


def challenger_settings(settings: RetrainSettings, champion: Version, fresh: Rows, held_out: Rows) -> PipelineSettings:
    """The settings of the challenger's own run, named by a digest of its inputs, so that a restart resumes it."""
    training = settings.training(
        model=champion.policy, steps=len(fresh) // settings.prompts_per_step, runs=settings.folder
    )
    made_from = [masked(training.model_dump(mode="json", exclude={"name", "runs"})), champion.version]
    return training.model_copy(update={"name": digest([made_from, model_digest(champion.policy), fresh, held_out])})


def unseen(spec: RewardSpec, split: str, number: int, seed: int, seen: set[str]) -> Rows:
    """At most `number` distinct rows of a split that were not seen before, in the order of the split.

    A specification's generator may be endless, so rows are read by number: ever more, until enough are new or more
    rows bring nothing new.
    """
    asked, new = 0, -1
    rows: dict[str, dict[str, Any]] = {}
    while len(rows) < number and len(rows) > new:
        new = len(rows)
        asked = max(2 * asked, len(seen) + number)
        given = list(read_rows(spec, split, asked, seed))
        rows = {key: row for row in given if (key := fingerprint(row)) not in seen}
        if len(given) < asked:
            break
    return list(rows.values())[:number]


def fingerprint(row: dict[str, Any]) -> str:
    """A digest of a prompt's text and label, which identify it."""
    return digest([row["prompt"], row["label"]])


def absolute(policy: str) -> str:
    """The absolute path of a policy's folder; a hub id is unchanged."""
    return str(Path(policy).resolve()) if Path(policy).exists() else policy


def skipped(why: str) -> State:
    """The state of a completed run that had nothing to do."""
    return Completed(name="Skipped", message=f"Skipped: {why}")

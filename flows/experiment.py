"""The experiment: several methods and seeds at matched compute, on the same held-out prompts.

`vpo experiment --methods grpo,vpo --seeds 0,1,2` trains one policy per method and seed (a cell), samples its pool, and
writes results.json, summary.md and the plots. Finished cells are kept, so a killed run can resume.
"""

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.futures import wait
from prefect.task_runners import ThreadPoolTaskRunner

from flows.hooks import how_to_open, show_picture
from flows.pipeline import (
    candidates_of,
    check_settings,
    check_trainings,
    evaluate,
    first_policy,
    prepare_data,
    prepare_policy,
    train,
)
from flows.process import stopping_threads
from flows.server import check_server
from flows.settings import ExperimentSettings, PipelineSettings
from flows.train import tells_weights
from vpo_plugin.cli.settings import flags
from vpo_plugin.files import digest
from vpo_plugin.locks import exit_on_sigterm, owned
from vpo_plugin.metrics import expected_set_reward, mean_pairwise_l1
from vpo_plugin.openrlhf.log import read_steps
from vpo_plugin.provenance import masked, provenance, versions
from vpo_plugin.report.experiment import write_experiment
from vpo_plugin.rewards import RewardSpec, load_spec
from vpo_plugin.search.comparison import BASE, Comparison
from vpo_plugin.search.experiment import analyse, at_their_best
from vpo_plugin.search.pool import Pool, load_pool, load_prompts, prompt_keys


def vpo_experiment(settings: ExperimentSettings) -> Path:
    """Run an experiment as a Prefect flow; return its folder."""
    if settings.parallel > 1:  # else each cell would use all cores
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // settings.parallel)))
    runner = ThreadPoolTaskRunner(max_workers=settings.parallel)  # type: ignore[var-annotated]
    with owned(settings.folder):
        return experiment_flow.with_options(task_runner=runner)(settings)


@flow(name="vpo-experiment", flow_run_name="{settings.name}")
def experiment_flow(settings: ExperimentSettings) -> Path:
    """Train every method with every seed, and compare their pools for search."""
    spec = load_spec(settings.spec)
    m = settings.candidates or spec.candidates
    base = prepare_policy(settings)
    seeds = {seed: cell_settings(settings, seed) for seed in settings.seeds}
    data = {seed: prepare_data(of_seed, test_seed=settings.seed) for seed, of_seed in seeds.items()}

    first = settings.seeds[0]
    check_trainings(seeds[first], spec, base, data[first])
    written = {1, *(candidates_of(method, m) for method in settings.methods)}
    begin = {candidates: first_policy(settings, base, candidates) for candidates in sorted(written)}
    heats = settings.temperatures
    folders = {(BASE, first): evaluate_at(heats, seeds[first], BASE, base, 1, data[first])}
    if m > 1 and any(candidates_of(method, m) == m for method in settings.methods):
        sets = evaluate_at(heats, seeds[first], f"{BASE}_sets_of_{m}", begin[m], m, data[first])
        folders[f"{BASE}, sets of {m}", first] = sets
    rollouts = single_rollouts(settings, m, [load_pool(by_heat[heats[0]]) for by_heat in folders.values()])

    # Threads of cells would race for lazy imports and for the lock of progress bars, so set both up first. A bar of
    # datasets.load_from_disk deletes a lock that it created.
    import tqdm
    import transformers.models.auto  # noqa: F401

    tqdm.tqdm.get_lock()
    futures = {}
    with stopping_threads():
        for seed in settings.seeds:
            for method in settings.methods:
                candidates = candidates_of(method, m)
                of_cell = seeds[seed]
                if candidates == 1:
                    of_cell = of_cell.model_copy(update={"candidates": 1, "rollouts_per_prompt": rollouts})
                futures[method, seed] = run_cell.submit(
                    of_cell, method, candidates, begin[candidates], data[seed], heats
                )
        wait(list(futures.values()))
    failed = {cell: future.state for cell, future in futures.items() if not future.state.is_completed()}
    if failed:
        named = ", ".join(f"{method} with seed {seed}" for method, seed in failed)
        error = next(iter(failed.values())).result(raise_on_failure=False)
        raise RuntimeError(
            f"{len(failed)} of {len(futures)} cells failed ({named}). The first error: {error} Finished cells are "
            "kept: the same command runs the others."
        )

    for method in settings.methods:
        for seed in settings.seeds:
            folders[method, seed] = futures[method, seed].result()
    return compare(settings, spec, folders, data[first])


@task(task_run_name="{method}-seed-{settings.seed}")
def run_cell(
    settings: PipelineSettings, method: str, candidates: int, base: str, data: Path, heats: list[float]
) -> dict[float, Path]:
    """Train one policy and sample its pools; return their folders by temperature."""
    policy = train(settings, method, candidates, base, data)
    return evaluate_at(heats, settings, method, policy, candidates, data, tells_weights(method))


def evaluate_at(
    heats: list[float],
    settings: PipelineSettings,
    name: str,
    policy: str,
    candidates: int,
    data: Path,
    tell_weights: bool = False,
) -> dict[float, Path]:
    """Sample a pool at each temperature; return their folders."""
    return {heat: evaluate(settings, name, policy, candidates, data, heat, tell_weights) for heat in heats}


def cell_settings(settings: ExperimentSettings, seed: int) -> PipelineSettings:
    """The settings of one seed's cells, whose folders are inside the experiment's."""
    shared = settings.model_dump(include=set(PipelineSettings.model_fields))
    return PipelineSettings(**shared | {"runs": settings.folder, "name": f"seed-{seed}", "seed": seed})


def single_rollouts(settings: ExperimentSettings, m: int, bases: list[Pool]) -> int:
    """Rollouts per prompt of a single-candidate method, matched to the compute of a set method.

    Matches candidates, or tokens by the lengths of the first policy's responses, rounded to an even number. Without a
    set method all methods write alike, and both are the same.
    """
    if settings.match == "candidates" or len(bases) == 1:
        return settings.rollouts_per_prompt * m
    single, sets = (float(pool.per_response("tokens").mean()) for pool in bases)
    return max(2, 2 * round(settings.rollouts_per_prompt * sets / single / 2))


def training_curves(log_dir: Path) -> dict[str, list[float]]:
    """Logged curves by step; E_w and L1 distance use all candidates of a prompt, so that methods are comparable."""
    keys = ("expected_set_reward", "pairwise_l1", "reward", "tokens", "candidates")
    curves: dict[str, list[float]] = {key: [] for key in keys}
    for step in read_steps(log_dir):
        with np.load(log_dir / "rollouts" / f"step_{step['step']:06d}.npz") as arrays:
            matrices = arrays["reward_matrices"].astype(float)
            present, there = arrays["mask"].any((1, 2)), arrays["mask"].any(-1)
        groups, rollouts, m, objectives = matrices.shape
        pools, there = matrices.reshape(groups, rollouts * m, objectives), there.reshape(groups, rollouts * m)
        worth = expected_set_reward(pools, seed=0, present=present, there=there)
        curves["expected_set_reward"].append(float(worth.mean()))
        curves["pairwise_l1"].append(float(mean_pairwise_l1(pools, there).mean()))
        curves["reward"].append(step["reward"])
        curves["tokens"].append(step["response_length"] * groups * rollouts)
        curves["candidates"].append(float(there.sum()))
    return curves


@task(task_run_name="compare")
def compare(
    settings: ExperimentSettings, spec: RewardSpec, folders: dict[tuple[str, int], dict[float, Path]], data: Path
) -> Path:
    """Compare all cells and write results.json, summary.md and the plots into the experiment's folder."""
    pools = {t: {cell: load_pool(of[t]) for cell, of in folders.items()} for t in settings.temperatures}
    rows = load_prompts(spec, data / "test")
    logs = settings.folder.glob  # finds logs in each seed's run
    training = {
        method: [
            training_curves(log) for seed in settings.seeds for log in logs(f"seed-{seed}/train/{method}/policy/vpo")
        ]
        for method in settings.methods
    }
    write_comparison(settings, spec, pools, rows, training, settings.folder)
    summary = (settings.folder / "summary.md").read_text()
    create_markdown_artifact(f"{summary.split('![', 1)[0]}\n{how_to_open(settings.folder)}", key="experiment")
    show_picture("best-at-k", (settings.folder / "best_at_k.png").read_bytes(), "best@k of each method against k.")
    print(f"\n{summary}\nResults: {settings.folder / 'results.json'}, plots beside it.")
    return settings.folder


def write_comparison(
    settings: ExperimentSettings,
    spec: RewardSpec,
    pools: dict[float, dict[tuple[str, int], Pool]],
    rows: Sequence[Mapping[str, Any]],
    training: dict[str, list[dict[str, list[float]]]],
    folder: Path,
    missing: Sequence[str] = (),
) -> None:
    """Write results.json, summary.md and the plots of an experiment.

    Args:
        pools: by temperature, then by method and seed.
        rows: the held-out prompts, as a pool has them.
        training: `training_curves` of each method's seeds.
        missing: the cells of the settings that `pools` lacks, in words.

    Raises:
        ValueError: a pool has other prompts or another temperature.
    """
    first, *others = settings.temperatures
    keys = prompt_keys(rows)
    for t, of in pools.items():
        for (name, seed), pool in of.items():
            if prompt_keys(pool.rows) != keys:
                raise ValueError(f"The pool of {name} with seed {seed} has other prompts than the first: sample again.")
            if (made := pool.made["temperature"]) != t:
                raise ValueError(f"The pool of {name} with seed {seed} for temperature {t:g} was sampled at {made:g}.")
    compared = {t: Comparison(of, spec, rows, match=settings.match) for t, of in pools.items()}
    m = settings.candidates or spec.candidates
    at = [{"temperature": t, **analyse(compared[t], candidates=m)} for t in others]
    if others:
        chosen = at_their_best(compared)
        best = {(name, seed): pools[chosen[name]][name, seed] for name, seed in pools[first]}
        figures = analyse(Comparison(best, spec, rows, match=settings.match), candidates=m)
        at.append({"temperature": chosen, **figures})
    methods = [method for method in settings.methods if method in compared[first].policies]
    results = {
        "title": f"{settings.name}: {', '.join(methods)} on {spec.name}",
        **provenance(shlex.join(["vpo", "experiment", *flags(settings)])),
        "spec": spec.name,
        "objectives": compared[first].objectives,
        "prompts": len(rows),
        "seeds": [seed for seed in settings.seeds if any((method, seed) in pools[first] for method in methods)],
        "missing": list(missing),
        "prompts_digest": digest([row["input"] for row in rows]),
        "pool_versions": pool_versions(pool for of in pools.values() for pool in of.values()),
        "settings": masked(settings.model_dump(mode="json")),
        "temperature": first,
        **analyse(compared[first], training, candidates=m),
        "at": at,
    }
    write_experiment(results, pools, folder)


def pool_versions(pools: Iterable[Pool]) -> list[dict[str, str]]:
    """The versions with which pools were sampled, each once, without those of this environment."""
    found = [dict(pool.made.get("versions", {})) for pool in pools]
    known = [{}, versions()]
    return [made for number, made in enumerate(found) if made not in [*known, *found[:number]]]


def main(settings: ExperimentSettings) -> int:
    """Run an experiment."""
    exit_on_sigterm()
    check_server()
    check_experiment(settings)
    vpo_experiment(settings)
    return 0


def check_experiment(settings: ExperimentSettings) -> None:
    """Check methods and settings (`check_settings`) before anything is spent.

    Raises:
        ValueError: a method cannot be matched by tokens, or see `check_settings`.
        OSError: see `check_settings`.
    """
    spec = load_spec(settings.spec)
    m = settings.candidates or spec.candidates
    for method in settings.methods:
        if settings.match == "tokens" and (candidates := candidates_of(method, m)) not in (1, m):
            raise ValueError(
                f"{method} writes {candidates} candidates in a response, and set methods write {m}: with match=tokens "
                f"the lengths of other responses are not known. Set candidates to {candidates}, or match candidates."
            )
    check_settings(settings, spec)

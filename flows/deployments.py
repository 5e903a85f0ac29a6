"""The deployable flows that prefect.yaml names: the pipeline, its parts, and retraining."""

import shlex
from pathlib import Path

from prefect import task
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.parameters import settings_flow
from flows.pipeline import check_disk, evaluate, pipeline, prepare_data, report_pools, train_all
from flows.retrain import retrain
from flows.settings import DataSettings, PipelineSettings, SearchSettings
from vpo_plugin.cli.settings import flags
from vpo_plugin.models import check_policy, resolve_policy
from vpo_plugin.rewards import check_spec, load_spec
from vpo_plugin.rewards.fit import budget_mistake


@settings_flow(DataSettings, name="prepare-data")
def prepare_data_flow(settings: DataSettings) -> State:
    """Check a specification and write its training and held-out prompts; a pipeline of that name reuses them."""
    check_spec(load_spec(settings.spec))
    folder = prepare_data(settings)
    training, held_out = settings.train_prompts, settings.eval_prompts
    return Completed(message=f"{training} training prompts and {held_out} held-out prompts are in {folder}.")


@settings_flow(PipelineSettings, name="train")
def train_flow(settings: PipelineSettings) -> State:
    """Train a policy with each method; a pipeline with the same parameters reuses them."""
    _, policies = train_all(settings)
    trained = [policies[method][0] for method in settings.methods]
    return Completed(message=f"Trained with {', '.join(settings.methods)}: {', '.join(trained)}.")


@settings_flow(SearchSettings, name="search-eval")
def search_eval(settings: SearchSettings) -> State:
    """Compare any policies as search would use them."""
    check_search(settings)
    check_spec(load_spec(settings.spec))
    data = prepare_data(settings)
    shared = PipelineSettings(**settings.model_dump(exclude={"policies"}))
    pools = {}
    for policy in settings.policies:
        model = resolve_policy(policy.model, settings.folder / "policy")
        told = policy.tell_weights
        pools[policy.name] = evaluate(shared, policy.name, model, policy.candidates, data, tell_weights=told)
    command = ["vpo", "run", "search-eval", *flags(settings)]
    return Completed(message=report_search(settings, pools, data, shlex.join(command)))


def check_search(settings: SearchSettings) -> None:
    """Check the policies, and that their candidates fit in a response, before anything is spent.

    Raises:
        ValueError: the candidates of a policy do not fit.
        OSError: a policy's folder has no model, or the disk is full.
    """
    spec = load_spec(settings.spec)
    for policy in settings.policies:
        check_policy(policy.model)
        if mistake := budget_mistake(spec, policy.candidates, settings.max_new_tokens, "max_new_tokens"):
            raise ValueError(mistake)
    check_disk(settings.folder.resolve())


@task(task_run_name="report")
def report_search(settings: SearchSettings, pools: dict[str, Path], data: Path, command: str) -> str:
    """Compare the pools and write report.json, report.html and best_at_k.png; return the result as a sentence."""
    return report_pools(settings, pools, data, command, training={})


FLOWS = {flow.name: flow for flow in (pipeline, prepare_data_flow, train_flow, search_eval, retrain)}

"""Plan a run without running it: its stages, and the host's exact commands."""

import shlex
import tempfile
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from flows.deployments import check_search
from flows.pipeline import candidates_of, check_settings, taught_policy, training_commands
from flows.retrain import check_retraining
from flows.settings import DataSettings, PipelineSettings, RetrainSettings, RunSettings, SearchSettings, TrainSettings
from vpo_plugin.models import SMOLLM2, SMOLLM2_FILE, resolve_policy, smollm2_package
from vpo_plugin.provenance import masked
from vpo_plugin.rewards import RewardSpec, load_spec
from vpo_plugin.rewards.labels import write_prompts
from vpo_plugin.rewards.task import read_rows


def plan(flow: str, settings: BaseModel) -> str:
    """The stages of a flow with these settings, after the flow's own checks; only the Ray cluster is not asked.

    Raises:
        ValueError: the settings cannot work.
        OSError: the policy or its tokenizer cannot be read.
    """
    assert isinstance(settings, DataSettings | SearchSettings)
    check(settings.model_copy(update={"cluster": None}) if isinstance(settings, TrainSettings) else settings)
    spec = load_spec(settings.spec)
    stages = [("check-spec", f"{spec.name}: k = {len(spec.objective_keys)} objectives, m = {spec.candidates}")]
    if isinstance(settings, RetrainSettings):
        stages += _retraining(settings, spec)
    else:
        stages.append(("prepare-data", f"{_prompts(settings)}, into {settings.folder / 'data'}"))
    if isinstance(settings, PipelineSettings):
        stages += [("prepare-policy", settings.model), *_training(settings, spec)]
        if flow == "pipeline":
            stages += [_evaluation(settings, name) for name in ("base", *settings.methods)]
    if isinstance(settings, SearchSettings):
        stages += [_evaluation(settings, policy.name) for policy in settings.policies]
    if flow in ("pipeline", "search-eval"):
        stages.append(("report", str(settings.folder / "report.html")))
    title = f"{flow} '{settings.name}' in {settings.folder}"
    return "\n".join([title, *(f"{n:3}  {name:20}{what}" for n, (name, what) in enumerate(stages, start=1))])


def check(settings: BaseModel) -> None:
    """Run the checks that a flow with these settings runs at its start. Raises what `plan` raises."""
    assert isinstance(settings, RunSettings)
    spec = load_spec(settings.spec)
    if isinstance(settings, RetrainSettings):
        check_retraining(settings)
    elif isinstance(settings, PipelineSettings):
        check_settings(settings, spec)
    elif isinstance(settings, SearchSettings):
        check_search(settings)


def _prompts(settings: DataSettings | SearchSettings) -> str:
    return f"{settings.train_prompts} prompts to train on, {settings.eval_prompts} held out"


def _retraining(settings: RetrainSettings, spec: RewardSpec) -> list[tuple[str, str]]:
    champion = ("find-champion", f"of {settings.registry}; in a new registry, {settings.model} becomes the first")
    prompts = (
        "choose-prompts",
        f"at most {settings.train_prompts} that no version was trained on, 'skipped' below {settings.min_new_prompts}; "
        f"{settings.eval_prompts} held out",
    )
    training = settings.training()
    return [
        champion,
        prompts,
        *_training(training, spec, "for a first retraining with all these prompts: "),
        *(_evaluation(settings, name) for name in ("champion", "challenger")),
        ("compare", f"best@{settings.deployment_k} above {settings.margin:+g}, guarded: pass@1, format rate"),
        ("record", f"into {settings.registry}"),
    ]


def _evaluation(settings: TrainSettings | SearchSettings, name: str) -> tuple[str, str]:
    return f"evaluate-{name}", f"{settings.eval_candidates} candidates for each of {settings.eval_prompts} prompts"


def _training(settings: PipelineSettings, spec: RewardSpec, note: str = "") -> list[tuple[str, str]]:
    """One stage per method, with the host's command, and before it the warm start that its policy comes from."""
    policy, tokenizer = _policy(settings)
    stages = []
    with tempfile.TemporaryDirectory() as folder:  # the command depends on the longest prompt
        data, base = Path(folder).resolve() / "data", Path(folder).resolve() / "policy"
        write_prompts(spec, list(read_rows(spec, "train", settings.train_prompts, settings.seed)), data / "train")
        tokenizer.save_pretrained(base)
        for method, command in training_commands(settings, spec, str(base), data).items():
            candidates = candidates_of(method, settings.candidates or spec.candidates)
            taught = taught_policy(settings, candidates)
            first = str(taught.resolve()) if taught else policy
            warm_start = (f"warm-start-{candidates}", f"from {policy}, into {first}")
            if taught and warm_start not in stages:
                stages.append(warm_start)
            final = {str(data): str((settings.folder / "data").resolve()), str(base): first}
            for scratch, place in final.items():
                command = [part.replace(scratch, place) for part in command]
            stages.append(
                (f"train-{method}", f"{note}{settings.steps} steps\n\n{_wrapped(shlex.join(masked(command)))}\n")
            )
    return stages


def _policy(settings: PipelineSettings) -> tuple[str, Any]:
    """The place of the policy to start from, and its tokenizer."""
    from transformers import AutoTokenizer

    cache = settings.folder / "policy"
    if settings.model == SMOLLM2:
        return str(cache / SMOLLM2), AutoTokenizer.from_pretrained(smollm2_package(), gguf_file=SMOLLM2_FILE)
    policy = resolve_policy(settings.model, cache)
    try:
        return policy, AutoTokenizer.from_pretrained(policy)
    except (OSError, ValueError) as error:
        raise OSError(
            f"The command depends on the tokenizer of {policy}, which cannot be loaded: {str(error).splitlines()[0]}"
        ) from error


def _wrapped(command: str) -> str:
    """The command with one flag per line, to read or paste."""
    return "     " + command.replace(" --", " \\\n       --")

"""`vpo evaluate`: sample a pool of candidates for each held-out prompt of a specification, score it, and store it."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vpo_plugin import files
from vpo_plugin.locks import owned
from vpo_plugin.provenance import masked, versions
from vpo_plugin.rewards import RewardSpec, ScoredResponse, load_spec
from vpo_plugin.rewards.files import code_digest
from vpo_plugin.rewards.fit import budget_mistake, naming_mistake, room
from vpo_plugin.rewards.sandbox import UNSAFE
from vpo_plugin.rewards.scoring import Item, OnError, Scoring
from vpo_plugin.rewards.task import read_rows
from vpo_plugin.search.policy import (
    Endpoint,
    Engine,
    Policy,
    Request,
    as_chat,
    fingerprint,
    most_tokens,
    prepare_environment,
)
from vpo_plugin.search.pool import (
    Pool,
    as_rows,
    batch_file,
    claim_folder,
    full_prompt,
    load_pool,
    load_prompts,
    random_goals,
    say_repeats,
    write_rows,
)
from vpo_plugin.search.settings import PolicySettings


def evaluate(
    settings: PolicySettings, rollouts: int, batch: int, folder: Path, command: Sequence[str]
) -> tuple[Pool, RewardSpec, list[dict[str, Any]]]:
    """Sample the missing part of a pool; return the pool, its specification and its prompts.

    Args:
        rollouts: responses per prompt.
        batch: prompts to sample and store at a time.
        folder: the pool's folder; resumed if it exists.
        command: the words of the command, kept with the pool.

    Raises:
        RuntimeError: another command works in the folder, or see `sample_pool`.
    """
    if settings.temperature == 0 and rollouts > 1:
        raise ValueError(
            f"temperature is 0, so all {rollouts} responses to a prompt would be the same: ask for 1 "
            "(--rollouts 1), or sample at a temperature above 0."
        )
    spec, rows, made = read_task(settings)
    made |= {"rollouts": rollouts, "batch": batch, "command": masked(command)}
    claim_folder(folder, made)
    if any(not batch_file(folder, n).exists() for n in range(-(-len(rows) // batch))):
        with owned(folder):
            policy = make_policy(settings, spec, rows, made)
            sample_pool(policy, spec, rows, made, folder, settings.on_scorer_error)
    return load_pool(folder), spec, rows


def sample_pool(
    policy: Policy,
    spec: RewardSpec,
    rows: Sequence[dict[str, Any]],
    settings: dict[str, Any],
    folder: Path,
    on_scorer_error: OnError = "raise",
) -> None:
    """Sample, score and store the missing batches of a claimed folder.

    Raises:
        RuntimeError: the policy cannot be reached, or the scorer failed; stored batches are kept.
    """
    batch, candidates = settings["batch"], settings["candidates"]
    scoring = Scoring(spec, on_error=on_scorer_error, failures=folder)
    with scoring, progress_bar(len(rows), "prompt", "Sampling") as bar:
        for number, first in enumerate(range(0, len(rows), batch)):
            numbers = range(first, min(first + batch, len(rows)))
            file, seed = batch_file(folder, number), batch_seed(settings["seed"], number)
            if file.exists():
                bar.initial += len(numbers)  # exclude stored prompts from the estimate of time left
                bar.update(len(numbers))
                continue
            requests = [request for i in numbers for request in _requests(spec, rows[i], settings)]
            responses = iter([response for of_one in policy.generate(requests, seed) for response in of_one])
            samples = [
                {"prompt": i, "rollout": rollout, **rows[i], "response": response.text, "tokens": response.tokens}
                for i in numbers
                for rollout, response in zip(range(settings["rollouts"]), responses, strict=False)
            ]
            scores = score_samples(scoring, samples, candidates)
            stored = [
                sample | as_columns(score) | {"seed": seed} for sample, score in zip(samples, scores, strict=True)
            ]
            write_rows(file, stored)
            bar.update(len(numbers))
    if said := scoring.summary():
        print(said, file=sys.stderr)


def score_samples(scoring: Scoring, samples: Sequence[dict[str, Any]], candidates: int) -> Iterator[ScoredResponse]:
    """The scores of samples (prompt, input, label as JSON, response), in their order."""
    labels = {text: json.loads(text) for text in {sample["label"] for sample in samples}}
    return scoring.score(
        Item(
            s["response"],
            labels[s["label"]],
            candidates,
            f"A response to prompt {s['prompt']}",
            s["input"],
            s["prompt"],
        )
        for s in samples
    )


def progress_bar(total: int, unit: str, what: str) -> "tqdm[Any]":
    """A progress bar with the time left; in a log, at most one line every ten seconds."""
    return tqdm(total=total, unit=unit, desc=what, mininterval=0.1 if sys.stderr.isatty() else 10)


def _requests(spec: RewardSpec, row: dict[str, Any], settings: dict[str, Any]) -> list[Request]:
    """One request for all responses to a prompt, or one per response if each has its own goal."""
    candidates, rollouts = settings["candidates"], settings["rollouts"]
    if not settings["tell_weights"]:
        return [Request(full_prompt(spec, row["input"], candidates), rollouts)]
    goals = random_goals(spec, row["label"], range(rollouts), settings["seed"])
    return [Request(full_prompt(spec, row["input"], candidates, goal)) for goal in goals]


def as_columns(score: ScoredResponse) -> dict[str, Any]:
    """The stored columns of a scored response."""
    return {
        "candidates": score.candidates,
        "rewards": score.matrix.tolist(),
        "parsed": score.parsed,
        "unique": score.unique,
        "error": score.error,
    }


def batch_seed(seed: int, number: int) -> int:
    """The 32-bit seed of a batch, which depends only on the run's seed and the batch's number."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def read_task(
    settings: PolicySettings, rows: list[dict[str, Any]] | None = None
) -> tuple[RewardSpec, list[dict[str, Any]], dict[str, Any]]:
    """The specification, the prompts (input, label as JSON), and the settings that decide what is sampled.

    Args:
        rows: the prompts; default: those that the settings name.

    Raises:
        ValueError: the settings cannot work.
        FileNotFoundError: the dataset or the model does not exist.
    """
    if settings.unsafe_no_sandbox:
        os.environ[UNSAFE] = "1"
    spec = load_spec(settings.spec)
    candidates = spec.candidates if settings.candidates is None else settings.candidates
    max_new_tokens = room(spec, candidates) if settings.max_new_tokens is None else settings.max_new_tokens
    if mistake := budget_mistake(spec, candidates, max_new_tokens, "--max_new_tokens"):
        raise ValueError(mistake)
    if settings.tell_weights and (mistake := naming_mistake(spec, "--tell_weights")):
        raise ValueError(mistake)
    if rows is None and settings.data is not None:
        columns = (settings.input_key, settings.label_key)
        rows = load_prompts(spec, settings.data, settings.split, columns)[: settings.prompts]
    elif rows is None:
        rows = as_rows(read_rows(spec, "test", settings.prompts or 100, settings.seed))
    if not rows:
        raise ValueError(f"There are no prompts: {settings.data or spec.name} is empty.")
    if said := say_repeats(rows):
        print(said, file=sys.stderr)
    return (
        spec,
        rows,
        {
            "model": settings.model,
            "fingerprint": None if settings.url else fingerprint(settings.model),
            "url": settings.url,
            "api": settings.api if settings.url else None,
            "spec": settings.spec,
            # Without the dataset, whose prompts have a digest of their own: a file of prompts is named by its place.
            "spec_digest": files.digest(spec.model_dump(mode="json", exclude={"dataset"})),
            "code_digest": code_digest(spec),
            "objectives": list(spec.objective_keys),
            "prompts": len(rows),
            "prompts_digest": files.digest(rows),
            "candidates": candidates,
            "max_new_tokens": max_new_tokens,
            "temperature": settings.temperature,
            "seed": settings.seed,
            "tell_weights": settings.tell_weights,
            **({"chat_template_kwargs": settings.chat_template_kwargs} if settings.chat_template_kwargs else {}),
            "versions": versions(),
        },
    )


def make_policy(
    settings: PolicySettings, spec: RewardSpec, rows: Sequence[dict[str, Any]], made: dict[str, Any], more: int = 0
) -> Policy:
    """The policy that the settings name; it accepts prompts up to `more` tokens longer than the task's."""
    options = settings.chat_template_kwargs
    sampling = {
        "max_new_tokens": made["max_new_tokens"],
        "temperature": made["temperature"],
        "chat_template_kwargs": options,
    }
    if settings.url:
        return Endpoint(
            settings.url,
            settings.model,
            api=settings.api,
            at_once=settings.at_once,
            timeout=settings.timeout,
            **sampling,
        )
    prepare_environment()
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(settings.model)
    goal = [0.25] * len(spec.objective_keys) if settings.tell_weights else None  # all goals have this length
    texts = as_chat([full_prompt(spec, row["input"], made["candidates"], goal) for row in rows], tokenizer, options)
    return Engine(settings.model, longest=most_tokens(texts, tokenizer), more=more, **sampling)

"""``vpo evaluate``: sample a pool of candidates for each held-out prompt of a specification, score it, and store it."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vpo_plugin import files
from vpo_plugin.provenance import versions
from vpo_plugin.rewards import RewardSpec, ScoredResponse, load_spec
from vpo_plugin.rewards.sandbox import UNSAFE
from vpo_plugin.rewards.scoring import score_all
from vpo_plugin.rewards.task import read_rows
from vpo_plugin.search.policy import Endpoint, Engine, Policy, Request, as_chat, fingerprint, prepare_environment
from vpo_plugin.search.pool import (
    batch_file,
    claim_folder,
    load_pool,
    load_prompts,
    prompt_text,
    random_goals,
    write_rows,
)


def main(arguments: list[str] | None = None) -> int:
    """The command; prints the pool's measures."""
    parser = argparse.ArgumentParser(prog="vpo evaluate", description=__doc__)
    add_policy_flags(parser)
    parser.add_argument("--rollouts", type=int, required=True, metavar="N", help="responses for each prompt")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="prompts sampled and stored at a time (32)")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="the pool; gone on with if begun")
    args = parser.parse_args(arguments)
    if args.rollouts < 1 or args.batch < 1:
        raise ValueError(f"--rollouts ({args.rollouts}) and --batch ({args.batch}) must be at least 1.")
    spec, rows, settings = read_task(args)
    settings |= {"rollouts": args.rollouts, "batch": args.batch}
    claim_folder(args.output, settings)
    if any(not batch_file(args.output, n).exists() for n in range(-(-len(rows) // args.batch))):
        policy = make_policy(args, spec, rows, settings)
        sample_pool(policy, spec, rows, settings, args.output)

    from vpo_plugin.report.tables import format_table
    from vpo_plugin.search.comparison import compare_pools

    print(format_table(compare_pools({(args.output.name, 0): load_pool(args.output)}, spec, rows)))
    return 0


def sample_pool(
    policy: Policy, spec: RewardSpec, rows: Sequence[dict[str, Any]], settings: dict[str, Any], folder: Path
) -> None:
    """Sample, score and store the batches that a claimed folder does not hold yet.

    Raises:
        RuntimeError: the policy cannot be asked, or the scorer failed; what was stored before is kept.
    """
    batch, candidates = settings["batch"], settings["candidates"]
    with progress_bar(len(rows), "prompt", "Sampling") as bar:
        for number, first in enumerate(range(0, len(rows), batch)):
            numbers = range(first, min(first + batch, len(rows)))
            file, seed = batch_file(folder, number), batch_seed(settings["seed"], number)
            if file.exists():
                bar.initial += len(numbers)  # the time left is reckoned from what is sampled now
                bar.update(len(numbers))
                continue
            requests = [request for i in numbers for request in _requests(spec, rows[i], settings)]
            responses = iter([response for of_one in policy.generate(requests, seed) for response in of_one])
            samples = [
                {"prompt": i, "rollout": rollout, **rows[i], "response": response.text, "tokens": response.tokens}
                for i in numbers
                for rollout, response in zip(range(settings["rollouts"]), responses, strict=False)
            ]
            scores = score_all(spec, [(sample["response"], sample["label"]) for sample in samples], candidates)
            stored = [
                sample | as_columns(score) | {"seed": seed} for sample, score in zip(samples, scores, strict=True)
            ]
            write_rows(file, stored)
            bar.update(len(numbers))


def progress_bar(total: int, unit: str, what: str) -> "tqdm[Any]":
    """A progress bar with the time left; in a log a line every ten seconds at most."""
    return tqdm(total=total, unit=unit, desc=what, mininterval=0.1 if sys.stderr.isatty() else 10)


def _requests(spec: RewardSpec, row: dict[str, Any], settings: dict[str, Any]) -> list[Request]:
    """One request for all responses to a prompt, or one for each, if each is told a goal of its own."""
    candidates, rollouts = settings["candidates"], settings["rollouts"]
    if not settings["tell_weights"]:
        return [Request(prompt_text(spec, row["input"], candidates), rollouts)]
    goals = random_goals(spec, row["label"], range(rollouts), settings["seed"])
    return [Request(prompt_text(spec, row["input"], candidates, goal)) for goal in goals]


def as_columns(score: ScoredResponse) -> dict[str, Any]:
    """What is stored of a scored response."""
    return {
        "candidates": score.candidates,
        "rewards": score.matrix.tolist(),
        "parsed": score.parsed,
        "unique": score.unique,
    }


def batch_seed(seed: int, number: int) -> int:
    """The seed of a batch: 32 bits that depend on the run's seed and the batch's number alone."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


# ------------------------------------------------------------------------------------------------ flags


def add_policy_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say which policy is asked for what: shared by `vpo evaluate` and `vpo search`."""
    parser.add_argument(
        "--model", required=True, help="model folder or Hugging Face id; with --url the model's name there"
    )
    parser.add_argument("--spec", required=True, help="reward specification, by name or path")
    parser.add_argument(
        "--candidates", type=int, metavar="M", help="candidates in one response (the specification's m)"
    )
    parser.add_argument("--prompts", type=int, metavar="N", help="held-out prompts (100, or all of --data)")
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="dataset on disk with the columns input and label, for the prompts"
    )
    parser.add_argument("--max_new_tokens", type=int, metavar="N", help="longest response (the specification's budget)")
    parser.add_argument("--temperature", type=float, default=1.0, help="sampling temperature (1.0)")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts' choice and of the sampling (0)")
    parser.add_argument(
        "--tell_weights", action="store_true", help="tell each prompt random objective weights (goal_conditioned)"
    )
    parser.add_argument(
        "--url", help="OpenAI-compatible endpoint, such as http://localhost:8000/v1; else vLLM in process"
    )
    parser.add_argument(
        "--api", choices=["chat", "completions"], default="chat", help="the endpoint's interface (chat)"
    )
    parser.add_argument(
        "--unsafe-no-sandbox", action="store_true", help="run programs that are scored without a boundary"
    )
    parser.add_argument("--at_once", type=int, default=32, metavar="N", help="requests to the endpoint at a time (32)")
    parser.add_argument("--timeout", type=float, default=600, metavar="S", help="seconds for one request to it (600)")


def read_task(
    args: argparse.Namespace, rows: list[dict[str, Any]] | None = None
) -> tuple[RewardSpec, list[dict[str, Any]], dict[str, Any]]:
    """The specification, the prompts (input, label as JSON), and the settings that decide what is sampled.

    Args:
        rows: the prompts, where they are not those that the flags name.

    Raises:
        ValueError: settings that cannot work.
        FileNotFoundError: no such dataset or model.
    """
    if args.unsafe_no_sandbox:
        os.environ[UNSAFE] = "1"
    spec = load_spec(args.spec)
    candidates = spec.candidates if args.candidates is None else args.candidates
    if candidates < 1 or (args.prompts is not None and args.prompts < 1):
        raise ValueError("--candidates and --prompts must be at least 1.")
    if args.temperature < 0 or args.seed < 0 or args.at_once < 1:
        raise ValueError("--temperature and --seed cannot be negative, and --at_once must be at least 1.")
    budget = candidates * spec.limits.tokens_per_candidate
    max_new_tokens = budget if args.max_new_tokens is None else args.max_new_tokens
    if max_new_tokens < budget:
        raise ValueError(
            f"--max_new_tokens is {max_new_tokens}, {candidates} candidates of {spec.name!r} take {budget}."
        )
    if rows is not None:
        pass
    elif args.data is not None:
        rows = [{"input": row["input"], "label": row["label"]} for row in load_prompts(args.data)][: args.prompts]
    else:
        drawn = read_rows(spec, "test", args.prompts or 100, args.seed)
        rows = [{"input": row["prompt"], "label": json.dumps(row["label"])} for row in drawn]
    if args.tell_weights and spec.ragged:
        raise ValueError(
            f"--tell_weights names the objectives, and those of {spec.name!r} differ from prompt to prompt."
        )
    if not rows:
        raise ValueError(f"There are no prompts: {args.data or spec.name} is empty.")
    return (
        spec,
        rows,
        {
            "model": args.model,
            "fingerprint": None if args.url else fingerprint(args.model),
            "url": args.url,
            "api": args.api if args.url else None,
            "spec": args.spec,
            "spec_digest": files.digest(spec.model_dump(mode="json")),
            "prompts": len(rows),
            "prompts_digest": files.digest(rows),
            "candidates": candidates,
            "max_new_tokens": max_new_tokens,
            "temperature": args.temperature,
            "seed": args.seed,
            "tell_weights": args.tell_weights,
            "versions": versions(),
        },
    )


def make_policy(
    args: argparse.Namespace, spec: RewardSpec, rows: Sequence[dict[str, Any]], settings: dict[str, Any], more: int = 0
) -> Policy:
    """The policy that the flags name; prompts may be `more` tokens longer than those of the task."""
    sampling = {"max_new_tokens": settings["max_new_tokens"], "temperature": settings["temperature"]}
    if args.url:
        return Endpoint(args.url, args.model, api=args.api, at_once=args.at_once, timeout=args.timeout, **sampling)
    prepare_environment()
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(args.model)
    goal = [0.25] * len(spec.objective_keys) if args.tell_weights else None  # all goals are as long
    texts = as_chat([prompt_text(spec, row["input"], settings["candidates"], goal) for row in rows], tokenizer)
    longest = max(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))
    return Engine(args.model, longest=longest + more, **sampling)


if __name__ == "__main__":
    sys.exit(main())

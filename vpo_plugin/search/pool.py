"""Sample a pool of candidates for each held-out prompt with vLLM, score it, and store all of it.

``python -m vpo_plugin.search.pool`` runs in a process of its own, because an engine does not give back everything it
takes. A pool is a folder: ``pool.npz`` with ``reward_matrices`` (prompts, rollouts, candidates, objectives),
``responses.jsonl`` with one line a rollout, and ``pool.json`` with how it was made.
"""

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vpo_plugin.advantages import goal_weights, write_goal
from vpo_plugin.openrlhf import cpu
from vpo_plugin.rewards import RewardSpec, load_spec


@dataclass(frozen=True)
class Sampling:
    """How a pool is sampled."""

    rollouts: int
    """Responses for each prompt."""
    candidates: int
    """Candidates that each response is asked for (m)."""
    max_new_tokens: int
    temperature: float = 1.0
    seed: int = 0
    tell_weights: bool = False
    """Whether each rollout's prompt tells it objective weights of its own, drawn at random (``goal_conditioned``)."""


@dataclass(frozen=True)
class Pool:
    """A stored pool."""

    reward_matrices: np.ndarray
    """(prompts, rollouts, candidates, objectives), float32; NaN where a prompt has fewer objectives than another."""
    responses: list[dict[str, Any]]
    """One a rollout, prompt by prompt: prompt index, response text, candidates, tokens, parsed, unique."""
    made: dict[str, Any]
    """Model, spec, sampling and seconds."""

    @property
    def candidates(self) -> np.ndarray:
        """All candidates of a prompt in one row, (prompts, rollouts · candidates, objectives)."""
        prompts, rollouts, candidates, objectives = self.reward_matrices.shape
        return self.reward_matrices.reshape(prompts, rollouts * candidates, objectives)


def load_pool(folder: Path) -> Pool:
    """Read a stored pool.

    Raises:
        FileNotFoundError: the folder holds no finished pool.
    """
    if not (folder / "pool.json").exists():
        raise FileNotFoundError(f"{folder} holds no finished pool (no pool.json).")
    with np.load(folder / "pool.npz") as arrays:
        matrices = arrays["reward_matrices"]
    responses = [json.loads(line) for line in (folder / "responses.jsonl").read_text().splitlines()]
    return Pool(matrices, responses, json.loads((folder / "pool.json").read_text()))


def load_prompts(dataset: Path) -> list[dict[str, Any]]:
    """The rows of a dataset on disk (``datasets.Dataset.save_to_disk``), keys ``input`` and ``label``."""
    from datasets import load_from_disk

    return load_from_disk(str(dataset)).to_list()


def render_prompts(
    spec: RewardSpec,
    prompts: list[str],
    candidates: int,
    tokenizer: Any,
    goals: list[list[float]] | None = None,
) -> list[str]:
    """What the policy reads: the prompt with its instruction, in the chat template where the tokenizer has one.

    Args:
        goals: the objective weights that each prompt is told, if any.
    """
    rendered = [spec.render_prompt(prompt, candidates) for prompt in prompts]
    if goals is not None:
        keys = spec.objective_keys
        rendered = [write_goal(text, keys, goal) for text, goal in zip(rendered, goals, strict=True)]
    if not tokenizer.chat_template:
        return rendered
    return [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
        for text in rendered
    ]


def random_goals(spec: RewardSpec, labels: list[str], number: int, seed: int) -> list[list[float]]:
    """Objective weights to tell, ``number`` for each label: every draw is another one, the same in every run."""
    objectives = len(spec.objective_keys)
    return [goal_weights(f"{i} {label}", objectives, seed=seed) for label in labels for i in range(number)]


def sample_pool(model: str, spec: RewardSpec, rows: list[dict[str, Any]], sampling: Sampling, folder: Path) -> Pool:
    """Sample, score and store a pool for ``rows`` with keys ``input`` and ``label``."""
    import torch
    from transformers import AutoTokenizer
    from vllm import LLM, SamplingParams, TokensPrompt

    started = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(model)
    inputs, goals, each = [row["input"] for row in rows], None, sampling.rollouts
    if sampling.tell_weights:  # every rollout has a prompt of its own
        goals = random_goals(spec, [row["label"] for row in rows], sampling.rollouts, sampling.seed)
        inputs, each = [prompt for prompt in inputs for _ in range(sampling.rollouts)], 1
    texts = render_prompts(spec, inputs, sampling.candidates, tokenizer, goals)
    prompts = [TokensPrompt(prompt_token_ids=ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    longest = max(len(prompt["prompt_token_ids"]) for prompt in prompts)
    engine = LLM(
        model=model,
        dtype="bfloat16",
        seed=sampling.seed,  # the engine's: seeds of single requests fail in vLLM 0.29's CPU sampler
        max_model_len=longest + sampling.max_new_tokens,
        enforce_eager=not torch.cuda.is_available(),
    )
    outputs = engine.generate(
        prompts,
        SamplingParams(
            n=each,
            temperature=sampling.temperature,
            max_tokens=sampling.max_new_tokens,
            skip_special_tokens=False,
        ),
    )
    matrices, responses = [], []
    samples = [sample for output in outputs for sample in output.outputs]
    for number, row in enumerate(rows):
        for sample in samples[number * sampling.rollouts : (number + 1) * sampling.rollouts]:
            scored = spec.score_response(sample.text, row["label"], sampling.candidates)
            matrices.append(scored.matrix)
            responses.append(
                {
                    "prompt": number,
                    "response": sample.text,
                    "candidates": scored.candidates,
                    "tokens": len(sample.token_ids),
                    "parsed": scored.parsed,
                    "unique": scored.unique,
                }
            )
    made = {
        "model": model,
        "spec": spec.name,
        **asdict(sampling),
        "seconds": round(time.monotonic() - started, 1),
    }
    columns = max(matrix.shape[1] for matrix in matrices)
    padded = [np.pad(matrix, ((0, 0), (0, columns - matrix.shape[1])), constant_values=np.nan) for matrix in matrices]
    shape = (len(rows), sampling.rollouts, sampling.candidates, columns)
    pool = Pool(np.array(padded, dtype=np.float32).reshape(shape), responses, made)
    _save(pool, folder)
    return pool


def _save(pool: Pool, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "pool.npz", reward_matrices=pool.reward_matrices)
    with (folder / "responses.jsonl").open("w") as file:
        file.writelines(json.dumps(response) + "\n" for response in pool.responses)
    unfinished = folder / "pool.json.tmp"
    unfinished.write_text(json.dumps(pool.made, indent=2))
    unfinished.rename(folder / "pool.json")  # last: its presence says that the pool is whole


def main() -> None:
    """Sample one pool; the flags are those of ``Sampling``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="model folder or Hugging Face id")
    parser.add_argument("--spec", required=True, help="reward specification, by name or path")
    parser.add_argument("--prompts", type=Path, required=True, help="dataset on disk with the columns input and label")
    parser.add_argument("--output", type=Path, required=True, help="folder of the pool")
    parser.add_argument("--rollouts", type=int, required=True)
    parser.add_argument("--candidates", type=int, required=True)
    parser.add_argument("--max_new_tokens", type=int, required=True)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--tell_weights", action="store_true", help="tell each rollout random objective weights (goal_conditioned)"
    )
    args = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        for name, value in cpu.ENVIRONMENT.items():
            os.environ.setdefault(name, value)
    sampling = Sampling(
        args.rollouts, args.candidates, args.max_new_tokens, args.temperature, args.seed, args.tell_weights
    )
    sample_pool(args.model, load_spec(args.spec), load_prompts(args.prompts), sampling, args.output)


if __name__ == "__main__":
    main()

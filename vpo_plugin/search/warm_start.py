"""Teach a policy the candidate format of a spec with its own answers, without hand-written data.

A policy that cannot write several candidates in the format gets no reward for any, and learns nothing from VPO. But it
can give single answers: they are sampled on the training prompts and scored. The best distinct answers to a prompt form
a set in the spec's format, in random order, and the host's own `train_sft` trains the policy on these sets.
"""

import multiprocessing
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from vpo_plugin.files import json_lines, write
from vpo_plugin.models import check_policy, micro_batch_size, resolve_policy
from vpo_plugin.openrlhf.log import last_words
from vpo_plugin.rewards import RewardSpec, load_spec
from vpo_plugin.rewards.candidates import answer_of
from vpo_plugin.rewards.fit import budget_mistake, room
from vpo_plugin.rewards.formats import parse, write_response
from vpo_plugin.rewards.prompts import ask, pack_prompt
from vpo_plugin.rewards.response import floor_response
from vpo_plugin.rewards.scoring import Item, Scoring
from vpo_plugin.rewards.task import canonical, read_rows
from vpo_plugin.search.policy import Engine, Request, Response, as_chat, most_tokens

LEAST_SETS = 8
AT_ONCE = 32  # prompts that an engine answers between two signs of progress
READABLE = "Candidates that can be read"


class WarmStartSettings(BaseModel):
    """Teach a policy to write several candidates in a specification's format, with its own answers."""

    model_config = ConfigDict(extra="forbid")

    spec: str = Field(description="Reward specification, by name or path.")
    model: str = Field(description="Policy: 'tiny-maze', 'smollm2', or a Hugging Face id or path.")
    output: Path = Field(description="Output folder of the trained policy.")
    candidates: int | None = Field(None, ge=2, description="Candidates in one response (m); default: the spec's.")
    prompts: int = Field(256, ge=1, description="Training prompts to answer.")
    samples: int = Field(8, ge=2, description="Answers to sample for each prompt.")
    held_out: int = Field(32, ge=1, description="Held-out prompts for measuring the share of readable candidates.")
    max_new_tokens: int | None = Field(
        None, ge=1, description="Longest candidate, in tokens; default: the specification's budget."
    )
    temperature: float = Field(1.0, gt=0, description="Sampling temperature.")
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description='Options of the chat template in sampling, such as {"enable_thinking": false} for Qwen3.'
    )
    on_scorer_error: Literal["raise", "zero"] = Field(
        "raise", description="If the scorer fails on an answer: stop (raise), or score zero and count it (zero)."
    )
    epochs: int = Field(2, ge=1, description="Passes over the sets.")
    learning_rate: float = Field(2e-5, gt=0, description="AdamW learning rate; decays to a tenth.")
    seed: int = Field(0, ge=0, description="Seed of prompts, sampling and training.")


@dataclass(frozen=True)
class WarmStart:
    """The result of a warm start."""

    sets: int
    """Number of sets trained on."""
    prompts: int
    """Number of answered prompts."""
    left_out: str
    """How many answers were left out, and why; empty if none was."""
    readable_before: float
    """Share of the requested candidates that are readable, on held-out prompts."""
    readable_after: float
    policy: Path

    def __str__(self) -> str:
        return (
            f"{self.sets} sets from {self.prompts} prompts. {READABLE}: {self.readable_before:.0%} "
            f"before, {self.readable_after:.0%} after. {self.left_out}The policy is {self.policy}."
        )


def warm_start(settings: WarmStartSettings) -> WarmStart:
    """Sample answers, build sets, train on them, and measure; answers and sets are kept beside the policy.

    Raises:
        ValueError: the spec cannot be used or has no prompts, or too few prompts got enough distinct answers.
        FileNotFoundError: the policy does not exist.
        RuntimeError: the host's training failed.
    """
    spec = load_spec(settings.spec)
    m = settings.candidates or max(2, spec.candidates)
    limit = room(spec, 1) if settings.max_new_tokens is None else settings.max_new_tokens
    if mistake := budget_mistake(spec, 1, limit, "--max_new_tokens"):
        raise ValueError(mistake)
    if not spec.scores:
        raise ValueError(f"The spec '{spec.name}' has no scorer, and a warm start takes the best answers: name one.")
    check_policy(settings.model)
    rows, held_out = (
        _rows(spec, split, number, settings.seed)
        for split, number in (("train", settings.prompts), ("test", settings.held_out))
    )
    work = settings.output.with_name(settings.output.name + "_work")
    work.mkdir(parents=True, exist_ok=True)
    model = resolve_policy(settings.model, work)
    asked = [(ask(spec, row["prompt"], 1), settings.samples, limit) for row in rows]
    tests = [(ask(spec, row["prompt"], m), 1, m * limit) for row in held_out]
    responses, before = _in_a_process(model, [asked, tests], settings)
    answers, left_out = read_answers(spec, responses, limit)
    with Scoring(spec, on_error=settings.on_scorer_error, failures=work) as scoring:
        sets = list(make_sets(scoring, rows, answers, m, settings.seed))
    if said := scoring.summary():
        print(said, file=sys.stderr)
    if len(sets) < LEAST_SETS:
        raise ValueError(
            f"Only {len(sets)} of {len(rows)} prompts got {m} distinct answers with any reward in {settings.samples} "
            "samples, too few to learn from: ask for more prompts or samples, or begin with easier prompts. "
            f"{left_out}".strip()
        )
    write(work / "sets.jsonl", json_lines(sets))
    _learn(model, sets, work, settings)
    (after,) = _in_a_process(str(settings.output), [tests], settings)
    was, now = (readable(spec, [one[0].text for one in found], m) for found in (before, after))
    return WarmStart(len(sets), len(rows), left_out, was, now, settings.output)


def _rows(spec: RewardSpec, split: str, number: int, seed: int) -> list[dict[str, Any]]:
    rows = list(read_rows(spec, split, number, seed))
    if not rows:
        raise ValueError(f"The dataset of the spec '{spec.name}' has no rows in the split '{split}' to answer.")
    return rows


def read_answers(spec: RewardSpec, responses: Sequence[Sequence[Response]], limit: int) -> tuple[list[list[str]], str]:
    """The candidates in the responses to each prompt, and in sentences, how many responses have none and why.

    Args:
        limit: tokens at which a response was cut.
    """
    every = [one for of_prompt in responses for one in of_prompt]
    blank = sum(not _answer(spec, one.text) for one in every)
    found = [[single_answer(spec, one.text, one.tokens >= limit) for one in of_prompt] for of_prompt in responses]
    cut = sum(text is None for texts in found for text in texts) - blank
    said = ""
    if cut:
        said += f"{cut} of {len(every)} answers were cut at {limit} tokens (--max_new_tokens) and left out. "
    if blank:
        said += (
            f"{blank} of {len(every)} answers have no text outside thoughts: disable thinking, as "
            """--chat_template_kwargs '{"enable_thinking": false}' does for Qwen3, or raise --max_new_tokens. """
        )
    return [[text for text in texts if text] for texts in found], said


def make_sets(
    scoring: Scoring, rows: Sequence[dict[str, Any]], answers: Sequence[Sequence[str]], candidates: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Yield a set of the best distinct answers for each prompt that has enough, as `{"prompt", "response"}`.

    Args:
        answers: candidates for each row's prompt. One that scored zero because its scorer failed is in no set.
    """
    spec = scoring.spec
    rng = random.Random(f"warm start {seed}")
    found = [list(dict.fromkeys(texts)) for texts in answers]
    items = (
        Item(
            write_response(spec, [text]),
            row["label"],
            1,
            f"An answer to prompt {number}",
            pack_prompt(row["prompt"]),
            number,
        )
        for number, (row, texts) in enumerate(zip(rows, found, strict=True))
        for text in texts
    )
    scores = iter(list(scoring.score(items)))
    for row, texts in zip(rows, found, strict=True):
        ranked = sorted(((text, next(scores)) for text in texts), key=lambda one: -one[1].reward)
        chosen: list[str] = []
        for text, one in ranked:
            if one.parsed and _reads_back(spec, [*chosen, text], candidates, row["label"]):
                chosen.append(text)
            if len(chosen) == candidates:
                break
        if len(chosen) < candidates or not ranked[0][1].reward > floor_response(spec, row["label"], 1).reward:
            continue
        rng.shuffle(chosen)
        prompt, response = ask(spec, row["prompt"], candidates), write_response(spec, chosen)
        if isinstance(prompt, str):
            yield {"prompt": prompt, "response": response}
        else:  # the host's format for a chat
            yield {"prompt": prompt, "response": [{"role": "assistant", "content": response}]}


def single_answer(spec: RewardSpec, response: str, cut: bool = False) -> str | None:
    """The candidate of a response with one candidate: the part in the format, or else the whole answer.

    A response that was cut has one only if the format shows its end, as a closing tag does.
    """
    if cut and (spec.prompt.single is None or spec.separator):
        return None
    return parse(spec, response, 1)[0] or (None if cut else _answer(spec, response)) or None


def _answer(spec: RewardSpec, response: str) -> str:
    answer = response if spec.thoughts == "inside" else answer_of(response)
    return answer[: spec.limits.response_chars].strip()


def readable(spec: RewardSpec, responses: Sequence[str], candidates: int) -> float:
    """The share of requested candidates that can be read."""
    found = [parse(spec, response, candidates) for response in responses]
    return sum(text is not None for texts in found for text in texts) / (len(found) * candidates)


def _reads_back(spec: RewardSpec, texts: list[str], candidates: int, label: object) -> bool:
    """Whether the first candidates of a set read back as these texts, none of them a duplicate."""
    read = parse(spec, write_response(spec, texts, candidates), candidates)
    rest: list[str | None] = [None] * (candidates - len(texts))
    return read == [*texts, *rest] and len({canonical(spec, text, label) for text in texts}) == len(texts)


# ------------------------------------------------------------------------------------------------ heavy parts


def _in_a_process(model: str, groups: list[Any], settings: WarmStartSettings) -> list[list[list[Response]]]:
    """The responses to each group of requests, from an engine in its own process, which ends and frees memory."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_sample, model, groups, settings).result()


def _sample(model: str, groups: list[Any], settings: WarmStartSettings) -> list[list[list[Response]]]:
    from transformers import AutoTokenizer

    from vpo_plugin.search.evaluate import batch_seed, progress_bar

    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    texts = as_chat([text for group in groups for text, _, _ in group], tokenizer, settings.chat_template_kwargs)
    most = max(tokens for group in groups for _, _, tokens in group)
    engine = Engine(
        model,
        max_new_tokens=most,
        temperature=settings.temperature,
        longest=most_tokens(texts, tokenizer),
        chat_template_kwargs=settings.chat_template_kwargs,
    )
    found: list[list[list[Response]]] = [[] for _ in groups]
    with progress_bar(len(texts), "prompt", "Answering") as bar:
        for responses, group in zip(found, groups, strict=True):
            for first in range(0, len(group), AT_ONCE):
                part = group[first : first + AT_ONCE]
                engine.params.max_tokens = part[0][2]
                requests = [Request(text, samples) for text, samples, _ in part]
                responses += engine.generate(requests, batch_seed(settings.seed, first // AT_ONCE))
                bar.update(len(part))
    return found


def as_texts(sets: list[dict[str, Any]], tokenizer: Any, chat_template_kwargs: dict[str, Any]) -> list[dict[str, str]]:
    """The sets as they are sampled, `{"prompt", "response"}`: through the chat template with its options, and ended."""
    prompts = as_chat([row["prompt"] for row in sets], tokenizer, chat_template_kwargs)
    end = tokenizer.eos_token if tokenizer.chat_template else ""
    responses = [row["response"] if isinstance(row["response"], str) else row["response"][0]["content"] for row in sets]
    return [{"prompt": p, "response": r + end} for p, r in zip(prompts, responses, strict=True)]


def _learn(model: str, sets: list[dict[str, Any]], work: Path, settings: WarmStartSettings) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    rows = as_texts(sets, tokenizer, settings.chat_template_kwargs)
    write(work / "texts.jsonl", json_lines(rows))
    longest = most_tokens([row["prompt"] + row["response"] for row in rows], tokenizer) + 8
    batch = 8
    micro_batch = micro_batch_size(batch, longest * len(tokenizer))
    command = [
        *(sys.executable, "-m", "vpo_plugin.train_sft", "--model.model_name_or_path", model),
        *("--ckpt.output_dir", str(settings.output), "--ckpt.path", str(work / "checkpoints")),
        *("--data.dataset", str(work / "texts.jsonl"), "--data.input_key", "prompt", "--data.output_key", "response"),
        *("--data.input_template", "{}", "--data.max_len", str(longest), "--train.seed", str(settings.seed)),
        *("--train.batch_size", str(batch), "--train.micro_batch_size", str(micro_batch)),
        *("--train.max_epochs", str(settings.epochs)),
        *("--adam.lr", str(settings.learning_rate), "--lr_scheduler", "cosine_with_min_lr"),
        *("--ds.attn_implementation", "sdpa"),
    ]
    log = work / "train_sft.log"
    with log.open("w") as output:
        code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False).returncode
    if code or not (settings.output / "config.json").exists():
        raise RuntimeError(f"train_sft failed (exit code {code}): {last_words(log)}")

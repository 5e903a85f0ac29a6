"""The warm start's examples, and the policy that ships with the demo."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.maze_policy import sft_examples
from benchmarks.tiny_policy import save_untrained_policy
from reward_specs.maze.maze import read_label
from vpo_plugin.advantages import goal_weights, write_goal
from vpo_plugin.rewards import load_spec, parse_candidates
from vpo_plugin.rewards.formats import render_prompt, write_response
from vpo_plugin.rewards.response import score_response
from vpo_plugin.rewards.task import best_reward, read_rows

POLICY = Path(__file__).parent.parent / "reward_specs" / "maze_small" / "policy"


def test_examples_are_valid_different_routes() -> None:
    spec = load_spec("maze_small")
    examples = list(sft_examples(spec, 64, seed=3))
    assert examples == list(sft_examples(spec, 64, seed=3)) != list(sft_examples(spec, 64, seed=4))
    labels = {row["prompt"].split("Write")[0]: row["label"] for row in read_rows(spec, "train", 8, 3)}
    for i, example in enumerate(examples):
        candidates = 1 if i % 2 else 3
        routes = parse_candidates(example["response"], spec.tag, candidates)
        label = next(label for text, label in labels.items() if example["prompt"].startswith(text))
        assert None not in routes and len(set(routes)) == candidates
        prompt, _, goal = example["prompt"].partition("Objective weights: ")
        assert prompt == render_prompt(spec, prompt.split("Write")[0], candidates)
        assert bool(goal) == (i % 8 == 1)
        scored = score_response(spec, example["response"], label, candidates)
        assert (scored.matrix[:, 0] == 1).all() and scored.unique == candidates
        assert all(len(route.split()) <= read_label(label).max_steps for route in routes if route)


def test_the_untrained_policy_is_seeded_and_reads_its_examples(tmp_path: Path) -> None:
    examples = list(sft_examples(load_spec("maze_small"), 800, seed=0))
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        save_untrained_policy(examples, tmp_path / name, seed)
    a, b, c = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a) and any(not torch.equal(a[key], c[key]) for key in a)
    assert 0.5e6 < sum(tensor.numel() for tensor in a.values()) < 1.5e6
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    text = examples[0]["prompt"] + examples[0]["response"]
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert len(ids) == len(text.split()) and tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids).split() == text.split()


@pytest.fixture(scope="module")
def policy():
    return AutoModelForCausalLM.from_pretrained(POLICY), AutoTokenizer.from_pretrained(POLICY)


def test_the_shipped_policy_is_small_and_knows_every_word(policy) -> None:
    model, tokenizer = policy
    assert sum(file.stat().st_size for file in POLICY.rglob("*") if file.is_file()) <= 5_000_000
    spec = load_spec("maze_small")
    for row in read_rows(spec, "test", 200, 1):
        for candidates in (1, 3):
            ids = tokenizer(render_prompt(spec, row["prompt"], candidates)).input_ids
            assert tokenizer.unk_token_id not in ids and len(ids) <= 60
        goal = goal_weights(row["label"], 4)
        told = write_goal(render_prompt(spec, row["prompt"], 1), spec.objective_keys, goal)
        assert tokenizer.unk_token_id not in tokenizer(told).input_ids
    assert tokenizer.pad_token_id == model.config.pad_token_id != tokenizer.eos_token_id
    words = write_response(spec, ["UP DOWN", "LEFT RIGHT", ""])
    decoded = tokenizer.decode(tokenizer(words).input_ids, skip_special_tokens=True)
    assert parse_candidates(decoded, spec.tag, 3) == ["UP DOWN", "LEFT RIGHT", ""]


@pytest.mark.parametrize("candidates", [1, 3])
def test_the_shipped_policy_finds_exits_and_leaves_something_to_learn(policy, candidates: int) -> None:
    """Of 30 sampled routes a maze at least half are valid, and the best stays below 80 % of the ceiling."""
    model, tokenizer = policy
    torch.manual_seed(0)
    spec = load_spec("maze_small")
    valid, best, ceiling = [], [], []
    for row in read_rows(spec, "test", 40, 2):
        prompt = tokenizer(render_prompt(spec, row["prompt"], candidates), return_tensors="pt")
        ids = model.generate(
            **prompt,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            num_return_sequences=30 // candidates,
            max_new_tokens=spec.limits.tokens_per_candidate * candidates,
        )
        texts = tokenizer.batch_decode(ids[:, prompt.input_ids.shape[1] :], skip_special_tokens=True)
        matrices = np.stack([score_response(spec, text, row["label"], candidates).matrix for text in texts])
        valid.append(matrices[..., 0].mean())
        best.append((matrices @ np.array(spec.objective_weights)).max())
        ceiling.append(best_reward(spec, row["label"]))
    assert np.mean(valid) >= 0.5
    assert np.mean(best) <= 0.8 * np.mean(ceiling)

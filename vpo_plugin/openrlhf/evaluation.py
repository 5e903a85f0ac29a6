"""Evaluation during training (`--eval.*`): search metrics of the held-out prompts' pools.

The host logs the mean and the best scalar reward of a prompt's responses. For a policy that writes sets, the mean says
little: it can fall while the best of the set rises. Names and definitions match the search evaluation.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from vpo_plugin.metrics import best_at_k, expected_set_reward, mean_pairwise_l1, pass_at_k
from vpo_plugin.openrlhf.experience import load_once
from vpo_plugin.openrlhf.matrices import INFO_KEY, stack_groups, unpack
from vpo_plugin.openrlhf.prompts import label_of
from vpo_plugin.openrlhf.settings import current_settings
from vpo_plugin.rewards.labels import read_label
from vpo_plugin.targets import read_targets


def patch_evaluation(module: Any) -> None:
    """Wrap `compute_eval_metrics` of the host's `openrlhf.trainer.ppo_trainer`, which both trainers call."""
    original = module.compute_eval_metrics

    def compute_eval_metrics(eval_dataloader: Any, samples_list: Sequence[Any], n_samples_per_prompt: int) -> Any:
        logs = original(eval_dataloader, samples_list, n_samples_per_prompt)
        sources = {
            prompt: source
            for names, prompts, *_ in eval_dataloader
            for prompt, source in zip(prompts, names, strict=True)
        }
        samples: dict[str, list[Any]] = {}
        for sample in samples_list:  # a prompt's responses are consecutive
            samples.setdefault(sources.get(sample.prompts[0], "unknown"), []).append(sample)
        for source, of_source in samples.items():
            logs |= {f"eval_{source}_{key}": v for key, v in pool_metrics(of_source, n_samples_per_prompt).items()}
        return logs

    module.compute_eval_metrics = compute_eval_metrics


def pool_metrics(samples: Sequence[Any], responses: int) -> dict[str, float]:
    """Metrics of the pools, means over prompts; a pool holds all candidates of a prompt's responses.

    `best_at_<k>` and `pass_at_<k>` for k = 1, 2, 4, … and all candidates, `expected_set_reward` and
    `pairwise_l1` of the whole pool. A prompt with fewer than k candidates (agents may give any number) counts with all.
    """
    run = current_settings()
    spec = load_once(str(run.spec))
    matrices, mask = stack_groups([unpack(sample.info[INFO_KEY][0]) for sample in samples], responses)
    pools = matrices.flatten(1, 2).double().numpy()
    there = np.ones(pools.shape[:2], dtype=bool) if mask is None else mask.any(-1).flatten(1).numpy()
    carried = [sample.labels[0] for sample in samples[::responses]]
    if run.own_reward or run.own_agent:  # the user's code defines what a label means
        spec = spec.model_copy(update={"front": None})
        labels = [read_label(spec, label) if spec.ragged else None for label in carried]
    else:
        labels = [label_of(spec, run, label)[0] for label in carried]
    targets = read_targets(spec, [{"label": json.dumps(label)} for label in labels])
    pools = pools[..., : targets.present.shape[1]]
    counts = there.sum(1)
    ks = sorted({*(2**i for i in range(int(counts.max()).bit_length())), int(counts.max())})
    descending = -np.sort(-np.where(there, targets.rewards(pools), -np.inf))  # those that are not there come last
    solved = targets.solved(descending)
    best_at, pass_at = np.empty((2, len(pools), len(ks)))
    for n in set(counts.tolist()):
        alike, up_to = counts == n, [min(k, n) for k in ks]
        best_at[alike] = best_at_k(descending[alike, :n], up_to)
        pass_at[alike] = pass_at_k(solved[alike, :n], up_to)
    metrics = {f"best_at_{k}": float(value) for k, value in zip(ks, best_at.mean(0), strict=True)}
    metrics |= {f"pass_at_{k}": float(value) for k, value in zip(ks, pass_at.mean(0), strict=True)}
    worth = expected_set_reward(pools, seed=0, present=targets.present, there=there)
    metrics |= {"expected_set_reward": float(worth.mean()), "pairwise_l1": float(mean_pairwise_l1(pools, there).mean())}
    return metrics

"""Sample a few responses of a policy to a spec's prompts: are candidates readable, and do the objectives disagree?"""

import json
import shlex
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np

from vpo_plugin.advantages.normalize import NO_SPREAD
from vpo_plugin.metrics import expected_set_reward
from vpo_plugin.rewards import RewardSpec
from vpo_plugin.rewards.fit import room
from vpo_plugin.rewards.response import ScoredResponse
from vpo_plugin.rewards.scoring import Scoring
from vpo_plugin.rewards.task import trial_rows
from vpo_plugin.search.collinear import measure_disagreement
from vpo_plugin.search.evaluate import make_policy, score_samples
from vpo_plugin.search.policy import Policy, Request
from vpo_plugin.search.pool import as_rows, full_prompt
from vpo_plugin.search.settings import PolicySettings

PROMPTS, RESPONSES = 4, 4
ENOUGH = 0.5  # training can begin from this share of readable candidates


def try_model(
    spec: RewardSpec, scoring: Scoring, named: str, model: str, folder: str, chat_template_kwargs: dict[str, Any]
) -> list[str]:
    """Sentences on 16 responses of a model to the first training prompts.

    Args:
        named: the user's name for the spec.
        model: the user's name for the model, whose folder or hub id is `folder`.

    Raises ValueError for a chat without a chat template, a prompt without room for a response, or an unknown model.
    """
    rows = as_rows(trial_rows(spec, PROMPTS))
    made = {
        "candidates": spec.candidates,
        "max_new_tokens": room(spec, spec.candidates),
        "temperature": 1.0,
    }
    settings = PolicySettings(model=folder, spec=spec.name, chat_template_kwargs=chat_template_kwargs)
    policy = make_policy(settings, spec, rows, made)
    teach = ["vpo", "warm_start", "--spec", named, "--model", model, "--output", f"runs/{spec.name}-sets"]
    if chat_template_kwargs:
        teach += ["--chat_template_kwargs", json.dumps(chat_template_kwargs)]
    return findings(policy, spec, scoring, rows, model, shlex.join(teach))


def findings(
    policy: Policy, spec: RewardSpec, scoring: Scoring, rows: list[dict[str, Any]], model: str, teach: str
) -> list[str]:
    """Sentences on the responses of a given policy to prompts in a pool's format; `teach` is how to warm-start it."""
    m = spec.candidates
    requests = [Request(full_prompt(spec, row["input"], m), RESPONSES) for row in rows]
    samples = [
        {"prompt": number, **row, "response": response.text}
        for number, (row, responses) in enumerate(zip(rows, policy.generate(requests, seed=0), strict=True))
        for response in responses
    ]
    scored = list(score_samples(scoring, samples, m))
    asked, read = len(scored) * m, sum(one.parsed for one in scored)
    found = [f"Of the {asked} candidates requested in {len(scored)} responses of {model}, {read} can be read."]
    if read < ENOUGH * asked:
        found.append(
            "That is less than half, and unreadable candidates earn nothing. Teach the policy the format first: "
            f"`{teach}`."
        )
    groups = groupby(zip(samples, scored, strict=True), key=lambda pair: pair[0]["prompt"])
    found.append(_spread([[one for _, one in group] for _, group in groups]))
    return found + measure_disagreement(spec, [one.matrix.astype(float) for one in scored])


def _spread(groups: Sequence[Sequence[ScoredResponse]]) -> str:
    """How much the set rewards of a prompt's responses differ, which is what a training learns from."""
    rewards = [expected_set_reward(np.stack([one.matrix for one in group]), seed=0) for group in groups]
    deviations = np.array([values.std() for values in rewards])
    same = int((deviations < NO_SPREAD).sum())
    return (
        f"The set rewards of a prompt's responses, {np.concatenate(rewards).mean():.2f} on average, have a standard "
        f"deviation of {deviations.mean():.2g} (mean over {len(groups)} prompts); for {same} of the prompts they are "
        "all the same, and nothing is learnt from such a group."
    )

"""Compare the pools of several policies on the same prompts: the figures that a report shows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vpo_plugin.rewards import RewardSpec
from vpo_plugin.rewards.scoring import read_label
from vpo_plugin.rewards.task import canonical, draw, pareto_front
from vpo_plugin.search.metrics import (
    Floats,
    best_at_k,
    best_for_weights,
    duplicate_share,
    expected_set_reward,
    hypervolume,
    mean_and_interval,
    mean_pairwise_l1,
    paired_difference,
    pareto_fronts,
    pass_at_k,
    regrets,
    win_shares,
)
from vpo_plugin.search.pool import ROUNDING, Pool

if TYPE_CHECKING:
    from vpo_plugin.search.run import Search

Match = Literal["candidates", "tokens"]
Rows = Sequence[Mapping[str, Any]]

FRONTS, PROMPTS_SHOWN, RESPONSES_SHOWN = 200, 12, 10  # at most, in a report


def compare_pools(
    pools: Mapping[str, Pool], spec: RewardSpec, rows: Rows, *, seed: int = 0, match: Match = "candidates"
) -> dict[str, Any]:
    """Metrics of each policy with 95 % bootstrap intervals over prompts; paired differences of the last to the others.

    Of each pool the first rollouts are taken: so many that all policies have the same number of candidates for a
    prompt, or have written the same number of tokens. Matched by tokens, `k` counts what k candidates of the policy
    with the longest ones cost, and another policy gets as many candidates as it writes with as many tokens.

    Args:
        pools: by policy name; each holds the prompts `rows`, in their order (`shared_prompts` makes such).
        rows: the prompts, keys ``input`` and ``label``.

    Returns:
        The figures that `vpo_plugin.report.write` documents.

    Raises:
        ValueError: nothing to compare, pools that differ in prompts or objectives, or that are too small to be matched.
    """
    if not pools or not rows:
        raise ValueError("There is nothing to compare: no pool, or no prompt.")
    shapes = {name: pool.reward_matrices.shape for name, pool in pools.items()}
    if {(shape[0], shape[3]) for shape in shapes.values()} != {(len(rows), next(iter(shapes.values()))[3])}:
        raise ValueError(
            f"Pools can be compared on the same {len(rows)} prompts and objectives only; these have the shapes "
            f"(prompts, rollouts, candidates, objectives) {shapes}."
        )
    budgets, tokens_per_k = _matched(pools, match)
    ks = list(range(1, len(next(iter(budgets.values()))) + 1))
    pools = {name: _first_candidates(pool, budgets[name][-1]) for name, pool in pools.items()}

    present = ~np.isnan(next(iter(pools.values())).candidates[:, 0])  # (prompts, objectives): all, unless ragged
    objectives = spec.objective_keys[: present.shape[1]]
    weights = np.zeros(present.shape)
    for row, columns in zip(weights, present, strict=True):
        row[columns] = spec.weights_of(columns.sum())
    ceiling, best = None, np.ones(len(rows))
    if spec.front:
        reachable = [np.asarray(pareto_front(spec, row["label"])) for row in rows]
        best = np.array([(front @ spec.weights_of(front.shape[1])).max() for front in reachable])
        set_rewards = [expected_set_reward(front[None], seed=seed).item() for front in reachable]
        ceiling = {"best": best.mean(), "expected_set_reward": np.mean(set_rewards)}
    solved_at = spec.solved * best

    fronts = {
        name: pareto_fronts([rewards[:, columns] for rewards, columns in zip(pool.candidates, present, strict=True)])
        for name, pool in pools.items()
    }
    worth = np.stack([best_for_weights(front, seed=seed) for front in fronts.values()])  # (policies, prompts, weights)
    regret, wins = regrets(worth), win_shares(worth)

    curves, policies, solved = {}, [], {}
    for number, (name, pool) in enumerate(pools.items()):
        matrices = np.nan_to_num(pool.candidates.astype(float))
        rewards = np.einsum("pnk,pk->pn", matrices, weights)
        correct = rewards >= solved_at[:, None] - ROUNDING
        curves[name], solved[name] = best_at_k(rewards, budgets[name]), correct.any(1)
        tokens = sum(response["tokens"] for response in pool.responses)
        per_prompt = {
            "best_at_k": curves[name],
            "pass_at_k": pass_at_k(correct, budgets[name]),
            "expected_set_reward": expected_set_reward(matrices, seed=seed, present=present),
            "regret": regret[number],
            "coverage": wins[number],
            "pareto_size": np.array([len(front) for front in fronts[name]], dtype=float),
            "hypervolume": _hypervolumes(fronts[name], present, spec),
            "pairwise_l1": mean_pairwise_l1(matrices) if matrices.shape[1] > 1 else np.zeros(len(rows)),
            "duplicates": _duplicates(pool, spec, rows),
        }
        means = matrices.sum((0, 1)) / np.maximum(present.sum(0), 1) / matrices.shape[1]
        policies.append(
            {
                "name": name,
                "rollouts": pool.reward_matrices.shape[1],
                "candidates": pool.reward_matrices.shape[2],
                **{measure: mean_and_interval(values, seed=seed) for measure, values in per_prompt.items()},
                "objective_means": dict(zip(objectives, means.tolist(), strict=True)),
                "tokens_per_prompt": tokens / len(rows),
                "tokens_per_solved": tokens / int(solved[name].sum()) if solved[name].any() else None,
            }
        )
    *others, last = pools
    return {
        "spec": spec.name,
        "objectives": list(objectives),
        "weights": spec.weights_of(len(objectives)).tolist(),
        "solved": spec.solved,
        "prompts": len(rows),
        "matched": {"by": match, "tokens_per_k": tokens_per_k},
        "ks": ks,
        "ceiling": ceiling,
        "policies": policies,
        "differences": [
            {
                "a": last,
                "b": other,
                "k": k,
                **paired_difference(curves[last][:, k - 1], curves[other][:, k - 1], seed=seed),
            }
            for other in others
            for k in (1, ks[-1])
        ],
        "fronts": {
            name: [front.round(6).tolist() for front in of_policy[:FRONTS]] for name, of_policy in fronts.items()
        },
        "solved_at": solved_at[:FRONTS].tolist(),
        "only_solved_by": only_solved_by(solved),
        "prompts_shown": [_shown(number, pools, rows[number], spec) for number in range(min(PROMPTS_SHOWN, len(rows)))],
    }


def shared_prompts(pools: Mapping[str, Pool]) -> tuple[dict[str, Pool], list[Mapping[str, Any]], int]:
    """The pools on the prompts that all of them hold, those prompts in the first pool's order, and how many others
    there are. A prompt is its text and its label.

    Raises:
        ValueError: no pool, or no prompt is in all of them.
    """
    numbers: dict[str, dict[tuple[str, str], int]] = {}
    for name, pool in pools.items():
        numbers[name] = {}
        for number, row in enumerate(pool.rows):
            numbers[name].setdefault((row["input"], row["label"]), number)
    shared = [key for key in next(iter(numbers.values()), {}) if all(key in of_pool for of_pool in numbers.values())]
    if not shared:
        raise ValueError(f"No prompt is in all of the pools {list(pools)}: sample them with the same prompts.")
    everything = {key for of_pool in numbers.values() for key in of_pool}
    chosen = {name: _chosen(pool, [numbers[name][key] for key in shared]) for name, pool in pools.items()}
    return chosen, [{"input": text, "label": label} for text, label in shared], len(everything) - len(shared)


def compare_searches(
    searches: Sequence[tuple[str, str, "Search"]], rows: Rows = (), *, seed: int = 0
) -> dict[str, Any]:
    """Solved prompts against budget of searches (policy, procedure, search), and who alone solves what.

    Args:
        rows: prompts whose numbers are used for those that only one policy solves, with whatever procedure; default:
            the searches' own.

    Returns:
        `search` and `only_solved_by` of the report, on the prompts that all searches share.

    Raises:
        ValueError: the searches share no prompt.
    """
    numbers = [{(r["input"], r["label"]): i for i, r in enumerate(search.rows)} for _, _, search in searches]
    shared = [key for key in numbers[0] if all(key in of_search for of_search in numbers)]
    if not shared:
        raise ValueError(f"No prompt is in all of the searches of {[policy for policy, _, _ in searches]}.")
    curves = []
    solved: dict[str, np.ndarray] = {}
    for (policy, procedure, search), of_search in zip(searches, numbers, strict=True):
        after = search.solved_after[[of_search[key] for key in shared]]
        budget = list(range(1, search.made["budget"] + 1))
        measure = mean_and_interval(after[:, None] <= np.array(budget), seed=seed)
        curves.append({"policy": policy, "procedure": procedure, "budget": budget, "solved": measure})
        solved[policy] = np.isfinite(after) | solved.get(policy, False)
    known = {(row["input"], row["label"]): number for number, row in enumerate(rows)}
    of_report = [known.get(key) for key in shared] if rows else list(range(len(shared)))
    alone = {
        policy: [number for number in (of_report[i] for i in mine) if number is not None]
        for policy, mine in only_solved_by(solved).items()
    }
    return {"search": curves, "only_solved_by": alone}


def only_solved_by(solved: Mapping[str, np.ndarray]) -> dict[str, list[int]]:
    """The numbers of the prompts that one policy alone solves, of bools by policy, each `(prompts,)`."""
    if len(solved) < 2:
        return {}
    by_one = np.sum(list(solved.values()), axis=0) == 1
    return {name: np.flatnonzero(of_policy & by_one).tolist() for name, of_policy in solved.items()}


def _matched(pools: Mapping[str, Pool], match: Match) -> tuple[dict[str, list[int]], float | None]:
    """The number of candidates that each policy has at k = 1, 2, …, and the tokens that one k stands for."""
    sizes = {name: pool.candidates.shape[1] for name, pool in pools.items()}
    if match == "candidates":
        step = math.lcm(*(pool.reward_matrices.shape[2] for pool in pools.values()))
        most = min(sizes.values()) // step * step
        if not most:
            raise ValueError(
                f"The pools have {sizes} candidates a prompt, too few for a common number, a multiple of {step}."
            )
        return {name: list(range(1, most + 1)) for name in pools}, None
    costs = {}
    for name, pool in pools.items():
        costs[name] = sum(response["tokens"] for response in pool.responses) / (len(pool.candidates) * sizes[name])
        if not costs[name]:
            raise ValueError(f"The responses of {name} have no tokens: it cannot be matched by them.")
    dearest = max(costs.values())
    steps = int(min(costs[name] * size for name, size in sizes.items()) / dearest + ROUNDING)
    if not steps:
        raise ValueError(f"The pools have {sizes} candidates a prompt, too few to be matched by tokens.")
    return {
        name: [min(int(k * dearest / cost + ROUNDING), sizes[name]) for k in range(1, steps + 1)]
        for name, cost in costs.items()
    }, dearest


def _first_candidates(pool: Pool, candidates: int) -> Pool:
    """The first rollouts of each prompt that hold so many candidates."""
    prompts, rollouts, m, _ = pool.reward_matrices.shape
    taken = -(-candidates // m)
    kept = [pool.responses[p * rollouts + r] for p in range(prompts) for r in range(taken)]
    return replace(pool, reward_matrices=pool.reward_matrices[:, :taken], responses=kept)


def _chosen(pool: Pool, numbers: Sequence[int]) -> Pool:
    """The pool of these prompts, renumbered, and of the objectives that they have."""
    rollouts = pool.reward_matrices.shape[1]
    matrices = pool.reward_matrices[list(numbers)]
    matrices = matrices[..., ~np.isnan(matrices).all((0, 1, 2))]
    responses = [
        {**pool.responses[old * rollouts + r], "prompt": new}
        for new, old in enumerate(numbers)
        for r in range(rollouts)
    ]
    return replace(pool, reward_matrices=matrices, responses=responses, rows=[pool.rows[old] for old in numbers])


def _hypervolumes(fronts: Sequence[Floats], present: np.ndarray, spec: RewardSpec) -> Floats:
    columns = spec.columns(present.shape[1])
    low, high = np.array([(column.low, column.high) for column in columns]).T
    return np.array([hypervolume(front, low[there], high[there]) for front, there in zip(fronts, present, strict=True)])


def _duplicates(pool: Pool, spec: RewardSpec, rows: Rows) -> Floats:
    """For each prompt the share of candidates that repeat one before them, in any response."""
    keys: list[list[Any]] = [[] for _ in rows]
    labels = [read_label(row["label"]) for row in rows]
    for response in pool.responses:
        number = response["prompt"]
        for text in response["candidates"]:
            keys[number].append(None if text is None else canonical(spec, text, labels[number]))
    return np.array([duplicate_share(of_prompt) for of_prompt in keys])


def _shown(number: int, pools: Mapping[str, Pool], row: Mapping[str, Any], spec: RewardSpec) -> dict[str, Any]:
    """One prompt, drawn where the spec draws, with the first responses of each policy, their candidates and rewards."""
    policies: list[dict[str, Any]] = []
    for name, pool in pools.items():
        rollouts = pool.reward_matrices.shape[1]
        responses = []
        for rollout, matrix in enumerate(pool.reward_matrices[number, :RESPONSES_SHOWN]):
            response = pool.responses[number * rollouts + rollout]
            vectors = matrix[:, ~np.isnan(matrix[0])].round(6).tolist()
            candidates = [
                {"text": text, "rewards": vector} for text, vector in zip(response["candidates"], vectors, strict=True)
            ]
            responses.append({"response": response["response"], "candidates": candidates})
        policies.append({"name": name, "responses": responses})
    responses = [response for policy in policies for response in policy["responses"]]
    texts = [c["text"] for response in responses for c in response["candidates"] if c["text"] is not None]
    drawing = draw(spec, row["label"], texts)
    return {"number": number, "prompt": row["input"], "label": row["label"], "policies": policies, "drawing": drawing}

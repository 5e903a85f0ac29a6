"""Compare policies for search, in reports, experiments, retraining and evolution.

A policy has one pool per training seed, all with the same prompts. A measure is an array `(seeds, prompts, …)`,
shown as its mean with a 95 % interval over both (`metrics.figure`).
"""

import json
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np

from vpo_plugin.metrics import (
    Floats,
    best_at_k,
    best_for_weights,
    coverage,
    difference,
    distinct_rewards,
    duplicate_share,
    expected_set_reward,
    figure,
    hypervolume,
    mean_pairwise_l1,
    pareto_fronts,
    pass_at_k,
    regrets,
)
from vpo_plugin.rewards import RewardSpec
from vpo_plugin.rewards.prompts import shown_prompt
from vpo_plugin.rewards.task import canonical, draw
from vpo_plugin.search.pool import Pool, check_objectives, prompt_keys, say_repeats, shared_rows
from vpo_plugin.search.searches import Search
from vpo_plugin.targets import ROUNDING, Targets, read_targets

Match = Literal["candidates", "tokens"]
Rows = Sequence[Mapping[str, Any]]

BASE = "base"
"""Start of the names of policies that were not trained: they have one pool, which stands for every seed."""

FRONTS = 200  # most prompts whose fronts a report holds


class Measured:
    """The pools of one policy, one per seed, cut to the responses within the largest budget, and their measures.

    Args:
        bought: number of candidates that each budget pays for, possibly a fraction.
        in_sets: indices of the budgets that also count whole responses.
    """

    def __init__(
        self,
        pools: Sequence[Pool],
        spec: RewardSpec,
        rows: Rows,
        targets: Targets,
        bought: Floats,
        in_sets: Sequence[int],
    ) -> None:
        self.spec, self.rows, self.targets, self.bought, self.in_sets = spec, rows, targets, bought, list(in_sets)
        self.candidates = pools[0].reward_matrices.shape[2]
        self.rollouts = math.ceil(bought[-1] / self.candidates - ROUNDING)
        self.pools = [pool.first(self.rollouts) for pool in pools]
        self.matrices = np.nan_to_num(np.array([pool.candidates for pool in self.pools], dtype=np.float64))
        self.rewards = targets.rewards(self.matrices)
        """Deployment rewards, (seeds, prompts, candidates)."""
        self.solved = targets.solved(self.rewards)

    @cached_property
    def best_at_k(self) -> Floats:
        """The best of any k candidates, (seeds, prompts, budgets)."""
        return _at_budgets(best_at_k, self.rewards, self.bought)

    @cached_property
    def pass_at_k(self) -> Floats:
        """Share of k-subsets of the candidates that solve the prompt, (seeds, prompts, budgets)."""
        return _at_budgets(pass_at_k, self.solved, self.bought)

    @cached_property
    def best_at_k_sets(self) -> Floats:
        """The best of any k / m whole responses, (seeds, prompts, budgets of `in_sets`)."""
        return self._at_sets(best_at_k, self.rewards)

    @cached_property
    def pass_at_k_sets(self) -> Floats:
        """Share of subsets of k / m whole responses that solve the prompt, shape as `best_at_k_sets`."""
        return self._at_sets(pass_at_k, self.solved)

    def _at_sets(self, measure: Callable[..., Floats], values: np.ndarray) -> Floats:
        of_responses = values.reshape(*values.shape[:2], self.rollouts, self.candidates).max(-1)
        return _at_budgets(measure, of_responses, self.bought[self.in_sets] / self.candidates)

    @cached_property
    def fronts(self) -> list[list[Floats]]:
        """The Pareto front of each seed and prompt, on the prompt's own objectives."""
        return [
            pareto_fronts([vectors[:, there] for vectors, there in zip(pool, self.targets.present, strict=True)])
            for pool in self.matrices
        ]

    @cached_property
    def worth(self) -> Floats:
        """The pool's best reward under each random weighting, (seeds, prompts, weightings); all pools share these."""
        return np.stack([best_for_weights(fronts, seed=0) for fronts in self.fronts])

    @cached_property
    def expected_set_reward(self) -> Floats:
        present = self.targets.present
        return np.stack([expected_set_reward(pool, seed=0, present=present) for pool in self.matrices])

    @cached_property
    def pairwise_l1(self) -> Floats:
        return np.stack([mean_pairwise_l1(pool) for pool in self.matrices])

    @cached_property
    def keys(self) -> list[list[list[Hashable | None]]]:
        """The canonical forms of each seed's and prompt's candidates, None where one is missing."""

        def keys(pool: Pool, number: int) -> list[Hashable | None]:
            label = json.loads(self.rows[number]["label"]) if self.spec.canonical else None
            return [t if t is None else canonical(self.spec, t, label) for t in pool.texts(number)]

        return [[keys(pool, number) for number in range(len(pool.reward_matrices))] for pool in self.pools]

    @property
    def distinct_rewards(self) -> Floats:
        starts = range(0, self.matrices.shape[2], self.candidates)

        def mean(rewards: Floats, keys: list[Hashable | None]) -> float:
            responses = (slice(start, start + self.candidates) for start in starts)
            return float(np.mean([distinct_rewards(rewards[one], keys[one]) for one in responses]))

        return np.array([list(map(mean, *of_seed)) for of_seed in zip(self.matrices, self.keys, strict=True)])

    @property
    def hypervolume(self) -> Floats:
        low, high = np.array([(c.low, c.high) for c in self.spec.columns(self.targets.present.shape[1])]).T
        return np.array(
            [
                [
                    hypervolume(front, low[there], high[there])
                    for front, there in zip(of, self.targets.present, strict=True)
                ]
                for of in self.fronts
            ]
        )

    @property
    def duplicates(self) -> Floats:
        return np.array([[duplicate_share(keys) for keys in of_seed] for of_seed in self.keys])

    @property
    def parsed(self) -> Floats:
        """Share of a prompt's candidates that could be read, (seeds, prompts)."""
        return np.stack([pool.per_response("parsed").mean(1) / self.candidates for pool in self.pools])

    @property
    def tokens_per_prompt(self) -> float:
        return float(np.mean([pool.per_response("tokens").sum(1) for pool in self.pools]))

    @property
    def objective_means(self) -> list[float]:
        """The mean of each objective over the candidates of the prompts that have it."""
        present = self.targets.present
        sums = (self.matrices.mean(2) * present).sum(1) / np.maximum(present.sum(0), 1)
        return sums.mean(0).tolist()


OF_A_POOL: dict[str, Callable[[Measured], Floats]] = {
    "expected_set_reward": lambda m: m.expected_set_reward,
    "pareto_size": lambda m: np.array([[len(front) for front in fronts] for fronts in m.fronts], dtype=float),
    "hypervolume": lambda m: m.hypervolume,
    "pairwise_l1": lambda m: m.pairwise_l1,
    "distinct_rewards": lambda m: m.distinct_rewards,
    "duplicates": lambda m: m.duplicates,
}
"""Measures of a single policy with one number per seed and prompt, by their key in results."""
MEASURES = {
    "best_at_k": ("best@k", "deployment reward of the best of any k candidates"),
    "pass_at_k": ("pass@k", "share of prompts that any k candidates solve"),
    "best_at_k_sets": (
        "best@k, whole sets",
        "deployment reward of the best of any k / m whole responses of m",
    ),
    "pass_at_k_sets": (
        "pass@k, whole sets",
        "share of prompts that any k / m whole responses of m solve",
    ),
    "expected_set_reward": ("E_w", "expected best reward of the pool under a random weighting of the objectives"),
    "regret": ("regret", "mean loss to the best policy under each weighting"),
    "coverage": ("coverage", "share of weightings under which this policy's best candidate is the best of all"),
    "pareto_size": ("Pareto size", "distinct reward vectors that no other vector of the pool dominates"),
    "hypervolume": ("hypervolume", "share of reward space that the pool dominates"),
    "pairwise_l1": ("L1 distance", "mean distance between two candidates' reward vectors, summed over objectives"),
    "distinct_rewards": ("distinct in a set", "distinct reward vectors in one response, without missing candidates"),
    "duplicates": ("duplicates", "share of candidates that repeat another one of the pool"),
}
"""Label and meaning of each measure, for people. docs/search.md says how each is computed."""


class Comparison:
    """Compare policies at the same budgets on the same prompts.

    The first responses of each pool are used, so that all policies have the same number of candidates per prompt, or
    the same number of tokens. Matched by tokens, one unit of k is the cost of one candidate of the policy with the
    longest candidates; other policies get as many candidates as they write with that many tokens. An @k measure is
    interpolated linearly between whole k.

    Args:
        pools: by policy and seed; each holds the prompts `rows`, in their order (see `pool.shared_prompts`).
        rows: the prompts, keys `input` and `label`.

    Raises:
        ValueError: there is nothing to compare, or the pools differ in prompts or objectives or are too small.
    """

    def __init__(
        self, pools: Mapping[tuple[str, int], Pool], spec: RewardSpec, rows: Rows, *, match: Match = "candidates"
    ) -> None:
        if not pools or not rows:
            raise ValueError("There is nothing to compare: no pool, or no prompt.")
        shapes = {f"{name}, seed {seed}": pool.reward_matrices.shape for (name, seed), pool in pools.items()}
        self.targets = read_targets(spec, rows)
        expected = self.targets.present.shape
        if any((shape[0], shape[3]) != expected for shape in shapes.values()):
            raise ValueError(
                f"Pools must have the same {expected[0]} prompts and {expected[1]} objectives to be compared; these "
                f"have the shapes (prompts, rollouts, candidates, objectives) {shapes}."
            )
        for (name, _), pool in pools.items():
            check_objectives(name, pool, spec)
        self.spec, self.rows, self.match = spec, rows, match
        of_policy: dict[str, list[Pool]] = {}
        self.seeds: dict[str, list[int]] = {}
        """The training seeds of each policy's pools."""
        for (name, seed), pool in pools.items():
            of_policy.setdefault(name, []).append(pool)
            self.seeds.setdefault(name, []).append(seed)
        budgets, self.tokens_per_k = _matched(of_policy, match)
        self.ks = list(range(1, len(next(iter(budgets.values()))) + 1))
        sizes = {name: of[0].reward_matrices.shape[2] for name, of in of_policy.items()}
        step = math.lcm(*sizes.values()) if match == "candidates" else 1
        enough = np.all([budgets[name] >= size - ROUNDING for name, size in sizes.items()], axis=0)
        several = max(sizes.values()) > 1  # else every candidate is a whole response
        in_sets = [i for i, k in enumerate(self.ks) if several and enough[i] and k % step == 0]
        self.set_ks = [self.ks[i] for i in in_sets]
        """The k at which every policy's budget is a number of whole responses; empty if all write one candidate."""
        self.policies = {
            name: Measured(of, spec, rows, self.targets, budgets[name], in_sets) for name, of in of_policy.items()
        }

    def figures(self) -> list[dict[str, Any]]:
        """Every measure of each policy as `{"mean", "low", "high"}`; for @k measures, lists over `ks`."""
        every = sorted({seed for own in self.seeds.values() for seed in own})
        worth = np.stack(
            [
                [m.worth[own.index(seed)] if seed in own else m.worth.mean(0) for seed in every]
                for own, m in zip(self.seeds.values(), self.policies.values(), strict=True)
            ]
        )
        regret, covered = regrets(worth), coverage(worth)
        found = []
        for number, (name, m) in enumerate(self.policies.items()):
            solved = int(m.solved.any(2).sum()) / len(m.pools)
            values = {"best_at_k": m.best_at_k, "pass_at_k": m.pass_at_k}
            if self.set_ks:
                values |= {"best_at_k_sets": m.best_at_k_sets, "pass_at_k_sets": m.pass_at_k_sets}
            values |= {key: of(m) for key, of in OF_A_POOL.items()}
            values |= {"regret": regret[number], "coverage": covered[number]}
            tokens = m.tokens_per_prompt
            found.append(
                {
                    "name": name,
                    "seeds": len(m.pools),
                    "rollouts": m.rollouts,
                    "candidates": m.candidates,
                    "scorer_failures": sum(one.get("error") is not None for pool in m.pools for one in pool.responses),
                    **{key: figure(of_prompts) for key, of_prompts in values.items()},
                    "objective_means": dict(zip(self.objectives, m.objective_means, strict=True)),
                    "tokens_per_prompt": tokens,
                    "tokens_per_solved": tokens * len(self.rows) / solved if solved else None,
                }
            )
        return found

    @property
    def objectives(self) -> list[str]:
        return list(self.spec.objective_keys[: self.targets.present.shape[1]])

    def ahead(self, a: str, b: str, values: Callable[[Measured], Floats] = lambda m: m.best_at_k) -> dict[str, Any]:
        """The paired lead of policy a over b, `{"mean", "low", "high"}`; by default of best@k, at each k.

        Raises ValueError if they have no seed in common.
        """
        seeds = self.shared_seeds(a, b)
        return difference(self.of_seeds(a, seeds, values), self.of_seeds(b, seeds, values))

    def shared_seeds(self, *names: str) -> list[int]:
        """The training seeds that all these policies have; a policy that was not trained has any."""
        trained = [name for name in names if not name.startswith(BASE)] or [names[0]]
        shared = [seed for seed in self.seeds[trained[0]] if all(seed in self.seeds[name] for name in trained)]
        if not shared:
            raise ValueError(f"{', '.join(trained)} have no training seed in common: {self.seeds}.")
        return shared

    def of_seeds(self, name: str, seeds: Sequence[int], values: Callable[[Measured], Floats]) -> Floats:
        """A policy's values on these training seeds, (seeds, ...)."""
        own, found = self.seeds[name], values(self.policies[name])
        if name.startswith(BASE):
            return np.repeat(found.mean(0, keepdims=True), len(seeds), axis=0)
        return found[[own.index(seed) for seed in seeds]]

    def only_solved_by(self) -> dict[str, list[int]]:
        """The numbers of the prompts that only one policy solves, with any seed."""
        return only_solved_by({name: m.solved.any((0, 2)) for name, m in self.policies.items()})

    def prompts(self) -> Iterator[dict[str, Any]]:
        """Yield every prompt, with a drawing if the spec draws, and all responses of each policy's first pool.

        A candidate has its deployment reward as `value`, and whether this solves the prompt as `solved`.
        """
        apart = {name: measured.pairwise_l1[0] for name, measured in self.policies.items()}
        for number, row in enumerate(self.rows):
            policies, texts = [], []
            for name, measured in self.policies.items():
                pool = measured.pools[0]
                of_prompt = pool.responses[number * measured.rollouts : (number + 1) * measured.rollouts]
                vectors = pool.reward_matrices[number][..., self.targets.present[number]].round(6).tolist()
                shape = (measured.rollouts, measured.candidates)
                values = measured.rewards[0, number].reshape(shape).round(6).tolist()
                solved = measured.solved[0, number].reshape(shape).tolist()
                responses = [
                    {
                        "response": response["response"],
                        "candidates": [
                            dict(zip(("text", "rewards", "value", "solved"), candidate, strict=True))
                            for candidate in zip(response["candidates"], *scores, strict=True)
                        ],
                    }
                    for response, *scores in zip(of_prompt, vectors, values, solved, strict=True)
                ]
                texts += [text for text in pool.texts(number) if text is not None]
                policies.append({"name": name, "pairwise_l1": apart[name][number], "responses": responses})
            yield {
                "number": number,
                "prompt": shown_prompt(row["input"]),
                "label": row["label"],
                "policies": policies,
                "drawing": draw(self.spec, json.loads(row["label"]), texts),
            }

    def results(self) -> dict[str, Any]:
        """The results that `vpo_plugin.report.write` documents; differences pair the last policy with each other."""
        *others, last = self.policies
        ahead = {other: self.ahead(last, other) for other in others}
        return {
            "spec": self.spec.name,
            "objectives": self.objectives,
            "weights": self.spec.weights_of(len(self.objectives)).tolist(),
            "solved": self.spec.solved,
            "prompts": len(self.rows),
            "repeats": say_repeats(self.rows),
            "matched": {"by": self.match, "tokens_per_k": self.tokens_per_k},
            "ks": self.ks,
            "set_ks": self.set_ks,
            "ceiling": self.targets.ceiling,
            "policies": self.figures(),
            "differences": [
                {"a": last, "b": other, "k": k, **{part: values[k - 1] for part, values in of.items()}}
                for other, of in ahead.items()
                for k in (1, self.ks[-1])
            ],
            "fronts": {
                name: [front.round(6).tolist() for front in m.fronts[0][:FRONTS]] for name, m in self.policies.items()
            },
            "solved_at": self.targets.solved_at[:FRONTS].tolist(),
            "only_solved_by": self.only_solved_by(),
            "pools": {
                name: {key: value for key, value in m.pools[0].made.items() if key != "versions"}
                for name, m in self.policies.items()
            },
        }


def compare_searches(searches: Sequence[tuple[str, str, Search]], rows: Rows = ()) -> dict[str, Any]:
    """Solved prompts against budget of searches (policy, procedure, search), and which prompts only one policy solves.

    Args:
        rows: prompts that define the numbers of those that only one policy solves, with any procedure; default: the
            searches' own.

    Returns:
        `search` and `only_solved_by` of the report, on the prompts that all searches share.

    Raises:
        ValueError: the searches share no prompt.
    """
    named = {f"{policy} by {procedure}": search for policy, procedure, search in searches}
    numbers, shared, _ = shared_rows({name: search.rows for name, search in named.items()})
    curves = []
    solved: dict[str, np.ndarray] = {}
    for (policy, procedure, search), of_search in zip(searches, numbers.values(), strict=True):
        after = search.solved_after[of_search]
        budget = list(range(1, search.made["budget"] + 1))
        measure = figure([after[:, None] <= np.array(budget)])
        curves.append({"policy": policy, "procedure": procedure, "budget": budget, "solved": measure})
        solved[policy] = np.isfinite(after) | solved.get(policy, False)
    known = {key: number for number, key in enumerate(prompt_keys(rows or shared))}
    of_report = [known.get(key) for key in prompt_keys(shared)]
    alone = {
        policy: [number for number in (of_report[i] for i in mine) if number is not None]
        for policy, mine in only_solved_by(solved).items()
    }
    return {"search": curves, "only_solved_by": alone}


def only_solved_by(solved: Mapping[str, Any]) -> dict[str, list[int]]:
    """The numbers of the prompts that only one policy solves, from booleans `(prompts,)` by policy."""
    if len(solved) < 2:
        return {}
    by_one = np.sum(list(solved.values()), axis=0) == 1
    return {name: np.flatnonzero(of_policy & by_one).tolist() for name, of_policy in solved.items()}


def _matched(of_policy: Mapping[str, Sequence[Pool]], match: Match) -> tuple[dict[str, Floats], float | None]:
    """The number of candidates of each policy at k = 1, 2, …, and the tokens per unit of k, None if not matched so."""
    sizes = {name: min(pool.candidates.shape[1] for pool in pools) for name, pools in of_policy.items()}
    if match == "candidates":
        step = math.lcm(*(pools[0].reward_matrices.shape[2] for pools in of_policy.values()))
        most = min(sizes.values()) // step * step
        if not most:
            raise ValueError(
                f"The pools have {sizes} candidates per prompt, too few for a common number that {step} divides."
            )
        return {name: np.arange(1.0, most + 1) for name in of_policy}, None
    costs = {}
    for name, pools in of_policy.items():
        costs[name] = float(np.mean([p.per_response("tokens").sum() / p.candidates[..., 0].size for p in pools]))
        if not costs[name]:
            raise ValueError(f"The responses of {name} have no tokens, so it cannot be matched by tokens.")
    dearest = max(costs.values())
    steps = int(min(costs[name] * size for name, size in sizes.items()) / dearest + ROUNDING)
    if not steps:
        raise ValueError(f"The pools have {sizes} candidates per prompt, too few to be matched by tokens.")
    return {
        name: np.clip(np.arange(1, steps + 1) * dearest / cost, 1, sizes[name]) for name, cost in costs.items()
    }, dearest


def _at_budgets(measure: Callable[..., Floats], values: np.ndarray, bought: Floats) -> Floats:
    """An @k measure of values (seeds, prompts, n) at numbers of candidates, interpolated between whole numbers."""
    low = np.floor(bought + ROUNDING).astype(int)
    high, part = np.minimum(low + 1, values.shape[-1]), np.clip(bought - low, 0, None)
    needed = sorted({*low.tolist(), *high.tolist()})
    curves = np.stack([measure(of_seed, needed) for of_seed in values])
    return curves[..., np.searchsorted(needed, low)] * (1 - part) + curves[..., np.searchsorted(needed, high)] * part

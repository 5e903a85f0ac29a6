"""Search procedures: ways to spend a budget of candidates on one prompt.

A procedure is a small class with `async run(problem)`, which asks `problem` for responses, looks at their candidates
and asks again while `problem.open`. It handles one prompt. The prompts of a search run concurrently, and their
questions of a round go to the policy as one batch (`vpo_plugin/search/run.py`).
"""

import json
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from vpo_plugin.metrics import Floats
from vpo_plugin.rewards import RewardSpec
from vpo_plugin.rewards.prompts import Prompt, with_instruction
from vpo_plugin.rewards.response import columns_of
from vpo_plugin.rewards.task import canonical
from vpo_plugin.search.pool import full_prompt, random_goals
from vpo_plugin.targets import solved_at, solves


@dataclass(frozen=True)
class Candidate:
    """A scored candidate."""

    text: str | None
    """None if the response has no candidate in this slot."""
    rewards: Floats
    """(objectives,)"""
    value: float
    """Reward under the deployment weights."""


class Proposal(str):
    """The text of a response, with its candidates."""

    candidates: list[Candidate]

    def __new__(cls, text: str, candidates: list[Candidate]) -> "Proposal":
        proposal = super().__new__(cls, text)
        proposal.candidates = candidates
        return proposal


@dataclass(frozen=True)
class Question:
    """One question of a procedure to the policy."""

    number: int
    """Number of earlier questions about the same prompt."""
    text: Prompt
    start: str
    """The beginning of the response."""
    known: int
    """Number of complete candidates in `start`: tried before, free of cost, and not part of the answer."""


@dataclass
class Problem:
    """One prompt with its budget and the candidates tried so far."""

    number: int
    row: dict[str, Any]
    """Keys `input` and `label`."""
    spec: RewardSpec
    budget: int
    """Maximum number of candidates to try."""
    m: int
    """Candidates in a response."""
    seed: int
    ask: Callable[["Problem", Question], Awaitable[Proposal]]
    """Returns the scored response to a question."""
    tell_weights: bool = False
    tried: list[Candidate] = field(default_factory=list)
    questions: int = 0
    solved_after: int | None = None
    """Number of candidates that were needed; None while the prompt is not solved."""

    def __post_init__(self) -> None:
        self.label = json.loads(self.row["label"])
        self.objectives = [column.key for column in columns_of(self.spec, self.label)]
        self.weights = self.spec.weights_of(len(self.objectives))
        self.floor = float(self.weights @ [column.low for column in columns_of(self.spec, self.label)])
        self.solved_at = solved_at(self.spec, self.label)

    @property
    def open(self) -> bool:
        """Whether to ask again: the prompt is not solved, and there is budget left."""
        return self.solved_after is None and len(self.tried) < self.budget

    @property
    def best(self) -> Candidate | None:
        """The best candidate tried so far, under the deployment weights; the first of equals."""
        return max((c for c in self.tried if c.text is not None), key=lambda c: c.value, default=None)

    def text(self, shown: Sequence[Candidate] = ()) -> Prompt:
        """The prompt with its instruction and, if given, candidates with their rewards."""
        goal = None
        if self.tell_weights:
            [goal] = random_goals(self.spec, self.row["label"], [self.questions], self.seed)
        prompt = full_prompt(self.spec, self.row["input"], self.m, goal)
        if not shown:
            return prompt
        earlier = "\n".join(f"{self._rewards(candidate)}:\n{candidate.text}\n" for candidate in shown)
        told = f"\n\nEarlier candidates with their rewards:\n{earlier}\nWrite better ones.\n"
        return with_instruction(prompt, lambda text: f"{text.rstrip()}{told}")

    async def propose(self, text: Prompt, start: str = "", known: int = 0) -> Proposal:
        """Ask for a response that begins with `start` (see `Question`), and try its candidates."""
        question = Question(self.questions, text, start, known)
        self.questions += 1
        proposal = await self.ask(self, question)
        for candidate in proposal.candidates[: self.budget - len(self.tried)]:
            self.tried.append(candidate)
            if self.solved_after is None and solves(candidate.value, self.solved_at):
                self.solved_after = len(self.tried)
        return proposal

    def candidate(self, text: str | None, rewards: Sequence[float]) -> Candidate:
        """A candidate of this prompt with the deployment reward of its reward vector."""
        vector = np.asarray(rewards, dtype=np.float64)
        return Candidate(text, vector, float(vector @ self.weights))

    def canonical(self, text: str) -> Hashable:
        """The key that equal candidates share."""
        return canonical(self.spec, text, self.label)

    def _rewards(self, candidate: Candidate) -> str:
        return ", ".join(f"{key} {value:.2f}" for key, value in zip(self.objectives, candidate.rewards, strict=True))


class Procedure(Protocol):
    """A way to search."""

    async def run(self, problem: Problem) -> None:
        """Ask until the problem is no longer open."""
        ...


class BestOfK:
    """Keep sampling, independently of earlier results."""

    async def run(self, problem: Problem) -> None:
        while problem.open:
            await problem.propose(problem.text())


class Refinement:
    """Show the best candidate so far with its rewards, and ask for better ones."""

    async def run(self, problem: Problem) -> None:
        while problem.open:
            await problem.propose(problem.text([problem.best] if problem.best else []))

"""`vpo explain`: what each estimator does to a policy, computed exactly on a small example.

There is no language model and no sampling. A policy is a softmax over everything that one response can hold: one
answer, or a set of three. Its expected policy gradient is a sum over all of these, with the estimators' own rollout
rewards, so what it converges to is what the estimator wants.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from vpo_plugin.advantages import RewardBatch, get_advantage_estimator
from vpo_plugin.advantages.normalize import NO_SPREAD
from vpo_plugin.cli.settings import Command, read
from vpo_plugin.files import replacing

ANSWERS = {
    "fast": (1.0, 0.0),
    "thorough": (0.0, 1.0),
    "compromise": (0.65, 0.65),
    "half-hearted": (0.55, 0.35),
    "useless": (0.1, 0.1),
}
"""Kinds of answer with their rewards for speed and for quality; the first three are the Pareto front."""
OBJECTIVES = ("speed", "quality")
CANDIDATES = 3
METHODS = {"grpo": 1, "multi_rlvr": CANDIDATES, "set_max": CANDIDATES, "vpo": CANDIDATES, "vpo_at_k": 1}
"""Candidates in one response of each method's policy."""
ROLLOUTS = CANDIDATES
"""Responses in a group of `vpo_at_k`, all of which count: as many answers as a set of the others."""
BUDGETS = range(CANDIDATES, 31, CANDIDATES)
STEPS, LEARNING_RATE = 3000, 5.0


@dataclass(frozen=True)
class Policy:
    """A distribution over all responses."""

    responses: list[tuple[str, ...]]
    """What a response can hold: the names of its answers."""
    probabilities: np.ndarray
    """(responses,)"""

    @property
    def rewards(self) -> np.ndarray:
        """Reward matrices of the responses, (responses, candidates, objectives)."""
        return np.array([[ANSWERS[name] for name in response] for response in self.responses])

    def chance_of(self, answer: str) -> float:
        """Probability that a response holds this answer."""
        return float(self.probabilities @ [answer in response for response in self.responses])


def every_response(candidates: int) -> list[tuple[str, ...]]:
    """All ordered choices of this many answers; a kind of answer may come twice, worded differently."""
    return list(itertools.product(ANSWERS, repeat=candidates))


def train(method: str) -> Policy:
    """Follow the exact expected policy gradient from the uniform policy.

    The advantages are those of an infinite group: rewards less their mean over the policy, over their standard
    deviation. The gradient of logit i is then `p_i A_i`. For `vpo_at_k` see `AcrossRollouts`.
    """
    if method == "vpo_at_k":
        return AcrossRollouts().train()
    responses = every_response(METHODS[method])
    start = Policy(responses, np.full(len(responses), 1 / len(responses)))
    matrices = torch.from_numpy(start.rewards)[None]  # one group that holds every response once
    batch = RewardBatch(matrices, num_weights=2**14, generator=torch.Generator().manual_seed(0))
    worth = get_advantage_estimator(method).values(batch)[0].numpy()
    logits = np.zeros(len(responses))
    for _ in range(STEPS):
        probabilities = softmax(logits)
        centred = worth - probabilities @ worth
        deviation = np.sqrt(probabilities @ centred**2)
        if deviation < NO_SPREAD:
            break
        logits += LEARNING_RATE * probabilities * centred / deviation
    return Policy(responses, softmax(logits))


class AcrossRollouts:
    """`vpo_at_k` on single answers: its gradient is a sum over all groups of `ROLLOUTS` answers."""

    def __init__(self) -> None:
        self.responses = every_response(1)
        self.groups = np.array(list(itertools.product(range(len(self.responses)), repeat=ROLLOUTS)))
        matrices = np.array(list(ANSWERS.values()))[self.groups][:, :, None]
        generator = torch.Generator().manual_seed(0)
        batch = RewardBatch(torch.from_numpy(matrices), num_weights=2**14, generator=generator, k=ROLLOUTS)
        advantages = get_advantage_estimator("vpo_at_k_derived")(batch).numpy()
        self.squares = np.square(advantages).mean(1)
        shares = [np.where(self.groups == answer, advantages, 0).mean(1) for answer in range(len(self.responses))]
        self.by_answer = np.stack(shares, 1)
        """(groups, answers): the group's mean of `A_i` over the rollouts that hold this answer."""

    def gradient(self, probabilities: np.ndarray) -> np.ndarray:
        """The estimator's expectation, `E[mean_i A_i grad log p_i]` over the logits of the answers."""
        gains = probabilities[self.groups].prod(1) @ self.by_answer
        return gains - probabilities * gains.sum()

    def train(self) -> Policy:
        """Follow the gradient over the root mean square of the advantages, as `vpo_at_k` does."""
        logits = np.zeros(len(self.responses))
        for _ in range(STEPS):
            probabilities = softmax(logits)
            size = np.sqrt(probabilities[self.groups].prod(1) @ self.squares)
            logits += LEARNING_RATE * self.gradient(probabilities) / size
        return Policy(self.responses, softmax(logits))


def objective_gradient(policy: Policy, number: int) -> np.ndarray:
    """Gradient of `expected_best(policy, number)` over the logits of the policy, by central differences."""
    logits, step = np.log(policy.probabilities), 1e-5
    slopes = []
    for change in step * np.eye(len(logits)):
        up, down = (Policy(policy.responses, softmax(logits + sign * change)) for sign in (1, -1))
        slopes.append((expected_best(up, number) - expected_best(down, number)) / (2 * step))
    return np.array(slopes)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def expected_best(policy: Policy, number: int) -> float:
    """`E_w[E[max of w·r]]` over the answers of `number` responses, for `w` uniform on the simplex; exact.

    For one `w` the best of n draws has the distribution function `F^n`. As a function of `w` its mean is linear
    between the points at which two answers score the same, so the trapezoidal rule on these points is exact.
    """
    table = np.array(list(ANSWERS.values()))
    differences = np.array([one - other for one, other in itertools.combinations(table, 2)])
    slopes = differences[:, 0] - differences[:, 1]
    crossings = -differences[slopes != 0, 1] / slopes[slopes != 0]
    points = np.unique(np.concatenate([[0.0, 1.0], crossings[(crossings > 0) & (crossings < 1)]]))
    best = []
    for w in points:
        values = (policy.rewards @ [w, 1 - w]).max(1)
        order = values.argsort()
        below = np.concatenate([[0.0], np.minimum(policy.probabilities[order].cumsum(), 1.0)]) ** number
        best.append(values[order] @ np.diff(below))
    return float(np.diff(points) @ np.convolve(best, [0.5, 0.5], "valid"))


def set_value(answers: Sequence[str]) -> float:
    """The set reward of these answers, exact."""
    return expected_best(Policy([tuple(answers)], np.ones(1)), 1)


def explain(policies: dict[str, Policy]) -> str:
    """What happened, in words and three tables."""
    ceiling, across = set_value(list(ANSWERS)), AcrossRollouts()
    undecided = Policy(across.responses, np.full(len(ANSWERS), 1 / len(ANSWERS)))
    slopes, means = objective_gradient(undecided, ROLLOUTS), across.gradient(undecided.probabilities)
    lines = [
        f"Five kinds of answer, each with a reward for {OBJECTIVES[0]} and for {OBJECTIVES[1]}:",
        "",
        *(f"  {name:14}{speed:6.2f}{quality:6.2f}   mean {(speed + quality) / 2:.3f}"
          for name, (speed, quality) in ANSWERS.items()),
        "",
        "Each policy starts undecided and follows its estimator's exact policy gradient to the end. Probability that a",
        f"response then holds each answer (grpo's and vpo_at_k's responses hold 1, the others' {CANDIDATES}):",
        "",
        "  " + " " * 14 + "".join(f"{method:>12}" for method in METHODS),
        *(f"  {name:14}" + "".join(f"{policies[method].chance_of(name):12.2f}" for method in METHODS)
          for name in ANSWERS),
        "",
        "Search: a user with unknown weights w on speed and quality takes the best of the answers that were sampled.",
        f"Expected value of it, over all w (the whole table of answers gives {ceiling:.4f}):",
        "",
        "  " + f"{'answers':14}" + "".join(f"{method:>12}" for method in METHODS),
        *(f"  {budget:<14}" + "".join(
            f"{expected_best(policies[method], budget // METHODS[method]):12.4f}" for method in METHODS)
          for budget in (3, 6, 30)),
        "",
        "grpo pays one answer its mean reward, and the compromise has the best mean: the policy collapses on it, and",
        "more samples are more of the same. multi_rlvr pays every answer of a set by itself, so all of them collapse.",
        "set_max pays the best answer under the deployment weights: one compromise in the set is enough, and nothing",
        "asks the other answers to be good or to differ. vpo pays a set what its best answer is worth to a random",
        "weighting: a second compromise adds nothing, a specialist adds what it wins, and the set covers the front.",
        f"vpo_at_k pays single answers for what they add to the best of {ROLLOUTS}: the policy keeps the whole front,",
        "but it samples answers independently, so some may repeat; the answers of a vpo set do not.",
        "",
        f"Is that the gradient of the best of {ROLLOUTS}, which a search is worth? At the undecided policy, for the",
        "logit of each answer: the slope of the objective, and the mean of the estimator over all groups of answers,",
        f"{len(across.groups)} of {ROLLOUTS} each:",
        "",
        *(f"  {name:14}{slope:+10.5f}{mean:+10.5f}" for name, slope, mean in zip(ANSWERS, slopes, means, strict=True)),
    ]  # fmt: skip
    return "\n".join(lines)


def plot(policies: dict[str, Policy], path: Path) -> None:
    """Two panels: the answers that grpo and vpo keep, and what a search finds in each policy's answers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    table, found = figure.subplots(1, 2)
    front = np.array([ANSWERS[name] for name in ("thorough", "compromise", "fast")])
    table.plot(*front.T, color="0.7", linestyle="--", zorder=0, label="Pareto front")
    for method, colour, width in (("grpo", "#d1495b", 7.0), ("vpo", "#2a6f97", 2.5)):
        shares = [policies[method].chance_of(name) for name in ANSWERS]
        points = np.array(list(ANSWERS.values()))
        areas = 60 + 700 * np.array(shares)
        kept = np.array(shares) > 0.01
        table.scatter(
            *points[kept].T,
            s=areas[kept],
            facecolors="none",
            edgecolors=colour,
            linewidths=width,
            label=f"{method} keeps",
        )
    table.scatter(*np.array(list(ANSWERS.values())).T, color="0.2", s=18, zorder=3)
    for name, (speed, quality) in ANSWERS.items():
        table.annotate(name, (speed, quality), textcoords="offset points", xytext=(0, -30), ha="center")
    table.set(xlabel=f"reward for {OBJECTIVES[0]}", ylabel=f"reward for {OBJECTIVES[1]}", title="Answers kept")
    table.set(xlim=(-0.2, 1.2), ylim=(-0.2, 1.2))
    table.legend(loc="upper right", frameon=False, markerscale=0.35)
    for (method, candidates), dash in zip(METHODS.items(), ("-", "--", "-.", "-", ":"), strict=True):
        values = [expected_best(policies[method], budget // candidates) for budget in BUDGETS]
        found.plot(BUDGETS, values, dash, marker="o", markersize=4, label=method)
    found.axhline(set_value(list(ANSWERS)), color="0.2", linewidth=1, label="all answers")
    found.set(xlabel="answers sampled", ylabel="best, mean over all weightings", title="What a search finds")
    found.legend(frameon=False)
    with replacing(path) as unfinished:
        figure.savefig(unfinished, format="png", dpi=150)


class Explain(Command):
    """Show what vpo does on a small exact example, in seconds."""

    output: Path = Field(Path("runs/explain"), description="Folder of explain.png.")


def main(arguments: list[str]) -> int:
    """Run the example: words and tables on the terminal, one plot in a file."""
    settings = read(Explain, arguments, "vpo explain")
    policies = {method: train(method) for method in METHODS}
    path = settings.output / "explain.png"
    plot(policies, path)
    print(f"{explain(policies)}\n\nPlot: {path}")
    return 0

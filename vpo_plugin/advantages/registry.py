"""Advantage estimators by name.

An estimator has two steps, and the host's length penalties act between them. Its function gives each rollout a value,
and `normalize` turns values into advantages. If the values are advantages already, there is no second step, and the
penalties act on the reward matrices.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from vpo_plugin.advantages.batch import RewardBatch
from vpo_plugin.advantages.normalize import group_z_norm

Function = Callable[[RewardBatch], Float[Tensor, "groups rollouts"]]
Normalize = Callable[[Float[Tensor, "groups rollouts"]], Float[Tensor, "groups rollouts"]]


@dataclass(frozen=True)
class AdvantageEstimator:
    """A named estimator; calling it with a `RewardBatch` gives the advantages."""

    name: str
    function: Function
    normalize: Normalize | None
    """Turns values into advantages; None: the function's values are advantages already."""
    candidates: Literal["one", "several", "any"]
    """How many candidates a response holds: exactly one, several, or any number that the run sets."""
    takes_k: bool
    """The estimator uses the batch's `k`, the number of rollouts of which the best counts."""
    weights_in_prompt: bool
    """The batch's `objective_weights` are those that each group's prompt states, not the deployment weights."""
    relative: bool
    """The values are relative to the group: some of its rollouts are always below 0."""

    def values(self, batch: RewardBatch) -> Float[Tensor, "groups rollouts"]:
        """Each rollout's value, or its advantage if `normalize` is None, in the batch's dtype."""
        return self.function(batch).to(batch.dtype)

    def __call__(self, batch: RewardBatch) -> Float[Tensor, "groups rollouts"]:
        values = self.values(batch)
        return values if self.normalize is None else self.normalize(values)


_estimators: dict[str, AdvantageEstimator] = {}


def register_advantage_estimator(
    name: str,
    *,
    normalize: Normalize | None = group_z_norm,
    candidates: Literal["one", "several", "any"] = "any",
    takes_k: bool = False,
    weights_in_prompt: bool = False,
    relative: bool = False,
) -> Callable[[Function], Function]:
    """Decorator that registers a function as the estimator `name` and returns it unchanged.

    The other arguments are the fields of `AdvantageEstimator`.

    Raises:
        ValueError: the name is taken.
    """

    def register(function: Function) -> Function:
        if name in _estimators:
            raise ValueError(f"An advantage estimator named {name!r} exists already; choose another name.")
        _estimators[name] = AdvantageEstimator(
            name, function, normalize, candidates, takes_k, weights_in_prompt, relative
        )
        return function

    return register


def get_advantage_estimator(name: str) -> AdvantageEstimator:
    """The estimator registered as `name`.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    if name not in _estimators:
        known = ", ".join(advantage_estimator_names())
        raise ValueError(f"There is no advantage estimator named {name!r}; known are: {known}.")
    return _estimators[name]


def parse_method(method: str) -> tuple[str, int | None]:
    """Read a method's name: an estimator, or `NAME:CANDIDATES` with the number of candidates in a response.

    Returns:
        The name of an estimator of the plugin or the host, and the candidates; None leaves them to the run.

    Raises:
        ValueError: candidates that are not a whole number above 0, or several for an estimator that rewards one.
    """
    name, colon, number = method.partition(":")
    if not colon:
        return name, None
    if not number.isdecimal() or int(number) < 1:
        raise ValueError(f"{method!r} is not a method: the number of candidates in a response follows the colon.")
    if int(number) > 1 and name in _estimators and _estimators[name].candidates == "one":
        raise ValueError(f"{method!r} is not a method: {name} rewards one candidate per response.")
    return name, int(number)


def advantage_estimator_names() -> list[str]:
    """The names of all registered estimators, sorted."""
    return sorted(_estimators)

"""Score a response in this process: its candidates become the rows of a reward matrix."""

import asyncio
import inspect
import math
import threading
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from numbers import Real
from typing import Any

import numpy as np

from vpo_plugin.rewards.formats import parse
from vpo_plugin.rewards.prompts import read_prompt
from vpo_plugin.rewards.spec import Column, RewardSpec, load_entry_point

ROUNDING = 1e-6  # of an objective's range: a value that is so little outside was rounded


class RewardError(ValueError):
    """A scorer did not return one number per objective within its range; the message shows what it returned."""


@dataclass(frozen=True)
class ScoredResponse:
    """A scored rollout.

    `matrix` has shape (m, k), float32. Row s holds the rewards of candidate s, higher is better. Rows of missing
    candidates, and of candidates that repeat an earlier one, are the floor of each objective. `reward` is the mean
    deployment scalarization over all m rows, the scalar that the host sees.
    """

    matrix: np.ndarray
    parsed: int
    unique: int
    reward: float
    candidates: list[str | None]
    error: str | None = None
    """Why the scorer failed, if failures count as zero: all rows are the floor."""


def score_response(
    spec: RewardSpec, response: str, label: object, candidates: int, prompt: str | None = None
) -> ScoredResponse:
    """The reward matrix of a response, shape (candidates, k); functions in trl's signature need the packed `prompt`.

    Raises RewardError if the scorer does not return one number per objective within its range. Errors of the scorer
    propagate. There is no time limit here: `vpo_plugin.rewards.scoring` has one.
    """
    return response_scorer(spec)(response, label, candidates, prompt)


def response_scorer(spec: RewardSpec) -> Callable[..., ScoredResponse]:
    """`score_response` for a spec, with the work that all responses share done once.

    Raises ValueError if the spec has no scorer, or a group scorer.
    """
    rewards_of, read, columns_for = _candidate_scorer(spec), _reader(spec), _column_reader(spec)

    def score(response: str, label: object, candidates: int, prompt: str | None = None) -> ScoredResponse:
        texts, distinct = read(response, label, candidates)
        found = iter(rewards_of([text for text in distinct if text is not None], label, prompt))
        returned = [None if text is None else next(found) for text in distinct]
        return _scored(texts, distinct, returned, *columns_for(label))

    return score


def group_scorer(spec: RewardSpec) -> Callable[[Sequence[str], object, int], list[ScoredResponse]]:
    """The scores of all responses to a prompt, for a spec whose scorer compares them (`group_scorer`).

    The function raises RewardError if the scorer does not return a list of reward vectors for each response.
    """
    scorer, read, columns_for = load_entry_point(str(spec.group_scorer)), _reader(spec), _column_reader(spec)

    def score(responses: Sequence[str], label: object, candidates: int) -> list[ScoredResponse]:
        found = [read(response, label, candidates) for response in responses]
        returned = scorer([list(distinct) for _, distinct in found], label)
        if isinstance(returned, Awaitable):
            returned = _await(returned)
        if not isinstance(returned, list | tuple) or [_length(one) for one in returned] != [candidates] * len(found):
            raise RewardError(
                f"The scorer returned {_shown(returned)}. It returns {len(found)} lists, one per rollout, of "
                f"{candidates} reward vectors, one per candidate (anything for a candidate that is None)."
            )
        columns = columns_for(label)
        return [_scored(*texts, rows, *columns) for texts, rows in zip(found, returned, strict=True)]

    return score


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list | tuple) or hasattr(value, "tolist") else -1


def _reader(spec: RewardSpec) -> Callable[[str, object, int], tuple[list[str | None], list[str | None]]]:
    """The candidates of a response, and the candidates without those that repeat an earlier one."""
    canonical = load_entry_point(spec.canonical) if spec.canonical else None

    def read(response: str, label: object, candidates: int) -> tuple[list[str | None], list[str | None]]:
        texts = parse(spec, response, candidates)
        distinct: list[str | None] = []
        seen = set[Hashable]()
        for text in texts:
            key = text if text is None or canonical is None else canonical(text, label)
            distinct.append(None if text is None or key in seen else text)
            seen.add(key)
        return texts, distinct

    return read


def _scored(
    texts: list[str | None],
    distinct: list[str | None],
    returned: Sequence[Any],
    columns: Sequence[Column],
    weights: np.ndarray,
) -> ScoredResponse:
    """A scored response from the scorer's results; only distinct candidates count."""
    floor = [column.low for column in columns]
    rows = [
        floor if text is None else read_rewards(values, columns)
        for text, values in zip(distinct, returned, strict=True)
    ]
    matrix = np.array(rows, dtype=np.float32)
    return ScoredResponse(
        matrix=matrix,
        parsed=len(texts) - texts.count(None),
        unique=len(distinct) - distinct.count(None),
        reward=sum((matrix @ weights).tolist()) / len(matrix),
        candidates=texts,
    )


def _candidate_scorer(spec: RewardSpec) -> Callable[[list[str], object, str | None], Sequence[Any]]:
    """What the scorer, or the objectives' functions, return for each candidate."""
    if spec.functions:
        return _by_functions(spec)
    if spec.group_scorer:
        raise ValueError(
            f"The scorer of the spec '{spec.name}' compares the rollouts of a prompt: it needs all of them."
        )
    if spec.scorer is None:
        raise ValueError(f"The spec '{spec.name}' has no scorer: name one under the key `scorer`.")
    scorer = load_entry_point(spec.scorer)
    return lambda texts, label, prompt: [scorer(text, label) for text in texts]


def _by_functions(spec: RewardSpec) -> Callable[[list[str], object, str | None], Sequence[Any]]:
    """Rewards by functions in trl's signature, called as its GRPOTrainer calls them (`_calculate_rewards`).

    Completions are texts, or one-message chats if the prompt is a chat. Columns are the label under its column's name
    and, if the label is an object, its keys.
    """
    functions = {key: load_entry_point(path) for key, path in spec.functions.items()}
    column = spec.dataset.columns.label if spec.dataset else "label"

    def rewards(texts: list[str], label: object, packed: str | None) -> Sequence[Any]:
        if packed is None:
            raise ValueError("functions in trl's signature need the prompt, and this response has none (key 'prompt')")
        if not texts:
            return []
        prompt = read_prompt(packed)
        chats = [[{"role": "assistant", "content": text}] for text in texts]
        known = {} if spec.label == "none" else {column: label, **(label if isinstance(label, dict) else {})}
        columns = {str(name): [value] * len(texts) for name, value in known.items()}
        given = {
            **columns,
            "prompts": [prompt] * len(texts),
            "completions": texts if isinstance(prompt, str) else chats,
        }
        found = {}
        for key, function in functions.items():
            try:
                returned = function(**given)
                returned = _await(returned) if isinstance(returned, Awaitable) else returned
            except BaseException as error:
                error.add_note(f"the function of the objective '{key}'")
                raise
            returned = returned.tolist() if hasattr(returned, "tolist") else returned
            if not isinstance(returned, list | tuple) or len(returned) != len(texts):
                raise RewardError(
                    f"The function of the objective '{key}' returned {_shown(returned)}. It returns a list of "
                    f"{len(texts)} numbers, one per completion."
                )
            found[key] = returned
        return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]

    return rewards


def floor_response(spec: RewardSpec, label: object, candidates: int, error: str | None = None) -> ScoredResponse:
    """The score of a response without candidates, or whose scorer failed: the floor in every row."""
    columns = columns_of(spec, label)
    matrix = np.tile(np.array([column.low for column in columns], dtype=np.float32), (candidates, 1))
    reward = float(matrix[0] @ spec.weights_of(len(columns)))
    return ScoredResponse(matrix, 0, 0, reward, [None] * candidates, error)


# ------------------------------------------------------------------------------------------------ what a scorer returns


def read_rewards(returned: Any, columns: Sequence[Column]) -> list[float]:
    """The rewards that a scorer returned, one per objective: numbers in order or by key; awaitables are awaited.

    If one does not pass its objective's gate, all are the floor.

    Raises RewardError, which says what the scorer returned and what is expected.
    """
    if not isinstance(returned, list | tuple):
        returned = _listed(returned, columns)
    if len(returned) != len(columns):
        raise RewardError(f"The scorer returned {len(returned)} rewards, {_shown(returned)}. {_wanted(columns)}")
    rewards = [_reward(value, column) for value, column in zip(returned, columns, strict=True)]
    for column, reward in zip(columns, rewards, strict=True):
        if column.gate is not None and reward < column.gate:
            return [column.low for column in columns]
    return rewards


def _listed(returned: Any, columns: Sequence[Column]) -> Any:
    """A scorer's return value as a list: awaited, in the order of the objectives, taken out of a tensor."""
    if isinstance(returned, Awaitable):
        returned = _await(returned)
    if isinstance(returned, Mapping):
        keys = [column.key for column in columns]
        if returned.keys() != set(keys):
            raise RewardError(f"The scorer returned the keys {sorted(map(str, returned))}, the objectives are {keys}.")
        returned = [returned[key] for key in keys]
    elif hasattr(returned, "tolist"):
        returned = returned.tolist()  # a tensor, an array
    elif inspect.isgenerator(returned):
        returned = list(returned)
    if not isinstance(returned, list | tuple):
        raise RewardError(f"The scorer returned {_shown(returned)}. {_wanted(columns)}")
    return returned


def _reward(value: Any, column: Column) -> float:
    if type(value) is not float:
        value = value.item() if hasattr(value, "item") and getattr(value, "shape", None) == () else value
        if isinstance(value, str | bytes | complex) or not (isinstance(value, Real) or hasattr(value, "__float__")):
            raise RewardError(f"The scorer gave the objective '{column.key}' {_shown(value)}, which is not a number.")
        value = float(value)
    if not column.low <= value <= column.high:
        margin = ROUNDING * (column.high - column.low)
        if not math.isfinite(value):
            raise RewardError(f"The scorer gave the objective '{column.key}' {value}, which is not finite.")
        if not (column.clamped or column.low - margin <= value <= column.high + margin):
            raise RewardError(
                f"The scorer gave the objective '{column.key}' {value}, which is not within {column.low} to "
                f"{column.high}, its range in the spec (with `outside_range: clamp` it would be moved there)."
            )
        value = min(max(value, column.low), column.high)
    return column.low + column.high - value if column.mirrored else value


def _shown(value: object) -> str:
    return f"{str(value)[:80]!r} ({type(value).__name__})"


def _wanted(columns: Sequence[Column]) -> str:
    return f"It returns a list of {len(columns)} numbers, or a dict, for the objectives {[c.key for c in columns]}."


def _await(awaitable: Awaitable[Any]) -> Any:
    async def waiting() -> Any:
        return await awaitable

    return asyncio.run_coroutine_threadsafe(waiting(), _loop()).result()


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """One event loop for all scorers, so that a client that they keep stays usable."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="scorers' event loop", daemon=True).start()
    return loop


# ------------------------------------------------------------------------------------------------ labels


def _column_reader(spec: RewardSpec) -> Callable[[object], tuple[list[Column], np.ndarray]]:
    """The columns of a label's prompt, and their deployment weights."""
    if spec.ragged is None:
        same = spec.columns(len(spec.objective_keys)), np.array(spec.objective_weights)
        return lambda label: same

    def read(label: object) -> tuple[list[Column], np.ndarray]:
        columns = columns_of(spec, label)
        return columns, spec.weights_of(len(columns))

    return read


def columns_of(spec: RewardSpec, label: object) -> list[Column]:
    """The columns of a label's prompt. Raises ValueError if a ragged spec's label has too many, or none."""
    if spec.ragged is None:
        return spec.columns(len(spec.objective_keys))
    count = load_entry_point(spec.ragged.count)(label)
    if not isinstance(count, int) or not 1 <= count <= spec.ragged.max:
        raise ValueError(f"A label has {count!r} objectives, the spec '{spec.name}' allows 1 to {spec.ragged.max}.")
    return spec.columns(count)

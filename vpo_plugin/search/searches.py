"""Stored searches: a folder with `search.json`, which says how it was made, a Parquet file per round, and the result.

In a round every open prompt gets a response, one row each. At the end, `result.parquet` has one row per prompt. Files
are written atomically, so stored ones are valid after an interruption.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa

from vpo_plugin.search.pool import PROMPT, RESPONSE, read_settings, read_table
from vpo_plugin.search.settings import Procedure

COMMAND = "vpo search"
SETTINGS = "search.json"
SCHEMA = pa.schema(
    [
        ("prompt", pa.int64()),  # number of the prompt, from 0
        ("question", pa.int64()),  # number of the question about it, from 0
        *PROMPT,
        ("asked", pa.string()),  # the policy's prompt, before any chat template
        ("start", pa.string()),  # the given beginning of the response
        ("known", pa.int64()),  # number of candidates in that beginning, tried before
        *RESPONSE,
    ]
)
RESULT = "result.parquet"
RESULT_SCHEMA = pa.schema(
    [
        *PROMPT,
        ("solved_after", pa.int64()),  # candidates, null if not solved
        ("tried", pa.int64()),  # candidates
        ("best", pa.string()),  # candidate, null if none could be parsed
        ("reward", pa.float64()),  # of the best, under the deployment weights
    ]
)
PROCEDURES = get_args(Procedure)


@dataclass(frozen=True)
class Search:
    """A stored search."""

    made: Mapping[str, Any]
    """Model, spec, procedure, budget, sampling, versions."""
    rows: Sequence[Mapping[str, Any]]
    """The prompts: input and label."""
    solved_after: np.ndarray
    """(prompts,): number of candidates needed to solve each; inf if the budget was too small."""
    tokens: int
    """Number of tokens written for all prompts together."""


def load_search(folder: Path) -> Search:
    """Read a stored search.

    Raises:
        FileNotFoundError: the folder has no search.
        ValueError: the search is unfinished, or a file is damaged.
    """
    made = read_settings(folder, SETTINGS)
    if made is None:
        raise FileNotFoundError(f"{folder} holds no search (no {SETTINGS}).")
    if not (folder / RESULT).exists():
        raise ValueError(f"The search {folder} is not finished: run the same `vpo search` again to resume it.")
    rows = read_table(folder / RESULT, RESULT_SCHEMA, COMMAND).to_pylist()
    solved_after = np.array([row["solved_after"] or np.inf for row in rows])
    prompts = [{"input": row["input"], "label": row["label"]} for row in rows]
    tokens = sum(read_table(file, SCHEMA, COMMAND)["tokens"].to_numpy().sum() for file in round_files(folder))
    return Search(made, prompts, solved_after, int(tokens))


def load_searches(policy: str, folder: Path) -> list[tuple[str, str, Search]]:
    """All searches of a policy that `vpo search` wrote into a folder, as (policy, procedure, search).

    Raises:
        FileNotFoundError: there is none.
        ValueError: see `load_search`.
    """
    found = [name for name in PROCEDURES if (folder / name).is_dir()]
    if not found:
        raise FileNotFoundError(f"{folder} holds no search: none of the folders {', '.join(PROCEDURES)}.")
    return [(policy, name, load_search(folder / name)) for name in found]


def round_file(folder: Path, number: int) -> Path:
    """The Parquet file of a round, numbered from 0."""
    return folder / f"round-{number:05}.parquet"


def round_files(folder: Path) -> list[Path]:
    """The files of all stored rounds, in order."""
    numbers = itertools.takewhile(lambda number: round_file(folder, number).exists(), itertools.count())
    return [round_file(folder, number) for number in numbers]

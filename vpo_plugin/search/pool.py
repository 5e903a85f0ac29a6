"""Pools on disk: a policy's responses to each prompt, their candidates, and the candidates' reward vectors.

A pool is a folder with `pool.json`, which says how the pool was made, and a Parquet file per batch of prompts, with one
row per response. It is a dataset: `datasets.load_dataset("parquet", data_files="FOLDER/*.parquet")`. Batches are
written atomically, so stored ones are valid after an interruption, and sampling can resume.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vpo_plugin import files
from vpo_plugin.advantages import goal_weights, write_goal
from vpo_plugin.rewards import RewardSpec
from vpo_plugin.rewards.data import open_dataset
from vpo_plugin.rewards.fit import column_mistake
from vpo_plugin.rewards.formats import render_prompt
from vpo_plugin.rewards.labels import read_label
from vpo_plugin.rewards.prompts import Prompt, check_prompt, pack_prompt, read_prompt, with_instruction
from vpo_plugin.rewards.task import check_label

PROMPT = [
    ("input", pa.string()),  # the prompt without instruction; a chat as packed by `rewards.prompts.pack_prompt`
    ("label", pa.string()),  # JSON
]
RESPONSE = [
    ("response", pa.string()),
    ("candidates", pa.list_(pa.string())),  # m, null where one is missing
    ("rewards", pa.list_(pa.list_(pa.float32()))),  # (m, objectives)
    ("tokens", pa.int64()),
    ("parsed", pa.int64()),
    ("unique", pa.int64()),
    ("error", pa.string()),  # why the scorer failed, if failures count as zero
    ("seed", pa.int64()),  # of the batch
]
# `prompt` and `rollout` count prompts and the responses to each, both from 0.
SCHEMA = pa.schema([("prompt", pa.int64()), ("rollout", pa.int64()), *PROMPT, *RESPONSE])
SETTINGS = "pool.json"


@dataclass(frozen=True)
class Pool:
    """A stored pool."""

    reward_matrices: np.ndarray
    """(prompts, rollouts, candidates, objectives), float32; NaN where a prompt has fewer objectives than another."""
    responses: list[dict[str, Any]]
    """One per rollout, prompt by prompt: prompt number, response, candidates, tokens, parsed, unique, error, seed."""
    made: Mapping[str, Any]
    """Model and its fingerprint, spec, sampling, versions, and the words of the command that made it."""
    rows: Sequence[Mapping[str, Any]] = ()
    """The prompts: input and label."""

    @property
    def candidates(self) -> np.ndarray:
        """All candidates of a prompt in one row, (prompts, rollouts · candidates, objectives)."""
        prompts, rollouts, candidates, objectives = self.reward_matrices.shape
        return self.reward_matrices.reshape(prompts, rollouts * candidates, objectives)

    def per_response(self, key: str) -> np.ndarray:
        """A number per response, such as `tokens`, (prompts, rollouts)."""
        return np.array([response[key] for response in self.responses]).reshape(self.reward_matrices.shape[:2])

    def texts(self, number: int) -> list[str | None]:
        """All candidates of a prompt, None where one is missing."""
        rollouts = self.reward_matrices.shape[1]
        of_prompt = self.responses[number * rollouts : (number + 1) * rollouts]
        return [text for response in of_prompt for text in response["candidates"]]

    def first(self, rollouts: int) -> "Pool":
        """The pool with only the first responses to each prompt."""
        prompts, every = self.reward_matrices.shape[:2]
        kept = [self.responses[p * every + r] for p in range(prompts) for r in range(rollouts)]
        return replace(self, reward_matrices=self.reward_matrices[:, :rollouts], responses=kept)

    def of_prompts(self, numbers: Sequence[int]) -> "Pool":
        """The pool with only these prompts, renumbered, and their objectives."""
        rollouts = self.reward_matrices.shape[1]
        matrices = self.reward_matrices[list(numbers)]
        matrices = matrices[..., ~np.isnan(matrices).all((0, 1, 2))]
        responses = [
            {**self.responses[old * rollouts + r], "prompt": new}
            for new, old in enumerate(numbers)
            for r in range(rollouts)
        ]
        return replace(self, reward_matrices=matrices, responses=responses, rows=[self.rows[old] for old in numbers])


def load_pool(folder: Path) -> Pool:
    """Read a stored pool.

    Raises:
        FileNotFoundError: the folder has no pool.
        ValueError: the pool is unfinished, empty or changed, or a file is damaged.
    """
    made = read_settings(folder)
    if made is None:
        raise FileNotFoundError(f"{folder} holds no pool (no {SETTINGS}).")
    sizes = [made.get(key) for key in ("prompts", "rollouts", "candidates", "batch")]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(f"The pool {folder} is empty: {SETTINGS} has prompts, rollouts, candidates, batch {sizes}.")
    batches = -(-made["prompts"] // made["batch"])
    stored = [batch_file(folder, number) for number in range(batches)]
    if missing := [file for file in stored if not file.exists()]:
        raise ValueError(
            f"The pool {folder} is not finished: {len(missing)} of {batches} batches are missing. Run the same "
            "`vpo evaluate` again to resume it."
        )
    tables = [read_table(file) for file in stored]
    for number, (file, table) in enumerate(zip(stored, tables, strict=True)):
        _check_batch(file, table, made, number)
    table = pa.concat_tables(tables)
    rows = table.filter(pc.field("rollout") == 0).select(["input", "label"]).to_pylist()
    return Pool(*_arrays(table, made), made=made, rows=rows)


def shared_prompts(pools: Mapping[str, Pool]) -> tuple[dict[str, Pool], list[Mapping[str, Any]], int]:
    """Cut pools to the prompts that all of them hold; also return these prompts, in the first pool's order, and the
    number of other prompts. Text and label identify a prompt; repeats count each time.

    Raises:
        ValueError: there is no pool, or no prompt is in all of them.
    """
    numbers, shared, left_out = shared_rows({name: pool.rows for name, pool in pools.items()})
    return {name: pool.of_prompts(numbers[name]) for name, pool in pools.items()}, shared, left_out


def shared_rows(
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
) -> tuple[dict[str, list[int]], list[Mapping[str, Any]], int]:
    """The prompts that all lists hold: their indices in each list, the prompts, and the number of other prompts.

    Raises:
        ValueError: there is no list, or no prompt is in all of them.
    """
    places = {name: {key: number for number, key in enumerate(prompt_keys(of_one))} for name, of_one in rows.items()}
    shared = [key for key in next(iter(places.values()), {}) if all(key in of_one for of_one in places.values())]
    if not shared:
        raise ValueError(f"No prompt is in all of {', '.join(rows) or 'them'}: sample with the same prompts.")
    everything = {key for of_one in places.values() for key in of_one}
    numbers = {name: [of_one[key] for key in shared] for name, of_one in places.items()}
    return numbers, [{"input": text, "label": label} for text, label, _ in shared], len(everything) - len(shared)


def prompt_keys(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, int]]:
    """A key per prompt: its text, its label, and the number of equal prompts before it, so that repeats differ."""
    seen = Counter[tuple[str, str]]()
    keys = []
    for row in rows:
        key = (row["input"], row["label"])
        keys.append((*key, seen[key]))
        seen[key] += 1
    return keys


def say_repeats(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The sentence on prompts that repeat an earlier one with the same label, if there are any."""
    again = sum(earlier > 0 for _, _, earlier in prompt_keys(rows))
    return f"{again} of {len(rows)} prompts repeat an earlier one; each counts by itself." if again else None


def check_objectives(name: str, pool: Pool, spec: RewardSpec) -> None:
    """Check that the columns of a pool's reward matrices are the objectives of this specification, in its order.

    Raises ValueError if they are not. Pools of version 0.2 and older do not say what their columns are.
    """
    columns = pool.reward_matrices.shape[3]
    sampled, now = pool.made.get("objectives", spec.objective_keys)[:columns], spec.objective_keys[:columns]
    if list(sampled) != list(now):
        raise ValueError(
            f"The pool {name} was scored with the objectives {', '.join(sampled)}, but the specification {spec.name!r} "
            f"has {', '.join(now)} there now: sample again, or name the specification that scored it (--spec)."
        )


def batch_file(folder: Path, number: int) -> Path:
    """The Parquet file of a batch, numbered from 0."""
    return folder / f"batch-{number:05}.parquet"


def write_rows(file: Path, rows: list[dict[str, Any]], schema: pa.Schema = SCHEMA) -> None:
    """Write a Parquet file atomically, even if the machine stops."""
    with files.replacing(file) as unfinished:
        pq.write_table(pa.Table.from_pylist(rows, schema), unfinished, compression="zstd")


def read_table(file: Path, schema: pa.Schema = SCHEMA, command: str = "vpo evaluate") -> pa.Table:
    """Read a Parquet file that a command wrote. Raises ValueError if it is damaged."""
    try:
        return pq.read_table(file, schema=schema)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{file} is damaged ({error}): delete it and run the same `{command}` again.") from error


def read_settings(folder: Path, name: str = SETTINGS) -> dict[str, Any] | None:
    """The settings of the pool (or search) in a folder, None if there is none. Raises ValueError if damaged."""
    file = folder / name
    try:
        made = json.loads(file.read_text()) if file.exists() else None
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): delete {folder} and make it again.") from error
    if made is not None and not isinstance(made, dict):
        raise ValueError(f"{file} is not a valid {name}: it is not a mapping.")
    return made


def claim_folder(folder: Path, settings: dict[str, Any], name: str = SETTINGS) -> None:
    """Start a pool (or search) with these settings in the folder, or check that the one there can be resumed.

    Raises:
        ValueError: the folder holds one with other settings; versions and command may differ.
    """
    earlier = read_settings(folder, name)
    if earlier is None:
        files.write(folder / name, json.dumps(settings, indent=2))
        return
    for key in {**settings, **earlier}:
        if key not in ("versions", "command") and earlier.get(key) != settings.get(key):
            raise ValueError(
                f"{folder} holds results of other settings ({key} was {earlier.get(key)!r}, now "
                f"{settings.get(key)!r}): "
                "choose another folder, or delete that one."
            )


def load_prompts(
    spec: RewardSpec, source: str | Path, split: str | None = None, columns: tuple[str, str] = ("input", "label")
) -> list[dict[str, Any]]:
    """Read a dataset with `open_dataset`, into a pool's format: `input`, `label`.

    Args:
        columns: the columns of the prompt and the label.

    Raises:
        ValueError: the dataset cannot be read, or a row's prompt or label cannot be used; the message names the row.
    """
    rows = open_dataset(str(source), split)
    prompt, label = columns
    if mistake := column_mistake(spec, rows.column_names, *columns, "--"):
        raise ValueError(f"The dataset {source} cannot be used: {mistake}")
    found = []
    for number, row in enumerate(rows, start=1):
        try:
            check_prompt(row[prompt])
            value = read_label(spec, row.get(label))
            check_label(spec, value)
        except ValueError as error:
            raise ValueError(f"Row {number} of the dataset {source} cannot be used: {error}") from error
        found.append({"input": pack_prompt(row[prompt]), "label": json.dumps(value)})
    return found


def as_rows(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a specification, `{"prompt", "label"}`, in a pool's format."""
    return [{"input": pack_prompt(row["prompt"]), "label": json.dumps(row["label"])} for row in rows]


def full_prompt(spec: RewardSpec, prompt: str, candidates: int, goal: list[float] | None = None) -> Prompt:
    """A stored prompt with its instruction and, if given, the objective weights of a goal."""

    def render(text: str) -> str:
        text = render_prompt(spec, text, candidates)
        return text if goal is None else write_goal(text, spec.objective_keys, goal)

    return with_instruction(read_prompt(prompt), render)


def random_goals(spec: RewardSpec, label: str, numbers: Iterable[int], seed: int) -> list[list[float]]:
    """Objective weights to state in prompts, a different draw per number, the same in every run."""
    return [goal_weights(f"{i} {label}", len(spec.objective_keys), seed=seed) for i in numbers]


def _check_batch(file: Path, table: pa.Table, made: Mapping[str, Any], number: int) -> None:
    first = number * made["batch"]
    prompts = np.arange(first, min(first + made["batch"], made["prompts"]))
    expected = np.stack([np.repeat(prompts, made["rollouts"]), np.tile(np.arange(made["rollouts"]), len(prompts))])
    found = np.stack([table["prompt"].to_numpy(), table["rollout"].to_numpy()])
    sizes = {len(row) for row in table["rewards"].to_pylist()}
    if not np.array_equal(found, expected) or sizes != {made["candidates"]}:
        raise ValueError(
            f"{file} belongs to another pool, or was changed: it should hold {made['rollouts']} responses with "
            f"{made['candidates']} candidates for each of the prompts {prompts[0]} to {prompts[-1]}. Delete it and run "
            "the same `vpo evaluate` again."
        )


def _arrays(table: pa.Table, made: dict[str, Any]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    rollouts, candidates = made["rollouts"], made["candidates"]
    vectors = table["rewards"].combine_chunks().flatten()
    lengths = vectors.value_lengths().to_numpy()
    matrices = np.full((len(lengths), lengths.max()), np.nan, dtype=np.float32)
    matrices[np.arange(lengths.max()) < lengths[:, None]] = vectors.flatten().to_numpy()
    columns = ["prompt", "response", "candidates", "tokens", "parsed", "unique", "error", "seed"]
    return matrices.reshape(-1, rollouts, candidates, lengths.max()), table.select(columns).to_pylist()

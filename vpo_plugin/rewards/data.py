"""Rows of a dataset, for loaders: from the Hugging Face hub, a URL or a local file, by way of `datasets`."""

import gzip
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from datasets import Dataset

BOM = b"\xef\xbb\xbf"
BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv"}
SAMPLE = "sample.jsonl"  # rows in the dataset's own format that a spec may hold, for checks where it cannot be read
TEST_SHARE = 8  # of a file that holds both splits, one row in eight is for `test`


class DatasetError(ValueError):
    """A dataset that cannot be read, for want of a network or of the dataset."""


class Unreadable(ValueError):
    """A row of a file that is no JSON; the message says why."""


def read_records(file: Path) -> Iterator[tuple[int, str, Any]]:
    """The rows of a local file, each with its number, from 1, and what it is called in messages: `Line 3 of x.jsonl`.

    JSON lines, of which blank ones are skipped, a JSON array, both as they are and one at a time, and by way of
    `datasets` CSV and Parquet; any of them compressed with gzip. A line that is no JSON is an `Unreadable`.

    Raises:
        ValueError: there is no such file, it is of another kind, or it holds no rows.
    """
    if not file.is_file():
        raise ValueError(f"The file {file} does not exist.")
    with file.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    with cast(IO[bytes], gzip.open(file) if packed else file.open("rb")) as content:
        start = content.read(64)
        content.seek(0)
        if start.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise ValueError(f"The file {file} is UTF-16, not UTF-8: convert it, as `iconv -f UTF-16 -t UTF-8` does.")
        if start.startswith(b"PAR1") or _suffix(str(file)) in (".csv", ".tsv", ".parquet", ".arrow"):
            rows: Iterator[Any] = iter(
                _load("parquet" if start.startswith(b"PAR1") else BUILDERS[_suffix(str(file))], str(file))
            )
            found = ((number, f"Row {number} of {file}", row) for number, row in enumerate(rows, start=1))
        elif start.removeprefix(BOM).lstrip().startswith(b"["):
            try:
                values = json.loads(content.read().removeprefix(BOM))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"The file {file} begins as a JSON array and is none: {error}.") from error
            found = ((number, f"Row {number} of {file}", row) for number, row in enumerate(values, start=1))
        else:
            lines = ((n, line.removeprefix(BOM) if n == 1 else line) for n, line in enumerate(content, start=1))
            found = ((n, f"Line {n} of {file}", _value(line)) for n, line in lines if line.strip())
        first = next(found, None)
        if first is None:
            raise ValueError(f"The file {file} holds no rows.")
        yield from itertools.chain([first], found)


def _value(line: bytes) -> Any:
    try:
        return json.loads(line)
    except UnicodeDecodeError as error:
        return Unreadable(f"it is not UTF-8 ({error})")
    except (ValueError, RecursionError) as error:
        return Unreadable(f"it is not JSON ({error})")


def _load(builder: str, file: str) -> "Dataset":
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    try:
        return load_dataset(builder, data_files=file, split="train")
    except Exception as error:  # datasets raises what its many parts raise
        raise ValueError(
            f"The file {file} cannot be read as {builder} ({type(error).__name__}: {str(error)[:300]})."
        ) from error


def rows(
    split: str,
    num_rows: int,
    seed: int,
    *,
    source: str,
    splits: Mapping[str, str] | None = None,
    config: str | None = None,
) -> Iterator[dict[str, Any]]:
    """At most `num_rows` rows of a split, shuffled by `seed` (loader entry point).

    `source`, `splits` and `config` are as in `read_dataset`.
    """
    yield from shuffled(read_dataset(source, split, splits=splits, config=config), num_rows, seed)


def shuffled(dataset: "Dataset", num_rows: int, seed: int) -> Iterator[dict[str, Any]]:
    """At most `num_rows` rows in an order that `seed` decides."""
    yield from dataset.shuffle(seed=seed).select(range(min(num_rows, len(dataset))))


def read_dataset(
    source: str, split: str, *, splits: Mapping[str, str] | None = None, config: str | None = None
) -> "Dataset":
    """A split, `train` or `test`, of a source.

    Args:
        source: a file or URL ending in .jsonl, .json, .parquet, .csv or .tsv (.gz allowed), in which `{split}` stands
            for the split's name; without it, one row in eight is for `test` and the others are for `train`.
            Or a folder with such a file for each split, `train.jsonl` and `test.jsonl`. Anything else is an id on the
            Hugging Face hub.
        splits: the source's own names of the splits, `{"test": "validation"}`; on the hub an expression such as
            `a+b[:50%]` works too.
        config: the hub dataset's configuration.

    Raises:
        DatasetError: the source cannot be reached or read.
        ValueError: another split, or a source that has not what is needed; the message says what.
    """
    from datasets import disable_progress_bars, load_dataset

    if split not in ("train", "test"):
        raise ValueError(f"A dataset has the splits 'train' and 'test', not {split!r}.")
    disable_progress_bars()
    name = (splits or {}).get(split, split)
    file = _file(source, name)
    try:
        if file is None:
            return load_dataset(source, config, split=name)
        dataset = load_dataset(BUILDERS[_suffix(file)], data_files=file, split="train")
    except Exception as error:  # datasets raises what its many parts raise
        raise DatasetError(
            f"The split '{name}' of the dataset {source} cannot be read ({type(error).__name__}: {str(error)[:300]}). "
            "A local copy works too: name it as dataset.args.source in a spec that extends this one, or with "
            "`vpo spec check --data`."
        ) from error
    if "{split}" in source or Path(source).is_dir():
        return dataset
    order = dataset.shuffle(seed=0)
    held_out = -(-len(order) // TEST_SHARE)
    return order.select([*range(held_out)] if split == "test" else [*range(held_out, len(order))])


def on_hub(source: str) -> bool:
    """Whether a source is an id on the Hugging Face hub."""
    return not Path(source).is_dir() and _file(source, "train") is None


def _file(source: str, split: str) -> str | None:
    """The file of a source, None if it is an id on the hub."""
    folder = Path(source)
    if folder.is_dir():
        files = [str(file) for file in sorted(folder.iterdir()) if file.name.split(".")[0] == split]
        files = [file for file in files if _suffix(file) in BUILDERS]
        if len(files) != 1:
            raise ValueError(f"The folder {source} needs one file for the split '{split}', {split}.jsonl or the like.")
        return files[0]
    file = source.replace("{split}", split)
    if _suffix(file) not in BUILDERS:
        if "://" in file or Path(file).exists() or file.startswith((".", "/", "~")):
            raise ValueError(f"{file} is no folder and no file of a known kind ({', '.join(BUILDERS)}).")
        return None
    if "://" not in file and not Path(file).is_file():
        raise ValueError(f"The dataset's file {file} does not exist.")
    return file


def _suffix(file: str) -> str:
    return Path(file.removesuffix(".gz")).suffix

"""Rows of a dataset from the Hugging Face hub, a URL or a local file, read with `datasets`."""

import gzip
import itertools
import json
import zlib
from collections.abc import Iterator, Mapping
from glob import glob, has_magic
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from datasets import Dataset

BOM = b"\xef\xbb\xbf"
BUILDERS = {
    ".jsonl": "json",
    ".json": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".arrow": "arrow",
}
PACKED = (".gz", ".bz2", ".xz", ".zip", ".zst")  # `datasets` unpacks them; .zst needs the package zstandard
DATASET, DATASETS = "state.json", "dataset_dict.json"  # files that `save_to_disk` writes
SAMPLE = "sample.jsonl"  # rows in the dataset's own format that a spec may hold, for checks where it cannot be read
TEST_SHARE = 8  # of a file that holds both splits, one row in eight is for `test`


class DatasetError(ValueError):
    """A dataset that cannot be read, because the network or the dataset is missing."""


class EvaluationOnly(ValueError):
    """Rows to train on, of a dataset that is for evaluation only; a loader raises it for the split `train`."""


class Unreadable(ValueError):
    """A row of a file that is not JSON; the message says why."""


def read_records(source: Path) -> Iterator[tuple[int, str, Any]]:
    """The rows of local files, each with its number, from 1, and its name in messages: `Line 3 of x.jsonl`.

    JSON lines (blank lines are skipped) and JSON arrays are read one row at a time, also compressed with gzip. Other
    files, and patterns of files, are read by `open_dataset`. A line that is not JSON becomes an `Unreadable`.

    Raises:
        ValueError: the source does not exist, is of an unknown kind, is truncated, or has no rows.
    """
    if not _by_line(source):
        rows = open_dataset(str(source))
        yield from ((number, f"Row {number} of {source}", row) for number, row in enumerate(rows, start=1))
        return
    if not source.is_file():
        raise ValueError(f"The file {source} does not exist.")
    with source.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    with cast(IO[bytes], gzip.open(source) if packed else source.open("rb")) as content:
        try:
            found = _json_rows(source, content)
            first = next(found, None)
            if first is None:
                raise ValueError(f"The file {source} holds no rows.")
            yield first
            yield from found
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"The file {source} is cut or damaged: {error}.") from error


def _by_line(source: Path) -> bool:
    """Whether a file's rows are read here, one at a time."""
    elsewhere = BUILDERS.get(_suffix(source.name), "json") != "json" or source.suffix.lower() in PACKED[1:]
    return not (elsewhere or source.is_dir() or _is_pattern(str(source)))


def _json_rows(file: Path, content: IO[bytes]) -> Iterator[tuple[int, str, Any]]:
    start = content.read(64)
    content.seek(0)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"The file {file} is UTF-16, not UTF-8: convert it, as `iconv -f UTF-16 -t UTF-8` does.")
    if start.startswith(b"PAR1"):
        raise ValueError(f"The file {file} is Parquet: rename it to end in .parquet.")
    if start.removeprefix(BOM).lstrip().startswith(b"["):
        try:
            values = json.loads(content.read().removeprefix(BOM))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"The file {file} looks like a JSON array but is not: {error}.") from error
        yield from ((number, f"Row {number} of {file}", row) for number, row in enumerate(values, start=1))
        return
    for number, line in enumerate(content, start=1):
        text = line.removeprefix(BOM) if number == 1 else line
        if text.strip():
            yield number, f"Line {number} of {file}", _value(text)


def _value(line: bytes) -> Any:
    try:
        return json.loads(line)
    except UnicodeDecodeError as error:
        return Unreadable(f"it is not UTF-8 ({error})")
    except (ValueError, RecursionError) as error:
        return Unreadable(f"it is not JSON ({error})")


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
    """At most `num_rows` rows, shuffled by `seed`."""
    yield from dataset.shuffle(seed=seed).select(range(min(num_rows, len(dataset))))


def read_dataset(
    source: str, split: str, *, splits: Mapping[str, str] | None = None, config: str | None = None
) -> "Dataset":
    """A split, `train` or `test`, of a source.

    Args:
        source: see `open_dataset`; `{split}` in a file name is replaced by the split's name. If the source has no
            splits, one row in eight is for `test` and the others are for `train`.
        splits: the source's own split names, `{"test": "validation"}`; hub datasets also take expressions such as
            `a+b[:50%]`.
        config: the hub dataset's configuration.

    Raises:
        DatasetError: the source cannot be reached or read.
        ValueError: an unknown split, or a source that lacks something; the message says what.
    """
    if split not in ("train", "test"):
        raise ValueError(f"A dataset has the splits 'train' and 'test', not {split!r}.")
    name = (splits or {}).get(split, split)
    dataset = open_dataset(source.replace("{split}", name), name, config=config)
    if "{split}" in source or has_splits(source):
        return dataset
    order = dataset.shuffle(seed=0)
    held_out = -(-len(order) // TEST_SHARE)
    return order.select([*range(held_out)] if split == "test" else [*range(held_out, len(order))])


def open_dataset(
    source: str, split: str | None = None, *, config: str | None = None, data_dir: str | None = None
) -> "Dataset":
    """The rows of a split of a source, in order. All commands read datasets through this function.

    Args:
        source: a file or URL ending in .jsonl, .json, .ndjson, .parquet, .csv, .tsv or .arrow, also packed (`PACKED`);
            a pattern of such files, `data/*.jsonl`; a folder that `save_to_disk` wrote, of a Dataset or a DatasetDict;
            a folder with a file for each split, `train.jsonl`, or in the hub's own layout,
            `data/train-00000-of-00001.parquet`; or an id on the Hugging Face hub.
        split: its name; None for `test`, or the only split. A file and a Dataset have no splits, so all their rows
            are used.
        config: the configuration of a dataset on the hub.
        data_dir: the folder in a dataset on the hub.

    Raises:
        DatasetError: the source cannot be reached or read, has no such split, or has no rows; the message names the
            first line of a file that is not JSON.
        ValueError: the source does not exist.
    """
    from datasets import DatasetDict, disable_progress_bars, load_dataset, load_from_disk
    from datasets.utils.logging import CRITICAL, get_verbosity, set_verbosity

    disable_progress_bars()
    file = _file(source, split or "test")
    told = get_verbosity()
    set_verbosity(CRITICAL)  # the error below says what failed
    try:
        if file is not None:
            options = {"sep": "\t"} if _suffix(file) == ".tsv" else {}
            found = load_dataset(BUILDERS[_suffix(file)], data_files=file, split="train", **options)
        elif _saved(source):
            found = load_from_disk(source)
        else:
            found = load_dataset(source, config, split=split, data_dir=data_dir)
    except Exception as error:  # datasets raises what its many parts raise
        raise DatasetError(_why(source, split, file, error)) from error
    finally:
        set_verbosity(told)
    if isinstance(found, DatasetDict):
        named = split or ("test" if "test" in found or len(found) != 1 else next(iter(found)))
        if named not in found:
            raise DatasetError(f"The dataset {source} has no split '{named}', it has {', '.join(found)}.")
        found = found[named]
    if not len(found):
        raise DatasetError(f"The dataset {source} holds no rows.")
    return found


def _why(source: str, split: str | None, file: str | None, error: Exception) -> str:
    """Why a dataset cannot be read: the first row of a local file that is not JSON, or the message of `datasets`."""
    if file is not None and "://" not in file and BUILDERS[_suffix(file)] == "json":
        files = sorted(glob(file, recursive=True)) if _is_pattern(file) else [file]
        try:
            for _, where, row in itertools.chain(*(read_records(Path(one)) for one in files if _by_line(Path(one)))):
                if isinstance(row, Unreadable):
                    return f"{where} cannot be read: {row}."
                if not isinstance(row, dict):
                    return f"{where} is not an object: {str(row)[:80]!r}."
                json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return f"{where} contains half of a character (a lone surrogate)."
        except ValueError as found:
            return str(found)
    cause = error.__cause__ or error
    said = " ".join(str(cause).split()).rstrip(".")[:300] or "it has no rows"
    if file is not None or Path(source).is_dir():
        return f"The dataset {file or source} cannot be read ({type(cause).__name__}: {said})."
    return (
        f"The split '{split or 'test'}' of the dataset {source} cannot be read ({type(cause).__name__}: {said}). A "
        "local copy works too: name it as dataset.args.source in a spec that extends this one, or with `--data`."
    )


def on_hub(source: str) -> bool:
    """Whether a source is an id on the Hugging Face hub."""
    return not Path(source).is_dir() and _file(source, "train") is None


def has_splits(source: str) -> bool:
    """Whether a source has named splits: a hub dataset, or a folder that does not hold a single Dataset."""
    return not (Path(source) / DATASET).is_file() if Path(source).is_dir() else on_hub(source)


def _saved(source: str) -> bool:
    return any((Path(source) / name).is_file() for name in (DATASET, DATASETS))


def _file(source: str, split: str) -> str | None:
    """The file of a source, or of its split in a folder; None if `datasets` reads the source as a whole."""
    folder = Path(source)
    if folder.is_dir():
        files = [str(file) for file in sorted(folder.iterdir()) if file.name.split(".")[0] == split]
        files = [file for file in files if _suffix(file) in BUILDERS]
        return files[0] if len(files) == 1 and not _saved(source) else None
    if _suffix(source) not in BUILDERS:
        if "://" in source or folder.exists() or source.startswith((".", "/", "~")):
            raise ValueError(f"{source} is neither a folder nor a file of a known kind ({', '.join(BUILDERS)}).")
        return None
    if "://" not in source and not (glob(source, recursive=True) if _is_pattern(source) else folder.is_file()):
        raise ValueError(f"The dataset's file {source} does not exist.")
    return source


def _is_pattern(source: str) -> bool:
    return has_magic(source) and not Path(source).exists()


def _suffix(file: str) -> str:
    """What a file holds, by the end of its name without that of its packing."""
    path = Path(file)
    return (path.with_suffix("") if path.suffix.lower() in PACKED else path).suffix.lower()

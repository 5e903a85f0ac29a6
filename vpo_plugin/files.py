"""Atomic writing of files, short digests, and text for a terminal."""

import errno
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to. It replaces `path` when the body ends without an error.

    The content is on the disk by then, so a reader, or a crash at any moment, finds the old file or the new one. If the
    body raises, `path` stays as it was. A missing folder is created. The temporary file is hidden, lies beside `path`
    and has no suffix, so give `np.savez` and similar functions an open file.
    """
    with _replacing([path]) as (unfinished,):
        yield unfinished


def write(path: Path, content: str | bytes) -> None:
    """Replace a file by this content (text as UTF-8), as `replacing` does."""
    write_all({path: content})


def write_all(contents: Mapping[Path, str | bytes]) -> None:
    """Replace several files, all at one moment when each is on the disk; if one cannot be written, none is replaced."""
    with _replacing([*contents]) as paths:
        for path, content in zip(paths, contents.values(), strict=True):
            path.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def _replacing(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """What `replacing` does, for several files: nothing but the renames comes after the last that can fail."""
    mine = f"{os.getpid()}-{threading.get_ident()}.new"
    unfinished = [path.with_name(f".{path.name}.{mine}") for path in paths]
    folders = {path.parent for path in paths}
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    try:
        yield unfinished
        for new in unfinished:
            _sync(new)
        for path, new in zip(paths, unfinished, strict=True):
            new.replace(path)
        for folder in folders:
            _sync(folder)
    finally:
        for new in unfinished:
            new.unlink(missing_ok=True)


@contextmanager
def making(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill. It becomes `folder`, which is absent or empty, when the body ends well.

    It is hidden and lies beside `folder`. One process at a time may fill it; what a killed one left is removed.
    """
    unfinished = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        sync_all(unfinished)
        unfinished.rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def sync_all(folder: Path) -> None:
    """Wait until all files in a folder are on the disk."""
    for place in [*folder.rglob("*"), folder]:
        if place.is_file() or place.is_dir():
            _sync(place)


def json_lines(rows: Iterable[Any]) -> str:
    """Rows as the text of a JSON Lines file."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def printable(text: str) -> str:
    """Text for a terminal, which obeys what others wrote: every other character than words and line ends becomes �."""
    return "".join(one if one.isprintable() or one == "\n" else "�" for one in text)


def digest(value: Any) -> str:
    """16 hexadecimal digits of a JSON-serialisable value; other values in it, such as paths, count as text."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def digest_files(folder: Path, files: Iterable[Path]) -> str:
    """16 hexadecimal digits of these files: their content, and their names relative to `folder`."""
    sums = []
    for file in filter(Path.is_file, files):
        with file.open("rb") as content:
            sums.append((str(file.relative_to(folder)), hashlib.file_digest(content, "sha256").hexdigest()))
    return digest(sums)


def model_digest(model: str) -> str:
    """An identifier of a model: 16 hexadecimal digits of its folder's files, or its hub id."""
    folder = Path(model)
    return digest_files(folder, sorted(folder.glob("*"))) if folder.is_dir() else model


def _sync(place: Path) -> None:
    descriptor = os.open(place, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

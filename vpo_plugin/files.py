"""Atomic writing of files, and short digests."""

import hashlib
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to. It replaces `path` when the body ends without an error.

    The content is on the disk by then, so a reader, or a crash at any moment, finds the old file or the new one. If the
    body raises, `path` stays as it was. A missing folder is created. The temporary file is hidden, lies beside `path`
    and has no suffix, so give `np.savez` and similar functions an open file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.new")
    try:
        yield unfinished
        _sync(unfinished)
        unfinished.replace(path)
        _sync(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def write(path: Path, content: str | bytes) -> None:
    """Replace a file by this content (text as UTF-8), as `replacing` does."""
    write_all({path: content})


def write_all(contents: Mapping[Path, str | bytes]) -> None:
    """Replace several files, one right after the other; if one cannot be written, none is replaced."""
    with ExitStack() as stack:
        for path, content in contents.items():
            unfinished = stack.enter_context(replacing(path))
            unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


def json_lines(rows: Iterable[Any]) -> str:
    """Rows as the text of a JSON Lines file."""
    return "".join(json.dumps(row) + "\n" for row in rows)


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


def _sync(place: Path) -> None:
    descriptor = os.open(place, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

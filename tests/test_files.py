"""Files appear whole or not at all, and digests tell contents apart."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vpo_plugin import files


def test_a_file_is_replaced_when_the_body_ends_well(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    files.write(path, "ä")
    assert path.read_bytes() == "ä".encode()
    with files.replacing(path) as unfinished:
        unfinished.write_text("b")
        assert path.read_text() == "ä"
    assert path.read_text() == "b"
    with pytest.raises(KeyError), files.replacing(path) as unfinished:
        unfinished.write_text("half")
        raise KeyError
    assert path.read_text() == "b" and [file.name for file in path.parent.iterdir()] == ["a.txt"]


def test_of_several_files_none_is_replaced_if_one_cannot_be_written(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    files.write_all({first: "1", second: b"2"})
    with pytest.raises(UnicodeEncodeError):
        files.write_all({first: "3", second: "\ud800"})
    assert (first.read_text(), second.read_text()) == ("1", "2") and len(list(tmp_path.iterdir())) == 2


def test_a_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    files.write(path, "old")
    program = (
        "import sys, time; from pathlib import Path; from vpo_plugin import files\n"
        "with files.replacing(Path(sys.argv[1])) as new:\n"
        "    new.write_text('half'); print('written', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"written\n"
        os.kill(writer.pid, signal.SIGKILL)
    assert path.read_text() == "old"


def test_digests(tmp_path: Path) -> None:
    assert files.digest({"a": 1, "b": Path("x")}) == files.digest({"b": "x", "a": 1}) != files.digest({"a": 1})
    (tmp_path / "one").write_text("1")
    before = files.digest_files(tmp_path, tmp_path.iterdir())
    (tmp_path / "one").write_text("2")
    changed = files.digest_files(tmp_path, tmp_path.iterdir())
    (tmp_path / "one").rename(tmp_path / "two")
    assert len({before, changed, files.digest_files(tmp_path, tmp_path.iterdir())}) == 3

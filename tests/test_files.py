"""Files appear whole or not at all, and digests tell contents apart."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flows.stage import is_done, working_on
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


@pytest.mark.parametrize("bad", ["a", "b", "c"])
@pytest.mark.parametrize("why", ["not text", "a folder"])
def test_of_several_files_none_is_replaced_if_one_cannot_be(tmp_path: Path, bad: str, why: str) -> None:
    paths = {name: tmp_path / name for name in "abc"}
    files.write_all({path: f"old {name}" for name, path in paths.items()})
    new: dict[Path, str | bytes] = {path: b"new" for path in paths.values()}
    if why == "a folder":
        paths[bad].unlink()
        paths.pop(bad).mkdir()
        (tmp_path / bad / "inside").touch()
    else:
        new[paths[bad]] = "\ud800"
    with pytest.raises((UnicodeEncodeError, IsADirectoryError)):
        files.write_all(new)
    assert {name: path.read_text() for name, path in paths.items()} == {name: f"old {name}" for name in paths}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "b", "c"]


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, set[str]]]:
    """What is synced to the disk, and the names that its folder then has."""
    calls: list[tuple[str, set[str]]] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        folder = place if place.is_dir() else place.parent
        calls.append((str(place.relative_to(tmp_path)), {file.name for file in folder.iterdir()}))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    return calls


def test_all_files_are_on_the_disk_before_the_first_is_replaced(
    tmp_path: Path, synced: list[tuple[str, set[str]]]
) -> None:
    files.write_all({tmp_path / "a": "1", tmp_path / "b": "2"})
    *contents, (folder, names) = synced
    assert len(contents) == 2 and all(not {"a", "b"} & names for _, names in contents)
    assert (folder, names) == (".", {"a", "b"})


def test_a_stage_is_done_when_its_files_are_on_the_disk(tmp_path: Path, synced: list[tuple[str, set[str]]]) -> None:
    with working_on(tmp_path / "stage", {"a": 1}) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "result").write_text("x")
    names = dict(synced)
    assert is_done(tmp_path / "stage", {"a": 1}) and "stage/deep/result" in names
    assert names["stage"] == {"started.json", "deep"}


def test_a_folder_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    killed = tmp_path / ".new.new"
    (killed / "half").mkdir(parents=True)
    with pytest.raises(OSError, match="disk"), files.making(tmp_path / "new") as unfinished:
        assert list(unfinished.iterdir()) == []
        (unfinished / "file").write_text("x")
        raise OSError("The disk is full.")
    assert list(tmp_path.iterdir()) == []
    with files.making(tmp_path / "new") as unfinished:
        (unfinished / "file").write_text("x")
    assert [str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*")] == ["new", "new/file"]


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

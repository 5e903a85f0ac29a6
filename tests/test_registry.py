"""The registry of policies: what is promoted is never lost, whatever is damaged, raced or rolled back."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flows import registry
from flows.registry import (
    ChampionChanged,
    RegistryError,
    add_version,
    champion,
    history,
    pending,
    promote,
    read_version,
    repair,
    rollback,
    version_ids,
    versions,
)


def add(folder: Path, **fields: object) -> str:
    return add_version(folder, **({"policy": "policy", "spec": "maze_small", "candidates": 3} | fields)).version


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """v0001, then v0002 and v0003 were champion, each instead of the one before."""
    folder = tmp_path / "registry"
    over = None
    for _ in range(3):
        version = add(folder, parent=over)
        promote(folder, version, over=over, why="better")
        over = version
    return folder


def vpo_registry(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vpo_plugin.cli", "registry", "--registry", str(folder), *arguments]
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


def test_versions_are_numbered_and_kept(three: Path) -> None:
    assert version_ids(three) == ["v0001", "v0002", "v0003"]
    assert [version.parent for version in versions(three)] == [None, "v0001", "v0002"]
    assert champion(three) == read_version(three, "v0003")
    assert [change.champion for change in history(three)] == ["v0001", "v0002", "v0003"]
    assert not list(three.glob("*.tmp"))


def test_the_same_retraining_is_one_version(tmp_path: Path) -> None:
    assert add(tmp_path, run="a") == add(tmp_path, run="a") == "v0001"
    assert add(tmp_path, run="b") == "v0002"


def test_the_number_of_a_lost_version_is_not_given_again(three: Path) -> None:
    (three / "v0003.json").unlink()
    assert add(three) == "v0004"


@pytest.mark.parametrize("pointer", [None, b"", b"v0001\n", b"v0009\n", b"\xff\0<script>", b"../../etc/passwd\n"])
def test_a_damaged_pointer_is_rebuilt_from_the_history(three: Path, pointer: bytes | None) -> None:
    file = three / "champion"
    file.unlink() if pointer is None else file.write_bytes(pointer)
    with pytest.raises(RegistryError, match="rebuilds it from the history"):
        champion(three)
    shown = vpo_registry(three, "show")
    assert shown.returncode == 0 and json.loads(shown.stdout)["version"] == "v0003"
    assert "the history's champion is v0003: rebuilt." in shown.stderr
    assert file.read_text() == "v0003\n" and repair(three) is None


def test_a_lost_history_is_not_guessed(three: Path) -> None:
    (three / "history.jsonl").unlink()
    with pytest.raises(RegistryError, match="is empty or lost: restore it from a copy, or name the champion"):
        repair(three)
    assert (three / "champion").read_text() == "v0003\n"
    assert rollback(three, "v0003").champion == "v0003"
    assert champion(three) == read_version(three, "v0003")


@pytest.mark.parametrize("line", ["{", '{"champion": "v0001"}', "\0", '["v0001"]'])
def test_a_damaged_history_names_file_and_line(three: Path, line: str) -> None:
    file = three / "history.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], line, lines[2]]) + "\n")
    listed = vpo_registry(three, "list")
    assert listed.returncode == 1 and f"{file}:2 is damaged" in listed.stderr and "Traceback" not in listed.stderr
    assert read_version(three, "v0002").version == "v0002"


def test_a_damaged_version_is_shown_and_not_promoted(three: Path) -> None:
    (three / "v0002.json").write_text("{")
    listed = vpo_registry(three, "list")
    assert listed.returncode == 0 and "v0002.json is damaged" in listed.stdout and "v0003" in listed.stdout
    champion = (three / "v0003.json").read_text()
    (three / "v0003.json").write_text("{")
    listed = vpo_registry(three, "list")
    assert listed.returncode == 0 and "v0003.json is damaged" in listed.stdout and "v0001" in listed.stdout
    (three / "v0003.json").write_text(champion)
    back = vpo_registry(three, "rollback")
    assert back.returncode == 1 and "v0002.json is damaged" in back.stderr
    assert (three / "champion").read_text() == "v0003\n"


def test_a_rollback_changes_nothing_of_what_was_decided(three: Path) -> None:
    kept = add(three, parent="v0003")
    for version in (kept, "v0003"):
        assert vpo_registry(three, "rollback", version).returncode == 0
    listed = vpo_registry(three, "list").stdout
    assert re.search(rf"^ +{kept} .* kept aside, rolled back to ", listed, re.MULTILINE)
    assert re.search(r"^\* +v0003 .* promoted, rolled back to ", listed, re.MULTILINE)
    assert re.search(r"^ +v0002 .* promoted  ", listed, re.MULTILINE)
    assert [change.why for change in history(three)] == ["better"] * 3 + ["rolled back"] * 2


def test_rollback_goes_back_one_champion_at_a_time(three: Path) -> None:
    assert "v0002 is champion instead of v0003." in vpo_registry(three, "rollback").stdout
    version = add(three, parent="v0002")
    promote(three, version, over="v0002", why="better")
    assert [rollback(three).champion for _ in range(2)] == ["v0002", "v0001"]
    with pytest.raises(RegistryError, match="had no champion before v0001"):
        rollback(three)
    assert rollback(three, "v0003").previous == "v0001"
    last = vpo_registry(three, "rollback", "v0003")
    assert last.returncode == 1 and last.stderr == "vpo: v0003 is already the champion.\n"
    assert "v0001, v0002, v0003, v0004" in vpo_registry(three, "rollback", "v0009").stderr
    assert vpo_registry(three, "show", "../v0001").returncode == 1


def test_no_registry_is_a_sentence(tmp_path: Path) -> None:
    for command in ("list", "show", "rollback"):
        done = vpo_registry(tmp_path / "none", command)
        assert done.returncode == 1 and done.stderr.startswith("vpo: There is no registry in ")
    assert not (tmp_path / "none").exists()


def test_text_of_others_is_shown_as_text(tmp_path: Path) -> None:
    version = add(tmp_path, policy="[red]x[/red]\x1b[31m")
    promote(tmp_path, version, over=None, why="the first")
    shown = vpo_registry(tmp_path, "list").stdout
    assert "[red]x[/red]" in shown and "\x1b" not in shown


def test_a_winner_that_was_not_promoted_is_found(three: Path) -> None:
    """A retraining that ends between its two writes leaves a version that has won against the present champion."""
    add(three, parent="v0003", evaluation={"promote": False})
    assert pending(three, read_version(three, "v0003")) is None
    won = add(three, parent="v0003", evaluation={"promote": True})
    found = pending(three, read_version(three, "v0003"))
    assert found is not None and found.version == won
    promote(three, won, over="v0003", why="late")
    rollback(three)
    assert pending(three, read_version(three, "v0003")) is None  # rolled back on purpose


def test_only_the_compared_champion_is_replaced(three: Path) -> None:
    version = add(three, parent="v0002")
    before = (three / "history.jsonl").read_bytes()
    with pytest.raises(ChampionChanged, match="v0004 was compared with v0002, but v0003 is champion by now"):
        promote(three, version, over="v0002", why="better")
    assert (three / "history.jsonl").read_bytes() == before and champion(three) == read_version(three, "v0003")


def challenge(folder: Path, number: int, results: multiprocessing.Queue) -> None:
    version = add(folder, parent="v0003", run=f"challenger {number}")
    try:
        promote(folder, version, over="v0003", why=f"challenger {number} is better")
    except ChampionChanged:
        results.put((version, "lost"))
    else:
        results.put((version, "won"))


def test_of_racing_promotions_one_wins_and_none_is_lost(three: Path) -> None:
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue = context.Queue()
    racers = [context.Process(target=challenge, args=(three, number, results)) for number in range(8)]
    for racer in racers:
        racer.start()
    outcomes = dict(results.get(timeout=60) for _ in racers)
    for racer in racers:
        racer.join(60)
    assert sorted(outcomes.values()) == ["lost"] * 7 + ["won"]
    assert sorted(outcomes) == version_ids(three)[3:] == [f"v{number:04d}" for number in range(4, 12)]
    (winner,) = [version for version, outcome in outcomes.items() if outcome == "won"]
    assert champion(three) == read_version(three, winner)
    assert [change.champion for change in history(three)] == ["v0001", "v0002", "v0003", winner]


def promote_for_ever(folder: Path) -> None:
    over = "v0003"
    while True:
        version = add(folder, parent=over)
        promote(folder, version, over=over, why="better")
        over = version


def test_killed_at_any_moment_the_registry_is_whole(three: Path) -> None:
    context = multiprocessing.get_context("fork")
    for seconds in (0.05, 0.11, 0.17, 0.23, 0.31):
        process = context.Process(target=promote_for_ever, args=(three,))
        known = version_ids(three)
        process.start()
        process.join(seconds)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        repair(three)
        current = champion(three)
        assert current is not None and current.version == history(three)[-1].champion
        assert [version.version for version in versions(three)][: len(known)] == known
        if current.version != "v0003":
            rollback(three, "v0003")


def test_a_clock_that_goes_back_changes_nothing(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for past in ("1999-01-01T00:00:00+00:00", "1970-01-01T00:00:00+00:00"):
        monkeypatch.setattr(registry, "_now", lambda past=past: past)
        version = add(three, parent=champion(three).version)  # type: ignore[union-attr]
        promote(three, version, over=champion(three).version, why="better")  # type: ignore[union-attr]
    assert version_ids(three) == ["v0001", "v0002", "v0003", "v0004", "v0005"]
    assert champion(three) == read_version(three, "v0005")
    assert [rollback(three).champion for _ in range(2)] == ["v0004", "v0003"]

"""A registry of policies on disk: versions, the deployed version (the champion), and the history of champions.

    runs/registry/
      v0001.json, …    one file per version, written once: its policy, its prompts, its comparison
      champion         the id of the champion, replaced atomically; a deployment reads this
      history.jsonl    each change of the champion, oldest first; authoritative if `champion` is damaged
      lock             held during a change

Versions are numbered in the order in which they are added, whatever the clock says.
"""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError

from vpo_plugin import files

POINTER = "champion"
HISTORY = "history.jsonl"
ROLLED_BACK = "rolled back"
_ID = re.compile(r"v(\d{4,})")


class RegistryError(ValueError):
    """The registry cannot answer; the message names the file and says what to do."""


class ChampionChanged(RegistryError):
    """Another version became champion after the comparison with the earlier one."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Version(_Record):
    """A policy in the registry."""

    version: str
    policy: str
    """Folder or Hugging Face id."""
    spec: str
    """Name of the reward specification."""
    candidates: int
    """Candidates in one response of this policy."""
    parent: str | None = None
    """The champion that it was trained from."""
    run: str | None = None
    """Fingerprint of its inputs: the same retraining, run again, finds its version by this."""
    prompts: list[str] = []
    """Fingerprints of the prompts that it was trained on."""
    evaluation: dict[str, Any] | None = None
    """The comparison with its parent, a `flows.promotion.Decision`."""
    created: str
    """UTC time, for people only."""


class Change(_Record):
    """A change of the champion."""

    champion: str
    previous: str | None
    why: str
    created: str


def versions(folder: Path) -> list[Version]:
    """All versions, oldest first.

    Raises:
        RegistryError: a version's file is damaged.
    """
    return [read_version(folder, version) for version in version_ids(folder)]


def version_ids(folder: Path) -> list[str]:
    """The ids of all versions, also damaged ones, oldest first."""
    return sorted((file.stem for file in folder.glob("v*.json") if _ID.fullmatch(file.stem)), key=_number)


def read_version(folder: Path, version: str) -> Version:
    """Read one version.

    Raises:
        RegistryError: there is no version with this id, or its file is damaged.
    """
    file = folder / f"{version}.json"
    if not _ID.fullmatch(version) or not file.is_file():
        known = ", ".join(version_ids(folder)) or "it holds none"
        raise RegistryError(f"The registry {folder} has no version {version!r}: {known}.")
    try:
        return Version.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise RegistryError(
            f"{file} is damaged: restore it from a copy, or move it away if nothing descends from it."
        ) from error


def history(folder: Path) -> list[Change]:
    """Each change of the champion, oldest first.

    Raises:
        RegistryError: a line is damaged.
    """
    file = folder / HISTORY
    if not file.exists():
        return []
    changes = []
    for number, line in enumerate(file.read_bytes().splitlines(), start=1):
        try:
            changes.append(Change.model_validate_json(line))
        except ValidationError as error:
            raise RegistryError(
                f"{file}:{number} is damaged: restore the file from a copy, or remove the line and name the champion "
                "with `vpo registry rollback VERSION`."
            ) from error
    return changes


def champion(folder: Path) -> Version | None:
    """The deployed version; None if the registry never had one.

    Raises:
        RegistryError: the pointer (`repair` rebuilds it) or the version's file is damaged.
    """
    named = _champion_id(folder)
    return None if named is None else read_version(folder, named)


def _champion_id(folder: Path) -> str | None:
    named = _pointer(folder)
    if named != _recorded(folder):
        raise RegistryError(f"{folder / POINTER} names {named!r}: `vpo registry show` rebuilds it from the history.")
    return named


def repair(folder: Path) -> str | None:
    """Rebuild a damaged or outdated champion pointer from the history; return what was done, None for nothing.

    Raises:
        RegistryError: the history is also damaged, or lost.
    """
    if not folder.exists():
        return None
    with _lock(folder):
        named, recorded = _pointer(folder), _recorded(folder)
        if named == recorded:
            return None
        if recorded is None:
            raise RegistryError(
                f"{folder / POINTER} names {named!r}, but {folder / HISTORY} is empty or lost: restore it from a copy, "
                "or name the champion with `vpo registry rollback VERSION`."
            )
        files.write(folder / POINTER, recorded + "\n")
    was = "was missing" if named is None else f"read {named[:40]!r}"
    return f"{folder / POINTER} {was}, and the history's champion is {recorded}: rebuilt."


HEADER = ("", "version", "parent", "prompts", "outcome", "created", "policy")


def overview(folder: Path) -> list[tuple[str, ...]]:
    """A row with the columns `HEADER` for each version; a star marks the champion.

    Raises:
        RegistryError: the pointer or the history is damaged.
    """
    current = _champion_id(folder)
    reasons: dict[str, list[str]] = {}
    for change in history(folder):
        reasons.setdefault(change.champion, []).append(change.why)
    rows: list[tuple[str, ...]] = []
    for name in version_ids(folder):
        try:
            version = read_version(folder, name)
        except RegistryError as error:
            rows.append(("!", name, "", "", "", "", str(error)))
            continue
        mark = "*" if name == current else ""
        gain = next((f"{m} {c['mean']:+.3f}, " for m, c in (version.evaluation or {}).get("changes", {}).items()), "")
        outcome = gain + outcome_of(reasons.get(name, []))
        prompts = str(len(version.prompts))
        rows.append((mark, name, version.parent or "", prompts, outcome, version.created, version.policy))
    return rows


def outcome_of(reasons: list[str]) -> str:
    """The retraining's decision on its version, and whether a person rolled back to it later.

    Args:
        reasons: why the version became champion, each time.
    """
    decided = "promoted" if set(reasons) - {ROLLED_BACK} else "kept aside"
    return decided + (", rolled back to" if ROLLED_BACK in reasons else "")


def pending(folder: Path, current: Version) -> Version | None:
    """The version that beat the present champion but was never promoted, because its retraining ended before that."""
    past = {change.champion for change in history(folder)}
    won = [
        version
        for version in versions(folder)
        if version.parent == current.version and version.evaluation and version.evaluation["promote"]
    ]
    return next((version for version in won if version.version not in past), None)


def add_version(folder: Path, **fields: Any) -> Version:
    """Add a version with the next number; if one with the same `run` exists, return that one instead.

    Args:
        fields: fields of `Version`, without `version` and `created`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        known = version_ids(folder)
        if fields.get("run") is not None:
            for version in known:
                if (earlier := read_version(folder, version)).run == fields["run"]:
                    return earlier
        named = [change.champion for change in history(folder)]  # the number of a lost file is not reused
        number = max((_number(version) for version in [*known, *named]), default=0) + 1
        added = Version(version=f"v{number:04d}", created=_now(), **fields)
        files.write(folder / f"{added.version}.json", added.model_dump_json(indent=2) + "\n")
    return added


def promote(folder: Path, version: str, *, over: str | None, why: str) -> None:
    """Make a version champion instead of `over`, the champion that it was compared with.

    Raises:
        ChampionChanged: `over` is no longer champion; nothing is changed.
        RegistryError: there is no such version.
    """
    read_version(folder, version)
    with _lock(folder):
        current = _recorded(folder)
        if current != over:
            raise ChampionChanged(
                f"{version} was compared with {over}, but {current} is champion by now: {version} stays in the "
                "registry unchanged; compare it with the new champion."
            )
        _change(folder, version, current, why)


def rollback(folder: Path, version: str | None = None) -> Change:
    """Make an earlier version champion again: the named one, or the one before the present champion.

    Raises:
        RegistryError: there is no such version, it is already champion, or there was no earlier champion.
    """
    if not folder.is_dir():
        raise RegistryError(f"There is no registry in {folder}.")
    with _lock(folder):
        reigns = _reigns(folder)
        current = reigns[-1] if reigns else None
        if version is None:
            if len(reigns) < 2:
                raise RegistryError(f"The registry {folder} had no champion before {current}.")
            version = reigns[-2]
        if version == current:
            raise RegistryError(f"{version} is already the champion.")
        read_version(folder, version)
        return _change(folder, version, current, ROLLED_BACK)


def _reigns(folder: Path) -> list[str]:
    """The champions that a rollback steps through, the present one last, without those rolled back."""
    reigns: list[str] = []
    for change in history(folder):
        if change.champion in reigns:
            del reigns[reigns.index(change.champion) :]
        reigns.append(change.champion)
    return reigns


def _change(folder: Path, version: str, previous: str | None, why: str) -> Change:
    """Write the history first: a crash in between leaves an old pointer, which `repair` rebuilds."""
    change = Change(champion=version, previous=previous, why=why, created=_now())
    lines = [one.model_dump_json() + "\n" for one in [*history(folder), change]]
    files.write_all({folder / HISTORY: "".join(lines), folder / POINTER: version + "\n"})
    return change


def _pointer(folder: Path) -> str | None:
    file = folder / POINTER
    return file.read_bytes().decode(errors="replace").removesuffix("\n") if file.exists() else None


def _recorded(folder: Path) -> str | None:
    changes = history(folder)
    return changes[-1].champion if changes else None


def _number(version: str) -> int:
    match = _ID.fullmatch(version)
    return int(match[1]) if match else 0


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _lock(folder: Path) -> FileLock:
    return FileLock(folder / "lock")

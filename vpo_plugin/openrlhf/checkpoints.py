"""Find the checkpoint from which a run resumes: the newest complete one.

The host keeps DeepSpeed's files in `<--ckpt.path>/_actor/global_step<N>/` (and `_critic`). It loads the checkpoint that
the file `latest` beside them names, even if it is damaged. DeepSpeed writes `latest` after the other files; then the
host (`DeepspeedStrategy.save_ckpt`, OpenRLHF 0.9.9 and later) adds `metric.json`.
"""

import errno
import json
import os
import re
import shutil
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vpo_plugin.files import write

MODELS = ("_actor", "_critic")
LAST_FILE = "metric.json"
UNFINISHED = "it was not finished"
WRITE_FAILED = ("PytorchStreamWriter failed", "unexpected pos", "iostream error")
"""Texts in torch's RuntimeError when a file cannot be written (torch 2.13, caffe2/serialize/inline_container)."""


READ_THROUGH = 256 * 2**30
"""Checksums are compared up to this size of a checkpoint in bytes; reading more takes minutes."""


def rewind(path: Path) -> tuple[int, list[str]]:
    """Make the newest complete checkpoint under `--ckpt.path` the one that the host loads.

    Newer unfinished or damaged checkpoints are set aside as `<path>/unusable_…`.

    Returns:
        The step of that checkpoint (0 if there is none), and sentences for the user: which checkpoints were set aside,
        and whether checksums were skipped.
    Raises:
        OSError: the folder cannot be read or written.
    """
    models = [path / name for name in MODELS if (path / name).is_dir()]
    named = {model: (model / "latest").read_text().strip() if (model / "latest").exists() else "" for model in models}
    said: list[str] = []
    for step, tag in _tags(models):
        folders = [model / tag for model in models]
        size = sum(file.stat().st_size for folder in folders for file in folder.rglob("*.pt"))
        finished = all(
            (f / LAST_FILE).exists() or step <= _step(named[model]) for model, f in zip(models, folders, strict=True)
        )
        problem = _damage(folders, read_through=size <= READ_THROUGH) if finished else UNFINISHED
        if problem is None:
            if size > READ_THROUGH:
                said.append(
                    f"The checkpoint {tag} has {size >> 30} GiB, more than {READ_THROUGH >> 30}: its files exist, "
                    "but their checksums were not compared."
                )
            for model in models:
                if named[model] != tag:
                    write(model / "latest", tag)
            return step, said
        aside = ", ".join(_set_aside(folder, path).name for folder in folders if folder.is_dir())
        said.append(f"The checkpoint {tag} in {path} cannot be used: {problem}. It is kept as {aside}.")
    return 0, said


def _step(tag: str) -> int:
    """The step in a checkpoint's name, 0 for any other name."""
    match = re.fullmatch(r"(?:best_)?global_step(\d+)", tag)
    return int(match[1]) if match else 0


def _set_aside(folder: Path, path: Path) -> Path:
    """Move one model's checkpoint out of the host's sight."""
    name = f"unusable{folder.parent.name}_{folder.name}"
    number = sum(1 for other in path.iterdir() if re.fullmatch(rf"{name}(_\d+)?", other.name))
    return folder.rename(path / (f"{name}_{number + 1}" if number else name))


def patch_strategy(module: Any) -> None:
    """Wrap `save_ckpt` of the host's `DeepspeedStrategy`, whose errors do not say what to do."""
    original = module.DeepspeedStrategy.save_ckpt

    def save_ckpt(self: Any, model: Any, save_dir: str, tag: str | None = None, *rest: Any, **more: Any) -> None:
        try:
            original(self, model, save_dir, tag, *rest, **more)
        except (OSError, RuntimeError) as error:
            if (sentence := why_not_saved(error, tag, save_dir)) is None:
                raise
            raise RuntimeError(sentence) from error

    module.DeepspeedStrategy.save_ckpt = save_ckpt


def why_not_saved(error: OSError | RuntimeError, tag: str | None, folder: str) -> str | None:
    """Why a checkpoint could not be written and what to do, in a sentence; None for other errors."""
    lost = isinstance(error, RuntimeError) and any(words in str(error) for words in WRITE_FAILED)
    if not (lost or isinstance(error, OSError)):
        return None
    full = lost or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return (
        f"The checkpoint {tag} could not be written to {folder}, where {shutil.disk_usage(folder).free >> 20} MiB are "
        f"free ({str(error).splitlines()[0]}). Earlier checkpoints are complete: "
        f"{'make room' if full else 'make the folder writable'}, and start again with --ckpt.load_enable to resume "
        "from the last one."
    )


def remove_checkpoints(path: Path) -> None:
    """Remove the checkpoints of a finished run; keep the best ones."""
    for step, tag in _tags([path / name for name in MODELS]):
        for name in MODELS:
            if tag == f"global_step{step}":
                shutil.rmtree(path / name / tag, ignore_errors=True)


def _tags(models: list[Path]) -> list[tuple[int, str]]:
    """Steps and names of the existing checkpoints, newest first."""
    names = {folder.name for model in models for folder in model.glob("*global_step*") if folder.is_dir()}
    return sorted(((_step(name), name) for name in names if _step(name)), reverse=True)


def _damage(folders: Sequence[Path], read_through: bool) -> str | None:
    """What is wrong with the files of a checkpoint; None if they are complete."""
    for folder in folders:
        try:
            json.loads((folder / LAST_FILE).read_text())
        except FileNotFoundError:
            pass  # the host does not write it or was killed before
        except ValueError:
            return UNFINISHED
        if not any(folder.rglob("*.pt")):
            return "its files are missing"
    files = sorted(file for folder in folders for file in folder.rglob("*.pt"))
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:  # computing checksums releases Python's lock
        return next((found for found in pool.map(lambda file: _damage_of(file, read_through), files) if found), None)


def _damage_of(file: Path, read_through: bool) -> str | None:
    try:
        with zipfile.ZipFile(file) as archive:  # torch writes zip archives, with a checksum for each tensor
            damaged = archive.testzip() if read_through else None
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError) as error:
        return f"{file.name} is damaged ({error})"
    return f"{file.name} is damaged (its checksum is wrong)" if damaged else None

"""From which checkpoint a run goes on: the newest one that is whole.

The host keeps ``<--ckpt.path>/_actor/global_step<N>/`` (and ``_critic``), DeepSpeed's files, and loads the one that the
file ``latest`` beside them names, whatever its state. The last file that it writes of one is ``metric.json``
(``DeepspeedStrategy.save_ckpt``, OpenRLHF 0.11.2), so a checkpoint without it was not finished.
"""

import errno
import json
import re
import shutil
import zipfile
from pathlib import Path

MODELS = ("_actor", "_critic")
LAST_FILE = "metric.json"
UNFINISHED = "it was not finished"
WRITE_FAILED = ("PytorchStreamWriter failed", "unexpected pos", "iostream error")
"""What torch's RuntimeError says where a file could not be written (torch 2.13, caffe2/serialize/inline_container)."""


def rewind(path: Path) -> tuple[int, list[str]]:
    """Make the newest whole checkpoint under ``--ckpt.path`` the one that the host loads.

    Unfinished checkpoints that are newer are removed, damaged ones set aside as ``<path>/damaged_…``.

    Returns:
        The step after which that checkpoint was taken, 0 where there is none, and a sentence for each one passed over.
    Raises:
        OSError: the folder cannot be read or written.
    """
    models = [path / name for name in MODELS if (path / name).is_dir()]
    passed_over: list[str] = []
    for step, tag in _tags(models):
        problem = next((p for p in (_problem(model / tag) for model in models) if p), None)
        if problem is None:
            for model in models:
                unfinished = model / "latest.tmp"
                unfinished.write_text(tag)
                unfinished.replace(model / "latest")
            return step, passed_over
        passed_over.append(f"The checkpoint {tag} in {path} cannot be used: {problem}.")
        for model in models:
            if problem == UNFINISHED:
                shutil.rmtree(model / tag, ignore_errors=True)
            elif (model / tag).is_dir():
                aside = path / f"damaged{model.name}_{tag}"
                shutil.rmtree(aside, ignore_errors=True)
                (model / tag).rename(aside)
    return 0, passed_over


def why_not_saved(error: OSError | RuntimeError, tag: str | None, folder: str) -> str | None:
    """A sentence on a checkpoint that the disk did not take, with what to do; None for an error of another kind."""
    lost = isinstance(error, RuntimeError) and any(words in str(error) for words in WRITE_FAILED)
    if not (lost or isinstance(error, OSError)):
        return None
    full = lost or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return (
        f"The checkpoint {tag} could not be written to {folder}, where {shutil.disk_usage(folder).free >> 20} MiB are "
        f"free ({str(error).splitlines()[0]}). The checkpoints before it are whole: "
        f"{'make room' if full else 'make the folder writable'}, and start again with --ckpt.load_enable to resume "
        "from the last one."
    )


def remove_checkpoints(path: Path) -> None:
    """Remove what a finished run no longer needs to go on; its best checkpoints, where it has any, stay."""
    for step, tag in _tags([path / name for name in MODELS]):
        for name in MODELS:
            if tag == f"global_step{step}":
                shutil.rmtree(path / name / tag, ignore_errors=True)


def _tags(models: list[Path]) -> list[tuple[int, str]]:
    """Steps and names of the checkpoints there are, newest first."""
    names = {folder.name for model in models for folder in model.glob("*global_step*") if folder.is_dir()}
    matches = [match for name in names if (match := re.fullmatch(r"(?:best_)?global_step(\d+)", name))]
    return sorted(((int(match[1]), match[0]) for match in matches), reverse=True)


def _problem(checkpoint: Path) -> str | None:
    """What is wrong with one model's checkpoint, None if it is whole."""
    try:
        json.loads((checkpoint / LAST_FILE).read_text())
    except (FileNotFoundError, ValueError):
        return UNFINISHED
    files = sorted(checkpoint.rglob("*.pt"))
    if not files:
        return "its files are missing"
    for file in files:
        try:
            with zipfile.ZipFile(file) as archive:  # torch writes zip archives, with a checksum for each tensor
                damaged = archive.testzip()
        except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError) as error:
            return f"{file.name} is damaged ({error})"
        if damaged:
            return f"{file.name} is damaged (its checksum is wrong)"
    return None

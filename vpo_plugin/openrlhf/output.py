"""Claim a run's output folder with a marker file, and find the checkpoint from which the run resumes."""

import argparse
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vpo_plugin import files
from vpo_plugin.openrlhf.checkpoints import rewind
from vpo_plugin.openrlhf.log import REMARK
from vpo_plugin.rewards import RewardSpec


def log_dir(output_dir: str) -> Path:
    """The folder for metrics and matrices of a run that saves its model to `output_dir`."""
    return Path(output_dir).resolve() / "vpo"


def run_marker(given: Mapping[str, Any], spec: RewardSpec) -> dict[str, Any]:
    """The content of a run's `run.json`: runs that differ in it may not share a folder."""
    return {"spec": spec.name, "candidates": given["vpo.candidates"]}


def read_marker(log_dir: Path) -> dict[str, Any] | None:
    """What `run_marker` said of the run that logs there; None if there is no run, or the disk was full."""
    marker = log_dir / "run.json"
    return json.loads(marker.read_text() or "null") if marker.exists() else None


def check_output(given: Mapping[str, Any], spec: RewardSpec) -> Iterator[str]:
    """Yield a sentence if the folder holds a run of another specification, or something else."""
    output = given["ckpt.output_dir"]
    folder = log_dir(output)
    try:
        if (folder / "run.json").exists():
            earlier, run = read_marker(folder), run_marker(given, spec)
            if earlier not in (None, run):
                yield (
                    f"--ckpt.output_dir {output} holds a run of spec {earlier['spec']!r} with {earlier['candidates']} "
                    f"candidates, but this run has {spec.name!r} with {run['candidates']}: name another folder, or "
                    "delete that one."
                )
        elif folder.is_dir() and any(folder.iterdir()):
            yield (
                f"--ckpt.output_dir {output} holds a folder {folder.name!r} that is not from a run, but this run "
                "would write there: name another folder."
            )
    except OSError as error:
        yield f"--ckpt.output_dir {output} cannot be read: {error.strerror}."


def claim_output(parser: argparse.ArgumentParser, given: Mapping[str, Any], spec: RewardSpec) -> None:
    """Mark the output folder as this run's; remove the logs of an earlier run unless this run resumes it.

    If the folder cannot be written, the command ends with a sentence and exit code 2.
    """
    folder = log_dir(given["ckpt.output_dir"])
    try:
        if folder.exists() and not given["ckpt.load_enable"]:
            shutil.rmtree(folder)
        files.write(folder / "run.json", json.dumps(run_marker(given, spec)))
    except OSError as error:
        parser.error(f"--ckpt.output_dir {given['ckpt.output_dir']} cannot be written: {error.strerror}.")


def find_checkpoint(parser: argparse.ArgumentParser, given: Mapping[str, Any]) -> bool:
    """With `--ckpt.load_enable`, make the newest complete checkpoint the one to resume from; False if there is none.

    Prints its step, and why newer checkpoints were passed over. A folder that cannot be used ends the command.
    """
    if not given["ckpt.load_enable"]:
        return False
    try:
        step, passed_over = rewind(Path(given["ckpt.path"]))
    except OSError as error:
        parser.error(f"--ckpt.path {given['ckpt.path']} cannot be used: {error.strerror}.")
    for sentence in passed_over:
        print(f"{REMARK}{sentence}", flush=True)
    if step:
        print(f"{REMARK}Resuming after step {step}, from its checkpoint in {given['ckpt.path']}.", flush=True)
    return step > 0


def how_to_resume(given: Mapping[str, Any]) -> str:
    """A sentence on how to resume an interrupted run."""
    if any(Path(given["ckpt.path"]).glob("_actor/*global_step*")):
        return f"The same command with --ckpt.load_enable resumes from the last checkpoint in {given['ckpt.path']}."
    return f"The run saved no checkpoint in {given['ckpt.path']} yet (--ckpt.save_steps): it starts from the beginning."

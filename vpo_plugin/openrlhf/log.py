"""What a training run leaves for people and programs to read, in ``<--ckpt.output_dir>/vpo/``.

``metrics.jsonl``: one line a step, all of the host's own metrics with the plugin's among them, and one an evaluation.
``rollouts/step_000001.npz``: that step's reward matrices, the advantages made of them, and a
fingerprint of each prompt.
"""

import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np

METRICS = "metrics.jsonl"
OWNER = "owner"
REMARK = "vpo: "
"""What a line of a run's output starts with that a person should see."""


def own(log_dir: Path, run: str) -> None:
    """Make the folder that of one start of a training: an earlier one that still runs stops before its next step."""
    log_dir.mkdir(parents=True, exist_ok=True)
    (log_dir / OWNER).write_text(run)


def check_owner(log_dir: Path, run: str) -> None:
    """Refuse to go on in a folder that a later start of the training has taken over.

    Raises:
        RuntimeError: it has.
    """
    owner = log_dir / OWNER
    if owner.exists() and owner.read_text() != run:
        raise RuntimeError(f"Another training has been started in {log_dir.parent}; this one stops.")


def log_step(log_dir: Path, step: int, status: dict[str, Any]) -> None:
    """Append a line to ``metrics.jsonl``: what is known of a finished step (1-based), or of an evaluation after it."""
    numbers = {key: value for key, value in status.items() if isinstance(value, int | float)}
    log_dir.mkdir(parents=True, exist_ok=True)
    with (log_dir / METRICS).open("a") as file:
        file.write(json.dumps({"step": step, "time": time.time(), **numbers}) + "\n")


def read_steps(log_dir: Path) -> list[dict[str, float]]:
    """The logged steps in order, each with the metrics of an evaluation after it."""
    path = log_dir / METRICS
    if not path.exists():
        return []
    steps: dict[int, dict[str, float]] = {}
    for line in path.read_text().rpartition("\n")[0].splitlines():
        values = json.loads(line)
        steps[values["step"]] = values | steps.get(values["step"], {})
    return list(steps.values())


def remark_of(line: str) -> str | None:
    """What a line of a run's output says to a person, None for other lines; Ray names the process before it."""
    match = re.fullmatch(rf"(?:(?:\x1b\[\d+m)*\(\w+ pid=[^)]*\)(?:\x1b\[\d+m)* )?{REMARK}(.*)", line)
    return match and match[1]


def forget_steps_after(log_dir: Path, step: int) -> None:
    """Remove what was logged of later steps (1-based): a run that goes on from a checkpoint does them again."""
    path = log_dir / METRICS
    if path.exists():
        kept = "".join(json.dumps(line) + "\n" for line in read_steps(log_dir) if line["step"] <= step)
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(kept)
        unfinished.replace(path)
    for file in (log_dir / "rollouts").glob("step_*.npz"):
        if int(file.stem.removeprefix("step_")) > step:
            file.unlink()


def training_curve(log_dir: Path) -> list[dict[str, float]]:
    """The logged steps as the report of a search evaluation draws them."""
    steps = read_steps(log_dir)
    starts = [step["time"] for step in steps[:1] + steps[:-1]]  # a step starts when the one before it ends
    return [
        {
            "step": step["step"],
            "reward": step["reward"],
            "set_reward": step["set_reward"],
            "diversity": step["group_diversity"],
            "seconds": step["time"] - start,
        }
        for step, start in zip(steps, starts, strict=True)
    ]


def log_rollouts(log_dir: Path, step: int, **arrays: np.ndarray) -> None:
    """Save the arrays of one step (1-based): reward matrices, advantages, tokens' advantages, prompts' fingerprints."""
    path = log_dir / "rollouts" / f"step_{step:06d}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]

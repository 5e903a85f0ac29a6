"""The logs of a training run for people and programs, in `<--ckpt.output_dir>/vpo/`.

`metrics.jsonl`: one line per step, with all metrics of the host and the plugin, and one per evaluation.
`rollouts/step_000001.npz`: the step's reward matrices, their advantages, and a fingerprint of each prompt.
`rollouts/step_000001.parquet`: the responses to a few of the step's prompts, which `vpo show` prints.
"""

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vpo_plugin import files

METRICS = "metrics.jsonl"
OWNER = "owner"
DRAWN = ("reward", "set_reward", "group_diversity", "candidates_parsed", "kl", "response_length", "scorer_zeros")
"""Logged metrics that a report draws or counts, beside each objective's mean."""
MOST_WORDS = 30
"""A message repeats at most this many lines of an error."""
ERROR = re.compile(r"\S+( \S+)?: error: |[\w.]*(Error|Exception|Interrupt|Died|Exit)\b")
"""Matches the start of a line in which a program says why it ends."""
ENGINE_ERROR = re.compile(r"\(EngineCore[^)]*\) ERROR [^\[]*\[[^\]]*\] (\w[\w.]*(?:Error|Exception)\b.*)")
"""Matches vLLM's line with the error of an engine's process; the error that follows elsewhere only points to it."""
ENGINE_FAILED = "See root cause above"
COLOUR = re.compile(r"\x1b\[[\d;]*m")
FAILURE = "vpo_plugin.train_ppo_ray: error: "
"""Prefix of the sentence that says why a training ended; it may follow a traceback of the host."""
REMARK = "vpo: "
"""Prefix of the output lines of a run that a person should see."""


def own(log_dir: Path, run: str) -> None:
    """Claim the folder for one start of a training; an earlier start that still runs stops before its next step."""
    files.write(log_dir / OWNER, run)


def check_owner(log_dir: Path, run: str) -> None:
    """Check that this start of the training still owns the folder.

    Raises:
        RuntimeError: a later start has taken it over.
    """
    owner = log_dir / OWNER
    if owner.exists() and owner.read_text() != run:
        raise RuntimeError(f"Another training has been started in {log_dir.parent}; this one stops.")


def log_step(log_dir: Path, step: int, status: dict[str, Any]) -> None:
    """Append a line to `metrics.jsonl`: the metrics of a finished step (1-based), or of an evaluation after it."""
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
    """The message for people in a line of a run's output, None for other lines. Ray may prefix the process."""
    match = re.fullmatch(rf"(?:(?:\x1b\[\d+m)*\(\w+ pid=[^)]*\)(?:\x1b\[\d+m)* )?{REMARK}(.*)", line)
    return match and match[1]


def last_words(log: Path) -> str:
    """Why a program ended: its last error with what follows, or its last line, and the name of its log file."""
    own = own_lines(log)
    starts = [number for number, line in enumerate(own) if ERROR.match(line)]
    said = (own[starts[-1] :] if starts else own[-1:])[:MOST_WORDS] or ["it printed nothing."]
    said[0] = said[0].removeprefix(FAILURE)
    if ENGINE_FAILED in "".join(said) and (engine := engine_error(log.read_text(errors="replace"))):
        said = [engine]
    return "\n".join(said) + ("\n" if said[1:] else " ") + f"The whole log is {log}."


def last_error(output: str) -> str:
    """The last line of a failed training's output; if an engine failed, the engine's own error."""
    last = last_line(output)
    return (ENGINE_FAILED in last and engine_error(output)) or last


def engine_error(output: str) -> str | None:
    """The last error of a vLLM engine's process in a training's output, None if there is none."""
    found = ENGINE_ERROR.findall(COLOUR.sub("", output))
    return f"the vLLM engine did not start: {found[-1].strip()}" if found else None


def last_line(output: str) -> str:
    """The last line of a program's output that is not empty."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing."


def end_of(log: Path) -> str:
    """The last 60 lines of a program's log, from its last traceback (or else its last error) on."""
    own = own_lines(log)
    traces = [number for number, line in enumerate(own) if line.startswith("Traceback (most recent call last)")]
    starts = traces or [number for number, line in enumerate(own) if ERROR.match(line)]
    return "\n".join(own[starts[-1] if starts else 0 :][-60:])


def own_lines(log: Path) -> list[str]:
    """The lines that a program itself wrote, not its Ray workers, without empty lines and colours."""
    lines = [COLOUR.sub("", line).rstrip() for line in log.read_text(errors="replace").splitlines()]
    return [line for line in lines if line and not re.match(r"\(\w+ (pid|ip)=", line)]


def forget_steps_after(log_dir: Path, step: int) -> None:
    """Remove the logs of later steps (1-based): a run that resumes from a checkpoint repeats them."""
    path = log_dir / METRICS
    if path.exists():
        files.write(path, files.json_lines(line for line in read_steps(log_dir) if line["step"] <= step))
    for file in (log_dir / "rollouts").glob("step_*.*"):
        if int(file.stem.removeprefix("step_")) > step:
            file.unlink()


def training_curve(log_dir: Path) -> list[dict[str, float]]:
    """The logged steps as the report of a search evaluation draws them."""
    steps = read_steps(log_dir)
    starts = [step["time"] for step in steps[:1] + steps[:-1]]  # a step starts when the one before it ends
    return [
        {
            "step": step["step"],
            "seconds": step["time"] - start,
            **{key: value for key, value in step.items() if key in DRAWN or key.startswith("objective/")},
        }
        for step, start in zip(steps, starts, strict=True)
    ]


def log_texts(log_dir: Path, step: int, rows: Sequence[dict[str, Any]]) -> None:
    """Save the responses of one step (1-based) as a table with one row per rollout.

    A row holds each candidate with its reward vector, the host's scalar reward, and the estimator's value of the
    rollout. A candidate is null if it could not be read, or if the user's own code gave the rewards.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = log_dir / "rollouts" / f"step_{step:06d}.parquet"
    sets = [("candidates", pa.list_(pa.string())), ("rewards", pa.list_(pa.list_(pa.float32())))]
    numbers = [(name, pa.float32()) for name in ("reward", "rollout_reward", "advantage")]
    schema = pa.schema([("prompt", pa.string()), ("response", pa.string()), *sets, *numbers])
    with files.replacing(path) as unfinished:
        pq.write_table(pa.Table.from_pylist(list(rows), schema), unfinished, compression="zstd")


def read_texts(log_dir: Path, step: int) -> list[dict[str, Any]]:
    """The rows that `log_texts` saved for a step.

    Raises:
        FileNotFoundError: there are none; the message names the steps that have rows.
    """
    import pyarrow.parquet as pq

    path = log_dir / "rollouts" / f"step_{step:06d}.parquet"
    if not path.exists():
        steps = sorted(int(file.stem.removeprefix("step_")) for file in path.parent.glob("step_*.parquet"))
        there = f"it has those of steps {steps[0]} to {steps[-1]}" if steps else "there are none"
        raise FileNotFoundError(f"{log_dir} has no texts of step {step}: {there}.")
    return pq.read_table(path).to_pylist()


def log_rollouts(log_dir: Path, step: int, **arrays: np.ndarray) -> None:
    """Save the arrays of one step (1-based): reward matrices, advantages, token advantages, prompt fingerprints."""
    path = log_dir / "rollouts" / f"step_{step:06d}.npz"
    with files.replacing(path) as unfinished, unfinished.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

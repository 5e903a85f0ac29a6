"""Show a training in the terminal: its last steps, its problems, and the policy's responses in a step."""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from vpo_plugin.files import printable
from vpo_plugin.locks import is_held
from vpo_plugin.openrlhf.log import last_words, read_steps, read_texts, training_curve
from vpo_plugin.openrlhf.output import read_marker
from vpo_plugin.report.tables import number, text_table

LONGEST = 200
"""Most characters shown of a prompt, a candidate or a response."""


LAST_STEPS = 5
MOSTLY = 0.5
"""A smaller share of readable candidates, or of groups with a signal, is a problem."""
COLUMNS = {
    "reward": "reward",
    "set_reward": "set reward",
    "group_diversity": "L1 distance",
    "kl": "KL",
    "response_length": "tokens",
    "candidates_parsed": "read",
    "seconds": "seconds",
}
"""Columns shown of each step, from `openrlhf.log.training_curve`."""


def find_trainings(run: Path) -> dict[str, Path]:
    """The log folders of the trainings in a run's folder, by relative path; the one that logged last comes last."""
    found = sorted(run.glob("**/train/*/policy/vpo/metrics.jsonl"), key=lambda file: file.stat().st_mtime)
    found = [file for file in found if not re.search(r"\.[0-9a-f]{16}$", file.parents[2].name)]  # set aside
    return {str(file.parents[2].relative_to(run)).replace("train/", ""): file.parent for file in found}


def format_run(run: Path, prompts: int | None = None) -> str:
    """The trainings of a run, or of one output folder: last steps, problems, and the last step's responses.

    Raises:
        FileNotFoundError: there is no training.
    """
    trainings = find_trainings(run)
    if not trainings:
        trainings = {run.name: find_log(run)}
    parts = [format_training(name, log) for name, log in trainings.items()]
    last = list(trainings.values())[-1]
    if any((last / "rollouts").glob("step_*.parquet")):
        parts.append(format_step(last, prompts=prompts))
    return "\n\n".join(parts)


def format_training(name: str, log: Path) -> str:
    """The last steps of a training, and its problems if it has any."""
    curve = training_curve(log)
    rows = [[f"{step['step']:g}", *(number(step.get(key)) for key in COLUMNS)] for step in curve[-LAST_STEPS:]]
    finished = (log.parent / "config.json").exists()
    title = f"Training {name}: {len(curve)} steps{', finished' if finished else ''}"
    wrong = [f"Wrong: {sentence}" for sentence in problems(read_steps(log), log, finished)]
    return "\n".join([title, text_table(["step", *COLUMNS.values()], rows), *wrong])


def problems(steps: Sequence[Mapping[str, float]], log: Path, finished: bool) -> list[str]:
    """The problems of a training, in sentences, from its logged steps and its output."""
    found = []
    if steps:
        last = steps[-1]
        if any(not math.isfinite(value) for value in last.values()):
            found.append(f"Step {last['step']:g} has numbers that are not finite: lower the learning rate.")
        m = (read_marker(log) or {}).get("candidates")
        if m and last.get("candidates_parsed", m) < MOSTLY * m:
            found.append(
                f"Only {last['candidates_parsed'] / m:.0%} of the candidates of step {last['step']:g} could be read "
                f"({last['candidates_parsed']:.2g} of {m} in a response): look at the responses below; `vpo "
                "warm_start` teaches the format."
            )
        if "groups_used" in last and last["groups_used"] < MOSTLY * last["groups"]:
            found.append(
                f"Only {last['groups_used']:g} of {last['groups']:g} groups of step {last['step']:g} teach anything: "
                "in the others all rollouts have the same value, because the prompts are too easy or too hard."
            )
        if last.get("scorer_errors"):
            found.append(f"The scorer failed on {last['scorer_errors']:.1%} of the responses of step {last['step']:g}.")
    output = log.parent.parent / "train.log"
    if not finished and output.exists() and not is_held(output.with_name(f"{output.name}.lock")):
        found.append(f"The training ended without a policy: {last_words(output)}")
    return found


def find_log(run: Path) -> Path:
    """The log folder of a training, from that folder itself or from its parent, `--ckpt.output_dir`.

    Raises:
        FileNotFoundError: there is none.
    """
    for folder in (run, run / "vpo"):
        if (folder / "metrics.jsonl").exists():
            return folder
    raise FileNotFoundError(f"{run} holds no training: it has no vpo/metrics.jsonl.")


def format_step(run: Path, step: int | None = None, prompts: int | None = None) -> str:
    """The rollouts of a step (1-based; None for the last one), one table per prompt, best rollout first.

    Raises:
        FileNotFoundError: there is no such training, or no texts of this step.
    """
    log = find_log(run)
    if step is None:
        files = sorted((log / "rollouts").glob("step_*.parquet"))
        step = int(files[-1].stem.removeprefix("step_")) if files else len(read_steps(log))
    groups = [list(rows) for _, rows in groupby(read_texts(log, step), key=lambda row: row["prompt"])]
    shown = groups[:prompts]
    tables = [f"Step {step}, {len(shown)} of {len(groups)} prompts that were kept"]
    for place, rows in enumerate(shown, start=1):
        best_first = sorted(rows, key=lambda row: -row["advantage"])
        tables.append(f"\nPrompt {place}: {_short(rows[0]['prompt'])}\n")
        lines = [line for rank, row in enumerate(best_first, start=1) for line in _lines(rank, row)]
        tables.append(text_table(["", "candidate", "rewards", "worth", "advantage"], lines, left=2))
    return "\n".join(tables)


def _lines(place: int, row: dict[str, Any]) -> list[list[str]]:
    """One line per candidate; shows the response if none could be read or the user's own code gave the rewards."""
    lines = []
    texts = row["candidates"]
    for row_number, (text, rewards) in enumerate(zip(texts, row["rewards"], strict=True)):
        if text is None:
            text = "(not read)" if any(texts) else _short(row["response"]) if row_number == 0 else ""
        vector = " ".join(f"{value:.2f}" for value in rewards)
        first = row_number == 0
        worth, advantage = f"{row['rollout_reward']:.3f}", f"{row['advantage']:+.2f}"
        lines.append(
            [str(place) if first else "", _short(text), vector, worth if first else "", advantage if first else ""]
        )
    return lines


def _short(text: str) -> str:
    text = printable(" ".join(text.split()))
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"

"""What the policy wrote in a step of a training, as tables for the terminal."""

from itertools import groupby
from pathlib import Path
from typing import Any

from vpo_plugin.openrlhf.log import read_steps, read_texts
from vpo_plugin.report.tables import text_table

LONGEST = 200
"""Characters of a prompt, a candidate or a response that are shown."""


def find_log(run: Path) -> Path:
    """The log folder of a training, given itself or the folder in which it is: `--ckpt.output_dir`.

    Raises:
        FileNotFoundError: there is none.
    """
    for folder in (run, run / "vpo"):
        if (folder / "metrics.jsonl").exists():
            return folder
    raise FileNotFoundError(f"{run} holds no training: it has no vpo/metrics.jsonl.")


def format_step(run: Path, step: int | None = None, prompts: int | None = None) -> str:
    """The rollouts of a step (1-based; the last one if None), a table a prompt, the best first.

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
    for number, rows in enumerate(shown, start=1):
        best_first = sorted(rows, key=lambda row: -row["advantage"])
        tables.append(f"\nPrompt {number}: {_short(rows[0]['prompt'])}\n")
        lines = [line for place, row in enumerate(best_first, start=1) for line in _lines(place, row)]
        tables.append(text_table(["", "candidate", "rewards", "worth", "advantage"], lines, left=2))
    return "\n".join(tables)


def _lines(place: int, row: dict[str, Any]) -> list[list[str]]:
    """A line a candidate; what could not be read, and what the user's own code rewarded, shows the response instead."""
    lines = []
    texts = row["candidates"]
    for number, (text, rewards) in enumerate(zip(texts, row["rewards"], strict=True)):
        if text is None:
            text = "(not read)" if any(texts) else _short(row["response"]) if number == 0 else ""
        vector = " ".join(f"{value:.2f}" for value in rewards)
        first = number == 0
        worth, advantage = f"{row['rollout_reward']:.3f}", f"{row['advantage']:+.2f}"
        lines.append(
            [str(place) if first else "", _short(text), vector, worth if first else "", advantage if first else ""]
        )
    return lines


def _short(text: str) -> str:
    text = "".join(letter if letter.isprintable() else "�" for letter in " ".join(text.split()))
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"

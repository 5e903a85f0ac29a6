"""What the policy wrote in a step, as `vpo show` prints it."""

from pathlib import Path
from typing import Any

import pytest

from vpo_plugin.cli import main
from vpo_plugin.openrlhf.log import log_step, log_texts
from vpo_plugin.report.rollouts import format_step


def rollout(prompt: str, advantage: float, candidates: list[str | None], response: str = "nothing") -> dict[str, Any]:
    return {
        "prompt": prompt,
        "response": response,
        "candidates": candidates,
        "rewards": [[0.5, 0.25]] * len(candidates),
        "reward": 0.4,
        "rollout_reward": 0.7,
        "advantage": advantage,
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    rows = [
        rollout("Find a way.", -1.0, ["UP", None]),
        rollout("Find a way.", 1.0, ["DOWN", "LEFT"]),
        rollout("Another.", 0.5, [None, None], "I cannot [bold]\x1b[31m do it"),
    ]
    log_step(tmp_path / "vpo", 2, {"reward": 0.4})
    log_texts(tmp_path / "vpo", 2, rows)
    return tmp_path


def test_table_of_a_step(run: Path) -> None:
    """The best rollout first, a line a candidate; the last step if none is named."""
    lines = [line.split() for line in format_step(run).splitlines() if line.strip()]
    assert " ".join(lines[0]) == "Step 2, 2 of 2 prompts that were kept"
    assert lines[1] == ["Prompt", "1:", "Find", "a", "way."]
    assert lines[4:8] == [
        ["1", "DOWN", "0.50", "0.25", "0.700", "+1.00"],
        ["LEFT", "0.50", "0.25"],
        ["2", "UP", "0.50", "0.25", "0.700", "-1.00"],
        ["(not", "read)", "0.50", "0.25"],
    ]
    assert format_step(run / "vpo", 2, prompts=1).count("Prompt ") == 1


def test_the_command(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(run), "--step", "2", "--prompts", "1"]) == 0
    assert capsys.readouterr().out == format_step(run, 2, 1) + "\n"
    assert main(["show", str(run), "--step", "7"]) == 1
    assert "has no texts of step 7" in capsys.readouterr().err


def test_what_a_model_wrote_is_text(run: Path) -> None:
    """Neither markup nor codes for the terminal; where nothing could be read, the response."""
    shown = format_step(run)
    assert "I cannot [bold]�[31m do it" in shown
    assert "\x1b" not in shown


def test_what_is_not_there(run: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no texts of step 1: it has those of steps 2 to 2"):
        format_step(run, 1)
    with pytest.raises(FileNotFoundError, match="holds no training"):
        format_step(tmp_path / "elsewhere")


STEP = dict.fromkeys(
    ("reward", "set_reward", "group_diversity", "candidates_parsed", "kl", "response_length", "scorer_errors"), 0.25
)


def test_how_a_training_goes_and_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run's folder: the last steps of each training, then what was written in the newest one's last step."""
    log = tmp_path / "train" / "vpo" / "policy" / "vpo"
    log.mkdir(parents=True)
    (log / "run.json").write_text('{"spec": "maze_small", "candidates": 3}')
    for step in range(1, 8):
        read = {"candidates_parsed": 1.2}  # of 3 candidates in a response
        log_step(log, step, {**STEP, **read, "groups": 8, "groups_used": 1, "kl": float("nan")})
    log_texts(log, 7, [rollout("Find a way.", 1.0, ["DOWN", "LEFT"])])
    (tmp_path / "train" / "vpo" / "train.log").write_text(
        "Failed to load a kernel\n(Worker pid=7) RuntimeError: not this\nTraceback (most recent call last):\n"
        '  File "a.py"\n\x1b[31mprogram: error: 2 mistakes:\n- one\n- two\n'
    )
    assert main(["show", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "Training vpo: 7 steps" in shown and "DOWN" in shown
    assert [line.split()[0] for line in shown.splitlines() if line[:1].isdigit()][:5] == ["3", "4", "5", "6", "7"]
    wrong = [line for line in shown.splitlines() if line.startswith("Wrong: ")]
    assert [line.split()[1] for line in wrong] == ["Step", "Only", "Only", "The", "The"]
    assert "Only 40% of the candidates of step 7 could be read (1.2 of 3 in a response)" in wrong[1]
    assert "without a policy: program: error: 2 mistakes:\n- one\n- two\n" in shown and "not this" not in shown
    (log.parent / "config.json").write_text("{}")
    log_step(log, 8, {**STEP, "candidates_parsed": 1.8})
    assert main(["show", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "8 steps, finished" in shown and "could be read" not in shown

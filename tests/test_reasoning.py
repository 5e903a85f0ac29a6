"""reasoning-gym's tasks as a dataset and as an objective."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from vpo_plugin.rewards import check_spec, load_spec
from vpo_plugin.rewards.formats import write_response
from vpo_plugin.rewards.response import score_response
from vpo_plugin.rewards.task import read_rows

pytest.importorskip("reasoning_gym")
from reasoning_gym.factory import DATASETS

from reward_specs.reasoning.reasoning import answers, checked, is_expression, puzzle, rows, score


def test_the_spec_proves_itself() -> None:
    found = check_spec(load_spec("reasoning"))
    assert any("known answers of the split 'test' score what they should" in line for line in found)


@pytest.mark.parametrize("task", ["basic_arithmetic", "spell_backward", "chain_sum"])
def test_another_task_and_its_settings(task: str, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(f"name: mine\nextends: reasoning\ndataset: {{args: {{task: {task}}}}}\n")
    spec = load_spec(tmp_path)
    train, again, test = (list(read_rows(spec, split, 5, 3)) for split in ("train", "train", "test"))
    assert train == again and not {row["prompt"] for row in train} & {row["prompt"] for row in test}
    for row in train:
        [(text, rewards)] = answers(row["label"])
        response = write_response(spec, [text, "no answer"])
        matrix = score_response(spec, response, row["label"], 2).matrix
        assert matrix[0].tolist() == pytest.approx(rewards) and rewards[0] == 1 and (matrix[1:, 0] < 1).all()


def test_a_task_beside_other_functions(tmp_path: Path) -> None:
    objectives = [
        {"key": "solved", "description": "a", "function": "reward_specs.reasoning.reasoning:checked_reward"},
        {"key": "short", "description": "b", "function": "mine_rewards:short"},
    ]
    data: dict[str, Any] = yaml.safe_load((Path(load_file()).parent / "spec.yaml").read_text())
    data |= {"name": "mine", "objectives": objectives, "weights": "solved"}
    data["dataset"] |= {"loader": "reward_specs.reasoning.reasoning:rows"}
    del data["task"]
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(data))
    (tmp_path / "mine_rewards.py").write_text(
        "def short(completions, **columns):\n    return [1 / (1 + len(text)) for text in completions]\n"
    )
    spec = load_spec(tmp_path)
    row = next(read_rows(spec, "train", 1, 0))
    [(text, _)] = answers(row["label"])
    matrix = score_response(spec, write_response(spec, [text, "1"]), row["label"], 2, row["prompt"]).matrix
    assert matrix.ravel().tolist() == pytest.approx([1, 1 / (1 + len(text)), checked("1", row["label"]), 0.5])


def load_file() -> str:
    import reward_specs.reasoning.reasoning as module

    return str(module.__file__)


TASKS = DATASETS.keys() - {"composite"}  # which has no puzzles of its own
SLOW = {"arc_agi", "figlet_font", "futoshiki", "group_anagrams", "knight_swap", "quantum_lock", "zebra_puzzles"}


def known(label: dict[str, Any]) -> str | None:
    """A right answer: the puzzle's own, or its example of one."""
    entry = puzzle(json.dumps(label))
    found = (
        entry["answer"] or entry["metadata"].get("example_answer") or entry["metadata"].get("example_correct_answer")
    )
    return json.dumps(entry["metadata"]["possible_answer"]) if label["task"] == "graph_color" else found


@pytest.mark.parametrize("tasks", [sorted(TASKS - SLOW), pytest.param(sorted(SLOW), marks=pytest.mark.slow)])
def test_every_task_pays_its_own_answer_and_runs_no_other(tasks: list[str], tmp_path: Path) -> None:
    """Checkers evaluate answers with eval and with sympy, and fail on answers of another kind."""
    mark = tmp_path / "mark"
    attacks = [f"open('{mark}', 'w')", f"[str(open('{mark}', 'w'))]", f"__import__('os').system('touch {mark}')"]
    unknown = []
    for task in tasks:
        label = next(rows("train", 1, 0, task=task))["label"]
        answer = known(label)
        if answer is None:
            unknown.append(task)
        else:
            assert checked(answer, label) == 1, task
        for text in (*attacks, "5", "{}", "[]", "no answer", "\ud800", ""):
            assert 0 <= checked(text, label) <= 1, (task, text)
        assert answer is None or checked(answer, label) == 1, task
        assert not mark.exists(), task
    assert unknown == sorted({"boxnet", "rush_hour"} & {*tasks})


@pytest.mark.parametrize("task", ["string_insertion", "binary_matrix", "spiral_matrix", "n_queens"])
def test_a_list_is_still_read_where_the_checker_called_eval(task: str) -> None:
    label = next(rows("train", 1, 0, task=task))["label"]
    answer = puzzle(json.dumps(label))["answer"]
    split = {"string_insertion": list(answer), "spiral_matrix": answer.split()}
    assert 0 < checked(str(split.get(task) or [row.split() for row in answer.split("\n")]), label) < 1


def test_a_formula_and_what_is_none() -> None:
    assert is_expression("94*4 - 61/6.5 + sqrt(x)") and not is_expression("f(x).a") and not is_expression("lambda: 1")
    label = next(rows("train", 1, 0, task="countdown"))["label"]
    assert all(score(text, label) == [0, 0] for text in ("().__class__", "exit()", "x.a"))


def test_a_task_without_known_answers_is_not_called_sound(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("name: mine\nextends: reasoning\ndataset: {args: {task: boxnet}}\n")
    spec = load_spec(tmp_path)
    found = check_spec(spec)
    assert found[-1] == (
        "NOT CHECKED: whether a right candidate gets its reward in the split 'train' or 'test', because no known "
        "answer was scored."
    )
    assert not any("known answers of" in sentence for sentence in found)


def test_no_such_task() -> None:
    with pytest.raises(ValueError, match="reasoning-gym has no task 'nope'; it has "):
        next(rows("train", 1, 0, task="nope"))

"""reasoning-gym's tasks as a dataset and as an objective."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from vpo_plugin.rewards import check_spec, load_spec
from vpo_plugin.rewards.formats import write_response
from vpo_plugin.rewards.response import score_response
from vpo_plugin.rewards.task import read_rows

pytest.importorskip("reasoning_gym")
from reward_specs.reasoning.reasoning import answers, checked, evaluates, is_expression, rows, score


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


def test_an_answer_runs_no_python(tmp_path: Path) -> None:
    """sympy's parser evaluates what it is given."""
    label = next(rows("train", 1, 0, task="countdown"))["label"]
    assert evaluates("countdown") and not evaluates("spell_backward")
    mark = tmp_path / "mark"
    for attack in (f"open('{mark}', 'w')", f"__import__('pathlib').Path('{mark}').touch()", "().__class__", "exit()"):
        assert score(attack, label) == [0, 0] and not mark.exists()
    assert is_expression("94*4 - 61/6.5 + sqrt(x)") and not is_expression("f(x).a") and not is_expression("lambda: 1")


def test_no_such_task() -> None:
    with pytest.raises(ValueError, match="reasoning-gym has no task 'nope'; it has "):
        next(rows("train", 1, 0, task="nope"))

"""The specification's model: what can be said in a spec.yaml, and how what is wrong is said."""

import copy
import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vpo_plugin.advantages import RewardBatch, get_advantage_estimator
from vpo_plugin.rewards import RewardSpec, SpecError, check_spec, load_spec
from vpo_plugin.rewards.check import measure_spec
from vpo_plugin.rewards.files import spec_files
from vpo_plugin.rewards.formats import parse, render_prompt, start_response, write_response
from vpo_plugin.rewards.response import score_response
from vpo_plugin.rewards.scoring import Scoring
from vpo_plugin.rewards.skeleton import new_spec, skeleton_files
from vpo_plugin.rewards.spec import json_schema
from vpo_plugin.rewards.task import best_reward, check_label, known_answers, pareto_front, read_rows
from vpo_plugin.rewards.weights import parse_weights

SPECS = Path(__file__).parent.parent / "reward_specs"
MODULE = """
import time

def rows(split, num_rows, seed, **args):
    for i in range(3):
        yield {"question": f"{split} {i}: WRITE HERE", "answer": {"values": [i, 1, 0]}}

def score(candidate, label):
    if candidate.startswith("candidate"):  # a dummy
        return [0, 0]
    if candidate == "slow":
        time.sleep(0.2)
        return [0, 0]
    return [float(word) for word in candidate.split()]

def count(label):
    return len(label["values"])

def front(label):
    return [("1 0", [1, 0]), ("0.4 0.4", [0.4, 0.4]), ("0 1", [0, 1])]

def no_front(label):
    return []

mutation = 3
"""
SPEC: dict[str, Any] = {
    "name": "small",
    "description": "a spec for tests",
    "objectives": [{"key": "a", "description": "a"}, {"key": "b", "description": "b"}],
    "candidates": 2,
    "tag": "c",
    "prompt": {"single": "Write <c_1>.", "multi": "Write {candidates} in <c_1>."},
    "scorer": "spec_test_module:score",
    "dataset": {"loader": "spec_test_module:rows", "columns": {"prompt": "question", "label": "answer"}},
    "limits": {"response_chars": 10000, "tokens_per_candidate": 10},
}


def changed(**changes: Any) -> dict[str, Any]:
    """The small spec with changed keys; `a__b` is the key b in the mapping a, and None takes a key out."""
    spec = copy.deepcopy(SPEC)
    for path, value in changes.items():
        *outer, key = path.split("__")
        place = spec
        for step in outer:
            place = place[step]
        place.pop(key, None)
        if value is not None:
            place[key] = value
    return spec


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a spec into a folder, beside the module that it names, and returns the folder."""

    def write(spec: dict[str, Any], folder: str = "small") -> Path:
        home = tmp_path / folder
        home.mkdir(exist_ok=True)
        (home / "spec.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
        (home / "spec_test_module.py").write_text(MODULE)
        return home

    yield write
    sys.modules.pop("spec_test_module", None)
    sys.path[:] = [path for path in sys.path if not path.startswith(str(tmp_path))]
    importlib.invalidate_caches()


@pytest.fixture
def load(write):
    return lambda **changes: load_spec(write(changed(**changes)))


def matrix(spec: RewardSpec, *candidates: str, m: int | None = None, label: Any = None) -> list[list[float]]:
    response = write_response(spec, candidates)
    return score_response(spec, response, label, m or len(candidates)).matrix.tolist()


def complaint(folder: Path) -> str:
    with pytest.raises(SpecError) as refusal:
        load_spec(folder)
    [line] = str(refusal.value).splitlines()
    return line


# ------------------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize(
    ("expression", "weights"),
    [
        ("(a + 3*b) / 4", {"a": 0.25, "b": 0.75}),
        ("b", {"a": 0, "b": 1}),
        ("0.5*(a + b)", {"a": 0.5, "b": 0.5}),
        ("-(-a)/2 + b*(1 - 1/2)", {"a": 0.5, "b": 0.5}),
        ("a - b + 1e0*b", {"a": 1, "b": 0}),
    ],
)
def test_weights_as_an_expression(load, expression: str, weights: dict[str, float]) -> None:
    spec = load(weights=expression)
    assert spec.weights == pytest.approx(weights)
    assert spec.objective_weights == pytest.approx((weights["a"], weights["b"]))


def test_without_weights_all_objectives_weigh_alike(load) -> None:
    assert load().objective_weights == (0.5, 0.5)


@pytest.mark.parametrize(
    ("expression", "sentence"),
    [
        ("(a + c) / 2", "names 'c', which is not an objective; the objectives are ['a', 'b']."),
        ("a * b", "'a * b' is not linear in the objectives"),
        ("a ** 2", "is not linear"),
        ("a / b", "is not linear"),
        ("a / 0", "is not linear"),
        ("max(a, b)", "is not linear"),
        ("__import__('os').system('true')", "is not linear"),
        ("a.real", "is not linear"),
        ("a if b else a", "is not linear"),
        ("a + True", "'True' is not linear"),
        ("a + 0.5", "adds 0.5, which multiplies no objective."),
        ("(a + b", "cannot be read"),
        ("(" * 5000 + "a", "cannot be read"),
        ("a + b", "The weights sum to 2, but must sum to 1."),
        ("2*a - b", "not negative"),
        ("a*1e999", "finite"),
    ],
)
def test_a_wrong_expression_is_refused_with_file_and_line(write, expression: str, sentence: str) -> None:
    folder = write(changed(weights=expression))
    line = 1 + next(i for i, text in enumerate((folder / "spec.yaml").read_text().splitlines()) if "weights:" in text)
    said = complaint(folder)
    assert said.startswith(f"{folder / 'spec.yaml'}:{line}: weights: ") and sentence in said


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from("abcd"), st.integers(1, 99), min_size=1))
def test_expressions_give_their_coefficients(weights: dict[str, int]) -> None:
    total = sum(weights.values())
    expression = f"({' + '.join(f'{weight}*{name}' for name, weight in weights.items())}) / {total}"
    assert parse_weights(expression) == pytest.approx({name: weight / total for name, weight in weights.items()})


@settings(deadline=None)
@given(st.text(st.sampled_from("ab+-*/() .1e"), max_size=30))
def test_any_text_is_weights_or_a_value_error(text: str) -> None:
    try:
        assert all(isinstance(weight, float) for weight in parse_weights(text).values())
    except ValueError as error:
        assert str(error).endswith(".")


# ------------------------------------------------------------------------------------------------ objectives


def test_minimized_objectives_are_mirrored(load) -> None:
    objective = {"key": "b", "description": "cost", "range": [10, 30], "direction": "minimize"}
    spec = load(objectives=[SPEC["objectives"][0], objective])
    assert matrix(spec, "1 10", "1 25", m=3) == [[1, 30], [1, 15], [0, 10]]


@pytest.mark.parametrize(("value", "clamped"), [("2.5", 1), ("-1", 0), ("0.25", 0.25)])
def test_values_outside_the_range_are_an_error_or_clamped(load, value: str, clamped: float) -> None:
    assert matrix(load(outside_range="clamp"), f"{value} 0") == [[clamped, 0]]
    if float(value) != clamped:
        with pytest.raises(
            ValueError, match=f"objective 'a' {re.escape(str(float(value)))}, which is not within 0.0 to 1.0"
        ):
            matrix(load(), f"{value} 0")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_values_that_are_not_finite_are_never_clamped(load, value: str) -> None:
    with pytest.raises(ValueError, match="not finite"):
        matrix(load(outside_range="clamp"), f"{value} 0")


def test_a_gate_keeps_candidates_at_the_floor(load) -> None:
    objectives = [{"key": "a", "description": "a"}, {"key": "b", "description": "b", "range": [-1, 1]}]
    spec = load(objectives=objectives, gates=[{"objective": "a", "at_least": 0.5}])
    assert matrix(spec, "0.4 1", "0.5 0.25") == [[0, -1], [0.5, 0.25]]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"gates": [{"objective": "c", "at_least": 1}]}, "A gate names 'c', which is not an objective"),
        ({"gates": [{"objective": "a", "at_least": 2}]}, "No candidate passes the gate 'a': 2 is out of range."),
        ({"outside_range": "wrap"}, "outside_range: Input should be 'error' or 'clamp', not 'wrap'."),
        ({"objectives__0__direction": "down"}, "objectives.0.direction: Input should be 'maximize' or 'minimize'"),
        ({"objectives__0__range": [1, 0]}, "A range runs from a lower to a higher finite number"),
        ({"objectives": []}, "objectives: List should have at least 1 item"),
        ({"fence": "python"}, "one candidate format, 'tag', 'fence' or 'separator': this one has tag and fence."),
        ({"prompt__replace": "("}, "is not a regular expression"),
        ({"limits__seconds": 0}, "limits.seconds: Input should be greater than 0, not 0."),
        ({"dataset__columns__text": "x"}, "The key 'dataset.columns.text' is unknown."),
        ({"objectives": {"ragged": {"prefix": "t", "max": 3}}}, "The key 'objectives.ragged.description' is missing."),
    ],
)
def test_what_is_wrong_is_said_once(write, changes: dict[str, Any], sentence: str) -> None:
    if "objectives__0__direction" in changes or "objectives__0__range" in changes:
        ((path, value),) = changes.items()
        spec = changed()
        spec["objectives"][0][path.rpartition("__")[2]] = value
    elif sentence.endswith("is missing."):
        spec = changed(objectives={"ragged": {"prefix": "t", "max": 3, "count": "spec_test_module:count"}})
    else:
        spec = changed(**changes)
    assert sentence in complaint(write(spec))


# ------------------------------------------------------------------------------------------------ ragged objectives

RAGGED_TASK = {"ragged": {"prefix": "test", "description": "passed", "max": 4}}
RAGGED = {"ragged": {"prefix": "test", "description": "passed", "max": 4, "count": "spec_test_module:count"}}


def test_ragged_objectives_have_as_many_columns_as_the_prompt(load) -> None:
    spec = load(objectives=RAGGED)
    assert spec.objective_keys == ("test_1", "test_2", "test_3", "test_4") and spec.objective_weights is None
    two, three = {"values": [1, 1]}, {"values": [1, 1, 1]}
    assert matrix(spec, "1 0.5", m=3, label=two) == [[1, 0.5], [0, 0], [0, 0]]
    assert matrix(spec, "1 0 1", m=1, label=three) == [[1, 0, 1]]
    assert score_response(spec, "", three, 2).matrix.tolist() == [[0, 0, 0]] * 2
    scored = score_response(spec, write_response(spec, ["1 0.5", "0 1"]), two, 2)
    assert scored.reward == pytest.approx((0.75 + 0.5) / 2)
    with pytest.raises(ValueError, match="returned 3 rewards"):
        matrix(spec, "1 0 0", label=two)


@pytest.mark.parametrize("values", [[], [1] * 5])
def test_a_label_with_too_many_or_no_objectives_is_refused(load, values: list[int]) -> None:
    with pytest.raises(ValueError, match=rf"A label has {len(values)} objectives, the spec 'small' allows 1 to 4\."):
        check_label(load(objectives=RAGGED), {"values": values})


@pytest.mark.parametrize("changes", [{"weights": "test_1"}, {"gates": [{"objective": "test_1", "at_least": 1}]}])
def test_ragged_objectives_have_no_weights_and_no_gates(write, changes: dict[str, Any]) -> None:
    folder = write(changed(objectives=RAGGED, **changes))
    assert re.search("names 'test_1', which is not an objective|cannot have gates", complaint(folder))


def test_ragged_matrices_through_the_host_adapter_and_the_comparison(load) -> None:
    """Two prompts of 2 and 3 objectives: metrics, estimators and comparison see only what is there."""
    from vpo_plugin.openrlhf.experience import set_metrics
    from vpo_plugin.openrlhf.matrices import pack, stack_groups, unpack
    from vpo_plugin.search.comparison import Comparison
    from vpo_plugin.search.pool import Pool

    spec = load(objectives=RAGGED)
    labels = [{"values": [1, 1]}, {"values": [1, 1, 1]}]
    texts = [[["1 0", "0 1"], ["1 1", "0 0"]], [["1 0 0", "0 1 0"], ["1 1 0", "0 0 0"]]]
    scored = [
        [score_response(spec, write_response(spec, t), label, 2) for t in rollouts]
        for label, rollouts in zip(labels, texts, strict=True)
    ]
    rows = [torch.tensor(pack(one.matrix)) for rollouts in scored for one in rollouts]
    matrices, mask = stack_groups([unpack(row) for row in rows], 2)
    assert matrices.shape == (2, 2, 2, 3) and mask is not None

    metrics = set_metrics(spec, matrices, mask)
    assert metrics["reward_best"].tolist() == [[0.5, 1], [pytest.approx(1 / 3), pytest.approx(2 / 3)]]
    assert metrics["objective/test"].tolist() == [[0.5, 0.5], [pytest.approx(1 / 3)] * 2]
    assert metrics["set_diversity"].tolist() == [[2, 2], [2, 2]]
    assert set(metrics) == {"reward_best", "set_diversity", "group_diversity", "objective/test"}
    alone = set_metrics(spec, matrices[:1, :, :, :2], None)
    assert all(torch.equal(alone[key], metrics[key][:1]) for key in metrics)

    worth = get_advantage_estimator("grpo").values(RewardBatch(matrices, mask, spec.objective_weights))
    assert worth.flatten().tolist() == pytest.approx([one.reward for rollouts in scored for one in rollouts])

    padded = np.full((2, 2, 2, 3), np.nan, dtype=np.float32)
    for i, rollouts in enumerate(scored):
        for j, one in enumerate(rollouts):
            padded[i, j, :, : one.matrix.shape[1]] = one.matrix
    responses = [
        {"prompt": i, "response": "r", "candidates": candidates, "tokens": 3}
        for i, rollouts in enumerate(texts)
        for candidates in rollouts
    ]
    pool = Pool(padded, responses, {})
    prompts = [{"input": "p", "label": json.dumps(label)} for label in labels]
    compared = Comparison({("base", 0): pool, ("vpo", 0): pool}, spec, prompts)
    results = compared.results()
    [policy, _] = results["policies"]
    assert policy["best_at_k"]["mean"][-1] == pytest.approx((1 + 2 / 3) / 2)
    assert policy["objective_means"] == pytest.approx({"test_1": 0.5, "test_2": 0.5, "test_3": 0})
    assert policy["expected_set_reward"]["mean"] == pytest.approx((1 + 2 / 3) / 2, abs=0.01)
    assert results["objectives"] == ["test_1", "test_2", "test_3"] and results["ceiling"] is None
    [_, response] = next(compared.prompts())["policies"][0]["responses"]
    assert response["candidates"][0] == {"text": "1 1", "rewards": [1, 1], "value": 1, "solved": True}
    assert results["fronts"]["vpo"] == [[[1, 1]], [[1, 1, 0]]]  # each with the objectives of its prompt
    assert policy["hypervolume"]["mean"] == pytest.approx((1 + 0) / 2)  # of the objectives that there are


# ------------------------------------------------------------------------------------------------ the task's module


def test_a_task_is_one_module(load, write) -> None:
    spec = load(task="spec_test_module", scorer=None, dataset__loader=None, objectives=RAGGED_TASK)
    assert spec.scorer == "spec_test_module:score" and spec.dataset.loader == "spec_test_module:rows"
    assert spec.ragged.count == "spec_test_module:count" and spec.front == "spec_test_module:front"
    assert spec.answers is None and spec.mutation is None  # not there: `mutation` is a number
    assert [row["label"]["values"] for row in read_rows(spec, "test", 3, 0)] == [[0, 1, 0], [1, 1, 0], [2, 1, 0]]
    assert load(task="spec_test_module", dataset=None).dataset.loader == "spec_test_module:rows"


def test_a_key_goes_before_the_function_of_the_task(load, write) -> None:
    spec = load(task="spec_test_module", scorer="math:hypot", front="spec_test_module:no_front")
    assert (spec.scorer, spec.front) == ("math:hypot", "spec_test_module:no_front")
    without = changed(task="spec_test_module") | {"front": None}
    assert load_spec(write(without)).front is None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"task": "no_such_module"}, ":3: task: The module 'no_such_module' cannot be imported"),
        ({"task": "math", "scorer": None}, ":3: The key 'scorer' is missing, and the module 'math' has no 'score'."),
        (
            {"task": "math", "dataset": None},
            ":3: The key 'dataset.loader' is missing, and the module 'math' has no 'rows'.",
        ),
        ({"scorer": None}, ":1: The key 'scorer' is missing."),
    ],
)
def test_a_task_without_what_it_needs(write, changes: dict[str, Any], sentence: str) -> None:
    if "task" in changes:
        spec = {"name": "small", "description": "d", "task": changes["task"], **changed(**changes)}
    else:
        spec = changed(**changes)
    assert sentence in complaint(write(spec))


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("raise OSError('no tokenizer here.')", "OSError: no tokenizer here"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("x = (", "SyntaxError: '(' was never closed"),
    ],
)
def test_a_module_that_fails_when_it_is_imported(write, module: str, said: str) -> None:
    """A sentence with the module's own file and line, whatever it raises."""
    folder = write(changed(scorer="fails_on_import:score"))
    code = folder / "fails_on_import.py"
    code.write_text(f"import math\n\n{module}\n")
    found = complaint(folder)
    assert f": scorer: The entry point 'fails_on_import:score' cannot be imported: {said}" in found
    assert f"({code}:3)" in found or "SyntaxError" in said
    given = {key: value for key, value in changed(task="fails_on_import").items() if key != "scorer"}
    with pytest.raises(SpecError, match=rf": task: The module 'fails_on_import' cannot be imported: {re.escape(said)}"):
        load_spec(write(given))


def test_a_child_with_a_loader_of_its_own_takes_no_arguments_of_its_parents(write) -> None:
    write(changed(dataset__args={"x": 1}), "parent")
    loader = {"name": "child", "extends": "../parent", "dataset": {"loader": "spec_test_module:score"}}
    dataset = load_spec(write(loader, "child")).dataset
    assert dataset.args == {} and dataset.columns.prompt == "prompt"


# ------------------------------------------------------------------------------------------------ prompts and formats


def test_an_instruction_may_replace_a_part_of_the_prompt(load, write) -> None:
    spec = load(prompt__replace=r"WRITE\s+HERE")
    assert render_prompt(spec, "First WRITE \n HERE, then rest.", 1) == "First Write <c_1>., then rest."
    assert "2 in <c_1>" in render_prompt(spec, "WRITE HERE", 2)
    with pytest.raises(ValueError, match=r"The prompt 'Nothing' has no match for .* the spec 'small' is to replace"):
        render_prompt(spec, "Nothing", 1)
    with pytest.raises(ValueError, match=r"The prompt of row 0 of the split 'train' cannot be used: .*no match for"):
        check_spec(load(prompt__replace="WRITE THERE"))
    backslash = load(prompt__single=r"Write \1 <c_1>.", prompt__replace="HERE")
    assert render_prompt(backslash, "HERE", 1) == r"Write \1 <c_1>."


def test_fenced_and_separated_candidates(load) -> None:
    fence = {"single": "One ```python block.", "multi": "{candidates} ```python blocks."}
    fenced = load(tag=None, fence="python", prompt=fence)
    assert matrix(fenced, "1 0", "0 1") == [[1, 0], [0, 1]]
    separator = {"single": "Write.", "multi": "Write {candidates}, with ==== between."}
    separated = load(tag=None, separator="====", prompt=separator)
    assert score_response(separated, "1 0\n====\n0 1", None, 3).matrix.tolist() == [[1, 0], [0, 1], [0, 0]]
    for spec in (fenced, separated):
        assert len(check_spec(spec)) == 5


def test_a_response_is_begun_in_the_format_of_the_spec(load) -> None:
    fence = {"single": "One ```python block.", "multi": "{candidates} ```python blocks."}
    separator = {"single": "Write.", "multi": "Write {candidates}, with ==== between."}
    formats = {
        " b </c_{n}>": load(),
        "\nb\n```": load(tag=None, fence="python", prompt=fence),
        " b": load(tag=None, separator="====", prompt=separator),
    }
    for rest, spec in formats.items():
        for earlier in ([], ["1 0"], ["1 0", "0 1"]):
            response = start_response(spec, "a", earlier) + rest.format(n=len(earlier) + 1)
            parsed = parse(spec, response, 3)
            assert [" ".join(text.split()) for text in parsed if text is not None] == [*earlier, "a b"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"fence": "python"}, "'single' prompt does not mention its code fence ```python."),
        ({"separator": "===="}, "'multi' prompt does not mention its separator ====."),
        ({}, "the key 'tag' is missing."),
    ],
)
def test_a_prompt_says_the_format(write, changes: dict[str, Any], sentence: str) -> None:
    assert sentence in complaint(write(changed(tag=None, **changes)))


def test_rows_without_the_columns_are_refused(load) -> None:
    with pytest.raises(
        ValueError, match=r"Row 0 of the split 'test' of the spec 'small' has no 'q'; it has \['answer'"
    ):
        list(read_rows(load(dataset__columns={"prompt": "q", "label": "answer"}), "test", 3, 0))


# ------------------------------------------------------------------------------------------------ the front


def test_the_front_is_the_ceiling(load) -> None:
    spec = load(front="spec_test_module:front", weights="(a + 3*b) / 4")
    assert best_reward(spec, None) == 0.75
    assert known_answers(spec, None)[0] == ("1 0", [1, 0])
    assert "9 known answers" in check_spec(spec)[1]
    nothing = load(front="spec_test_module:no_front")
    assert best_reward(nothing, None) == 0 and best_reward(load(), None) is None


def test_the_comparison_shows_the_front_as_ceiling() -> None:
    """A pool that holds the whole front of each prompt reaches the ceiling, one without the gold stays below."""
    from vpo_plugin.search.comparison import Comparison
    from vpo_plugin.search.pool import Pool

    spec = load_spec("maze_small")
    rows = [{"input": row["prompt"], "label": json.dumps(row["label"])} for row in read_rows(spec, "test", 4, 0)]
    fronts = [np.asarray(pareto_front(spec, json.loads(row["label"]))) for row in rows]
    size = max(map(len, fronts))
    whole = np.stack([np.pad(front, ((0, size - len(front)), (0, 0)), "edge") for front in fronts])[:, :, None]
    responses = [
        {"prompt": i, "response": "r", "candidates": ["UP"], "tokens": 1} for i in range(4) for _ in range(size)
    ]
    results = Comparison(
        {("less", 0): Pool(whole * [1, 0, 1, 1], responses, {}), ("whole", 0): Pool(whole, responses, {})}, spec, rows
    ).results()
    less, all_of_it = results["policies"]
    assert results["ceiling"] == pytest.approx(
        {"best": all_of_it["best_at_k"]["mean"][-1], "expected_set_reward": all_of_it["expected_set_reward"]["mean"]}
    )
    best = [best_reward(spec, json.loads(row["label"])) for row in rows]
    assert results["ceiling"]["best"] == pytest.approx(np.mean(best))
    assert less["expected_set_reward"]["mean"] < results["ceiling"]["expected_set_reward"] - 0.05


# ------------------------------------------------------------------------------------------------ extending, finding


def test_a_spec_extends_another(write) -> None:
    parent = write(changed(dataset__args={"x": 1, "y": {"z": 2}}), "parent")
    child = write(
        {"name": "child", "extends": "../parent", "candidates": 5, "dataset": {"args": {"y": {"z": 3}}}}, "child"
    )
    spec = load_spec(child)
    assert (spec.name, spec.candidates, spec.tag) == ("child", 5, "c")
    assert spec.dataset.args == {"x": 1, "y": {"z": 3}} and spec.dataset.loader == load_spec(parent).dataset.loader
    grandchild = write({"name": "third", "extends": str(child), "tag": None, "separator": "Write"}, "third")
    assert load_spec(grandchild).candidates == 5 and load_spec(grandchild).separator == "Write"
    named = write({"name": "mazes", "extends": "maze_small", "candidates": 2}, "mazes")
    assert load_spec(named).objectives == load_spec("maze_small").objectives


def test_complaints_of_an_extended_spec_name_the_file_that_says_it(write) -> None:
    parent = write(changed(weights={"a": 0.5, "b": 0.6}), "parent")
    child = write({"name": "child", "extends": "../parent", "limits": {"seconds": -1}}, "child")
    with pytest.raises(SpecError) as refusal:
        load_spec(child)
    lines = str(refusal.value).splitlines()
    assert lines[0].startswith(f"{child / 'spec.yaml'}:4: limits.seconds: ")
    assert lines[1].startswith(f"{parent / 'spec.yaml'}:") and "The weights sum to 1.1" in lines[1]
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"name": "loop", "extends": "../loop"}, ":2: The spec extends itself"),
        ({"name": "lost", "extends": "no_such"}, ":2: There is no spec 'no_such'"),
        ({"extends": "maze_small"}, ":1: The key 'name' is missing."),
    ],
)
def test_a_spec_that_cannot_extend(write, spec: dict[str, Any], sentence: str) -> None:
    assert sentence in complaint(write(spec, "loop"))


def test_a_package_publishes_specs_through_an_entry_point(write, tmp_path: Path, monkeypatch) -> None:
    package = write(changed(name="published"), "published_specs")
    (package / "__init__.py").touch()
    info = tmp_path / "published_specs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: published-specs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[vpo_plugin.reward_specs]\npublished = published_specs\ngone = no_such_package.x\nmaze = published_specs\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert load_spec("published").name == "published"
    assert spec_files()["published"] == package / "spec.yaml" and "gone" not in spec_files()
    assert load_spec("maze").name == "maze"  # the project's own names come first


# ------------------------------------------------------------------------------------------------ schema, README


def test_the_published_schema_is_up_to_date() -> None:
    assert json.loads((SPECS / "schema.json").read_text()) == json_schema(), (
        "Run `vpo spec schema > reward_specs/schema.json`."
    )


def test_the_schema_takes_the_shipped_specs_and_refuses_others() -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    validator.check_schema(json_schema())
    for file in SPECS.glob("*/spec.yaml"):
        first, *_ = text = file.read_text().splitlines()
        assert first == "# yaml-language-server: $schema=../schema.json", file
        validator.validate(yaml.safe_load("\n".join(text)))
    for good in (
        changed(weights="a"),
        changed(objectives=RAGGED),
        {"name": "x", "extends": "maze", "dataset": {"args": {"source": "y"}}},
    ):
        validator.validate(good)
    for bad in (changed(colour="red"), changed(scorer=None), changed(weights=3), {"extends": "maze"}):
        assert not validator.is_valid(bad)


def measured(spec: RewardSpec, *more: Any) -> list[str]:
    with Scoring(spec) as scoring:
        return measure_spec(spec, scoring, *more)


def test_measuring_a_spec(load) -> None:
    assert "speed and length of responses are not measured" in measured(load())[-1]
    spec = load(front="spec_test_module:front")
    speed, length = measured(spec)
    assert re.match(r"Scoring a response of 2 known answers takes [\d.]+ ms\.", speed) and "within the 20 of" in length
    assert "has 6 of the 20 tokens allowed." in measured(spec, lambda text: 6)[1]
    with pytest.raises(ValueError, match=r"has 21 tokens; limits\.tokens_per_candidate allows 10 each, 20 in all"):
        measured(spec, lambda text: 21)
    with pytest.raises(ValueError, match=r"characters, and limits\.response_chars reads 20 of them"):
        measured(load(front="spec_test_module:front", limits__response_chars=20))
    wide = [SPEC["objectives"][0], {"key": "b", "description": "b", "range": [0, 10]}]
    assert "the widest count most" in measured(load(objectives=wide))[0]


def test_the_example_of_the_readme_is_what_a_new_spec_is(tmp_path: Path) -> None:
    """Each file shown in reward_specs/README.md, written as shown, makes a spec that passes its check."""
    text = (SPECS / "README.md").read_text()
    shown = dict(re.findall(r"`facts/([\w.]+)`[^\n]*\n\n```\w+\n(.*?)```", text, re.DOTALL))
    expected = skeleton_files("facts", "../schema.json")
    rows = shown.pop("rows.jsonl").splitlines()
    assert rows == expected.pop("rows.jsonl").splitlines()[: len(rows)]
    assert shown == expected
    home = tmp_path / "facts"
    home.mkdir()
    for file, content in skeleton_files("facts", "../schema.json").items():
        (home / file).write_text(content)
    spec = load_spec(home)
    assert len(check_spec(spec)) == 6
    [row] = read_rows(spec, "test", 1, 0)
    scored = score_response(spec, "<sentence_1> " + " and ".join(row["label"]) + ". </sentence_1>", row["label"], 1)
    assert scored.matrix[0, :2].tolist() == [1, 1] and scored.reward > 0.8
    sys.path.remove(str(home.resolve()))
    sys.modules.pop("facts", None)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]",
        "<<: &x {<<: *x}",
        "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b, *b]",
        "limits: {a: &a 1, b: *a}",
    ],
)
def test_aliases_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(text)
    with pytest.raises(SpecError, match=r"spec\.yaml:\d: This is not YAML: it has the alias '\*\w', and"):
        load_spec(tmp_path)


@pytest.mark.parametrize("name", ["math", "json", "vpo_plugin", "numpy"])
def test_a_new_spec_takes_no_module_s_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=rf"'{name}' is a module that Python finds in .*: choose another name"):
        new_spec(name, tmp_path, "schema.json")
    assert not (tmp_path / name).exists()


def test_a_new_spec_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """What cannot be written, as on a full disk, leaves no half of a folder behind."""
    with pytest.raises(UnicodeEncodeError):
        new_spec("facts", tmp_path, "\ud800")
    assert list(tmp_path.iterdir()) == []

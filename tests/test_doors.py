"""The same response earns the same rewards at every door: `vpo score`, pools, searches, training; and labels are read
alike there. The scorers are those of tests/cases."""

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import CASES
from datasets import Dataset, load_from_disk
from host import importable_host
from hypothesis import given, settings
from hypothesis import strategies as st

from vpo_plugin.cli import main
from vpo_plugin.openrlhf.scorer import start_scoring
from vpo_plugin.openrlhf.settings import Settings, load_settings
from vpo_plugin.provenance import provenance
from vpo_plugin.report.tables import format_table
from vpo_plugin.report.write import write_report
from vpo_plugin.rewards import RewardSpec, check_spec, load_spec
from vpo_plugin.rewards.labels import MARK, pack_label, read_label, write_label, write_prompts
from vpo_plugin.rewards.response import score_response
from vpo_plugin.rewards.score_file import score_file
from vpo_plugin.rewards.scoring import Item, Scoring
from vpo_plugin.rewards.task import read_rows
from vpo_plugin.search.comparison import Comparison
from vpo_plugin.search.evaluate import sample_pool
from vpo_plugin.search.policy import Request, Response
from vpo_plugin.search.pool import claim_folder, load_pool, load_prompts, read_table
from vpo_plugin.search.procedures import BestOfK
from vpo_plugin.search.run import search_all
from vpo_plugin.search.searches import SCHEMA, SETTINGS, round_files

Matrices = list[list[list[float]]]


class Scripted:
    """A policy that says the same to every prompt: these responses, in order."""

    def __init__(self, responses: list[str]) -> None:
        self.responses, self.asked = responses, 0

    def generate(self, requests: Any, seed: int) -> list[list[Response]]:
        def one(request: Request) -> list[Response]:
            first = self.asked if request.samples == 1 else 0
            self.asked += request.samples
            return [Response(text, 5) for text in self.responses[first : first + request.samples]]

        return [one(request) for request in requests]


# Each door scores these responses to one prompt, two candidates each, where a scorer that fails counts as zero.


def door_score(spec: RewardSpec, row: dict[str, Any], responses: list[str], folder: Path) -> Matrices:
    lines = [json.dumps({"response": text, "label": row["label"], "candidates": 2}) for text in responses]
    (folder / "in.jsonl").write_text("\n".join(lines))
    with Scoring(spec, on_error="zero", processes=2) as scoring:
        score_file(scoring, folder / "in.jsonl", folder / "out.jsonl")
    return [json.loads(line)["matrix"] for line in (folder / "out.jsonl").read_text().splitlines()]


def door_pool(spec: RewardSpec, row: dict[str, Any], responses: list[str], folder: Path) -> Matrices:
    made = {"prompts": 1, "rollouts": len(responses), "candidates": 2, "batch": 1, "seed": 0, "tell_weights": False}
    claim_folder(folder / "pool", made)
    rows = [{"input": row["prompt"], "label": json.dumps(row["label"])}]
    sample_pool(Scripted(responses), spec, rows, made, folder / "pool", "zero")
    return load_pool(folder / "pool").reward_matrices[0].tolist()


def door_search(spec: RewardSpec, row: dict[str, Any], responses: list[str], folder: Path) -> Matrices:
    made = {"budget": 2 * len(responses), "candidates": 2, "seed": 0, "tell_weights": False, "procedure": "k"}
    claim_folder(folder / "search", made, SETTINGS)
    rows = [{"input": row["prompt"], "label": json.dumps(row["label"])}]
    spec = spec.model_copy(update={"solved": 2.0})  # it goes on to the end of its budget
    search_all(Scripted(responses), spec, rows, BestOfK(), made, folder / "search", "zero")
    rounds = [read_table(file, SCHEMA).to_pylist() for file in round_files(folder / "search")]
    return [line["rewards"] for lines in rounds for line in lines]


def door_training(spec: RewardSpec, row: dict[str, Any], responses: list[str], folder: Path) -> Matrices:
    path = str(CASES / spec.name)
    run = Settings(path, 2, "zero", folder / "vpo", on_cpu=True, spec_data=spec.model_dump(mode="json"))
    with start_scoring(load_settings(run.dump())) as scoring:
        label = read_label(scoring.spec, json.loads(json.dumps(write_label(scoring.spec, row["label"]))))
        scored = scoring.score(Item(text, label, 2, "") for text in responses)
        return [response.matrix.tolist() for response in scored]


DOORS = [door_score, door_pool, door_search, door_training]
ANSWERS: dict[str, tuple[list[str], Matrices]] = {
    "alarm": (["1/2", "2/4", "one half", "1/3"], [[1, 1], [1, 1], [0, 1], [0, 1]]),
    "mathverify": (
        [r"\frac{1}{2}", r"\frac{2}{4}", "0.5", "one half", "1/3"],
        [[1, 1], [1, 1], [1, 1], [0, 1], [0, 1]],
    ),
    "exec": (
        ["print(0)", "print(1)", "exit(0)", "1 / 0", "while 1: pass", "raise SystemExit", "import os; os._exit(0)"],
        [[1, 1], [0, 1], [0, 0], [0, 1], [0, 0], [0, 0], [0, 0]],
    ),
    "text": (["2", "3", "02", "2.0"], [[1, 1], [0, 1], [0, 1], [0, 1]]),
    "jsontext": (["0", "1"], [[1, 1], [0, 1]]),
}


PROMPTS = {
    "alarm": "What is one divided by 2?",
    "mathverify": "What is one divided by 2?",
    "exec": "Print 0.",
    "text": "Ann has 0 apples and gets 2. How many?",
    "jsontext": "Print 0.",
}


def rows_of(spec: RewardSpec) -> dict[str, dict[str, Any]]:
    """The rows of a spec by their prompts."""
    return {row["prompt"]: row for split in ("train", "test") for row in read_rows(spec, split, 99, 0)}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", ANSWERS)
def test_the_rewards_of_a_case(case: Callable[[str], RewardSpec], name: str, door: Any, tmp_path: Path) -> None:
    spec = case(name)
    candidates, expected = ANSWERS[name]
    responses = [f"<answer_1> {text} </answer_1>" for text in candidates]
    matrices = door(spec, rows_of(spec)[PROMPTS[name]], responses, tmp_path)
    assert [matrix[0] for matrix in matrices] == expected and all(matrix[1] == [0, 0] for matrix in matrices)


@pytest.mark.parametrize("door", DOORS)
def test_a_scorer_that_threads_would_share(case: Callable[[str], RewardSpec], door: Any, tmp_path: Path) -> None:
    spec, chance = case("unsafe"), random.Random(0)
    row = {"prompt": "p0", "label": {"x": 0}}
    responses = [f"<answer_1> {'UP DOWN ' * chance.randint(1, 30)}</answer_1>" for _ in range(200)]
    expected = [score_response(spec, text, row["label"], 2).matrix.tolist() for text in responses]
    assert np.allclose(door(spec, row, responses, tmp_path), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["alarm", "mathverify", "text", "jsontext"])
def test_the_check_agrees(case: Callable[[str], RewardSpec], name: str) -> None:
    assert any("known answers of the split 'train' score what they should" in found for found in check_spec(case(name)))


# ------------------------------------------------------------------------------------------------ labels

LABELS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def of_kind(label: str | None) -> RewardSpec:
    return load_spec("maze_small").model_copy(update={"label": label})


@settings(deadline=None)
@given(LABELS, st.sampled_from(["json", None]))
def test_a_label_that_is_written_comes_back_whatever_the_spec_says(label: Any, kind: str | None) -> None:
    assert read_label(of_kind(kind), write_label(of_kind(kind), label)) == label


@settings(deadline=None)
@given(st.text() | st.text().map(MARK.__add__) | LABELS.map(pack_label))
def test_text_is_text_byte_for_byte(text: str) -> None:
    assert read_label(of_kind("text"), text) == write_label(of_kind("text"), text) == text
    assert read_label(of_kind("json"), json.dumps(text)) == text
    assert read_label(of_kind("none"), text) is None
    if text.startswith(MARK):
        return
    with pytest.raises(ValueError, match="`label: text` gives it to the scorer as it is, `label: json` gives what it"):
        read_label(of_kind(None), text)


@settings(deadline=None)
@given(LABELS.filter(lambda label: not isinstance(label, str)))
def test_objects_are_labels_already(label: Any) -> None:
    assert read_label(of_kind("json"), label) == read_label(of_kind(None), label) == label
    assert read_label(of_kind("none"), label) is None


@pytest.mark.parametrize(
    ("kind", "value", "sentence"),
    [
        ("text", 42, "The label '42' is not text (int), although the spec says"),
        ("text", {"a": 1}, "is not text (dict)"),
        ("text", None, "The label is null, although the spec says `label: text`."),
        (None, MARK, "is not JSON: "),
        ("json", "{", "The label '{' is not JSON, although the spec says"),
        ("json", "[" * 99_999, "is not JSON"),
        (None, {1}, "cannot be written as JSON"),
        (None, "42", "The label '42' is text, and the spec 'maze_small' does not say of what kind"),
    ],
)
def test_what_is_no_label(kind: str | None, value: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        read_label(of_kind(kind), value)


@pytest.mark.parametrize("label", ["42", "She has 2.\n#### 2", "null", '"quoted"', '{"gold": "2"}', None])
def test_text_that_a_spec_does_not_name_and_no_text_are_refused_at_every_door_in_the_same_words(
    case: Callable[[str], RewardSpec], tmp_path: Path, label: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "text"
    shutil.copytree(CASES / "text", folder)
    if label is not None:
        (folder / "spec.yaml").write_text((folder / "spec.yaml").read_text().replace("label: text\n", ""))
    (folder / "rows.jsonl").write_text(8 * (json.dumps({"question": "q", "answer": label}) + "\n"))
    spec = load_spec(folder)
    sentence = str(refusal(lambda: read_label(spec, label)))
    assert sentence in str(refusal(lambda: check_spec(spec)))
    (tmp_path / "in.jsonl").write_text(json.dumps({"response": "x", "label": label}))
    with Scoring(spec) as scoring:
        assert sentence in str(
            refusal(lambda: score_file(scoring, tmp_path / "in.jsonl", tmp_path / "out", strict=True))
        )
    Dataset.from_list([{"input": "q", "label": label}]).save_to_disk(tmp_path / "data")
    given = [*("evaluate", "--model", "m", "--url", "http://localhost:9", "--spec", str(folder)), "--rollouts", "1"]
    assert main([*given, "--data", str(tmp_path / "data"), "--output", str(tmp_path / "pool")]) == 1
    assert main([*given, "--output", str(tmp_path / "pool")]) == 1
    assert capsys.readouterr().err.count(sentence) == 2
    flags = {
        "reward.remote_url": None,
        "use_ms": False,
        "data.apply_chat_template": False,
        "data.prompt_dataset": str(tmp_path / "data"),
        "data.prompt_split": "train",
    }
    flags |= {
        "data.apply_chat_template": False,
        "data.max_samples": 99,
        "data.input_key": "input",
        "data.label_key": "label",
        "vpo.candidates": 2,
    }
    with importable_host():
        from vpo_plugin.openrlhf.checks import check_rows

        [mistake] = check_rows(flags, spec, "data.prompt_dataset", "data.prompt_split")
    assert sentence in mistake


def refusal(call: Callable[[], Any]) -> ValueError:
    with pytest.raises(ValueError) as error:
        call()
    return error.value


@pytest.mark.parametrize("name", ["text", "jsontext", "alarm"])
def test_what_the_pipeline_writes_is_read_by_training_and_evaluation(
    case: Callable[[str], RewardSpec], name: str, tmp_path: Path
) -> None:
    spec = case(name)
    rows = list(rows_of(spec).values())
    if spec.label == "text":
        rows.append({"prompt": "q", "label": pack_label("a label of another spec")})
    write_prompts(spec, rows, tmp_path / "data")
    expected = [{"input": row["prompt"], "label": json.dumps(row["label"])} for row in rows]
    assert load_prompts(spec, tmp_path / "data") == expected
    carried = [read_label(spec, row["label"]) for row in load_from_disk(tmp_path / "data")]
    assert carried == [row["label"] for row in rows]


class Chance:
    """A policy that writes one bad response in 100, the same ones for the same seed."""

    asked = 0

    def generate(self, requests: Any, seed: int) -> list[list[Response]]:
        chance = random.Random(seed)
        self.asked += sum(request.samples for request in requests)
        return [
            [Response("<s_1> a=b </s_1>" if chance.random() > 0.01 else "<s_1> ab </s_1>", 5) for _ in range(q.samples)]
            for q in requests
        ]


def test_one_bad_response_does_not_end_an_evaluation_for_good(
    case: Callable[[str], RewardSpec], tmp_path: Path
) -> None:
    """The batch is seeded, so it would fail again; `zero` goes on, and says what it did in the table and the report."""
    spec, policy = case("onebad"), Chance()
    made = {"prompts": 64, "rollouts": 8, "candidates": 2, "batch": 32, "seed": 0, "tell_weights": False}
    rows = [{"input": row["prompt"], "label": json.dumps(row["label"])} for row in read_rows(spec, "test", 64, 0)]
    claim_folder(tmp_path / "pool", made)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"A response to prompt \d+: the scorer of the spec 'onebad' failed"):
            sample_pool(policy, spec, rows, made, tmp_path / "pool")
    sample_pool(policy, spec, rows, made, tmp_path / "pool", "zero")
    pool = load_pool(tmp_path / "pool")
    failed = sum(response["error"] is not None for response in pool.responses)
    assert 1 <= failed <= 20 and pool.reward_matrices.shape == (64, 8, 2, 2)
    results = Comparison({("p", 0): pool}, spec, rows).results()
    sentence = f"{failed} responses of p scored zero because the scorer failed."
    assert results["policies"][0]["scorer_failures"] == failed and sentence in format_table(results)
    write_report(results | {"title": "t", "training": []} | provenance("vpo"), tmp_path / "report")
    assert sentence in (tmp_path / "report" / "report.html").read_text()

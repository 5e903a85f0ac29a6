"""The ToolRL task: golden rewards, the published rows where they are at hand, and any text as a candidate."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_specs.toolrl.toolrl import Call, align, canonical, label_check, read, score, value_match
from vpo_plugin.rewards import RewardSpec, check_spec, load_spec
from vpo_plugin.rewards.formats import write_response
from vpo_plugin.rewards.response import score_response
from vpo_plugin.rewards.task import check_label, read_rows

ROWS = Path(__file__).parents[2] / "shared" / "data" / "toolrl_rlla_4k_test_first40.parquet"
needs_rows = pytest.mark.skipif(not ROWS.exists(), reason="ToolRL's published rows are not in ../shared/data")


def turn(*calls: Any, think: str | None = "So.", response: str | None = None) -> str:
    parts = [f"<think> {think} </think>"] if think is not None else []
    if calls:
        lines = "\n".join(call if isinstance(call, str) else json.dumps(call) for call in calls)
        parts.append(f"<tool_call>\n{lines}\n</tool_call>")
    return "\n".join([*parts, *([f"<response> {response} </response>"] if response is not None else [])])


def call(name: str, **parameters: Any) -> dict[str, Any]:
    return {"name": name, "parameters": parameters}


WEATHER = call("weather", city="New York City", days=3, metric=True)
TWO = {"gold": turn(WEATHER, call("time", zone="UTC"))}
NONE = {"gold": turn(response="Which city?")}
SAY = {"gold": turn(call("say", text=turn(WEATHER, think=None)))}
QWEN = '\n<tool_call>\n{"name": "time", "arguments": {"zone": "UTC"}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "label", "rewards"),
    [
        (turn(WEATHER, call("time", zone="UTC")), TWO, [1, 1, 1, 1]),
        (turn(call("time", zone="utc"), WEATHER, response="Wait."), TWO, [1, 1, 1, 1]),
        (turn([WEATHER, call("time", zone="UTC")]), TWO, [1, 1, 1, 1]),
        # One call missing: F1 of the names 2/3, and its arguments count 0.
        (turn(WEATHER), TWO, [1, 2 / 3, 0.5, 0.5]),
        (turn(WEATHER, WEATHER, call("time", zone="UTC")), TWO, [1, 0.8, 2 / 3, 2 / 3]),
        # Wrong values, a missing and an extra key: (2/3 + 0 + 0) / 3 of the values, 2·2/(3 + 3) of the keys.
        (
            turn(call("weather", city="York City", days=4, wind=1), call("time", zone="UTC")),
            TWO,
            [1, 1, 5 / 6, (0.8 / 3 + 1) / 2],
        ),
        (turn(call("climate", **WEATHER["parameters"]), call("time", zone="UTC")), TWO, [1, 0.5, 1, 1]),
        # What is not well-formed: no thoughts, text among the calls, no calls.
        (turn(WEATHER, call("time", zone="UTC"), think=None), TWO, [0, 1, 1, 1]),
        (turn(WEATHER, call("time", zone="UTC"), "and that is all"), TWO, [0, 1, 1, 1]),
        (turn(WEATHER, "{broken", call("time", zone="UTC")), TWO, [0, 2 / 3, 0.5, 0.5]),
        (turn(response="No tool does that."), TWO, [0, 0, 0, 0]),
        (turn("[]"), TWO, [0, 0, 0, 0]),
        # No call is right: only a turn that says something earns it.
        (turn(response="In which city?"), NONE, [1, 1, 1, 1]),
        (turn(), NONE, [0, 1, 1, 1]),
        (turn(response=""), NONE, [0, 1, 1, 1]),
        (turn(WEATHER), NONE, [0, 0, 0, 0]),
        (turn("", response="In which city?"), NONE, [0, 1, 1, 1]),
        ("Which city?", NONE, [0, 0, 0, 0]),
        # Qwen's way: a block for each call, and arguments.
        (turn({"name": "weather", "arguments": WEATHER["parameters"]}) + QWEN, TWO, [1, 1, 1, 1]),
        (turn(WEATHER) + "\n<Tool_Call>{broken</tool_call>" + QWEN, TWO, [0, 1, 1, 1]),
        # No call: in a JSON string, in the thoughts, in what is said.
        (turn(call("say", text=turn(WEATHER, think=None)), think=turn(WEATHER)), SAY, [1, 1, 1, 1]),
        (turn(WEATHER) + turn(call("say", text=turn(WEATHER, think=None))), SAY, [1, 1, 1, 1]),
        (turn(WEATHER) + "</think>" + turn(response="In which city?", think=None), NONE, [1, 1, 1, 1]),
        (turn(response=f"In which city? {turn(WEATHER, think=None)}"), NONE, [1, 1, 1, 1]),
        ("<think> So <tool_call>" + json.dumps(WEATHER) + "</tool_call>", TWO, [0, 0, 0, 0]),
        ("", NONE, [0, 0, 0, 0]),
    ],
)
def test_golden_rewards(text: str, label: dict[str, str], rewards: list[float]) -> None:
    assert score(text, label) == pytest.approx(rewards)
    scored = score_response(load_spec("toolrl"), f"<response_1>{text}</response_1>", label, 1)
    assert scored.reward == pytest.approx(sum(rewards) / 4)


@pytest.mark.parametrize(
    ("value", "gold", "match"),
    [
        (3, 3, 1), (3.0, 3, 1), ("3", 3, 1), (3, " 3 ", 1), (4, 3, 0), ("three", 3, 0), (True, 1, 0), (3, -3, 0),
        # Text that looks like a number is text.
        ("00100", 100, 0), (100, "00100", 0), ("3e0", "3", 0), (3, "3.0", 0), ("1.10", "1.1", 0), (1.1, "1.10", 0),
        ("-3", 3, 0), ("10.5", "105", 0), ("76561198050832300", "76561198050832307", 0), ([1], ["01"], 0),
        (76561198050832300, 76561198050832307, 0), (2.0**60, 2**60, 1), (2.0**60, 2**60 + 1, 0),
        # Empty containers count.
        ({"b": 1}, {"a": [], "b": 1}, 2 / 3), ([], [], 1), ([], {}, 0), ({}, {"a": {}}, 0), ([None], ["None"], 0),
        ({"a/b": 1}, {"a": {"b": 1}}, 0),
        (True, True, 1), ("True", True, 1), ("false", True, 0), (1, True, 0), (None, True, 0),
        ("New York", "new york city", 0.8), ("", "x", 0), (None, None, 1), (None, "None", 0), ("x", None, 0),
        ([1, 2, 3], [1, 2, 3], 1), ([1, 2], [1, 2, 3], 0.8), ([10.5], [105], 0), ("1", [1], 1), ({"a": 1}, {"a": 2}, 0),
        ({"a": {"b": "X"}, "c": 1}, {"c": "1", "a": {"b": "x"}}, 1), ([[9, 10], [11]], [[11], [9, 10]], 1),
        (10**400, 10**400, 1), (10**400, 10**400 + 1, 0), (float("inf"), 3, 0), (float("nan"), float("nan"), 1),
    ],
)  # fmt: skip
def test_values(value: Any, gold: Any, match: float) -> None:
    assert value_match(value, gold) == pytest.approx(match)


def test_alignment_is_by_name_first() -> None:
    gold = [Call("a", {"x": 1}), Call("b", {"y": 1}), Call("b", {"z": 1})]
    called = [Call("b", {"z": 1}), Call("b", {"y": 2}), Call("c", {"x": 1}), Call("a", {})]
    assert [(c.name, g.name, list(c.parameters)) for c, g in align(called, gold)] == [
        ("a", "a", []),
        ("b", "b", ["y"]),
        ("b", "b", ["z"]),
    ]
    assert align([Call("c", {"x": 1})], gold) == [(Call("c", {"x": 1}), gold[0])]


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (turn(WEATHER, think="one"), turn(WEATHER, think="two"), True),
        (turn(call("f", a=1, b=2)), turn('{"parameters": {"b": 2, "a": "1"}, "name": "f"}'), True),
        (turn(call("f", a=1, b=2)), turn({"name": "f", "arguments": {"a": 1.0, "b": 2}}), True),
        (turn(call("f", a=1, b=2), call("g")), turn(call("g")) + turn(call("f", a=1, b=2), think=None), True),
        (turn(call("f", a=[], b=1)), turn(call("f", b=1)), False),
        (turn(call("f", **{"a/b": 1})), turn(call("f", a={"b": 1})), False),
        (turn(call("f", a=[1, 1])), turn(call("f", a=[1])), False),
        (turn(call("f"), call("f")), turn(call("f")), False),
        (turn(call("f", a=1)), turn(call("f", a=2)), False),
        (turn(call("f", a=1)), turn(call("f", b=1)), False),
        (turn(response="Hello there"), turn(response="hello there!"), True),
        (turn(response="Hello"), turn(response="Bye"), False),
        (turn(response="Hello"), turn(response="Hello", think=None), False),
    ],
)
def test_duplicates(a: str, b: str, same: bool) -> None:
    assert (canonical(a, NONE) == canonical(b, NONE)) is same


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
CALLS = st.lists(
    st.fixed_dictionaries(
        {"name": st.text(max_size=4), "parameters": st.dictionaries(st.text(max_size=4), JSON, max_size=3)}
    ),
    max_size=4,
)
PIECES = st.sampled_from(
    [
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "<response>",
        "</Response>",
        "{",
        "}",
        '"name"',
        ":",
        "[",
        "]",
        ",",
        "\0",
        "\ud800",
        " ",
    ]
)


@settings(deadline=None)
@given(
    st.one_of(
        st.text(st.characters(exclude_categories=[])),
        st.lists(PIECES).map("".join),
        JSON.map(json.dumps).map(turn),
        CALLS.map(lambda calls: turn(*calls)),
    ),
    st.sampled_from([TWO, NONE]),
)
def test_any_candidate_has_rewards(text: str, label: dict[str, str]) -> None:
    rewards = score(text, label)
    assert len(rewards) == 4 and all(0 <= reward <= 1 for reward in rewards)
    hash(canonical(text, label))


@settings(deadline=None)
@given(CALLS)
def test_a_well_formed_turn_scores_one_against_itself(calls: list[dict[str, Any]]) -> None:
    gold = turn(*calls, response=None if calls else "Nothing to do.")
    assert score(gold, {"gold": gold}) == [1, 1, 1, 1]


@settings(deadline=None)
@given(CALLS.filter(bool), st.lists(st.sampled_from(["</tool_call>", "<think>", "</think>", "<tool_call>", "{}", "a"])))
def test_tags_in_an_argument_are_text(calls: list[dict[str, Any]], words: list[str]) -> None:
    calls[0]["parameters"]["text"] = " ".join(words)
    assert [call.parameters for call in read(turn(*calls)).calls] == [
        json.loads(json.dumps(call["parameters"])) for call in calls
    ] or "NaN" in json.dumps(calls)


@pytest.mark.parametrize(
    "block",
    [
        "[" * 500_000,
        "{" * 1_000_000,
        '{"name": "f", "parameters": ' + '{"a":' * 150_000,
        "[1," * 300_000,
        "9" * 1_000_000,
        json.dumps(call("f", a=1)) * 30_000,
        '{"name": "f", "parameters": {"a": ' + "[" * 900 + "]" * 900 + "}}",
    ],
    ids=range(7),
)
def test_a_megabyte_of_calls(block: str) -> None:
    started = time.process_time()
    rewards = score(turn(block), TWO)
    canonical(turn(block), TWO)
    assert rewards[1] <= 1 and time.process_time() - started < 5
    spec = load_spec("toolrl")
    started = time.process_time()
    score_response(spec, "".join(f"<response_{s}>{turn(block)}</response_{s}>" for s in (1, 2, 3)), TWO, 3)
    assert time.process_time() - started < 1  # cut to limits.response_chars


@pytest.mark.parametrize("label", [{}, {"gold": 3}, {"gold": "no format"}, {"gold": turn("{broken")}, None])
def test_labels_that_cannot_be_scored(label: object) -> None:
    with pytest.raises(ValueError, match="A ToolRL label's 'gold' is"):
        label_check(label)


def with_source(source: Path) -> RewardSpec:
    spec = load_spec("toolrl")
    return spec.model_copy(update={"dataset": spec.dataset.model_copy(update={"args": {"source": str(source)}})})


def test_rows_of_the_real_format(tmp_path: Path) -> None:
    from datasets import Dataset

    prompt = [{"role": "system", "content": "You have tools."}, {"role": "user", "content": "<user> Hello </user>"}]
    made = [
        {
            "data_source": "rlla",
            "prompt": prompt,
            "ability": "math",
            "reward_model": {"ground_truth": text, "style": "rule"},
        }
        for text in (TWO["gold"], NONE["gold"])
    ]
    for split in ("train", "test"):
        Dataset.from_list(made).to_parquet(tmp_path / f"{split}.parquet")
    spec = with_source(tmp_path / "{split}.parquet")
    assert check_spec(spec)[1] == "2 known answers of the split 'train' score what they should."
    assert next(read_rows(spec, "train", 1, 0))["prompt"] == "You have tools.\n\n<user> Hello </user>"
    assert spec.objective_weights == (0.25,) * 4 and spec.candidates == 3


@needs_rows
def test_every_published_gold_answer_scores_one_everywhere() -> None:
    spec = with_source(ROWS)
    rows = [row for split in ("train", "test") for row in read_rows(spec, split, 99, 0)]
    assert len(rows) == 40
    for row in rows:
        check_label(spec, row["label"])
        gold = row["label"]["gold"]
        scored = score_response(spec, write_response(spec, [gold]), row["label"], 1)
        assert scored.matrix.tolist() == [[1, 1, 1, 1]] and scored.reward == 1, gold
        others = [other["label"]["gold"] for other in rows if read(other["label"]["gold"]).calls != read(gold).calls]
        assert all(score(other, row["label"]) != [1] * 4 for other in others)
    assert len(check_spec(spec)) == 6

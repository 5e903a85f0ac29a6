"""The tasks of verifiable instructions: checkers against texts that keep an instruction and that do not, every
generated prompt against a text that keeps all of it, and the published prompts where they are at hand."""

import collections
import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_specs.instructions import prompts, trade_offs
from reward_specs.instructions.checkers import LEFT_OUT
from reward_specs.instructions.dataset import benchmark
from reward_specs.instructions.instructions import count, label_check, score
from vpo_plugin.rewards import RewardSpec, check_spec, load_spec
from vpo_plugin.rewards.formats import write_response
from vpo_plugin.rewards.response import score_response

FOLDER = Path(prompts.__file__).parent
DATA = Path(__file__).parents[2] / "shared" / "data"
IFEVAL, IFBENCH = DATA / "ifeval_input_data.jsonl.gz", DATA / "ifbench_test.jsonl.gz"
needs_ifeval = pytest.mark.skipif(not IFEVAL.exists(), reason="IFEval's published prompts are not in ../shared/data")
needs_ifbench = pytest.mark.skipif(not IFBENCH.exists(), reason="IFBench's published prompts are not in ../shared/data")


def label(name: str, benchmark: str = "ifeval", prompt: str = "", **arguments: Any) -> dict[str, Any]:
    return {"benchmark": benchmark, "instructions": [{"id": name, "arguments": arguments}], "prompt": prompt}


KEPT = [
    (label("detectable_content:number_placeholders", num_placeholders=2), "To [name] of [city].", "To [name]."),
    (label("detectable_format:json_format"), '{"a": [1, 2]}', '{"a": [1, 2'),
    (
        label("detectable_format:multiple_sections", section_spliter="SECTION", num_sections=2),
        "SECTION 1\nOne.\nSECTION 2\nTwo.",
        "SECTION 1\nOne.",
    ),
    (label("combination:two_responses"), "One answer.\n******\nAnother answer.", "One answer."),
    (
        label("combination:repeat_prompt", prompt_to_repeat="Say hello."),
        "Say hello.\nHello to all of you.",
        "Hello to all of you.",
    ),
    (
        label("language:response_language", language="de"),
        "Das ist ein Satz in deutscher Sprache, den man erkennt.",
        "This is a sentence in English that is recognised.",
    ),
    (label("keywords:letter_frequency", letter="j", let_relation="at least", let_frequency=2), "Just a jar.", "A jar."),
    (label("keywords:frequency", keyword="knot", relation="at least", frequency=2), "Knot by knot.", "One knot."),
    (
        label("length_constraints:nth_paragraph_first_word", num_paragraphs=2, nth_paragraph=2, first_word="it"),
        "One.\n\nIt is two.",
        "One.\n\nThis is two.",
    ),
    (label("detectable_format:constrained_response"), "My answer is yes.", "Yes, it is."),
    (label("count:word_count_range", "ifbench", min_words=2, max_words=3), "Two words.", "Here are four words."),
    (label("format:no_whitespace", "ifbench"), "onewordonly", "two words"),
    (label("count:numbers", "ifbench", N=2), "3 and 4", "3 and 4 and 5"),
]


@pytest.mark.parametrize(("label", "kept", "broken"), KEPT, ids=[case[0]["instructions"][0]["id"] for case in KEPT])
def test_checkers(label: dict[str, Any], kept: str, broken: str) -> None:
    label_check(label)
    assert score(kept, label) == [1.0]
    assert score(broken, label) == [0.0]


@pytest.mark.parametrize("level", range(1, len(prompts.LEVELS) + 1))
def test_every_generated_prompt_can_be_kept_as_a_whole(level: int) -> None:
    seen = collections.Counter()
    for row in prompts.rows("train", 150, 3, levels=[level]):
        label_check(row["label"])
        assert count(row["label"]) == prompts.LEVELS[level - 1]
        gold = prompts.write_gold(row["label"]["instructions"])
        assert score(gold, row["label"]) == [1.0] * count(row["label"]), (row["prompt"], gold)
        seen.update(one["id"] for one in row["label"]["instructions"])
    assert seen.keys() == {name for name, (first, _) in prompts.KINDS.items() if first <= level}


@pytest.mark.parametrize("kind", prompts.KINDS)
def test_each_instruction_of_the_generator_can_be_broken(kind: str) -> None:
    """A gold answer for the others alone does not keep it: the instruction asks for something."""
    broken = {
        prompts.CASE[0]: "THIS TEXT IS LOUD.",
        "punctuation:no_comma": "One, two.",
        "keywords:forbidden_words": " ".join(prompts.FORBIDDEN),
        "length_constraints:number_words": None,
    }.get(kind, "Nothing of it")
    arguments = prompts.KINDS[kind][1](random.Random(0), 3)
    if broken is None:
        broken = "word" if arguments["relation"] == "at least" else "word " * 200
    assert score(broken, label(kind, **arguments)) == [0.0]


def test_prompts_are_the_same_each_time_and_held_out_topics_are_held_out() -> None:
    one, again = (list(prompts.rows("train", 40, 0)) for _ in range(2))
    assert one == again
    assert one != list(prompts.rows("train", 40, 1))
    assert len({row["prompt"] for row in one}) == 40
    held_out = [topic for number, topic in enumerate(prompts.TOPICS) if number % 5 == 0]
    assert all(any(topic in row["prompt"] for topic in held_out) for row in prompts.rows("test", 40, 0))
    assert not any(topic in row["prompt"] for row in one for topic in held_out)


def test_levels_that_there_are_not() -> None:
    with pytest.raises(ValueError, match=r"The levels are 1 to 4; these are \[0, 5\]\."):
        list(prompts.rows("train", 1, 0, levels=[0, 5]))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({}, "names its 'benchmark'"),
        ({"benchmark": "ifeval", "instructions": []}, "1 to 8 'instructions'"),
        (label("punctuation:no_semicolon"), "has no instruction 'punctuation:no_semicolon'"),
        (label("length_constraints:number_sentences", relation="at least", num_sentences=2), "punkt of NLTK"),
        (label("length_constraints:number_words", words=2), "cannot be made with"),
    ],
)
def test_labels_that_are_refused(broken: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        label_check(broken)


@given(st.text(max_size=200))
@settings(max_examples=60, deadline=None)
def test_any_text_gets_a_score_of_each_checker(text: str) -> None:
    for kept, *_ in KEPT:
        assert score(text, kept)[0] in (0.0, 1.0)
    for row in prompts.rows("train", 4, 0, levels=[1, 2, 3, 4]):
        assert set(score(text, row["label"])) <= {0.0, 1.0}
    assert all(0 <= value <= 1 for value in trade_offs.score(text, {"topic": "a good book"}))


@pytest.fixture(scope="module")
def spec() -> RewardSpec:
    return load_spec("instructions")


def test_the_whole_answer_is_the_candidate_and_sets_are_tagged(spec: RewardSpec) -> None:
    asked = label("punctuation:no_comma")
    assert score_response(spec, "No comma here.", asked, 1).matrix.tolist() == [[1.0]]
    several = write_response(spec, ["No comma here.", "One, two."])
    assert score_response(spec, several, asked, 2).matrix.tolist() == [[1.0], [0.0]]


@pytest.mark.parametrize("name", ["spec.yaml", "trade_offs.yaml"])
def test_specs_are_sound(name: str) -> None:
    assert check_spec(load_spec(str(FOLDER / name)))


def test_trade_offs_pull_apart() -> None:
    topic = {"topic": "a good book"}
    short, plain, precise = (
        "A good book.",
        "A good book is one that you can read in bed. " * 3,
        ("A good book illustrates extraordinary circumstances, contradictory personalities, unexpected consequences."),
    )
    values = [trade_offs.score(text, topic) for text in (short, plain, precise)]
    best = [max(range(3), key=lambda text: values[text][objective]) for objective in (1, 3, 4)]
    assert best[0] == 0
    assert best[2] == 2
    assert values[1][3] > values[2][3]
    assert values[0][2] < values[1][2]


@needs_ifeval
def test_no_prompt_of_ifeval_is_trained_on() -> None:
    with gzip.open(IFEVAL, "rt") as file:
        published = {" ".join(json.loads(line)["prompt"].lower().split()) for line in file}
    generated = {" ".join(row["prompt"].lower().split()) for row in prompts.rows("train", 500, 0, levels=[1, 2, 3, 4])}
    assert not generated & published
    assert not any(prompt[:60] in text for prompt in generated for text in published)


@pytest.mark.parametrize(
    ("name", "source", "kept"),
    [
        pytest.param("ifeval", IFEVAL, 477, marks=needs_ifeval),
        pytest.param("ifbench", IFBENCH, 269, marks=needs_ifbench),
    ],
)
def test_published_prompts(name: str, source: Path, kept: int) -> None:
    rows = list(benchmark("test", 1000, 0, name=name, source=str(source), published="train"))
    assert len(rows) == kept
    names = {one["id"] for row in rows for one in row["label"]["instructions"]}
    assert not names & LEFT_OUT.keys()
    for row in rows:
        label_check(row["label"])
        assert len(score("A short text. It has two sentences.", row["label"])) == count(row["label"])

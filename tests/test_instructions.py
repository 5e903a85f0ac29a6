"""The tasks of verifiable instructions: checkers against texts that keep an instruction and that do not, every
generated prompt against a text that keeps all of it, and the published prompts where they are at hand."""

import collections
import gzip
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import instructions
from reward_specs.instructions import prompts, trade_offs
from reward_specs.instructions.checkers import LEFT_OUT
from reward_specs.instructions.dataset import benchmark
from reward_specs.instructions.instructions import count, label_check, score
from vpo_plugin.cli import main
from vpo_plugin.rewards import RewardSpec, check_spec, load_spec
from vpo_plugin.rewards.data import EvaluationOnly
from vpo_plugin.rewards.formats import write_response
from vpo_plugin.rewards.response import score_response
from vpo_plugin.rewards.task import read_rows

FOLDER = Path(prompts.__file__).parent
DATA = Path(__file__).parents[2] / "shared" / "data"
IFEVAL, IFBENCH = DATA / "ifeval_input_data.jsonl.gz", DATA / "ifbench_test.jsonl.gz"
needs_ifeval = pytest.mark.skipif(not IFEVAL.exists(), reason="IFEval's published prompts are not in ../shared/data")
needs_ifbench = pytest.mark.skipif(not IFBENCH.exists(), reason="IFBench's published prompts are not in ../shared/data")


def label(name: str, benchmark: str = "ifeval", **arguments: Any) -> dict[str, Any]:
    return {"benchmark": benchmark, "instructions": [{"id": name, "arguments": arguments}]}


def published(name: str) -> list[dict[str, Any]]:
    """The rows of a benchmark in ../shared/data; none where that is not."""
    source = {"ifeval": IFEVAL, "ifbench": IFBENCH}[name]
    return list(benchmark("test", 1000, 0, name=name, source=str(source), published="train")) if source.exists() else []


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
    (label("format:quote_unquote", "ifbench"), '"A word" means a word.', '"A word"'),
]
ODD = ("42", "1.", "...", "***", "\r", "a\rb", '"', "?!", "a " * 500, "One. " * 40, '"A"\t \n' * 4, "\x00", "ß😀٣")
"""Texts without words, or with odd ones, on which published checkers have failed or might."""


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


@pytest.mark.parametrize("level", range(1, len(prompts.LEVELS) + 1))
def test_prompts_differ_and_can_be_taken_at_their_word(level: int) -> None:
    rows = list(prompts.rows("test", 300, 0, levels=[level]))
    assert len({row["prompt"] for row in rows}) == 300
    for row in rows:
        said, asked = row["prompt"], {one["id"]: one["arguments"] for one in row["label"]["instructions"]}
        assert ".." not in said and "?." not in said, "no ending has a full stop of its own"
        assert said.endswith("point 2") or "point 2\n" in said or "point 2" not in said
        assert not {"startend:quotation", "detectable_format:title"} <= asked.keys()
        assert len({*prompts.CASE, "startend:end_checker"} & asked.keys()) < 2
        topic = said.split(". ")[0].lower().split()
        assert not set(topic) & set(asked.get("keywords:forbidden_words", {}).get("forbidden_words", []))
        if asked.get("length_constraints:number_words", {}).get("relation") == "less than" and level < 3:
            assert 15 <= asked["length_constraints:number_words"]["num_words"] <= 45, "75 tokens can break it"
    assert prompts.forbids(
        [{"id": "keywords:forbidden_words", "arguments": {"forbidden_words": ["good"]}}], "A good book."
    )


def test_a_level_without_enough_different_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "TOPICS", ["a lake"])
    monkeypatch.setattr(prompts, "TASKS", ["Describe {topic}."])
    kinds = {name: prompts.KINDS[name] for name in (*prompts.CASE, "punctuation:no_comma")}
    monkeypatch.setattr(prompts, "KINDS", kinds)
    with pytest.raises(ValueError, match="Level 1 of the split 'test' has fewer than 20 different prompts"):
        list(prompts.rows("test", 20, 0, levels=[1]))


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
        (label("words:keywords_specific_position", "ifbench", keyword="a", n=1, m=1), "punkt_tab of NLTK"),
        (label("length_constraints:number_words", words=2), r"has the arguments \['num_words', 'relation'\]; this"),
        (label("length_constraints:number_words"), r"this one has \[\]"),
        (label("startend:end_checker"), r"this one has \[\]"),
        (label("keywords:forbidden_words"), r"this one has \[\]"),
        (label("punctuation:no_comma", words=2), r"has the arguments \[\]"),
        (label("length_constraints:number_words", num_words="40", relation="at least"), "it must be a whole number"),
        (label("length_constraints:number_words", num_words=40, relation="about"), "cannot be made with"),
        (label("length_constraints:number_words", num_words=-1, relation="at least"), "draw others at random"),
        (label("keywords:existence", keywords=[]), "it must be texts, in a list"),
        (label("keywords:existence", keywords="light"), "it must be texts, in a list"),
        (label("keywords:existence", keywords=["("]), "cannot be made with"),
        (label("startend:end_checker", end_phrase=5), "it must be a text"),
        (label("keywords:letter_frequency", letter="ab", let_relation="at least", let_frequency=2), "draw others"),
        (label("language:response_language", language="xx"), "cannot be made with"),
        ({"benchmark": ["ifeval"]}, "names its 'benchmark'"),
        ({"benchmark": "ifeval", "instructions": ["punctuation:no_comma"]}, "a text 'id' and a mapping 'arguments'"),
        ({"benchmark": "ifeval", "instructions": [{"id": ["a"], "arguments": {}}]}, "a text 'id' and a mapping"),
        ({"benchmark": "ifeval", "instructions": [{"id": "punctuation:no_comma"}]}, "a text 'id' and a mapping"),
    ],
)
def test_labels_that_are_refused(broken: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        label_check(broken)


@pytest.fixture(scope="module")
def one_of_each() -> list[dict[str, Any]]:
    """A label of each kind of the published instructions."""
    kinds = {
        one["id"]: {**row["label"], "instructions": [one]}
        for name in ("ifeval", "ifbench")
        for row in published(name)
        for one in row["label"]["instructions"]
    }
    return [kept for kept, *_ in KEPT] + list(kinds.values())


@given(st.text(max_size=200))
@settings(max_examples=40, deadline=None)
def test_any_text_gets_a_score_of_each_checker(one_of_each: list[dict[str, Any]], text: str) -> None:
    for kept in one_of_each:
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
    """What is good at one thing is best where that counts, and a compromise where all count the same."""
    spec, topic = load_spec(str(FOLDER / "trade_offs.yaml")), {"topic": "a good book"}
    short, middle, _ = (text for text, _ in trade_offs.answers(topic))
    detailed = "book " + " ".join(f"w{n}" for n in range(59))
    precise = "book illustrates extraordinary contradictory personalities"
    values = np.array([score_response(spec, text, topic, 1).matrix[0] for text in (short, detailed, precise, middle)])
    for best, objective in enumerate((1, 2, 4)):
        assert (values @ np.eye(5)[objective]).argmax() == best
    assert (values @ spec.weights_of(5)).argmax() == 3
    assert (values[:, 1:3] ** 2).sum(1).max() <= 1.0001 and (values[:, 3:] ** 2).sum(1).max() <= 1.0001
    worth = values @ spec.weights_of(5)
    assert worth[3] >= spec.solved > worth[:3].max(), "a good compromise solves its prompt"


def test_a_topic_is_named_by_its_nouns_as_words() -> None:
    def named(text: str, topic: str) -> float:
        return trade_offs.score(text, {"topic": topic})[0]

    assert named("The cat is asleep.", "a sleeping cat") == 1 == named("SUMMER on a farm", "a farm in summer")
    assert named("Education is delicate.", "a sleeping cat") == 0 == named("It is summer.", "a farm in summer")
    assert trade_offs.score("book-" * 50, {"topic": "a good book"})[2] < 0.2, "one word is not many"


def test_topics_are_asked_for_once() -> None:
    rows = [row["prompt"] for row in trade_offs.rows("test", 200, 0)]
    assert len(rows) == len(set(rows)) == 48
    assert not set(rows) & {row["prompt"] for row in trade_offs.rows("train", 999, 0)}


def test_the_table_of_the_evidence_is_what_its_command_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evidence = Path(__file__).parent.parent / "docs" / "evidence" / "instructions"
    monkeypatch.setattr("sys.argv", ["instructions", str(evidence / "results.json")])
    instructions.main()
    table, floor = capsys.readouterr().out.strip().split("\n\n")
    page = (evidence / "README.md").read_text()
    assert table in page and table.count("\n") > 10 and "| number of words, less than |" in table
    assert floor.startswith("The answer '.' follows ") and floor.replace("'", '"') in page


@needs_ifeval
def test_no_prompt_of_ifeval_is_trained_on() -> None:
    with gzip.open(IFEVAL, "rt") as file:
        published = {" ".join(json.loads(line)["prompt"].lower().split()) for line in file}
    generated = {" ".join(row["prompt"].lower().split()) for row in prompts.rows("train", 500, 0, levels=[1, 2, 3, 4])}
    assert not generated & published
    assert not any(prompt[:60] in text for prompt in generated for text in published)


@pytest.mark.parametrize(
    ("name", "kept"),
    [pytest.param("ifeval", 475, marks=needs_ifeval), pytest.param("ifbench", 264, marks=needs_ifbench)],
)
def test_published_prompts(name: str, kept: int) -> None:
    rows = published(name)
    assert len(rows) == kept
    names = {one["id"] for row in rows for one in row["label"]["instructions"]}
    assert not names & LEFT_OUT.keys()
    for row in rows:
        label_check(row["label"])
        for text in ODD:
            assert len(score(text, row["label"])) == count(row["label"])


@pytest.mark.parametrize("name", ["ifeval", "ifbench"])
def test_published_prompts_are_never_trained_on(name: str) -> None:
    with pytest.raises(EvaluationOnly, match=f"The prompts of {name} are for evaluation only: train on others"):
        list(read_rows(load_spec(str(FOLDER / f"{name}.yaml")), "train", 1, 0))


@needs_ifeval
def test_a_spec_for_evaluation_only_is_checked_on_its_held_out_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["spec", "check", str(FOLDER / "ifeval.yaml"), "--data", str(IFEVAL)]) == 0
    said = capsys.readouterr().out
    assert "are for evaluation only" in said and "16 rows of the split 'test'" in said and "'train'" not in said

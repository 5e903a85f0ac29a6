"""Finding candidates in a response: what models write, and any text whatever."""

import re
import sys
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vpo_plugin.rewards import RewardSpec, load_spec
from vpo_plugin.rewards.candidates import (
    answer_of,
    opened_thought,
    parse_candidates,
    parse_fenced,
    parse_separated,
    texts_between,
)
from vpo_plugin.rewards.formats import parse, render_prompt, start_response, write_response

TAGS = "|> < /> UP <route_1> </route_1> <ROUTE_2> </route_2> <route_ <route_07> </route_ <think> </think> </THINK>"
MARKS = "``` ~~~ ```python \r \r\n \0 \ud800 é \u0663 \u212a \u017f --- "
LINES = ["\n```\n", "\n```python\n", "\n````py\n", "\n````\n", "\n---\n", "    ", "\n", "\t", "- ", "1. ", "> "]
FRAGMENTS = st.sampled_from([*TAGS.split(), *MARKS.split(" "), *LINES])
RESPONSES = st.one_of(
    st.text(st.characters(exclude_categories=[]), max_size=200), st.lists(FRAGMENTS, max_size=60).map("".join)
)
PARSERS: dict[str, Callable[[str, int], list[str | None]]] = {
    "tag": lambda response, candidates: parse_candidates(response, "route", candidates),
    "fence": lambda response, candidates: parse_fenced(response, "python", candidates),
    "separator": lambda response, candidates: parse_separated(response, "---", candidates),
}
parsers = pytest.mark.parametrize("parse", PARSERS.values(), ids=PARSERS)


@parsers
@settings(deadline=None)
@given(response=RESPONSES, candidates=st.integers(1, 5))
def test_parsers_take_any_text(parse: Callable[[str, int], list[str | None]], response: str, candidates: int) -> None:
    parsed = parse(response, candidates)
    assert len(parsed) == candidates
    for candidate in parsed:
        assert candidate is None or candidate == candidate.strip()
        if candidate and parse is PARSERS["fence"]:  # a block in a list or a quote loses what marks it as such
            assert all(line.strip() in response for line in candidate.split("\n"))
        elif candidate:
            assert candidate in response


@parsers
def test_parsers_refuse_no_candidates(parse) -> None:
    with pytest.raises(ValueError, match="at least 1 candidate, not 0"):
        parse("", 0)


# ------------------------------------------------------------------------------------------------ thoughts


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("UP", "UP"),
        ("<think> a </think> UP", " UP"),
        ("a </think> UP", " UP"),  # the template of the chat began the thoughts
        ("<think> a </think> b </THINK> UP", " UP"),
        ("<think> a", ""),
        ("<think> a </think> UP <think> wait", " UP "),
        ("<think> <think> a </think> UP", " UP"),
        ("<think> a </think> UP <think> b <think> c", " UP "),
        ("<thinking> UP", "<thinking> UP"),
    ],
)
def test_only_the_answer_counts(response: str, answer: str) -> None:
    assert answer_of(response) == answer


def test_a_thought_that_the_prompt_opened() -> None:
    """Cut before its end, it holds no answer, whatever stands in it."""
    for prompt in ("<|assistant|><think>\n", "<THINK>", "text <think> "):
        assert answer_of(opened_thought(prompt) + "a draft") == ""
        assert answer_of(opened_thought(prompt) + "a draft </think> UP") == " UP"
    for prompt in ("", "<think>\n\n</think>\n\n", "Say <think> or not."):
        assert opened_thought(prompt) == ""


@pytest.mark.parametrize(
    ("response", "candidates"),
    [
        ("<t_1> <think> a </think> UP </t_1>", ["<think> a </think> UP", None]),
        ("<think> b </think> <t_1> <think> a </think> UP </t_1>", ["<think> a </think> UP", None]),
        ("<think> <t_2> <think> draft </think> </t_2> </think> <t_1> <think> a </think> UP </t_1>",
         ["<think> a </think> UP", None]),
        ("a <t_2> </think> <t_1> UP </t_1>", ["UP", None]),
        ("<t_1> <think> a </t_1> <think> no <t_2> x </t_2>", ["<think> a", None]),
    ],
)  # fmt: skip
def test_candidates_may_have_thoughts_of_their_own(response: str, candidates: list[str | None]) -> None:
    assert parse_candidates(answer_of(response, "t"), "t", 2) == candidates


@settings(deadline=None)
@given(RESPONSES)
def test_an_answer_holds_no_thoughts(response: str) -> None:
    answer = answer_of(response)
    assert answer in response and not re.search("</?think>", answer, re.IGNORECASE)
    assert answer_of(response, "route") in response


# ------------------------------------------------------------------------------------------------ tags


@settings(deadline=None)
@given(RESPONSES, st.integers(1, 5))
def test_tags_surround_what_is_parsed(response: str, candidates: int) -> None:
    for slot, candidate in enumerate(parse_candidates(response, "route", candidates), start=1):
        if candidate is not None:
            assert f"<route_{slot}>" in response.lower() and f"</route_{slot}>" in response.lower()
            assert "<route_" not in candidate.lower()


TEXTS = st.text(st.characters(exclude_characters="<`-~\r"), max_size=30).map(str.strip)


@settings(deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_tags_are_read_back_in_any_order(texts: list[str], rng) -> None:
    slots = [f"noise <route_{s}>{text}</Route_{s}> noise" for s, text in enumerate(texts, start=1)]
    drafts = [f"<route_{s}> draft </route_{s}>" for s in range(1, len(texts) + 1) if rng.random() < 0.5]
    rng.shuffle(slots)
    assert parse_candidates("\n".join(drafts + slots), "route", len(texts)) == texts


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("<route_1> UP </route_1>\n<route_2>\nDOWN\n</route_2>", ["UP", "DOWN"]),
        ("<route_2> UP </route_2>", [None, "UP"]),
        ("<route_1> UP", [None, None]),
        ("UP </route_1>", [None, None]),
        ("</route_1> <route_1> UP </route_1>", ["UP", None]),
        # The last complete pair of a slot: echoes of the format, drafts and what is corrected stand before it.
        ("<route_1> UP </route_1> No: <route_1> DOWN </route_1>", ["DOWN", None]),
        ("<route_1> … </route_1> <route_2> … </route_2> <route_1> UP </route_1> <route_2> A </route_2>", ["UP", "A"]),
        ("<route_1> UP </route_1> <route_1> never closed", ["UP", None]),
        ("<route_1> UP </route_1> DOWN </route_1>", ["UP", None]),
        ("I use <route_1> tags. <route_1> UP </route_1>", ["UP", None]),
        ("<route_1> UP <route_2> DOWN </route_2> </route_1>", [None, "DOWN"]),
        ("<route_1> UP <route_2> DOWN </route_2>", [None, "DOWN"]),
        ("<route_1> UP </route_2> </route_1>", ["UP </route_2>", None]),
        ("<route_1></route_1>", ["", None]),
        ("<ROUTE_1> UP </ROUTE_1> <Route_2> A </route_2>", ["UP", "A"]),
        ("<route_01> UP </route_01> <route_\u0662> UP </route_\u0662>", [None, None]),
        ("<route_0> UP </route_0> <route_ UP </route_", [None, None]),
        ("<route_3> UP </route_3>", [None, None]),
        # A tag in code is a tag: the candidate that it opens in cannot be told.
        ("<route_1> print('<route_2>') </route_1> <route_2> UP </route_2>", [None, "UP"]),
        ("<route_1> print('</route_1>') </route_1>", ["print('", None]),
        ("", [None, None]),
    ],
)
def test_tags_on_odd_responses(response: str, expected: list[str | None]) -> None:
    assert parse_candidates(response, "route", 2) == expected


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<a>x</a> <B>y</b>", ["x", "y"]),
        ("<a>x</a> <a> z </a> </a>", ["z", None]),
        ("<a> <a>x</a> <b>", ["x", None]),
        ("<b>1 <a>2</b> 3</a>", ["2</b> 3", "1 <a>2"]),
        ("</a>x<a>", [None, None]),
    ],
)
def test_inner_tags(text: str, found: list[str | None]) -> None:
    assert texts_between(text, "a", "b") == found


@settings(deadline=None)
@given(st.lists(st.sampled_from(["<a>", "</a>", "<A>", "x", "<a", "\0", "\ud800"]), max_size=30).map("".join))
def test_inner_tags_of_any_text(text: str) -> None:
    [found] = texts_between(text, "a")
    assert found is None or ("<a>" not in found.lower() and "</a>" not in found and f"<a>{found}</a>" in text.lower())


# ------------------------------------------------------------------------------------------------ fenced blocks


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("Here: ```python\na\n```\nIt prints.", ["a", None]),
        ("A: ```python\na\n```\nB: ```py\nb\n```\n", ["a", "b"]),
        ("1. Do: ```python\n   a\n   ```\n2. Or:\n\n   ```Python3\n   b\n   ```", ["a", "b"]),
        ("````python\na\n```\nb\n````", ["a\n```\nb", None]),
        ("~~~python\na\n~~~\n~~~py\nb\n~~~", ["a", "b"]),
        ("> ```py\n> a\n> ```\n\n* ```py\n  b\n  ```", ["a", "b"]),
        ("```python:a.py\na\n```\n```Python title=x\nb\n```", ["a", "b"]),
        ("```python\r\na\r\nb\r\n```\r\n", ["a\nb", None]),
        ("<answer>\n```python\na\n```\n</answer>", ["a", None]),
        # Blocks without a language count where no block has one.
        ("```\na\n```\ntext\n```\nb\n```", ["a", "b"]),
        ("```python\na\n```\nOutput:\n```\n6\n```\n```python\nb\n```", ["a", "b"]),
        ("Output: ```\n6\n```\n```python\nb\n```", ["b", None]),
        ("```bash\nls\n```\n```\na\n```", [None, None]),
        ("```bash\nls\n```\n```Python\na\n```", ["a", None]),
        ("```pycon\n>>> 1\n```\n```python2\na\n```\n```c++\na\n```", [None, None]),
        # Not closed, or no block.
        ("```python\na", [None, None]),
        ("```python\na\n```python\nb\n```", ["a\n```python\nb", None]),
        ("```python\na\n``` done", [None, None]),
        ("inline ```python a``` code ``` and", [None, None]),
        ("- ```python\n  a\n- ```python\n  b\n  ```", ["b", None]),
        ("```python\n```", ["", None]),
        ("```python\n\ud800\0\n```", ["\ud800\0", None]),
    ],
)
def test_code_blocks(response: str, expected: list[str | None]) -> None:
    assert parse_fenced(response, "python", 2) == expected


def test_names_of_languages() -> None:
    assert parse_fenced("```cpp\na\n```", "C++", 1) == parse_fenced("```C++\na\n```", "cpp", 1) == ["a"]
    assert parse_fenced("```klingon\na\n```\n```py\nb\n```", "Klingon", 1) == ["a"]


@settings(deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=5))
def test_code_blocks_and_parts_are_read_back(texts: list[str]) -> None:
    blocks = "\n".join(f"Here:\n```python\n{text}\n```" for text in texts)
    assert parse_fenced(blocks, "python", len(texts)) == texts
    assert parse_separated("\n---\n".join(texts), "---", len(texts)) == [text or None for text in texts]


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("a\n---\nb\n---\nc", ["a", "b"]),
        ("a\r\n --- \r\nb", ["a", "b"]),
        ("---\na", [None, "a"]),
        ("a --- b\n----\nc", ["a --- b\n----\nc", None]),
        ("", [None, None]),
    ],
)
def test_separators_on_odd_responses(response: str, expected: list[str | None]) -> None:
    assert parse_separated(response, "---", 2) == expected


# ------------------------------------------------------------------------------------------------ a spec's format


def spec_with(**changes: object) -> RewardSpec:
    spec = load_spec("maze_small")
    prompt = spec.prompt.model_copy(update={"single": None} if changes.pop("whole", False) else {})
    return spec.model_copy(update={"prompt": prompt, **changes})


FORMATS = {
    "tag": spec_with(),
    "fence": spec_with(tag=None, fence="python"),
    "separator": spec_with(tag=None, separator="===="),
    "whole": spec_with(whole=True),
}
WRITTEN = st.text(st.characters(exclude_characters="<\r", exclude_categories=["Cs"]), max_size=40) | st.lists(
    st.sampled_from(["```", "````", "~~~", "\n", "a", "- ", "> ", "    ", "# ", "`"]), max_size=12
).map("".join)


@pytest.mark.parametrize("spec", FORMATS.values(), ids=FORMATS)
@settings(deadline=None)
@given(texts=st.lists(WRITTEN.map(str.strip), min_size=1, max_size=4))
def test_what_is_written_is_read_back(spec: RewardSpec, texts: list[str]) -> None:
    response = write_response(spec, texts)
    empty = None if spec.separator or (spec is FORMATS["whole"] and len(texts) == 1) else ""
    assert parse(spec, f"<think> {response} </think>\n{response}", len(texts)) == [text or empty for text in texts]


def test_the_whole_answer_is_the_candidate() -> None:
    spec = FORMATS["whole"]
    assert render_prompt(spec, "Hi  ", 1) == "Hi  " and "<route_2>" in render_prompt(spec, "Hi", 2)
    assert parse(spec, "<think> a </think> UP\n", 1) == ["UP"] and parse(spec, "UP", 2) == [None, None]
    assert parse(spec, "<think> a", 1) == parse(spec, " \n", 1) == [None]
    assert parse(spec.model_copy(update={"thoughts": "inside"}), "<think> a </think> UP\n", 1) == [
        "<think> a </think> UP"
    ]
    assert write_response(spec, ["UP"]) == start_response(spec, "UP") == "UP"
    assert write_response(spec, ["UP"], 3) == "<route_1> UP </route_1>"
    assert start_response(spec, "UP", [], 3) == "<route_1> UP"


def test_the_limit_of_a_response_does_not_count_its_thoughts() -> None:
    spec = spec_with(limits=load_spec("maze_small").limits.model_copy(update={"response_chars": 30}))
    answer = "<route_1> UP UP UP </route_1>"
    assert parse(spec, "<think> " + "x" * 1000 + f" </think>{answer}", 1) == ["UP UP UP"]
    assert parse(spec, f"  {answer}", 1) == [None]


# ------------------------------------------------------------------------------------------------ time


def steps(work: Callable[[], object]) -> int:
    """How many functions are called, Python's own among them: work, without a clock."""
    number = 0

    def count(*_: object) -> None:
        nonlocal number
        number += 1

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return number


PAIRS = "<route_1> </route_1> <think> </think> <a> </a> ``` ```py ~~~ ` a ["
PIECES = st.lists(st.sampled_from([*PAIRS.split(), *LINES]), min_size=1, max_size=6).map("".join)


@settings(deadline=None, max_examples=60)
@given(PIECES)
@example("- - - ```\n")
@example(" - a\n   - b\n")
@example("\n---\n> ```")
@example("<route_1> ")
def test_work_grows_with_the_length_and_no_faster(piece: str) -> None:
    def work(response: str) -> None:
        for read in PARSERS.values():
            read(answer_of(response, "route"), 3)
        texts_between(response, "a", "b")

    once, twice = (steps(lambda: work(piece * repeats)) for repeats in (200, 400))  # noqa: B023
    assert twice <= 2.1 * once + 200


@parsers
@pytest.mark.parametrize(
    "megabyte",
    [
        "<route_1>" * 120000,
        "<route_1> UP " * 80000 + "</route_1>",
        "<route_1>" + "</route_1" * 110000,
        "<route_1" + "0" * 1000000,
        " " * 1000000,
        "```" + " " * 1000000 + "`",
        "---" + " " * 1000000 + "x",
        "x" * 1000000 + "```",
        "\u202e\u05d0" * 500000,
    ],
    ids=range(9),
)
def test_a_megabyte_is_read(parse, megabyte: str) -> None:
    """Patterns that go back over a text would not end."""
    assert len(parse(answer_of(megabyte), 100_000)) == 100_000


@pytest.mark.parametrize("said", ["Output:", "**Output**", "This prints:", "It returns:\n", "> Result:"])
def test_an_output_takes_no_program_s_place_where_no_block_names_a_language(said: str) -> None:
    response = f"```\nprint(1)\n```\n{said}\n```\n1\n```\nOr:\n```\nprint(2)\n```\n"
    assert parse_fenced(response, "python", 3) == ["print(1)", "print(2)", None]
    assert parse_fenced(f"{said}\n```\nprint(1)\n```\n", "python", 1) == ["print(1)"]

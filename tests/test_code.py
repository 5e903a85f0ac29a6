"""The code task: golden programs, HumanEval's real rows, packed tests of all kinds, and what counts as a duplicate."""

import base64
import contextlib
import gzip
import json
import pickle
import shutil
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_specs.code import dataset
from reward_specs.code.code import canonical, label_check, same_output, score
from reward_specs.code.dataset import contest_label, function_label, livecodebench, read_cases, split_check
from vpo_plugin.rewards import check_spec, load_spec
from vpo_plugin.rewards.formats import write_response
from vpo_plugin.rewards.response import score_response
from vpo_plugin.rewards.task import read_rows

HUMANEVAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "humaneval_first82.jsonl.gz"
needs_bwrap = pytest.mark.skipif(
    shutil.which("bwrap") is None, reason="bubblewrap is not installed (apt-get install it)"
)

# ------------------------------------------------------------------------------------------------ scoring

SUMS = {"tests": [{"stdin": f"{a} {b}\n", "stdout": f"{a + b}\n"} for a, b in ((1, 2), (-5, 5), (10, -20))]}
TWICE = {
    "tests": [{"arguments": [x], "returns": y} for x, y in ((2, 4), ("ab", "abab"), ([1], [1, 1]))],
    "function": "twice",
    "preamble": "from typing import List",
}


@needs_bwrap
def test_each_test_of_a_program_is_an_objective() -> None:
    assert score("print(sum(map(int, input().split())))", SUMS) == [1, 1, 1]
    assert score("a, b = map(int, input().split()); print(max(a + b, 0))", SUMS) == [1, 1, 0]
    assert score("print(3)", SUMS) == [1, 0, 0]
    assert score("", SUMS) == score("print('", SUMS) == score("1/0", SUMS) == [0, 0, 0]
    assert score("def twice(x): return x * 2", TWICE) == [1, 1, 1]
    assert score("def twice(x): return (x * 2 if type(x) is list else None)", TWICE) == [0, 0, 1]
    assert score("class Solution:\n    def twice(self, x: List): return tuple(x * 2)", TWICE) == [0, 0, 1]
    assert score("twice = 1", TWICE) == score("def thrice(x): return x * 2", TWICE) == [0, 0, 0]


@needs_bwrap
def test_a_response_becomes_a_ragged_matrix() -> None:
    spec = load_spec("code")
    right, wrong = "print(sum(map(int, input().split())))", "print(3)"
    renamed = "# the same\nprint(sum(map(int, input().split())))"
    response = write_response(spec, [wrong, right, renamed]) + "\n```python\nnever closed"
    scored = score_response(spec, response, SUMS, 4)
    assert scored.matrix.tolist() == [[1, 0, 0], [1, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert (scored.parsed, scored.unique, scored.reward) == (3, 2, pytest.approx((1 / 3 + 1) / 4))
    assert score_response(spec, write_response(spec, ["def twice(x): return x + x"]), TWICE, 1).matrix.tolist() == [
        [1] * 3
    ]


@needs_bwrap
def test_any_text_is_scored_within_limits() -> None:
    spec = load_spec("code")
    odd = [
        "\0",
        "\ud800",
        "\u202e print(1)",
        "x" * 10**6,
        "(" * 10_000,
        "import os; os.kill(1, 9)",
        "while True: print()",
    ]
    for text in odd:
        scored = score_response(spec, f"```python\n{text}\n```", SUMS, 2)
        assert scored.matrix.shape == (2, 3) and not scored.matrix.any()
    megabyte = "```python\nprint(3)\n```\n" * 40_000
    assert score_response(spec, megabyte, SUMS, 3).unique == 1


SIX = {"tests": [{"stdin": "", "stdout": "6\n"}]}


@needs_bwrap
@pytest.mark.parametrize(
    "response",
    [
        "Here: ```python\nprint(6)\n```\nIt prints.\n",
        "````python\nprint(6)\n````",
        "~~~python\nprint(6)\n~~~",
        "```py\nprint(6)\n```",
        "```Python3:main.py\r\nprint(6)\r\n```\r\n",
        "1. Do:\n   ```python\n   print(6)\n   ```",
        "```bash\npip install x\n```\n```python\nprint(6)\n```",
        "Output:\n```\n7\n```\n```python\nprint(6)\n```\nOutput:\n```\n6\n```",
        "<think>\n```python\nprint(7)\n```\n</think>\n```python\nprint(6)\n```",
    ],
)
def test_programs_are_found_as_models_write_them(response: str) -> None:
    scored = score_response(load_spec("code"), response, SIX, 2)
    assert scored.matrix.tolist() == [[1], [0]] and scored.parsed == 1


@needs_bwrap
def test_values_that_functions_return() -> None:
    def one(program: str, returns: object) -> list[float]:
        return score(program, {"tests": [{"arguments": [], "returns": returns}], "function": "f"})

    assert one("def f(): return 2**20000", 10**4000) == [0]
    assert (
        one("def f(): return 10**4000", 10**4000)
        == one("from collections import deque\ndef f(): return deque([1])", [1])
        == [1]
    )
    assert one("def f(): return range(3)", [0, 1, 2]) == one("def f(): return {'a': (1,)}", {"a": [1]}) == [1]
    assert one("def f(): return {1}", [1]) == one("def f(): return {1: 2}", {"1": 2}) == one("def f(): pass", 0) == [0]


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("1 2\n3\n", "1 2\n3", True),
        ("1 2  \n3\t\n\n\n", "1 2\n3", True),
        ("1 2\r\n3\r\n", "1 2\n3\n", True),
        ("1  2", "1 2", True),
        ("0.50 1", "0.5 1.0", True),
        ("1e0", "1", True),
        ("", "\n", True),
        ("1\n\n2", "1\n2", False),
        ("yes", "YES", False),
        ("a  b", "a b", False),
        (" a", "a", False),
        ("0.3333333333", "0.3333333334", False),
        ("nan", "NaN", False),
        ("12", "1 2", False),
        ("", "0", False),
        ("1e999999999", "1e999999998", False),
    ],
)
def test_output_is_compared_as_judges_do(printed: str, expected: str, same: bool) -> None:
    assert same_output(printed, expected) is same


@given(st.text(max_size=40))
def test_every_output_is_the_same_as_itself(text: str) -> None:
    assert same_output(text, text) and same_output(text + " \n", text)


# ------------------------------------------------------------------------------------------------ duplicates

PROGRAM = '''
def area(width, height):
    """The area."""
    total = width * height  # no units
    for i in range(3):
        total += i
    return total
'''


@pytest.mark.parametrize(
    "same",
    [
        PROGRAM.replace("total", "result").replace(" i ", " step ").replace("+= i", "+= step"),
        PROGRAM.replace('    """The area."""\n', ""),
        PROGRAM.replace("# no units", "").replace("width * height", "(width*height)"),
        PROGRAM.replace("width, height", "a: int, b: int").replace("width * height", "a * b"),
        PROGRAM.replace("(width, height):", "(width, height) -> int:"),
    ],
)
def test_programs_that_differ_in_dress_are_duplicates(same: str) -> None:
    assert same != PROGRAM and canonical(same, {}) == canonical(PROGRAM, {})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (PROGRAM, PROGRAM.replace("*", "+")),
        (PROGRAM, PROGRAM.replace("area", "volume")),
        ("a = 1\nb = 2\nprint(a)", "a = 1\nb = 2\nprint(b)"),
        ("def f(a, b): return a - b\nprint(f(a=1, b=2))", "def f(b, a): return b - a\nprint(f(a=1, b=2))"),
        ("class A:\n    x = 1\nprint(A().x)", "class A:\n    y = 1\nprint(A().x)"),
        ("x = 1\nprint(eval('x'))", "y = 1\nprint(eval('x'))"),
        ("def f():\n    max = 1\nprint(max(1, 2))", "def f():\n    m = 1\nprint(m(1, 2))"),
        ("x = (", "y = ("),
        ("print(1)", "print(True)"),
    ],
)
def test_programs_that_do_different_things_are_not(one: str, other: str) -> None:
    assert canonical(one, {}) != canonical(other, {})


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=[]), max_size=60) | st.text("()[]{}:=\n \"'#def ax1,.", max_size=60))
def test_any_text_has_a_canonical_form(text: str) -> None:
    assert canonical(text, {}) == canonical(text, {})


@pytest.mark.parametrize("piece", ["(", "-", "not ", "a.", "lambda:", "f(", "1+", "{", "x=", "a[b]", "if 1:\n"])
def test_nested_programs_have_a_canonical_form(piece: str) -> None:
    for repeats in (100, 19_999 // len(piece), 1_000_000 // len(piece)):
        assert canonical(piece * repeats + "1", {})


# ------------------------------------------------------------------------------------------------ LiveCodeBench

CASES = [
    {"input": "1 2\n", "output": "3\n", "testtype": "stdin"},
    {"input": "é\n", "output": "\ud83d\n", "testtype": "stdin"},
]


def packed(value: object, protocol: int = 4) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value, protocol))).decode()


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_packed_tests_are_read(protocol: int) -> None:
    assert read_cases(json.dumps(CASES)) == CASES
    assert read_cases(packed(json.dumps(CASES), protocol)) == CASES
    assert read_cases(packed(json.dumps(CASES * 10_000), protocol)) == CASES * 10_000


class Bomb:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("pickle-bomb-went-off"),)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (packed(Bomb()), "more than one string"),
        (packed([json.dumps(CASES)]), "more than one string"),
        (packed(("[]", "[]")), "more than one string"),
        (packed(b"[]"), "more than one string"),
        (packed(7), "more than one string"),
        (
            base64.b64encode(zlib.compress(b"\x80\x05\x96" + b"\xff" * 8 + b".")).decode(),
            ".",
        ),  # a bytearray of 2^64 bytes
        (base64.b64encode(zlib.compress(b"\x80\x04\x8d" + b"\xff" * 8 + b".")).decode(), "."),  # a string of 2^64 bytes
        (base64.b64encode(zlib.compress(b"not a pickle")).decode(), "."),
        (packed("[]")[:-8], "damaged|cut off"),
        ("not base64!", "damaged"),
        (packed("{}"), "not a list"),
        (packed("[1]"), "not a list"),
        (packed('[{"input": 1, "output": ""}]'), "'input' and an 'output'"),
        (packed("[" * 100_000), "nested too deeply|Expecting"),
        ("", "cut off"),
    ],
)
def test_what_is_not_packed_tests_is_refused(
    text: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        read_cases(text)
    assert not list(tmp_path.iterdir())


def test_a_zip_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    monkeypatch.setattr(dataset, "PACKED_BYTES", 1 << 20)
    packing = zlib.compressobj(9)
    bomb = b"".join(packing.compress(bytes(1 << 20)) for _ in range(200)) + packing.flush()
    tracemalloc.start()
    with pytest.raises(ValueError, match="unpack to more than 1 MiB"):
        read_cases(base64.b64encode(bomb).decode())
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


@settings(deadline=None)
@given(st.text(max_size=80) | st.binary(max_size=80).map(lambda b: base64.b64encode(zlib.compress(b)).decode()))
def test_any_packed_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(read_cases(text), list)


def contest_row(**changes: object) -> dict:
    row = {
        "question_title": "Sum",
        "question_content": "Add two numbers.",
        "question_id": "1",
        "starter_code": "",
        "public_test_cases": json.dumps(CASES[:1]),
        "private_test_cases": packed(json.dumps([{"input": f"{i} 1", "output": f"{i + 1}"} for i in range(30)])),
        "metadata": "{}",
    }
    return {**row, **changes}


def test_a_contest_row_becomes_a_label() -> None:
    label = contest_label(contest_row())
    label_check(label)
    assert len(label["tests"]) == 16 and label["tests"][0] == {"stdin": "1 2\n", "stdout": "3\n"}
    assert label["function"] is None
    calls = packed(json.dumps([{"input": '[1, 2]\n"x"', "output": "[[1], null]", "testtype": "functional"}]))
    row = contest_row(metadata='{"func_name": "solve"}', public_test_cases="[]", private_test_cases=calls)
    label = contest_label(row)
    label_check(json.loads(json.dumps(label)))
    assert label["function"] == "solve" and label["tests"] == [{"arguments": [[1, 2], "x"], "returns": [[1], None]}]


def test_large_tests_are_left_out() -> None:
    large = [{"input": "1" * 200_000, "output": "1"}, {"input": "1", "output": "1"}]
    row = contest_row(public_test_cases=json.dumps(large), private_test_cases="[]")
    assert [test["stdin"] for test in contest_label(row)["tests"]] == ["1"]
    with pytest.raises(ValueError, match="None of its 1 tests"):
        contest_label(contest_row(public_test_cases=json.dumps(large[:1]), private_test_cases="[]"))


def test_a_file_of_contest_rows(tmp_path: Path) -> None:
    rows = [contest_row(question_id=str(n)) for n in range(16)]
    (tmp_path / "lcb.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = list(livecodebench("train", 99, 0, source=str(tmp_path / "lcb.jsonl")))
    assert len(train) == 14 and len(list(livecodebench("test", 99, 0, source=str(tmp_path / "lcb.jsonl")))) == 2
    assert "standard input" in train[0]["prompt"] and len(train[0]["label"]["tests"]) == 16
    (tmp_path / "bad.jsonl").write_text(json.dumps(contest_row(private_test_cases=packed(Bomb()))) + "\n")
    with pytest.raises(ValueError, match=r"problem '1' cannot be used: .*more than one string"):
        list(livecodebench("test", 99, 0, source=str(tmp_path / "bad.jsonl")))


@needs_bwrap
def test_the_spec_proves_itself() -> None:
    spec = load_spec("code")
    assert check_spec(spec)
    rows = [*read_rows(spec, "train", 99, 0), *read_rows(spec, "test", 99, 0)]
    assert len({row["prompt"] for row in rows}) == len(rows) >= 10
    for row in rows:
        assert not any(score("", row["label"])) and min(score(row["label"]["solution"], row["label"])) == 1
    sizes = {len(row["label"]["tests"]) for row in rows}
    assert len(sizes) > 1 and max(sizes) <= 16


def test_the_larger_data_sets_extend_the_spec() -> None:
    folder = Path(dataset.__file__).parent
    names = {load_spec(folder / f"{name}.yaml").name for name in ("livecodebench", "humaneval")}
    assert names == {"code_livecodebench", "code_humaneval"}


@pytest.mark.parametrize(
    ("label", "sentence"),
    [
        ([], "list of 'tests'"),
        ({"tests": []}, "1 to 16 mappings, not 0"),
        ({"tests": SUMS["tests"] * 6}, "not 18"),
        ({"tests": [{"stdin": "1"}]}, "all have 'stdin' and 'stdout'"),
        ({"tests": [*SUMS["tests"], *TWICE["tests"]]}, "all have"),
        ({"tests": TWICE["tests"]}, "needs its name as 'function'"),
        ({"tests": [{"stdin": 1, "stdout": ""}]}, "'stdin' must be text"),
    ],
)
def test_a_label_without_what_the_scorer_needs(label: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        label_check(label)


# ------------------------------------------------------------------------------------------------ HumanEval


def test_a_check_is_split_into_its_assertions() -> None:
    test = (
        "import math\nMETA = {}\n"
        "def check(candidate):\n"
        "    x = 3\n"
        "    assert candidate(x) == 4, 'first'\n"
        "    assert True, 'tests nothing'\n"
        "    y = x\n"
        "    for i in range(y):\n        assert f(i) == i + 1\n"
    )
    codes = split_check(test, "f")
    assert codes == [
        "import math\nMETA = {}\nx = 3\nassert candidate(x) == 4, 'first'",
        "import math\nMETA = {}\nx = 3\ny = x\nfor i in range(y):\n    assert f(i) == i + 1",
    ]
    assert split_check("def check(g):\n    assert g(1)", "f") == ["g = candidate\nassert g(1)"]
    with pytest.raises(ValueError, match=r"does not define check\(candidate\)"):
        split_check("def test(): assert f(1)", "f")


@needs_bwrap
@pytest.mark.skipif(not HUMANEVAL.exists(), reason="the HumanEval rows are not in ../shared/data")
def test_humaneval_solutions_pass_every_test_and_empty_bodies_do_not() -> None:
    with gzip.open(HUMANEVAL, "rt") as file:
        rows = [json.loads(line) for line in file]
    assert len(rows) == 82
    for row in rows:
        label = json.loads(json.dumps(function_label(row)))
        label_check(label)
        assert set(score(row["prompt"] + row["canonical_solution"], label)) == {1.0}, row["task_id"]
        assert min(score(row["prompt"] + "    pass\n", label)) == 0, row["task_id"]


@needs_bwrap
@pytest.mark.skipif(not HUMANEVAL.exists(), reason="the HumanEval rows are not in ../shared/data")
def test_the_humaneval_spec_proves_itself(tmp_path: Path) -> None:
    spec_file = tmp_path / "spec.yaml"
    parent = Path(dataset.__file__).parent / "humaneval.yaml"
    spec_file.write_text(f"extends: {parent}\nname: first82\ndataset:\n  args: {{source: {HUMANEVAL}, splits: null}}\n")
    found = check_spec(load_spec(spec_file))
    assert any("16 known answers of the split 'train'" in sentence for sentence in found)

"""Teaching the candidate format: which sets are put together, and the command on the tiny policy."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from vpo_plugin import train_sft
from vpo_plugin.cli import main
from vpo_plugin.models import resolve_policy
from vpo_plugin.rewards import RewardSpec, load_spec
from vpo_plugin.rewards.formats import parse
from vpo_plugin.rewards.scoring import ScorerError, Scoring
from vpo_plugin.rewards.task import read_rows
from vpo_plugin.search import warm_start
from vpo_plugin.search.policy import Response
from vpo_plugin.search.warm_start import as_texts, make_sets, read_answers, readable, single_answer

LABEL = {
    "benchmark": "ifeval",
    "instructions": [
        {"id": "punctuation:no_comma", "arguments": {}},
        {"id": "keywords:existence", "arguments": {"keywords": ["light"]}},
    ],
    "prompt": "",
}
ROW = {"prompt": "Write on light.", "label": LABEL}
BEST, OTHER_BEST, HALF, WORST = "All light.", "More light.", "No comma here.", "Dark, dark."


@pytest.fixture(scope="module")
def spec() -> RewardSpec:
    return load_spec("instructions")


@pytest.fixture(scope="module")
def scoring(spec: RewardSpec) -> Iterator[Scoring]:
    with Scoring(spec, processes=1) as one:
        yield one


@pytest.mark.parametrize("launched", [False, True])
def test_supervised_training_without_a_launcher(launched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With CUDA too it is one process then: DeepSpeed would otherwise ask MPI, which few machines have."""
    environment = {"RANK": "3", "WORLD_SIZE": "4"} if launched else {}
    monkeypatch.setattr(train_sft.os, "environ", environment)
    monkeypatch.setattr(train_sft.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(train_sft.runpy, "run_module", lambda *_, **__: None)
    monkeypatch.setattr(train_sft.sys, "argv", ["train_sft"])
    train_sft.main()
    expected = {"RANK": "3", "WORLD_SIZE": "4"} if launched else {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    assert {name: environment[name] for name in expected} == expected
    assert ("MASTER_PORT" in environment) != launched


def test_the_best_distinct_answers_make_a_set_that_reads_back(spec: RewardSpec, scoring: Scoring) -> None:
    responses = [WORST, BEST, f"  {BEST}  ", HALF, OTHER_BEST, ""]
    answers = [text for text in (single_answer(spec, response) for response in responses) if text]
    (made,) = make_sets(scoring, [ROW], [answers], 3, 0)
    assert set(parse(spec, made["response"], 3)) == {BEST, OTHER_BEST, HALF}
    assert made["prompt"].startswith("Write on light.\nGive 3 different answers")
    orders = {next(make_sets(scoring, [ROW], [answers], 3, seed))["response"] for seed in range(8)}
    assert len(orders) > 1, "the order says nothing about which is best"


def test_prompts_without_enough_good_answers_make_no_set(scoring: Scoring) -> None:
    assert not list(make_sets(scoring, [ROW], [[BEST, BEST, HALF]], 3, 0)), "two distinct answers"
    assert not list(make_sets(scoring, [ROW], [["a, b", "c, d", "e, f"]], 3, 0)), "none with a reward"


def test_answers_that_would_break_the_format_are_left_out(spec: RewardSpec, scoring: Scoring) -> None:
    forged = "light </answer_1> <answer_2> light </answer_2>"
    made = list(make_sets(scoring, [ROW], [[forged, BEST, OTHER_BEST, HALF, WORST]], 3, 0))
    assert len(made) == 1, "the others make a set, though the first of the best is badly formed"
    assert set(parse(spec, made[0]["response"], 3)) == {BEST, OTHER_BEST, HALF}


def test_a_scorer_that_fails_stops_or_leaves_its_answer_out(tmp_path: Path) -> None:
    """As everywhere; the first failures are in files."""
    case = load_spec(Path(__file__).parent / "cases" / "onebad")
    row = next(read_rows(case, "train", 1, 0))
    answers = ["text=a", "no text", "text=four"]
    with Scoring(case, processes=1) as stops, pytest.raises(ScorerError, match="An answer to prompt 0"):
        list(make_sets(stops, [row], [answers], 2, 0))
    with Scoring(case, processes=1, on_error="zero", failures=tmp_path) as goes_on:
        (made,) = make_sets(goes_on, [row], [answers], 2, 0)
    assert set(parse(case, made["response"], 2)) == {"text=a", "text=four"}
    assert goes_on.zeros == len(list(tmp_path.glob("scorer_error_*.txt"))) == 1


def test_a_response_without_tags_counts_as_its_candidate() -> None:
    spec = load_spec("maze_small")
    (tag,) = re.findall(r"<(\w+)_1>", str(spec.prompt.single))[:1]
    assert single_answer(spec, f"So: <{tag}_1> right right </{tag}_1> done") == "right right"
    assert single_answer(spec, "<think> hm </think> right right") == "right right"
    assert single_answer(spec, "  ") is None
    assert single_answer(spec, "<think> on and on") is None
    inside = spec.model_copy(update={"thoughts": "inside"})
    assert single_answer(inside, " <think> hm </think> right right ") == "<think> hm </think> right right"


def test_answers_that_were_cut_or_have_no_text_are_left_out_and_counted(spec: RewardSpec) -> None:
    texts = [("whole", 9), ("cut off", 10), ("<think> on and", 10), ("", 1)]
    found, said = read_answers(spec, [[Response(text, tokens) for text, tokens in texts]], 10)
    assert found == [["whole"]]
    assert said.startswith(
        "1 of 4 answers were cut at 10 tokens (--max_new_tokens) and left out. 2 of 4 answers have no"
    )
    assert "--chat_template_kwargs" in said
    assert read_answers(spec, [[Response("whole", 9)]], 10) == ([["whole"]], "")
    tagged = load_spec("maze_small")
    (tag,) = re.findall(r"<(\w+)_1>", str(tagged.prompt.single))[:1]
    ends = Response(f"<{tag}_1> right </{tag}_1> and on and", 20)
    assert read_answers(tagged, [[ends, Response("right", 20)]], 20)[0] == [["right"]], "a closed tag shows the end"


@pytest.mark.parametrize(
    ("more", "flags", "sentence"),
    [
        ("scorer: null", [], "The spec 'broken' has no scorer, and a warm start takes the best answers: name one."),
        ("dataset: {loader: 'no_rows:rows'}", [], "no rows in the split 'train' to answer"),
        ("", ["--max_new_tokens", "19"], "--max_new_tokens is 19, but 1 candidates of spec 'broken' take up to 20"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_sampled(
    more: str,
    flags: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(warm_start, "_in_a_process", None)
    (tmp_path / "no_rows.py").write_text("def rows(split, num_rows, seed, **more):\n    return []\n")
    (tmp_path / "spec.yaml").write_text(f"extends: maze_small\nname: broken\n{more}\n")
    said = ["--spec", str(tmp_path), "--model", "tiny-maze", "--output", str(tmp_path / "policy"), *flags]
    assert main(["warm_start", *said]) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "policy_work").exists()


def test_share_that_can_be_read(spec: RewardSpec) -> None:
    assert readable(spec, ["<answer_1> a </answer_1> <answer_2> b </answer_2>", "no tags"], 2) == 0.5


def test_sets_are_learnt_as_they_are_sampled(tmp_path: Path) -> None:
    """The options of the chat template count, and the response ends where the policy must stop."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_policy("tiny-maze", tmp_path))
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.content }}]{% endfor %}{% if not enable_thinking %}<think></think>{% endif %}"
    )
    chat = {"prompt": [{"role": "user", "content": "b"}], "response": [{"role": "assistant", "content": "y"}]}
    texts = as_texts([{"prompt": "a", "response": "x"}, chat], tokenizer, {"enable_thinking": False})
    assert texts == [
        {"prompt": "[a]<think></think>", "response": f"x{tokenizer.eos_token}"},
        {"prompt": "[b]<think></think>", "response": f"y{tokenizer.eos_token}"},
    ]
    tokenizer.chat_template = None
    assert as_texts([{"prompt": "a", "response": "x"}], tokenizer, {}) == [{"prompt": "a", "response": "x"}]


@pytest.mark.slow
def test_command_on_the_tiny_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "policy"
    arguments = ["--spec", "maze_small", "--model", "tiny-maze", "--output", str(output)]
    sizes = ["--prompts", "32", "--samples", "8", "--held_out", "8", "--epochs", "1"]
    assert main(["warm_start", *arguments, *sizes]) == 0
    said = capsys.readouterr().out
    found = re.search(r"(\d+) sets from 32 prompts.*read: (\d+)% before, (\d+)% after", said)
    assert found, said
    sets = [json.loads(line) for line in (tmp_path / "policy_work" / "sets.jsonl").read_text().splitlines()]
    assert len(sets) == int(found[1])
    assert int(found[3]) >= 50
    spec = load_spec("maze_small")
    assert all(None not in parse(spec, row["response"], spec.candidates) for row in sets)
    assert (output / "model.safetensors").exists()

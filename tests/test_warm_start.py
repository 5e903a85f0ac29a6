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
from vpo_plugin.search.warm_start import as_texts, make_sets, readable, single_answer

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
    answers = [WORST, BEST, f"  {BEST}  ", HALF, OTHER_BEST, ""]
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
    assert all(None not in parse(spec, row["response"], 3) for row in made)
    assert all(forged not in row["response"] for row in made)


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
    sizes = ["--prompts", "32", "--samples", "8", "--held_out", "8", "--max_new_tokens", "20", "--epochs", "1"]
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

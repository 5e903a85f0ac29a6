"""Judges: reading scores, asking endpoints that fail, remembering replies; and the personas spec with a real model."""

import contextlib
import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from endpoint import Server, serving
from hypothesis import given
from hypothesis import strategies as st

from vpo_plugin.rewards import check_spec, judges, load_spec
from vpo_plugin.rewards.judges import (
    JudgeError,
    PersonaJudge,
    RewardModelJudge,
    RewardServerJudge,
    judge_messages,
    panel,
    parse_score,
)
from vpo_plugin.rewards.task import check_label

POLICY = Path(__file__).parent.parent / "reward_specs" / "maze_small" / "policy"
LABEL = {"question": "Why?"}


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(judges.CACHE, str(tmp_path / "judges"))
    monkeypatch.setattr(judges, "TRIES", 3)
    return tmp_path / "judges"


# ------------------------------------------------------------------------------------------------ scores


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("7", 7),
        ("Score: 7", 7),
        ("**Score:** 7/10.", 7),
        ("score = 6.5", 6.5),
        ("The rating is 3, because of 4 mistakes.", 3),
        ("I first thought Score: 3, but no.\nScore: 9", 9),
        ("8/10", 8),
        ("I would give it 4 out of 10, for 3 reasons", 4),
        ("On a scale of 1 to 10 (1-10) it is a 2!", 2),
        ("<think>Score: 3? 4?</think> 5", 5),
        ("<think>Score: 3", None),
        ("Score: 4 <think> or 5", 4),
        ("7 ... yes, 7", 7),
        ("Score: 11", None),
        ("Score: 0", None),
        ("-3", None),
        ("1e3", None),
        ("3 or 4", None),
        ("4/5", None),
        ("7,5", None),
        ("seven", None),
        ("v7", None),
        ("", None),
        ("9" * 1000, None),
        ("nan", None),
    ],
)
def test_scores_are_read_or_not_at_all(reply: str, score: float | None) -> None:
    assert parse_score(reply, 1, 10) == score


@given(st.text(max_size=200), st.integers(-5, 5), st.integers(1, 100))
def test_any_reply_is_read(reply: str, low: int, width: int) -> None:
    score = parse_score(reply, low, low + width)
    assert score is None or low <= score <= low + width


@given(st.integers(1, 10), st.sampled_from(["{}", "Score: {}", "Rating: **{}**", "{}/10", "I say {} out of 10."]))
def test_every_score_is_read(score: int, form: str) -> None:
    assert parse_score(form.format(score), 1, 10) == score


@given(st.text(st.characters(exclude_categories=[]), max_size=200))
def test_an_answer_cannot_leave_its_quotes(answer: str) -> None:
    [system, user] = judge_messages("A persona.", "Why?", answer, (1, 10))
    mark = user["content"].split("<")[1].split(">")[0]
    assert user["content"].count(f"</{mark}>") == 1 and mark in system["content"] and mark not in answer
    json.dumps(user).encode()


# ------------------------------------------------------------------------------------------------ a server


def says(text: str, **choice: Any) -> tuple[int, dict]:
    message = {"role": "assistant", "content": text}
    return 200, {"id": "1", "object": "chat.completion", "choices": [{"index": 0, "message": message, **choice}]}


def judge(server: Server, persona: str = "A critic.", **settings: Any) -> PersonaJudge:
    return PersonaJudge(persona, "model", f"{server.url}/v1", **settings)


def test_a_judge_reads_the_question_and_the_answer() -> None:
    with serving(lambda path, _: says("Score: 10" if path == "/v1/chat/completions" else "?")) as server:
        assert judge(server)("Why?", "Because \ud800\0.") == 1.0
    [request] = server.requests
    assert request["model"] == "model" and request["temperature"] == 0
    assert "A critic." in request["messages"][0]["content"] and "Because" in request["messages"][1]["content"]


@pytest.mark.parametrize(("reply", "reward"), [("Score: 1", 0), ("Score: 5.5", 0.5), ("10", 1)])
def test_the_scale_becomes_zero_to_one(reply: str, reward: float) -> None:
    with serving(lambda *_: says(reply)) as server:
        assert judge(server)("Why?", "x") == pytest.approx(reward)


def test_a_reply_without_a_score_is_an_error_or_the_floor() -> None:
    with serving(lambda *_: says("It depends.")) as server:
        with pytest.raises(JudgeError, match=r"no score from 1 to 10 but 'It depends\.'.*unreadable='floor'"):
            judge(server)("Why?", "x")
        assert judge(server, unreadable="floor")("Why?", "x") == 0.0


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        (says("Score: 9", finish_reason="length"), "a reply that was cut, 'Score: 9'"),
        (says("<think> Score: 9, I think"), "no score from 1 to 10 but '<think> Score: 9, I think'"),
        (says(None), "no score from 1 to 10 but None"),
        (says(""), "no score from 1 to 10 but ''"),
        (says([{"type": "text", "text": "Score: 9"}]), "no score from 1 to 10"),
        ((200, {"choices": []}), "no reply but"),
        ((200, {}), "no reply but"),
        ((200, ["Score: 9"]), "no reply but|cannot be asked"),
        ((200, {"choices": [{"index": 0, "message": None}]}), "no score from 1 to 10 but None|no reply but"),
        ((200, b"Score: 9"), "no reply but|cannot be asked"),
        ((200, b"{"), "no reply but|cannot be asked"),
    ],
)
def test_a_reply_that_is_none_is_an_error_or_the_floor(reply: tuple[int, Any], sentence: str) -> None:
    with serving(lambda *_: reply) as server:
        with pytest.raises(JudgeError, match=sentence):
            judge(server)("Why?", "x")
        if "cannot be asked" not in sentence:
            assert judge(server, unreadable="floor")("Why?", "x") == 0.0


def token(text: str, *tops: tuple[Any, Any]) -> dict:
    return {"token": text, "logprob": -0.1, "top_logprobs": [{"token": key, "logprob": p} for key, p in tops]}


def test_the_expected_score_is_the_mean_under_the_probabilities() -> None:
    half, quarter, eighth = (math.log(p) for p in (0.5, 0.25, 0.125))
    tops = [("9", half), ("1", eighth), (" 1", eighth), (" x", quarter)]
    with serving(lambda *_: says("Score: 9", logprobs={"content": [token("Score: "), token("9", *tops)]})) as server:
        assert judge(server, scale=(1, 9), expected=True)("Why?", "x") == pytest.approx((9 * 2 / 3 + 1 / 3 - 1) / 8)
    assert server.requests[0]["logprobs"] is True


@pytest.mark.parametrize(
    "logprobs",
    [
        None,
        {},
        {"content": None},
        {"content": []},
        {"content": [token("Score: ")]},
        {"content": [token("9")]},
        {"content": [token("9", ("x", -0.1))]},
        {"content": [token("9", ("9", None))]},
        {"content": [token("9", ("9", 1e6))]},
        {"content": [token("9", ("9", -1e6))]},
        {"content": [{"token": "9"}]},
        {"content": [{"token": None}]},
        {"content": "9"},
        "9",
    ],
)
def test_probabilities_that_are_none(logprobs: Any) -> None:
    with (
        serving(lambda *_: says("Score: 9", logprobs=logprobs)) as server,
        pytest.raises(JudgeError, match=r"The judge model gave no probabilities of its score but .*max_tokens"),
    ):
        judge(server, scale=(1, 9), expected=True)("Why?", "x")


def test_a_scale_that_is_none() -> None:
    for settings in ({"scale": (3, 3)}, {"expected": True}):
        with pytest.raises(ValueError, match="A judge's scale rises, of single digits"):
            PersonaJudge("A critic.", "model", "http://localhost", **settings)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_failures_that_pass_are_tried_again(status: int) -> None:
    replies = iter([(status, {"error": "busy"}), (status, {"error": "busy"}), says("Score: 10")])
    with serving(lambda *_: next(replies)) as server:
        assert judge(server)("Why?", "x") == 1.0
    rewards = iter([(status, {}), (status, b"busy"), (200, {"rewards": [0.0]})])
    with serving(lambda *_: next(rewards)) as server:
        assert RewardServerJudge(server.url)("Why?", "x") == 0.5


def test_failures_that_stay_are_told() -> None:
    with serving(lambda *_: (500, {"error": "broken"})) as server:
        with pytest.raises(JudgeError, match=r"The judge model at .* cannot be asked \(InternalServerError"):
            judge(server)("Why?", "x")
        assert len(server.requests) == 3
        with pytest.raises(JudgeError, match=r"cannot be asked, 3 times .*500"):
            RewardServerJudge(server.url)("Why?", "x")
    with serving(lambda *_: (404, {"error": "no such model"})) as server:
        with pytest.raises(JudgeError, match="does it serve this model"):
            judge(server)("Why?", "x")
        with pytest.raises(JudgeError, match="refuses the request: it answers 404"):
            RewardServerJudge(server.url)("Why?", "x")
        assert len(server.requests) == 2
    with pytest.raises(JudgeError, match="Is its server running"):
        judge(server)("Why?", "x")
    with pytest.raises(JudgeError, match="Is it running"):
        RewardServerJudge(server.url)("Why?", "x")


# ------------------------------------------------------------------------------------------------ panels


def by_persona(scores: dict[str, int]) -> Callable[[str, dict], tuple[int, Any]]:
    return lambda _, content: says(f"Score: {scores[content['messages'][0]['content'].split()[0]]}")


def test_a_panel_has_one_reward_a_judge_and_asks_each_once(empty_cache: Path) -> None:
    with serving(by_persona({"Strict": 1, "Mild": 10})) as server:
        score = panel([judge(server, "Strict one"), judge(server, "Mild one")])
        assert score("An answer.", LABEL) == [0.0, 1.0] == score("An answer.", LABEL)
        assert len(server.requests) == 2
        assert score("Another answer.", LABEL) == [0.0, 1.0] and len(server.requests) == 4
        assert panel([judge(server, "Mild one", scale=(1, 19))])("An answer.", LABEL) == [0.5]
        assert len(server.requests) == 5  # another scale is another judge
        assert score(" \n", LABEL) == [0.0, 0.0] and len(server.requests) == 5
    # Remembered on disk: no server is needed, nor the same one.
    assert panel([judge(server, "Mild one")])("An answer.", LABEL) == [1.0]
    for file in empty_cache.rglob("*.json"):
        file.write_text("{")  # a damaged entry is asked for again
    with pytest.raises(JudgeError):
        score("An answer.", LABEL)


def test_judges_are_asked_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=20)

    def reply(*_: Any) -> tuple[int, Any]:
        together.wait()
        return says("Score: 10")

    with serving(reply) as server:
        assert panel([judge(server, name) for name in "abc"])("An answer.", LABEL) == [1.0] * 3


def test_what_failed_is_not_remembered() -> None:
    replies = iter([says("No."), says("Score: 10")])
    with serving(lambda *_: next(replies)) as server:
        score = panel([judge(server)])
        with pytest.raises(JudgeError):
            score("An answer.", LABEL)
        assert score("An answer.", LABEL) == [1.0]


# ------------------------------------------------------------------------------------------------ reward models


def test_a_reward_server_of_the_hosts_kind() -> None:
    with serving(lambda _, content: (200, {"rewards": [float(len(content["query"][0]))]})) as server:
        assert RewardServerJudge(f"{server.url}/get_reward", squash=False)("Why?", "So.") == len("Why?\nSo.")
        squashed = RewardServerJudge(server.url, template="{answer}")("Why?", "{question}")
        assert squashed == pytest.approx(1 / (1 + math.exp(-len("{question}"))))
        RewardServerJudge(server.url)("What does {answer} mean?", "So.")
    assert server.requests[-1]["query"] == ["What does {answer} mean?\nSo."]
    assert server.requests[0] == {"query": ["Why?\nSo."], "prompts": ["Why?"], "labels": [None]}


@pytest.mark.parametrize(
    "reply",
    [{}, {"rewards": []}, {"rewards": ["x"]}, {"rewards": None}, {"rewards": [10**400]}, [1], b"no JSON", b"[" * 10**5],
)
def test_a_reward_server_that_gives_none(reply: Any) -> None:
    with (
        serving(lambda *_: (200, reply)) as server,
        pytest.raises(JudgeError, match=r"gave no reward|did not answer with"),
    ):
        RewardServerJudge(server.url)("Why?", "x")
    with serving(lambda *_: (200, b'{"rewards": [NaN]}')) as server, pytest.raises(JudgeError, match="gave nan"):
        RewardServerJudge(server.url)("Why?", "x")
    with pytest.raises(JudgeError, match="cannot be asked: InvalidURL"):
        RewardServerJudge("http://\n")("Why?", "x")


def test_a_reward_model_in_process(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig

    tokenizer = AutoTokenizer.from_pretrained(POLICY)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_labels=1, pad_token_id=0,
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config)
    model.save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    raw = RewardModelJudge(str(tmp_path / "rm"), squash=False)
    squashed = RewardModelJudge(str(tmp_path / "rm"))
    values = [raw("a1=start a2=free", answer) for answer in ("UP UP", "DOWN", "DOWN")]
    assert values[0] != values[1] == values[2]
    assert squashed("a1=start a2=free", "DOWN") == pytest.approx(1 / (1 + math.exp(-values[1])))
    asked = {"question": "a1=start a2=free"}
    assert panel([raw, squashed])("DOWN", asked)[0] == pytest.approx(values[1])
    with torch.no_grad():
        model.score.weight.neg_()
    model.save_pretrained(tmp_path / "rm")  # trained again
    judges._reward_model.cache_clear()
    assert panel([raw])("DOWN", asked)[0] == pytest.approx(-values[1], abs=1e-4)


# ------------------------------------------------------------------------------------------------ the spec


def test_the_spec_is_checked_with_its_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its check asks the judges, names the one that does not answer, and does not say more than it proved."""
    spec = load_spec("personas")
    with serving(lambda *_: says("Score: 5")) as server:
        monkeypatch.setattr("reward_specs.personas.personas.score", panel([judge(server)] * 3))
        assert check_spec(spec)[-1].startswith("NOT CHECKED: whether a right candidate gets its reward")
        assert server.requests
    with serving(lambda *_: (404, {})) as server:
        monkeypatch.setattr("reward_specs.personas.personas.score", panel([judge(server, "Another.")] * 3))
        with pytest.raises(
            RuntimeError, match=r"A dummy response to row 0 .*JudgeError: The judge model at .* cannot be"
        ):
            check_spec(spec)
    assert len(spec.objective_keys) == 3
    with pytest.raises(ValueError, match="needs a 'question' text"):
        check_label(spec, {"answer": 1})


@pytest.mark.slow
def test_smollm2_judges_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "VPO_JUDGE_URL": f"http://127.0.0.1:{port}/v1"}
    log = tmp_path / "server.log"
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "examples.persona_judge", "--port", str(port)],
            stdout=out,
            stderr=out,
            cwd=tmp_path,  # the model is built in runs/ there
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
        )
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
                break
            assert server.poll() is None, log.read_text()[-3000:]
            time.sleep(1)
        code = (
            "from vpo_plugin.rewards import load_spec\n"
            "from vpo_plugin.rewards.formats import write_response\n"
            "from vpo_plugin.rewards.response import score_response\n"
            "spec = load_spec('personas')\n"
            "response = write_response(spec, ['Air scatters blue light the most.', 'Magic.', 'magic.'])\n"
            "print(score_response(spec, response, {'question': 'Why is the sky blue?'}, 3).matrix.tolist())"
        )
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        matrix = json.loads(done.stdout)
        assert matrix[2] == [0.0, 0.0, 0.0] and matrix[0] != matrix[1]
        assert all(0 < reward < 1 for row in matrix[:2] for reward in row)
        assert len({*matrix[0]}) == 3  # the personas do not agree
    finally:
        server.terminate()
        server.wait(60)

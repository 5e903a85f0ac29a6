"""Agents and reward functions of a user's own: what they return becomes the reward matrix, and what is scored."""

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from host import importable_host
from reward_server import reward_server

from vpo_plugin.models import TINY, resolve_policy
from vpo_plugin.openrlhf import matrices
from vpo_plugin.openrlhf.settings import VARIABLE, Settings
from vpo_plugin.rewards import load_spec
from vpo_plugin.rewards.scoring import ScorerError

SPEC = """
name: words
description: rewards for words
objectives: [{key: a, description: a}, {key: b, description: b}]
weights: {a: 0.75, b: 0.25}
candidates: 2
tag: route
prompt: {single: "Write <route_1>.", multi: "Write {candidates} in <route_1>."}
label: text
scorer: words_scorer:score
dataset: {loader: "words_scorer:rows"}
limits: {response_chars: 1000, tokens_per_candidate: 20}
"""
WITHOUT_SCORER = (
    SPEC.partition("scorer:")[0]
    + """
scorer: null
dataset: null
limits: {response_chars: 1000, tokens_per_candidate: 20}
"""
)
SCORER = """
def score(candidate, label):
    return [float("a" in candidate), float("b" in candidate)]

def rows(split, num_rows, seed):
    return []
"""
AGENT = """
import torch
from openrlhf.utils.agent import AgentInstanceBase, MultiTurnAgentExecutor


class Instance(AgentInstanceBase):
    def __init__(self, *args, **kwargs):
        self.turn = 0

    async def step(self, state, **kwargs):
        self.turn += 1
        logs = {"turns": float(self.turn)}
        if state["label"] == "matrix":
            logs["reward_matrix"] = torch.tensor([[0.5, 0.25], [1.0, 0.0]])
        if state["label"] == "vector":
            logs["reward_matrix"] = [0.5, 0.25]
        if state["label"] == "wrong":
            logs["reward_matrix"] = torch.ones(3)
        if state["label"] == "too high":
            logs["reward_matrix"] = torch.tensor([2.0, 0.0])
        return {
            "rewards": torch.tensor(7.0),
            "environment_feedback": " <route_1> b </route_1> ",
            "done": self.turn == 2,
            "extra_logs": logs,
        }


class AgentExecutor(MultiTurnAgentExecutor):
    def __init__(self):
        super().__init__(Instance)
"""


OWN_EXECUTOR = """
from openrlhf.utils.agent import SingleTurnAgentExecutor


class AgentExecutor(SingleTurnAgentExecutor):
    async def execute(self, *args, **kwargs):
        output = await super().execute(*args, **kwargs)
        return {**output, "reward": 7.0, "extra_logs": {"reward_matrix": [[0.5, 0.25], [1.0, 0.0]]}}
"""


class Engine:
    """Says one thing after the other; its tokens do not spell its text."""

    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)
        self.said = 0

    async def generate(self, prompt_token_ids: list[int], sampling_params: Any, multi_modal_data: Any = None) -> Any:
        self.said += 1
        said = SimpleNamespace(
            text=self.texts[self.said - 1], token_ids=[self.said, 2, 3], finish_reason="stop", logprobs=None
        )
        return SimpleNamespace(outputs=[said])


@pytest.fixture
def execute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """One rollout with an executor of the plugin in a run with these settings."""
    (tmp_path / "words_scorer.py").write_text(SCORER)
    with importable_host():
        from transformers import AutoTokenizer

        from vpo_plugin.openrlhf.agent import AgentExecutor

        tokenizer = AutoTokenizer.from_pretrained(resolve_policy(TINY, tmp_path))
        executors: dict[Any, Any] = {}

        def run(engine: Engine, label: str, length: int = 100, scorer: bool = True, **settings: Any) -> dict[str, Any]:
            key = json.dumps([scorer, settings])
            if key not in executors:
                (tmp_path / "spec.yaml").write_text(SPEC if scorer else WITHOUT_SCORER)
                said = load_spec(tmp_path).model_dump(mode="json")
                policy = settings.pop("on_scorer_error", "raise")
                made = Settings(str(tmp_path), 2, policy, tmp_path, True, spec_data=said, **settings)
                monkeypatch.setenv(VARIABLE, made.dump())
                executors[key] = AgentExecutor()
            return asyncio.run(
                executors[key].execute(
                    prompt="a1=start",
                    label=label,
                    sampling_params=SimpleNamespace(max_tokens=20, logprobs=None),
                    max_length=length,
                    hf_tokenizer=tokenizer,
                    llm_engine=engine,
                    images=None,
                )
            )

        yield run


@pytest.fixture
def agent(execute: Callable[..., Any], tmp_path: Path) -> Callable[[Engine, str], dict[str, Any]]:
    """One rollout of the agent, of two turns."""
    (tmp_path / "agent.py").write_text(AGENT)
    return lambda engine, label, **more: execute(engine, label, own_agent=str(tmp_path / "agent.py"), **more)


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="programs run in bubblewrap")
def test_program_repair(execute: Callable[..., Any], tmp_path: Path) -> None:
    """The example: it sees the test that fails and what its program printed, and is paid for each test and attempt."""
    tests = [{"stdin": "2\n", "stdout": "4\n"}, {"stdin": "3\n", "stdout": "6\n"}]
    attempts = [f"```python\nprint({body})\n```" for body in ("int(input()) + 2", "2 * int(input())", "never asked")]
    engine = Engine(attempts[0], "no program", attempts[1], attempts[2])
    label = json.dumps({"tests": tests, "function": None, "preamble": ""})
    seen: list[list[int]] = []
    generate = engine.generate

    async def watch(prompt_token_ids: list[int], *rest: Any, **more: Any) -> Any:
        seen.append(prompt_token_ids)
        return await generate(prompt_token_ids, *rest, **more)

    engine.generate = watch  # type: ignore[method-assign]
    place = str(Path(__file__).parent.parent / "examples" / "program_repair.py")
    output = execute(engine, label, own_agent=place, length=4000)
    assert matrix_of(output) == [[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]
    assert output["extra_logs"]["attempts"] == 3.0
    assert len(output["action_ranges"]) == 3
    assert len(seen) == 3
    assert output["reward"] == pytest.approx((0.75 + 0 + 1) / 3)


def test_feedback_of_a_failed_program() -> None:
    from examples.program_repair import feedback

    label = {"tests": [{"stdin": "2\n", "stdout": "4\n"}, {"stdin": "3\n", "stdout": "6\n"}]}
    if shutil.which("bwrap"):
        said = feedback("print(int(input()) + 2)", [1.0, 0.0], label)
        assert "Test 2 of 2 fails.\nInput:\n3\n\nExpected:\n6\n\nGot:\n5\n" in said
    assert "There is no program" in feedback(None, [0.0, 0.0], label)


def matrix_of(output: dict[str, Any]) -> list[list[float]]:
    return matrices.unpack(torch.tensor(output["extra_logs"][matrices.INFO_KEY])).tolist()


def test_last_turn_of_an_agent_is_scored(agent: Callable[..., Any]) -> None:
    """Not what it said before, nor what the environment said between the turns."""
    output = agent(Engine("<route_1> b </route_1>", "<route_1> a </route_1>"), "null")
    assert matrix_of(output) == [[1.0, 0.0], [0.0, 0.0]]
    assert output["reward"] == output["scores"] == 0.375
    logs = output["extra_logs"]
    assert (logs["candidates_parsed"], logs["turns"], logs["scorer_errors"]) == (1.0, 2.0, 0.0)
    assert len(output["action_ranges"]) == 2


def test_a_thought_that_is_cut_is_no_answer(agent: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The chat templates of reasoning models end a prompt with <think>, so that the response does not show it."""
    from vpo_plugin.openrlhf import agent as module

    seen: list[str] = []
    monkeypatch.setattr(module, "opened_thought", lambda prompt: seen.append(prompt) or "<think>")  # type: ignore[func-returns-value]
    output = agent(Engine("", "a draft: <route_1> a </route_1>"), "null")
    assert matrix_of(output) == [[0.0, 0.0], [0.0, 0.0]]
    output = agent(Engine("", "a draft </think> <route_1> a </route_1>"), "null")
    assert matrix_of(output) == [[1.0, 0.0], [0.0, 0.0]]
    assert all(text.replace(" ", "").endswith("</route_1>") for text in seen), "what stands before the last turn"


@pytest.mark.parametrize("values", [torch.tensor([0.5, 0.25], dtype=torch.bfloat16), np.float16([0.5, 0.25])])
def test_rewards_of_a_model_in_half_precision(values: Any, tmp_path: Path) -> None:
    from vpo_plugin.openrlhf.given_rewards import read_matrix

    (tmp_path / "spec.yaml").write_text(WITHOUT_SCORER)
    assert read_matrix(load_spec(tmp_path), values, "x").tolist() == [[0.5, 0.25]]


def test_matrix_of_an_agent(agent: Callable[..., Any]) -> None:
    output = agent(Engine("", ""), "matrix")
    assert matrix_of(output) == [[0.5, 0.25], [1.0, 0.0]]
    assert output["reward"] == pytest.approx((0.4375 + 0.75) / 2)
    assert output["extra_logs"]["candidates_parsed"] == 2.0
    assert matrix_of(agent(Engine("", ""), "vector", scorer=False)) == [[0.5, 0.25]], "it needs no scorer"


def test_matrix_of_an_executor(execute: Callable[..., Any], tmp_path: Path) -> None:
    """One that has an `execute()` of its own, and no turns."""
    (tmp_path / "executor.py").write_text(OWN_EXECUTOR)
    output = execute(Engine("x"), "any", own_agent=str(tmp_path / "executor.py"))
    assert matrix_of(output) == [[0.5, 0.25], [1.0, 0.0]]
    assert output["reward"] == output["scores"] == pytest.approx((0.4375 + 0.75) / 2)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("wrong", r"names 2 objectives: give a vector of 2 values"),
        ("too high", r"'a' 2\.0, which is not within 0\.0 to 1"),
    ],
)
def test_matrix_that_is_none(agent: Callable[..., Any], tmp_path: Path, label: str, message: str) -> None:
    """It stops the run, or counts as zero, and is saved."""
    with pytest.raises(ScorerError, match=message) as failed:
        agent(Engine("", ""), label)
    (file,) = tmp_path.glob("scorer_error_*.txt")
    assert failed.value.trace.startswith("Traceback") and failed.value.trace in file.read_text()
    output = agent(Engine("", ""), label, on_scorer_error="zero")
    assert matrix_of(output) == [[0.0, 0.0], [0.0, 0.0]]
    assert (output["extra_logs"]["scorer_errors"], output["extra_logs"]["turns"]) == (1.0, 2.0)


def test_agent_that_gives_no_rewards_to_a_spec_without_scorer(agent: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"gave no extra_logs\['reward_matrix'\], but the spec 'words' has no scorer"):
        agent(Engine("", ""), "null", scorer=False)


REWARD = """
import torch

def reward_func(queries, prompts, labels):
    assert len(queries) == len(prompts) == len(labels) == 1
    values = {
        "vector": torch.tensor([[0.5, 0.25]]),
        "matrix": [[[0.5, 0.25], [1.0, 0.0]]],
        "flat": [0.5, 0.25],
        "number": torch.tensor([0.5]),
    }
    if labels[0] == "nothing":
        return None
    return {"rewards": values[labels[0]], "extra_logs": {"length": torch.tensor([len(queries[0])])}}
"""


@pytest.fixture(params=["file", "server"])
def reward(
    execute: Callable[..., Any], tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[..., dict[str, Any]]]:
    """One rollout with the reward function, in a file or behind HTTP, and a spec that names no scorer."""
    (tmp_path / "reward.py").write_text(REWARD)
    with reward_server(tmp_path / "reward.py") as address:
        place = (str(tmp_path / "reward.py") if request.param == "file" else address,)
        yield lambda label, **settings: execute(Engine("x"), label, scorer=False, own_reward=place, **settings)


@pytest.mark.parametrize(
    ("label", "expected"),
    [("vector", [[0.5, 0.25]]), ("matrix", [[0.5, 0.25], [1.0, 0.0]]), ("flat", [[0.5, 0.25]])],
)
def test_own_reward_function(reward: Callable[..., Any], label: str, expected: list[list[float]]) -> None:
    output = reward(label)
    assert matrix_of(output) == expected
    assert output["reward"] == pytest.approx(float((np.array(expected) @ [0.75, 0.25]).mean()))
    assert np.ravel(output["extra_logs"]["length"])[0] > 0


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("number", "names 2 objectives"),
        ("nothing", "instead of"),
        ("?", r"KeyError: '\?' \(.*reward\.py:14\)\. |Request error for 5 times"),
    ],
)
def test_own_reward_function_that_fails(reward: Callable[..., Any], tmp_path: Path, label: str, message: str) -> None:
    """The host swallows it and trains on nothing; here it stops the run, or counts as zero, and is saved."""
    with pytest.raises(ScorerError, match=message) as failed:
        reward(label)
    (file,) = tmp_path.glob("scorer_error_*.txt")
    assert failed.value.trace.startswith("Traceback") and failed.value.trace in file.read_text()
    output = reward(label, on_scorer_error="zero")
    assert matrix_of(output) == [[0.0, 0.0], [0.0, 0.0]]
    assert output["extra_logs"]["scorer_errors"] == 1.0


def test_settings_travel_whole(tmp_path: Path) -> None:
    from vpo_plugin.openrlhf.settings import load_settings

    run = Settings(
        "maze_small",
        3,
        "zero",
        tmp_path,
        on_cpu=True,
        chat_template_kwargs={"enable_thinking": False},
        own_agent="agent.py",
        own_reward=("a.py", "http://b"),
        goal=(1.0, 7),
    )
    assert load_settings(run.dump()) == run
    assert load_spec("maze_small").candidates == 3

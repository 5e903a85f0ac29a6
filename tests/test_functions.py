"""Other forms of scorers: reward functions in trl's signature as objectives, and scorers that compare rollouts."""

import asyncio
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import CASES
from host import importable_host
from hypothesis import given, settings
from hypothesis import strategies as st
from test_doors import Scripted

from vpo_plugin.cli import main
from vpo_plugin.cli.settings import read
from vpo_plugin.openrlhf.settings import VARIABLE, Settings
from vpo_plugin.rewards import RewardSpec, check_spec, load_spec
from vpo_plugin.rewards.files import SpecError
from vpo_plugin.rewards.labels import pack_label, unpack_label
from vpo_plugin.rewards.prompts import pack_prompt, read_prompt
from vpo_plugin.rewards.response import group_scorer, score_response
from vpo_plugin.rewards.scoring import Item, Scoring, prepare
from vpo_plugin.rewards.task import read_rows
from vpo_plugin.search import trial
from vpo_plugin.search.evaluate import sample_pool
from vpo_plugin.search.pool import claim_folder, load_pool
from vpo_plugin.search.trial import findings
from vpo_plugin.search.warm_start import WarmStartSettings

RESPONSE = "<answer_1> What 100 </answer_1> <answer_2> Hm. 4 </answer_2>"


def rows_of(spec: RewardSpec) -> list[dict[str, Any]]:
    return sorted([*read_rows(spec, "train", 99, 0), *read_rows(spec, "test", 99, 0)], key=lambda row: row["label"])


def expected(row: dict[str, Any]) -> list[list[float]]:
    return [[float(row["label"] in "What 100"), 1.0], [float(row["label"] in "Hm. 4"), 0.0]]


def test_trl_functions_give_the_same_at_each_door(case: Callable[[str], RewardSpec], tmp_path: Path) -> None:
    spec = case("trl")
    rows = rows_of(spec)
    assert any(isinstance(row["prompt"], list) for row in rows) and len(rows) == 9
    assert not spec.ragged and spec.scorer is None and spec.scores
    assert any("it scored a dummy response" in found for found in check_spec(spec))
    lines = [{"response": RESPONSE, "label": row["label"], "candidates": 2, "prompt": row["prompt"]} for row in rows]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["score", "--spec", str(CASES / "trl"), "--input", str(tmp_path / "in.jsonl"), "--workers", "2"]
    assert main([*command, "--output", str(tmp_path / "out.jsonl"), "--strict"]) == 0
    scored = [json.loads(line)["matrix"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert scored == [expected(row) for row in rows]
    made = {"prompts": 9, "rollouts": 1, "candidates": 2, "batch": 9, "seed": 0, "tell_weights": False}
    claim_folder(tmp_path / "pool", made)
    asked = [{"input": pack_prompt(row["prompt"]), "label": json.dumps(row["label"])} for row in rows]
    sample_pool(Scripted([RESPONSE] * 9), spec, asked, made, tmp_path / "pool")
    assert load_pool(tmp_path / "pool").reward_matrices[:, 0].tolist() == scored
    carried = [pack_label(row["label"], pack_prompt(row["prompt"])) for row in rows]
    read = [unpack_label(one) for one in carried]
    assert [score_response(spec, RESPONSE, known, 2, prompt).matrix.tolist() for known, prompt in read] == scored


def test_a_row_without_a_prompt_is_no_row_for_trl_functions(
    case: Callable[[str], RewardSpec], tmp_path: Path, capsys
) -> None:
    case("trl")
    (tmp_path / "in.jsonl").write_text(json.dumps({"response": RESPONSE, "label": "1", "candidates": 2}))
    command = ["score", "--spec", str(CASES / "trl"), "--input", str(tmp_path / "in.jsonl")]
    assert main([*command, "--output", str(tmp_path / "out.jsonl")]) == 1
    assert "cannot be scored: A row has no 'prompt', which the spec 'trl' needs" in capsys.readouterr().err


def test_the_prompt_travels_beside_the_label_in_training(
    case: Callable[[str], RewardSpec],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = case("trl")
    run = Settings(str(CASES / "trl" / "spec.yaml"), 2, "raise", tmp_path, on_cpu=True)
    monkeypatch.setenv(VARIABLE, run.dump())
    with importable_host():
        from vpo_plugin.openrlhf.prompts import label_of, patch_prompts

        module = SimpleNamespace(preprocess_data=lambda data, template, key, *rest: (data[key], ""))
        patch_prompts(module)
        for row in [*rows_of(spec), {"prompt": "p", "label": pack_label(1)}]:
            asked, label = module.preprocess_data({"q": row["prompt"], "a": row["label"]}, None, "q", "a")
            known, prompt = label_of(spec, run, label)
            assert read_prompt(prompt or "") == row["prompt"] != asked and known == row["label"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (', function: "trl_rewards:echo_reward"', "The objective 'echo' has no function, but others do"),
        ("rewards:echo_reward", "trl_rewards:no"),
    ],
)
def test_specs_that_mix_forms_are_refused(change: str, sentence: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(str(CASES / "trl"))
    text = (CASES / "trl" / "spec.yaml").read_text()
    text = text.replace(change, "" if change.startswith(",") else "rewards:no")
    (tmp_path / "spec.yaml").write_text(text + ("scorer: null\n" if change.startswith(",") else ""))
    with pytest.raises(SpecError, match=re.escape(sentence) if change.startswith(",") else "no callable 'no'"):
        load_spec(tmp_path)
    both = (CASES / "trl" / "spec.yaml").read_text() + 'scorer: "trl_rewards:accuracy_reward"\n'
    (tmp_path / "spec.yaml").write_text(both)
    with pytest.raises(SpecError, match="scored in one way, and this spec has scorer and objectives with a function"):
        load_spec(tmp_path)


@pytest.mark.parametrize("returned", [None, 1.0, [1.0], "11", [1.0, None], [1.0, 2.0]])
def test_what_a_function_returns_is_checked(returned: Any, case: Callable[[str], RewardSpec], monkeypatch: Any) -> None:
    spec = case("trl")
    monkeypatch.setattr("trl_rewards.accuracy_reward", lambda **given: returned)
    with pytest.raises(ValueError, match="objective 'accuracy'"):
        score_response(spec, RESPONSE, "4", 2, "What?")


def test_a_function_that_fails_is_named(case: Callable[[str], RewardSpec], monkeypatch: Any) -> None:
    spec = case("trl")
    monkeypatch.setattr("trl_rewards.accuracy_reward", lambda **given: given["gold"])
    failure = prepare(spec)((RESPONSE, "4", 2, "What?"))
    assert failure.message == "the function of the objective 'accuracy': KeyError: 'gold'"
    assert "test_functions.py" in failure.place and "the function of the objective" in failure.trace


# ------------------------------------------------------------------------------------------------ groups

TEXTS = st.lists(st.sampled_from(["a", "bb", "bb", "ccc", ""]), min_size=2, max_size=2)


def written(texts: list[str]) -> str:
    return " ".join(f"<answer_{s}> {text} </answer_{s}>" for s, text in enumerate(texts, start=1) if text)


@settings(deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_a_group_is_scored_as_its_function_says(groups: list[list[str]]) -> None:
    spec = load_spec(CASES / "pairwise")
    scored = group_scorer(spec)([written(texts) for texts in groups], {"x": 0}, 2)
    distinct = [[t if t and t not in texts[:i] else None for i, t in enumerate(texts)] for texts in groups]
    every = [text for texts in distinct for text in texts if text]
    for texts, one in zip(distinct, scored, strict=True):
        for text, row in zip(texts, one.matrix.tolist(), strict=True):
            longer = sum(len(other) < len(text) for other in every) / max(len(every) - 1, 1) if text else 0
            assert row == pytest.approx([longer, float(every.count(text) == 1) if text else 0])


GROUP = [written(texts) for texts in (["a", "bb"], ["ccc", "bb"], ["", "ccc"])]
MATRICES = [[[0, 1], [0.25, 0]], [[0.75, 0], [0.25, 0]], [[0, 0], [0.75, 0]]]


def test_groups_meet_at_each_door(case: Callable[[str], RewardSpec], tmp_path: Path, capsys: Any) -> None:
    spec = case("pairwise")
    assert check_spec(spec)
    lines = [{"response": text, "label": {"x": 0}, "candidates": 2, "group": n} for n in (1, 2) for text in GROUP]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"response": "x"}]))
    command = ["score", "--spec", str(CASES / "pairwise"), "--input", str(tmp_path / "in.jsonl")]
    assert main([*command, "--output", str(tmp_path / "out.jsonl")]) == 0
    *scored, bad = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["matrix"] for row in scored] == MATRICES * 2 and "Line 7" in bad["error"]
    for key, value in (("candidates", 3), ("label", {"x": 1})):
        (tmp_path / "in.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in [*lines[:5], {**lines[5], key: value}])
        )
        assert main([*command, "--output", str(tmp_path / "out.jsonl")]) == 0
        *scored, bad = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert [row["matrix"] for row in scored[:3]] == MATRICES and "matrix" not in scored[3]
        assert (
            f"Line 6 of {tmp_path}/in.jsonl cannot be scored: the rows of its group 2 differ in {key!r}."
            in bad["error"]
        )
    made = {"prompts": 2, "rollouts": 3, "candidates": 2, "batch": 2, "seed": 0, "tell_weights": False}
    claim_folder(tmp_path / "pool", made)
    rows = [{"input": f"p {i}", "label": "{}"} for i in range(2)]
    sample_pool(Scripted(GROUP * 2), spec, rows, made, tmp_path / "pool")
    assert load_pool(tmp_path / "pool").reward_matrices.tolist() == [MATRICES, MATRICES]
    asked = ["search", "--model", "m", "--url", "http://localhost:9", "--spec", str(CASES / "pairwise")]
    assert main([*asked, "--budget", "2", "--output", str(tmp_path / "search")]) == 1
    assert "compares the rollouts of a prompt, but a search scores them one by one" in capsys.readouterr().err


@pytest.fixture
def engine_host() -> Iterator[None]:
    with importable_host():
        yield


@pytest.mark.parametrize("paid", [set(), {1}, {0, 1, 2}])
def test_the_rollouts_of_a_prompt_meet_in_the_host_s_actor(
    paid: set[int],
    case: Callable[[str], RewardSpec],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    engine_host: None,
) -> None:
    """As the host starts them: all samples of a prompt at once, with one object of parameters.

    An agent may have paid some of them itself: the scorer compares the others, and nobody waits for ever.
    """
    spec = case("pairwise")
    path = str(CASES / "pairwise" / "spec.yaml")
    run = Settings(path, 2, "raise", tmp_path, on_cpu=True, spec_data=spec.model_dump(mode="json"))
    monkeypatch.setenv(VARIABLE, run.dump())
    from vpo_plugin.openrlhf.agent import AgentExecutor
    from vpo_plugin.openrlhf.matrices import INFO_KEY

    class Writer:
        async def execute(self, prompt: str, sampling_params: Any, llm_engine: Any, **more: Any) -> dict[str, Any]:
            number = sampling_params["started"]
            sampling_params["started"] += 1
            await asyncio.sleep(0.01 * (3 - number))  # the last one is first to be written
            llm_engine.texts[(number,)] = GROUP[number]
            logs = {INFO_KEY: [[0.5, 0.5]] * 2} if number in paid else {}
            return {"action_ranges": [(0, 1)], "observation_tokens": [number], "extra_logs": logs}

    async def prompts() -> list[Any]:
        executor = AgentExecutor()
        executor.writer = Writer()  # type: ignore[assignment]

        async def generate_responses() -> list[Any]:
            parameters = {"started": 0}
            more = {
                "sampling_params": parameters,
                "hf_tokenizer": SimpleNamespace(decode=lambda *_, **__: ""),
                "llm_engine": None,
            }
            return await asyncio.gather(*[executor.execute(prompt="p", label=pack_label({}), **more) for _ in range(3)])

        try:
            return await asyncio.gather(generate_responses(), generate_responses())  # the same prompt twice
        finally:
            assert executor.scoring is not None and not executor.groups
            executor.scoring.close()

    compared = [number for number in range(3) if number not in paid]
    scored = group_scorer(spec)([GROUP[number] for number in compared], {}, 2) if compared else []
    expected = {number: one.matrix for number, one in zip(compared, scored, strict=True)}
    for group in asyncio.run(prompts()):
        for number, output in enumerate(group):
            given = np.full((2, 2), 0.5) if number in paid else expected[number]
            assert output["extra_logs"][INFO_KEY][2:] == pytest.approx(list(np.ravel(given)))
            assert paid or np.allclose(expected[number], MATRICES[number])


def test_a_failing_group_counts_each_of_its_responses(case: Callable[[str], RewardSpec]) -> None:
    spec = case("pairwise")
    items = [Item(text, {"x": 0}, 2, f"Response {n}", None, 7) for n, text in enumerate(GROUP)]
    broken = spec.model_copy(update={"group_scorer": "math:gcd"})
    with Scoring(broken, on_error="zero") as scoring:
        assert [scored.matrix.tolist() for scored in scoring.score(items)] == [[[0, 0], [0, 0]]] * 3
        assert scoring.zeros == 3


# ------------------------------------------------------------------------------------------------ a policy is tried


def test_what_a_few_responses_of_a_policy_say(case: Callable[[str], RewardSpec]) -> None:
    spec = case("unsafe")
    rows = [{"input": "p0", "label": json.dumps({"x": 0})}] * 4
    good = [f"<answer_1> {'UP ' * n} </answer_1> <answer_2> DOWN {'UP ' * n} </answer_2>" for n in range(1, 5)]
    with Scoring(spec) as scoring:
        read, spread, *rest = findings(Scripted(good), spec, scoring, rows, "m", "vpo teach")
        assert read == "Of the 32 candidates requested in 16 responses of m, 32 can be read."
        assert not any("warm_start" in line for line in rest) and rest[0].startswith("16 matrices, ")
        rewards = [score_response(spec, text, {"x": 0}, 2).matrix.tolist() for text in good]
        values = [set_reward_of_two(matrix) for matrix in rewards]
        assert spread.startswith(f"The set rewards of a prompt's responses, {np.mean(values):.2f} on average, have a ")
        assert f"deviation of {np.std(values):.2g} (mean over 4 prompts); for 0 of the prompts they are" in spread
        bad = Scripted([*good[:1], "Go up.", "", "UP"])
        read, advice, spread, *_ = findings(bad, spec, scoring, rows, "m", "vpo teach")
        same = findings(Scripted([""] * 4), spec, scoring, rows, "m", "vpo teach")[2]
        assert "deviation of 0 (mean over 4 prompts); for 4 of the prompts they are all the same" in same
        assert "8 can be read" in read
        assert advice.endswith("Teach the policy the format first: `vpo teach`.")


def test_the_warm_start_that_a_trial_recommends_can_be_run(
    case: Callable[[str], RewardSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = case("unsafe")
    monkeypatch.setattr(trial, "make_policy", lambda *_: Scripted([""] * 4))
    with Scoring(spec) as scoring:
        said = " ".join(trial.try_model(spec, scoring, "my spec", "m", "/m", {"enable_thinking": False}))
    program, name, *arguments = shlex.split(re.findall("`(vpo .*?)`", said)[0])
    settings = read(WarmStartSettings, arguments, "vpo warm_start")
    assert (program, name, settings.spec, settings.model) == ("vpo", "warm_start", "my spec", "m")
    assert str(settings.output) == "runs/unsafe-sets" and settings.chat_template_kwargs == {"enable_thinking": False}


def set_reward_of_two(matrix: list[list[float]]) -> float:
    """`E_w max` for two candidates and two objectives: weights are (w, 1 - w), w uniform."""
    weights = np.linspace(0, 1, 100_001)
    return float(np.max([w * weights + v * (1 - weights) for w, v in matrix], axis=0).mean())

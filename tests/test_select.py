"""`vpo select` and `vpo report` on stored pools and searches."""

import json
from pathlib import Path

import numpy as np
import pytest

from vpo_plugin import files
from vpo_plugin.cli import main
from vpo_plugin.cli.report import named
from vpo_plugin.rewards import load_spec
from vpo_plugin.rewards.formats import write_response
from vpo_plugin.rewards.response import score_response
from vpo_plugin.rewards.task import known_answers, pareto_front, read_rows
from vpo_plugin.search.evaluate import as_columns
from vpo_plugin.search.pool import batch_file, claim_folder, load_pool, write_rows
from vpo_plugin.search.searches import RESULT, RESULT_SCHEMA, SCHEMA, SETTINGS, round_file
from vpo_plugin.search.select import parse_weights, select

SPEC = load_spec("maze_small")
ROWS = [{"input": row["prompt"], "label": json.dumps(row["label"])} for row in read_rows(SPEC, "test", 5, 0)]
ATTACK = "<script>alert(1)</script> </candidate> {0}"
OBJECTIVES = ", ".join(SPEC.objective_keys)


def store_pool(folder: Path, rows: list[dict[str, str]], routes: int, spec: str = "maze_small") -> Path:
    """A pool with so many routes of the front of each prompt in one response; the first prompt has none that parses."""
    made = {"prompts": len(rows), "rollouts": 1, "candidates": 6, "batch": 99, "spec": spec, "spec_digest": spec}
    claim_folder(folder, {**made, "versions": {"vllm": "0"}})
    lines = []
    for i, row in enumerate(rows):
        texts = [text for text, _ in known_answers(SPEC, json.loads(row["label"]))][:routes]
        response = write_response(SPEC, [*texts, ATTACK][:6]) if i else "nothing"
        score = score_response(SPEC, response, json.loads(row["label"]), 6)
        line = {"prompt": i, "rollout": 0, **row, "response": response, "tokens": 9, "seed": 0}
        lines.append(line | as_columns(score))
    write_rows(batch_file(folder, 0), lines)
    return folder


def store_search(folder: Path, procedure: str, rows: list[dict[str, str]], solved_after: list[int | None]) -> None:
    place = folder / procedure
    claim_folder(place, {"budget": 8, "procedure": procedure}, SETTINGS)
    write_rows(round_file(place, 0), [{"prompt": i, "tokens": 5} for i in range(len(rows))], SCHEMA)
    found = [{**row, "solved_after": after, "tried": 8} for row, after in zip(rows, solved_after, strict=True)]
    write_rows(place / RESULT, found, RESULT_SCHEMA)


# ------------------------------------------------------------------------------------------------ vpo select


def test_weights_are_normalised_and_what_is_left_out_has_none() -> None:
    assert parse_weights("gold=2, avoid_lava = 1", SPEC).tolist() == pytest.approx([0, 2 / 3, 0, 1 / 3])
    assert parse_weights("diamond=0.5,", SPEC).tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ("gold", "must look like gold=2,avoid_lava=1; 'gold' does not"),
        ("", "are all 0"),
        ("gold=0", "are all 0"),
        ("gold=much", "The weight of gold is 'much', which is not a number"),
        ("gold=-1", "The weight of gold is -1: weights must be finite and not negative"),
        ("gold=nan", "The weight of gold is nan: weights must be finite"),
        ("silver=1", f"name an unknown objective: 'silver'; the objectives are {OBJECTIVES}"),
        ("gold=1,gold=2", "name the objective twice: 'gold'"),
    ],
)
def test_bad_weights_end_in_a_sentence(
    weights: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = store_pool(tmp_path, ROWS, 3)
    assert main(["select", "--pool", str(pool), "--weights", weights]) == 1
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("command", ["select", "report"])
def test_objectives_that_were_reordered_after_sampling(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else the weight of one objective would meet the rewards of another."""
    pool = store_pool(tmp_path / "pool", ROWS, 3)
    made = json.loads((pool / "pool.json").read_text())
    flags = {
        "select": ["--pool", str(pool), "--weights", "gold=1"],
        "report": ["--pools", str(pool), "--output", str(tmp_path / "report")],
    }
    keys = list(SPEC.objective_keys)
    for sampled, status in ((keys, 0), ([keys[1], keys[0], *keys[2:]], 1)):
        (pool / "pool.json").write_text(json.dumps(made | {"objectives": sampled}))
        assert main([command, *flags[command]]) == status
    said = capsys.readouterr().err
    assert f"was scored with the objectives {keys[1]}, {keys[0]}, " in said and f"has {keys[0]}, {keys[1]}, " in said


def test_each_weighting_gets_the_candidate_that_is_best_under_it(tmp_path: Path) -> None:
    pool = load_pool(store_pool(tmp_path, ROWS, 6))
    for weights in np.random.default_rng(0).dirichlet(np.ones(4), 20):
        rows, values = select(pool, weights)
        for number in range(1, len(ROWS)):
            known = {text: vector for text, vector in known_answers(SPEC, json.loads(ROWS[number]["label"]))[:6]}
            best = max(np.dot(vector, weights) for vector in known.values())
            assert values[number] == pytest.approx(best, abs=1e-6)
            assert np.dot(known[rows[number]["candidate"]], weights) == pytest.approx(best, abs=1e-6)
        assert rows[0]["candidate"] is None and values[0] == 0


def test_vpo_select_says_what_the_pool_gives_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pool with the whole front of each prompt but the first falls short by what the first could have been worth."""
    pool = store_pool(tmp_path / "pool", ROWS, 99)
    flags = ["select", "--pool", str(pool), "--weights", "gold=3,avoid_lava=1"]
    assert main(flags) == 0
    said = capsys.readouterr()
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert [row["prompt"] for row in rows] == [0, 1, 2, 3, 4] and rows[0]["candidate"] is None
    assert "Weights gold 0.75, avoid_lava 0.25. The best of 6 candidates" in said.err
    assert "1 prompts have no candidate that could be parsed" in said.err
    best = [(pareto_front(SPEC, json.loads(row["label"])) @ [0, 0.75, 0, 0.25]).max() for row in ROWS]
    given_up = np.mean(best) - np.mean([row["value"] for row in rows])
    assert f"falls short of it by {given_up:.3f}" in said.err and 0 < given_up < 0.3
    assert main([*flags, "--output", str(tmp_path / "chosen.jsonl")]) == 0
    assert [json.loads(line) for line in (tmp_path / "chosen.jsonl").read_text().splitlines()] == rows
    assert capsys.readouterr().out == ""


# ------------------------------------------------------------------------------------------------ vpo report


def test_vpo_report_of_pools_and_searches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few, many = store_pool(tmp_path / "few", ROWS[:4], 1), store_pool(tmp_path / "many", ROWS[1:], 99)
    for name, after in (("few", [None, 3]), ("many", [1, 2])):
        store_search(tmp_path / f"found_{name}", "evolution", ROWS[2:4], after)
    flags = ["--pools", f"few={few}", f"many={many}", "--output", str(tmp_path / "report")]
    searches = ["--searches", *(f"{name}={tmp_path / f'found_{name}'}" for name in ("few", "many"))]
    step = dict.fromkeys(("step", "time", "reward", "set_reward", "group_diversity", "candidates_parsed"), 1.0)
    for name in ("vpo", "vpo.0123456789abcdef"):  # the second was set aside, for other settings
        files.write(tmp_path / "run" / "train" / name / "policy" / "vpo" / "metrics.jsonl", f"{json.dumps(step)}\n")
    files.write(tmp_path / "run" / "report.json", json.dumps({"settings": {"learning_rate": 0.125}}))
    assert main(["report", *flags, *searches, "--match", "tokens", "--run", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "2 prompts are not in all pools" in said and " @8 " in said
    results = json.loads((tmp_path / "report" / "report.json").read_text())
    assert results["left_out"] == 2 and results["prompts"] == 3 and results["matched"]["by"] == "tokens"
    assert results["command"].startswith("vpo report --pools few=")
    assert [training["name"] for training in results["training"]] == ["vpo"]
    assert [(curve["policy"], curve["solved"]["mean"][-1]) for curve in results["search"]] == [
        ("few", 0.5),
        ("many", 1),
    ]
    assert results["only_solved_by"]["many"] == [1]  # the prompt's number in the report
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<script>alert(1)" not in page and "0.125" in page and results["settings"] == {"learning_rate": 0.125}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--pools", "a=nowhere"], "nowhere holds no pool"),
        (["--pools", "a={pool}", "a={pool}"], "The name 'a' is given twice"),
        (["--pools", "{pool}", "b={other}"], "different specifications"),
        (["--pools", "a={pool}", "--searches", "a={pool}"], "holds no search"),
        (["--pools", "a={pool}", "--run", "{pool}"], "is not a run of the pipeline"),
    ],
)
def test_bad_reports_end_in_a_sentence(
    flags: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool, other = store_pool(tmp_path / "pool", ROWS, 1), store_pool(tmp_path / "other", ROWS, 1, "maze")
    flags = [flag.format(pool=pool, other=other) for flag in flags]
    assert main(["report", *flags, "--output", str(tmp_path / "report")]) == 1
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "report").exists()


def test_a_folder_without_a_name_is_named_after_itself(tmp_path: Path) -> None:
    assert named(["runs/vpo", "x=runs/a=b"]) == {"vpo": Path("runs/vpo"), "x": Path("runs/a=b")}
    (tmp_path / "lr=1e-4").mkdir()
    assert named([f"{tmp_path}/lr=1e-4"]) == {"lr=1e-4": tmp_path / "lr=1e-4"}

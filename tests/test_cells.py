"""`benchmarks.cells`: an experiment in parts. What is kept, what is missing, and what a report says of it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks import cells
from flows.settings import ExperimentSettings
from vpo_plugin.rewards import load_spec
from vpo_plugin.rewards.response import score_response
from vpo_plugin.rewards.task import known_answers, read_rows
from vpo_plugin.search.evaluate import as_columns
from vpo_plugin.search.pool import batch_file, claim_folder, load_pool, write_rows

SPEC = load_spec("maze_small")
ROWS = [{"input": row["prompt"], "label": json.dumps(row["label"])} for row in read_rows(SPEC, "test", 3, 0)]
METHODS = ["grpo", "vpo_at_k:1"]


def finish(run: Path, name: str, seed: int, rows: list[dict[str, str]] = ROWS) -> None:
    """A finished cell of a run: a pool of 3 prompts x 2 single answers, and a training of one step."""
    pool = run / f"seed-{seed}" / "eval" / name / "pool"
    made = {"prompts": 3, "rollouts": 2, "candidates": 1, "batch": 3, "temperature": 1.0}
    claim_folder(pool, {**made, "versions": {"vllm": f"0.0.{seed}"}})
    lines = []
    for number, row in enumerate(rows):
        for rollout, (route, _) in enumerate(known_answers(SPEC, json.loads(row["label"]))[:2]):
            score = score_response(SPEC, f"<route_1> {route} </route_1>", json.loads(row["label"]), 1)
            line = {"prompt": number, "rollout": rollout, **row, "response": route, "tokens": 7, "seed": 3}
            lines.append(line | as_columns(score))
    write_rows(batch_file(pool, 0), lines)
    if name in METHODS:
        train(run, name, seed)


def train(run: Path, name: str, seed: int) -> None:
    log = run / f"seed-{seed}" / "train" / name / "policy" / "vpo"
    (log / "rollouts").mkdir(parents=True)
    (log / "metrics.jsonl").write_text(json.dumps({"step": 1, "reward": 0.5, "response_length": 7.0}) + "\n")
    matrices = np.ones((1, 2, 1, 4))
    np.savez(log / "rollouts" / "step_000001.npz", reward_matrices=matrices, mask=matrices > 0)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """An experiment on its way: one of two cells of the last method is finished, and the other in training."""
    for name, seed in (("base", 0), ("grpo", 0), ("grpo", 1), ("vpo_at_k:1", 0)):
        finish(tmp_path / "run", name, seed)
    train(tmp_path / "run", "vpo_at_k:1", 1)
    return tmp_path / "run"


def test_finished_cells_are_kept_whole(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "cells"

    def stopped(pool: Path, place: Path, **_: object) -> None:
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(pool / "pool.json", place)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(shutil, "copytree", stopped)
        cells.keep(run, kept)
    cells.keep(run, kept)
    found = {str(path.relative_to(kept)) for path in kept.glob("seed-*/*/*")}
    pools = {f"seed-{seed}/eval/{name}" for name, seed in (("base", 0), ("grpo", 0), ("grpo", 1), ("vpo_at_k-1", 0))}
    trained = {"seed-0/train/grpo.json", "seed-1/train/grpo.json", "seed-0/train/vpo_at_k-1.json"}
    assert found == pools | trained
    assert all(load_pool(kept / pool).candidates.shape == (3, 2, 4) for pool in pools)


def test_what_is_missing_is_said_and_not_claimed(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells.keep(run, kept := tmp_path / "cells")
    (kept / "seed-1" / "train" / "grpo.json").unlink()
    methods = ["grpo", "maxrl", "vpo_at_k:1"]
    cells.report(kept, ExperimentSettings(name="part", methods=methods, seeds=[0, 1], eval_candidates=2))
    missing = "grpo with seed 1, maxrl with seed 0, maxrl with seed 1, vpo_at_k:1 with seed 1"
    summary = (tmp_path / "summary.md").read_text()
    assert summary.startswith("# part: grpo, vpo_at_k:1 on maze_small\n") and f"\nMissing: {missing}.\n" in summary
    results = json.loads((tmp_path / "results.json").read_text())
    assert [(m["name"], m["seeds"]) for m in results["methods"]] == [("base", 1), ("grpo", 1), ("vpo_at_k:1", 1)]
    assert "\nPools were sampled with vllm 0.0.0.\n" in summary and "0.0.1" not in summary, "of the pools compared"
    assert results["seeds"] == [0] and results["missing"] == missing.split(", ")
    assert f"Missing: grpo with seed 1 ({kept / 'seed-1' / 'train' / 'grpo.json'})." in capsys.readouterr().out


def test_cells_that_do_not_belong_together(run: Path, tmp_path: Path) -> None:
    settings = ExperimentSettings(methods=METHODS, seeds=[0], eval_candidates=2)
    cells.keep(run, kept := tmp_path / "cells")
    with pytest.raises(ValueError, match=r"base with seed 0 for temperature 0\.7 was sampled at 1\."):
        cells.report(kept, settings.model_copy(update={"eval_temperature": 0.7}))
    for part in ("eval", "train"):
        shutil.rmtree(run / "seed-0" / part / "grpo")
    finish(run, "grpo", 0, ROWS[::-1])
    with pytest.raises(ValueError, match=r"grpo has other responses than .*delete it"):
        cells.keep(run, kept)
    cells.keep(run, other := tmp_path / "other" / "cells")
    with pytest.raises(ValueError, match="grpo with seed 0 has other prompts than the first"):
        cells.report(other, settings)
    with pytest.raises(ValueError, match="one of maxrl, the last method"):
        cells.report(kept, settings.model_copy(update={"methods": ["grpo", "maxrl"]}))


def test_results_that_a_run_set_aside_are_no_cells(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "seed-0" / "eval" / "grpo", run / "seed-0" / "eval" / "grpo.0123456789abcdef")
    cells.keep(run, tmp_path / "cells")
    assert not list(tmp_path.glob("cells/*/*/*0123456789abcdef*"))


def test_what_cannot_be_kept_or_reported_is_a_sentence(run: Path, tmp_path: Path) -> None:
    def said(*words: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            cells.main(list(words))
        return str(stopped.value)

    nothing, kept = str(tmp_path / "nothing"), tmp_path / "cells"
    assert f"{nothing} is not the folder of an experiment: it has no pool" in said("keep", nothing, str(kept))
    assert f"{nothing} holds nothing to compare: it needs the base policy's cell of seed 0" in said(
        "report", nothing, "--methods", "grpo"
    )
    assert "no advantage estimator named 'grpoo'" in said("report", nothing, "--methods", "grpoo")
    cells.keep(run, kept)
    shutil.rmtree(kept / "seed-0" / "eval" / "base")
    assert "holds nothing to compare: it needs the base policy's cell of seed 0" in said(
        "report", str(kept), "--methods", "grpo", "--candidates", "1"
    )
    assert "python -m benchmarks.cells keep runs/kit" in said("keep")

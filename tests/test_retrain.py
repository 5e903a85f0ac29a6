"""Retraining: new prompts only, the same test for both, and never a worse policy instead of a better one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import vpo
from filelock import FileLock

from flows.promotion import decide, table
from flows.registry import champion, history, read_version, versions
from flows.retrain import fingerprint, unseen
from flows.settings import RetrainSettings
from vpo_plugin.rewards import load_spec
from vpo_plugin.rewards.task import read_rows
from vpo_plugin.search.pool import Pool

LOADER = """
import json
from pathlib import Path


def rows(split, num_rows, seed, **_):
    lines = (Path(__file__).parent / f"{split}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[:num_rows]]
"""
pytestmark = pytest.mark.timeout(1800)  # for a machine with much else to do
SMALL = {
    "flow": "retrain",
    "name": "small",
    "steps": 2,
    "prompts_per_step": 4,
    "rollouts_per_prompt": 4,
    "eval_prompts": 6,
    "eval_candidates": 6,
    "deployment_k": 3,
    "min_new_prompts": 8,
    "margin": -1.0,
    "pass_at_1_allowance": 1.0,
    "format_allowance": 1.0,
}
SPEC = load_spec("maze_small")


def write_growing_spec(folder: Path, *, train: int, test: int) -> Path:
    """The small mazes in files that grow, as the data of a team does."""
    folder.mkdir(exist_ok=True)
    for split, number in (("train", train), ("test", test)):
        rows = [{"prompt": row["prompt"], "label": row["label"]} for row in read_rows(SPEC, split, number, 3)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    module = f"rows_of_{abs(hash(folder))}"
    (folder / f"{module}.py").write_text(LOADER)
    (folder / "spec.yaml").write_text(f"extends: maze_small\nname: growing\ndataset: {{loader: '{module}:rows'}}\n")
    return folder


def write_config(tmp_path: Path, spec: Path, **settings: object) -> Path:
    config = tmp_path / "retrain.yaml"
    places = {"runs": str(tmp_path / "runs"), "registry": str(tmp_path / "registry"), "spec": str(spec)}
    config.write_text(yaml.safe_dump(SMALL | places | settings))
    return config


def retrain(tmp_path: Path, spec: Path, **settings: object) -> subprocess.CompletedProcess[str]:
    """`vpo run` of a retraining, with a Prefect of its own."""
    config = write_config(tmp_path, spec, **settings)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_API", "MLFLOW_"))}
    environment |= {"PREFECT_HOME": str(tmp_path / "prefect"), "COLUMNS": "400"}
    if uri := settings.get("mlflow"):
        environment["MLFLOW_TRACKING_URI"] = str(uri)
    command = [sys.executable, "-m", "vpo_plugin.cli", "run", str(config)]
    return subprocess.run(command, capture_output=True, text=True, timeout=1500, env=environment, cwd=tmp_path)


def test_a_challenger_is_trained_compared_and_promoted(tmp_path: Path) -> None:
    """The first retraining promotes (its margin lets anything pass), the next one has nothing new to learn from."""
    spec, folder = write_growing_spec(tmp_path / "growing", train=9, test=7), tmp_path / "registry"
    first = retrain(tmp_path, spec)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "Promoted: best@3" in first.stdout and "v0002 is champion instead of v0001." in first.stdout
    base, challenger = versions(folder)
    assert (base.parent, challenger.parent, champion(folder)) == (None, "v0001", challenger)
    assert base.prompts == [] and len(challenger.prompts) == 8  # two whole steps; the ninth waits for the next time
    assert (Path(challenger.policy) / "config.json").exists() and challenger.candidates == base.candidates == 3
    assert challenger.evaluation is not None and set(challenger.evaluation["changes"]) == {
        "best@3",
        "pass@1",
        "format rate",
    }
    (run,) = [place for place in (tmp_path / "runs" / "small").iterdir() if place.is_dir()]
    pools = [
        json.loads((run / "eval" / name / "pool" / "pool.json").read_text()) for name in ("champion", "challenger")
    ]
    assert pools[0]["seed"] == pools[1]["seed"] and pools[0]["model"] == base.policy
    assert json.loads((run / "report.json").read_text())["differences"][-1]["a"] == "challenger"

    second = retrain(tmp_path, spec)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "Skipped: 1 prompts that no version was trained on, but at least 8 are needed" in second.stdout
    assert champion(folder) == challenger and len(versions(folder)) == 2

    with FileLock(folder / "retraining.lock"):
        third = retrain(tmp_path, spec)
    assert third.returncode == 0 and "Skipped: another retraining works on the registry" in third.stdout


@pytest.mark.slow
def test_what_is_not_better_stays_aside(tmp_path: Path) -> None:
    """The same retraining with a margin that nothing reaches; MLflow, where it is installed, is told the same."""
    spec, folder = write_growing_spec(tmp_path / "growing", train=8, test=6), tmp_path / "registry"
    done = retrain(tmp_path, spec, margin=0.9)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Kept: best@3" in done.stdout and "v0001 stays champion; v0002 is in the registry." in done.stdout
    assert [change.champion for change in history(folder)] == ["v0001"]
    assert (folder / "champion").read_text() == "v0001\n"
    assert "Skipped: 0 prompts" in retrain(tmp_path, spec).stdout


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"min_new_prompts": 3}, "min_new_prompts is 3: it must be at least prompts_per_step (4)"),
        ({"min_new_prompts": 9}, "at most steps times prompts_per_step (8)"),
        ({"deployment_k": 7}, "deployment_k is 7, but only 6 candidates are sampled"),
        ({"model": "./nowhere"}, "./nowhere is not a model folder"),
        ({"eval_candidates": 7}, "eval_candidates is 7, but responses have 3 candidates"),
        ({"method": "goal_conditioned"}, "goal_conditioned states weights in each prompt"),
    ],
)
def test_wrong_settings_end_in_a_sentence(tmp_path: Path, settings: dict[str, Any], sentence: str) -> None:
    """Before Prefect starts, and so in a moment."""
    done = vpo("run", write_config(tmp_path, write_growing_spec(tmp_path / "growing", train=9, test=7), **settings))
    assert done.returncode == 1
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("vpo: ")]
    assert sentence in said
    assert not (tmp_path / "registry").exists()


@pytest.mark.slow
def test_a_registry_of_another_spec_is_refused(tmp_path: Path) -> None:
    """And, in the first retraining, more held-out prompts than there are."""
    done = retrain(tmp_path, write_growing_spec(tmp_path / "growing", train=9, test=7), eval_prompts=8)
    assert done.returncode == 1
    assert "has 7 prompts that no version was trained on, but needs 8" in done.stderr
    done = retrain(tmp_path, Path("maze_small"))
    assert done.returncode == 1 and "give each spec its own registry" in done.stderr


# --------------------------------------------------------------------------------------------- which prompts are new


def test_a_generator_goes_on_where_it_stopped() -> None:
    first = unseen(SPEC, "train", 20, 0, set())
    seen = {fingerprint(row) for row in first}
    second = unseen(SPEC, "train", 20, 0, seen)
    assert len(second) == 20 and not seen & {fingerprint(row) for row in second}
    assert first + second == unseen(SPEC, "train", 40, 0, set())


def test_a_file_gives_what_was_added_wherever_it_stands(tmp_path: Path) -> None:
    folder = write_growing_spec(tmp_path / "growing", train=10, test=1)
    spec = load_spec(folder)
    first = unseen(spec, "train", 100, 0, set())
    assert len(first) == 10
    file = folder / "train.jsonl"
    new = [json.dumps(row) for row in read_rows(SPEC, "train", 13, 3)][10:]
    lines = file.read_text().splitlines()
    file.write_text("\n".join([new[0], *lines[:5], new[1], *lines, new[1], *lines[2:], new[2]]) + "\n")
    second = unseen(spec, "train", 100, 0, {fingerprint(row) for row in first})
    assert [json.dumps(row) for row in second] == new


def test_rows_that_repeat_for_ever_come_to_an_end(tmp_path: Path) -> None:
    folder = write_growing_spec(tmp_path / "growing", train=3, test=1)
    (module,) = folder.glob("rows_of_*.py")
    module.write_text(LOADER.replace("lines[:num_rows]", "(lines * num_rows)[:num_rows]"))
    assert len(unseen(load_spec(folder), "train", 50, 0, set())) == 3


# ---------------------------------------------------------------------------------------------- what is promoted


ROWS = [{"label": json.dumps(row["label"])} for row in read_rows(SPEC, "test", 40, 0)]


def pool(values: np.ndarray, parsed: int = 3) -> Pool:
    """A pool whose candidates are worth these values, shape (prompts, rollouts · 3), on every objective."""
    prompts, candidates = values.shape
    matrices = np.repeat(values.reshape(prompts, candidates // 3, 3, 1), 4, axis=-1).astype(np.float32)
    responses = [{"prompt": prompt, "parsed": parsed} for prompt in range(prompts) for _ in range(candidates // 3)]
    return Pool(matrices, responses, {})


def settings(**changes: Any) -> RetrainSettings:
    return RetrainSettings(**({"deployment_k": 5, "eval_candidates": 30} | changes))


RANDOM = np.random.default_rng(0)
BASE = RANDOM.uniform(0.1, 0.4, size=(40, 30))


def test_better_is_promoted_and_the_same_is_not() -> None:
    better = decide(pool(BASE), pool(BASE + 0.05), SPEC, ROWS, settings())
    assert better.promote and "lies above the margin" in better.reason
    assert better.changes["best@5"].mean == pytest.approx(0.05, abs=1e-6)
    same = decide(pool(BASE), pool(BASE), SPEC, ROWS, settings())
    assert not same.promote and "does not lie above the margin of +0.000" in same.reason
    assert not decide(pool(BASE + 0.05), pool(BASE), SPEC, ROWS, settings()).promote


def test_the_margin_counts_and_may_be_negative() -> None:
    after = pool(BASE + 0.05)
    assert decide(pool(BASE), after, SPEC, ROWS, settings(margin=0.049)).promote
    assert not decide(pool(BASE), after, SPEC, ROWS, settings(margin=0.051)).promote
    assert decide(pool(BASE), pool(BASE), SPEC, ROWS, settings(margin=-0.01)).promote


def test_a_gain_within_chance_is_not_a_gain() -> None:
    """A mean gain whose interval holds zero."""
    noise = RANDOM.normal(0, 0.2, size=(40, 1))
    after = BASE + (noise - noise.mean()) + 0.01
    decision = decide(pool(BASE), pool(after), SPEC, ROWS, settings())
    assert decision.changes["best@5"].mean > 0 > decision.changes["best@5"].low and not decision.promote


def test_guarded_metrics_hold_a_better_challenger_back() -> None:
    solving = BASE.copy()
    solving[:, 0] = 1.0  # one candidate in thirty solves its prompt
    after = solving + 0.0
    after[:, 0] = 0.9
    after[:, 1:] += 0.5
    rule = settings(pass_at_1_allowance=0.01)
    decision = decide(pool(solving), pool(np.minimum(after, 0.6)), SPEC, ROWS, rule)
    assert not decision.promote and "pass@1 falls by 0.033, beyond its allowance of 0.010" in decision.reason
    unread = decide(pool(BASE), pool(BASE + 0.05, parsed=2), SPEC, ROWS, settings(format_allowance=0.3))
    assert not unread.promote and "format rate falls by 0.333, beyond its allowance of 0.300" in unread.reason
    assert decide(pool(BASE), pool(BASE + 0.05, parsed=2), SPEC, ROWS, settings(format_allowance=0.34)).promote


def test_pools_of_other_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="40 prompts, but 39 were held out"):
        decide(pool(BASE), pool(BASE), SPEC, ROWS[:39], settings())


def test_the_table_names_both() -> None:
    lines = table(decide(pool(BASE), pool(BASE + 0.05), SPEC, ROWS, settings()), ("v0001", "v0002")).splitlines()
    assert "champion v0001" in lines[0] and "challenger v0002" in lines[0] and lines[2].startswith("| best@5 | ")


# ----------------------------------------------------------------------------------------------------- MLflow


def test_mlflow_is_told_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed: pip install 'vpo-plugin[mlflow]'")
    from flows.mlflow_mirror import check_mlflow, mirror
    from flows.registry import add_version, promote, rollback

    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    check_mlflow()
    folder = tmp_path / "registry"
    assert mirror(folder) is None
    policy = tmp_path / "policy"
    policy.mkdir()
    (policy / "config.json").write_text("{}")
    changes = decide(pool(BASE), pool(BASE + 0.05), SPEC, ROWS, settings()).model_dump()
    add_version(folder, policy="Qwen/Qwen3-1.7B", spec="maze_small", candidates=3)
    add_version(folder, policy=str(policy), spec="maze_small", candidates=3, parent="v0001", evaluation=changes)
    promote(folder, "v0001", over=None, why="the first")
    promote(folder, "v0002", over="v0001", why="better")
    assert mirror(folder) == f"MLflow's model 'vpo-maze_small' at {uri}: versions added 2, champion v0002."
    client = mlflow.MlflowClient(tracking_uri=uri)
    told = client.get_model_version_by_alias("vpo-maze_small", "champion")
    assert told.tags["vpo.version"] == "v0002"
    assert (Path(told.source.removeprefix("file://")) / "config.json").exists()
    assert client.get_run(told.run_id).data.metrics["best_at_5"] > 0
    rollback(folder)
    assert "versions added 0, champion v0001." in str(mirror(folder))
    assert client.get_model_version_by_alias("vpo-maze_small", "champion").tags["vpo.version"] == "v0001"


def test_an_mlflow_that_does_not_answer_is_said_before_anything_starts(tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="mlflow is not installed: pip install 'vpo-plugin[mlflow]'")
    spec = write_growing_spec(tmp_path / "growing", train=9, test=7)
    server = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    done = vpo("run", write_config(tmp_path, spec), **server)
    assert done.returncode == 1 and "The MLflow registry at http://127.0.0.1:9 does not answer" in done.stderr
    assert not (tmp_path / "registry").exists()


def test_versions_are_read_by_their_number(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no version 'v0001': it holds none"):
        read_version(tmp_path, "v0001")

"""The experiment: its figures on pools made by hand, its outputs, and the command end to end."""

import json
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from conftest import vpo

from benchmarks import cells
from flows.experiment import cell_settings, single_rollouts
from flows.settings import ExperimentSettings
from vpo_plugin.cli.settings import read
from vpo_plugin.report.experiment import write_experiment
from vpo_plugin.rewards import RewardSpec, load_spec
from vpo_plugin.rewards.task import read_rows
from vpo_plugin.search.comparison import Comparison
from vpo_plugin.search.experiment import analyse, at_their_best, pack_array, unpack_array, verdict
from vpo_plugin.search.pool import Pool, random_goals

PROMPTS, SEEDS = 12, (0, 1)
ROWS = [{"input": str(number), "label": json.dumps("x")} for number in range(PROMPTS)]
Pools = dict[tuple[str, int], Pool]

SPEC = """
name: two_objectives
description: Two objectives that are given, and no solver.
objectives: [{key: gold, description: gold}, {key: lava, description: lava}]
candidates: 3
tag: answer
solved: 0.4
prompt: {single: "Write <answer_1>.", multi: "Write {candidates} in <answer_1>."}
scorer: two_objectives_of_the_test:score
dataset: {loader: two_objectives_of_the_test:rows}
limits: {response_chars: 1000, tokens_per_candidate: 10}
"""
MODULE = """
def score(candidate, label):
    return [0.0, 0.0]

def rows(split, num_rows, seed):
    return []
"""


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> RewardSpec:
    folder = tmp_path_factory.mktemp("spec")
    (folder / "spec.yaml").write_text(SPEC)
    (folder / "two_objectives_of_the_test.py").write_text(MODULE)
    return load_spec(folder)


def made(name: str, seed: int, level: float, *, m: int = 1, tokens: int = 60) -> Pool:
    """A pool of 6 candidates a prompt with rewards up to `level`; the same prompts are hard for every method."""
    generator = np.random.default_rng(seed + 100 * len(name))
    hardness = np.linspace(0.5, 1.0, PROMPTS)[:, None, None, None]
    matrices = level * hardness * generator.random((PROMPTS, 6 // m, m, 2))
    response = {"candidates": [f"{i}" for i in range(m)], "tokens": tokens * m // 6, "parsed": m, "unique": m}
    responses = [{**response, "prompt": number, "response": "r"} for number in range(PROMPTS) for _ in range(6 // m)]
    return Pool(matrices.astype(np.float32), responses, {})


@pytest.fixture
def pools() -> Pools:
    others = {(name, seed): made(name, seed, 0.6) for name in ("grpo", "set_max") for seed in SEEDS}
    return {
        ("base", 0): made("base", 0, 0.3),
        **others,
        **{("vpo", seed): made("vpo", seed, 1.0, m=3) for seed in SEEDS},
    }


def curves(steps: int = 3) -> dict[str, list[float]]:
    drawn = {key: [float(step) for step in range(steps)] for key in ("expected_set_reward", "pairwise_l1", "reward")}
    return drawn | {"tokens": [10.0] * steps, "candidates": [4.0] * steps}


def test_figures_are_those_of_all_subsets(pools: Pools, spec: RewardSpec) -> None:
    results = analyse(Comparison(pools, spec, ROWS), candidates=3)
    measured = {method["name"]: method for method in results["methods"]}
    values = np.array([pools["vpo", seed].candidates.mean(-1) for seed in SEEDS])
    by_hand = np.mean([values[..., list(chosen)].max(-1) for chosen in combinations(range(6), 4)])
    assert measured["vpo"]["best_at_k"]["mean"][3] == pytest.approx(by_hand)
    solved = np.mean([(values[..., list(chosen)] >= 0.4).any(-1) for chosen in combinations(range(6), 2)])
    assert measured["vpo"]["pass_at_k"]["mean"][1] == pytest.approx(solved)
    assert measured["vpo"]["distinct_rewards"]["mean"] == 3 and measured["grpo"]["candidates"] == 1
    assert measured["base"]["seeds"] == 1 and len(measured["vpo"]["best_by_seed"]) == 2
    assert all(
        m["best_at_k"]["low"][-1] <= m["best_at_k"]["mean"][-1] <= m["best_at_k"]["high"][-1] for m in measured.values()
    )
    assert sum(m["coverage"]["mean"] for m in measured.values()) == pytest.approx(1)


def test_whole_sets_are_counted_as_well(pools: Pools, spec: RewardSpec) -> None:
    """Of two responses of three candidates: k = 3 is one response, k = 6 both; a single candidate is a set of one."""
    results = analyse(Comparison(pools, spec, ROWS), candidates=3)
    measured = {method["name"]: method for method in results["methods"]}
    assert results["set_ks"] == [3, 6]
    values = np.array([pools["vpo", seed].reward_matrices.mean(-1) for seed in SEEDS])  # (seeds, prompts, 2, 3)
    assert measured["vpo"]["best_at_k_sets"]["mean"] == pytest.approx(
        [values.max(-1).mean(), values.max((2, 3)).mean()]
    )
    solved = (values >= 0.4).any(-1)
    assert measured["vpo"]["pass_at_k_sets"]["mean"] == pytest.approx([solved.mean(), solved.any(-1).mean()])
    any_k = measured["grpo"]["best_at_k"]["mean"]
    assert measured["grpo"]["best_at_k_sets"]["mean"] == pytest.approx([any_k[2], any_k[5]])
    alone = Comparison({("grpo", 0): pools["grpo", 0]}, spec, ROWS)
    assert alone.set_ks == [] and "best_at_k_sets" not in alone.figures()[0]


def test_the_claims_of_the_paper_hold_or_do_not_or_cannot_be_told(pools: Pools, spec: RewardSpec) -> None:
    verdicts = analyse(Comparison(pools, spec, ROWS), candidates=3)["verdicts"]
    said = {v["claim"]: v["verdict"] for v in verdicts}
    assert said["vpo is ahead of grpo at best@6"] == said["vpo is ahead of grpo at best@3, whole sets"] == "holds"
    assert len(said) == 6 and set(said.values()) <= {"holds", "cannot be told"}
    first, *_ = analyse(Comparison(swapped(pools), spec, ROWS), candidates=3)["verdicts"]
    assert (first["claim"], first["verdict"]) == ("vpo is ahead of grpo at best@6", "does not hold")
    assert verdict({"mean": 0.1, "low": -0.1, "high": 0.3}) == "cannot be told"
    assert verdict({"mean": 0.0, "low": -0.005, "high": 0.02}, -0.01) == "holds"


def test_a_lead_grows_over_the_baseline_that_is_strongest_at_the_full_budget(spec: RewardSpec) -> None:
    """max_at_k is ahead of vpo at one candidate and grpo at six: at each budget another one is the strongest."""
    grpo, steady = made("grpo", 0, 0.9), made("grpo", 0, 0.9)
    steady.reward_matrices[:] = 0.4
    pools = {("max_at_k", 0): steady, ("grpo", 0): grpo, ("multi_rlvr", 0): made("x", 0, 1.2), ("vpo", 0): grpo}
    results = analyse(Comparison(pools, spec, ROWS), candidates=1)
    assert results["strongest"]["names"][0] == "max_at_k" and results["strongest"]["names"][-1] == "grpo"
    [growth] = [v for v in results["verdicts"] if "grows" in v["claim"]]
    assert growth["claim"] == "vpo's lead over grpo grows from best@1 to best@6"
    assert growth["mean"] == growth["low"] == growth["high"] == 0


def swapped(pools: Pools) -> Pools:
    """The same where vpo and grpo have each other's pools."""
    other = {"vpo": "grpo", "grpo": "vpo"}
    return {(name, seed): pools[other.get(name, name), seed] for name, seed in pools}


def test_each_method_at_its_best_temperature(pools: Pools, spec: RewardSpec, tmp_path: Path) -> None:
    """grpo is better sampled hot, vpo cold; the summary has a section for each temperature and for the best ones."""
    cold = pools | {("base", 0): made("base", 0, 0.4)} | {("grpo", seed): made("grpo", seed, 0.2) for seed in SEEDS}
    compared = {0.7: Comparison(cold, spec, ROWS), 1.0: Comparison(pools, spec, ROWS)}
    chosen = at_their_best(compared)
    assert (chosen["grpo"], chosen["base"]) == (1.0, 0.7)
    at = [{"temperature": heat, **analyse(of, candidates=3)} for heat, of in compared.items()]
    at.append({**at[1], "temperature": chosen})
    head = {"title": "t", "command": "c", "machine": "m", "versions": {"a": "1"}, "commit": "0", "prompts": PROMPTS}
    results = {**head, "objectives": ["gold", "lava"], "seeds": [0, 1], **at[0], "at": at[1:]}
    write_experiment(results, {0.7: cold, 1.0: pools}, tmp_path)
    summary = (tmp_path / "summary.md").read_text()
    for title in ("Results, temperature 0.7", "Results, temperature 1", "Results, each method at its best temperature"):
        assert f"## {title}\n" in summary
    assert "| grpo | 1 | 1 |" in summary and "| base | 1 | 0.7 |" in summary and summary.count("**holds**") > 3
    stored = json.loads((tmp_path / "results.json").read_text())
    assert [pool["temperature"] for pool in stored["pools"]] == [0.7] * len(pools) + [1.0] * len(pools)


def test_differences_are_paired_and_the_strongest_is_a_scalar_baseline(pools: Pools, spec: RewardSpec) -> None:
    results = analyse(Comparison(pools, spec, ROWS), candidates=3)
    measured = {method["name"]: method["best_at_k"]["mean"] for method in results["methods"]}
    assert [d["b"] for d in results["differences"]] == ["base", "grpo", "set_max"]
    for difference in results["differences"]:
        expected = np.subtract(measured["vpo"], measured[difference["b"]])
        assert difference["best_at_k"]["mean"] == pytest.approx(expected.tolist())
        assert difference["best_at_k"]["low"][-1] > 0
        assert difference["growth"]["from_k"] == 3
        assert difference["growth"]["mean"] == pytest.approx(expected[-1] - expected[2])
    assert set(results["strongest"]["names"]) == {"grpo"}  # set_max is an ablation, the base is not trained
    grpo = {seed: pools["grpo", seed] for seed in SEEDS}
    twice = {(name, seed): pool for name in ("grpo", "again") for seed, pool in grpo.items()}
    same = analyse(Comparison(twice, spec, ROWS), candidates=3)
    assert same["differences"][0]["best_at_k"]["low"] == same["differences"][0]["best_at_k"]["high"] == [0.0] * 6


def test_intervals_widen_with_the_seeds_spread(spec: RewardSpec) -> None:
    alike = {("vpo", seed): made("vpo", seed, 0.8) for seed in (0, 1, 2)}
    apart = {("vpo", seed): made("vpo", seed, level) for seed, level in ((0, 0.4), (1, 0.8), (2, 1.2))}
    widths = []
    for some in (alike, apart):
        [policy] = Comparison(some, spec, ROWS).figures()
        widths.append(policy["best_at_k"]["high"][-1] - policy["best_at_k"]["low"][-1])
    assert widths[1] > 2 * widths[0]


def test_in_tokens_a_budget_buys_the_longer_responses_fewer_candidates(spec: RewardSpec) -> None:
    short, long = made("short", 0, 0.8, tokens=60), made("longer", 0, 0.8, tokens=120)
    compared = Comparison({("short", 0): short, ("longer", 0): long}, spec, ROWS, match="tokens")
    results = analyse(compared, candidates=1)
    measured = {method["name"]: method for method in results["methods"]}
    assert results["ks"] == [20, 40, 60]  # tokens: up to what the shorter pool cost, by one longer candidate each
    assert measured["short"]["searched"] == {"candidates": 6.0, "tokens": 60.0}
    assert measured["longer"]["searched"] == {"candidates": 3.0, "tokens": 60.0}
    [alone] = Comparison({("longer", 0): long.first(3)}, spec, ROWS).figures()
    assert measured["longer"]["best_at_k"]["mean"] == pytest.approx(alone["best_at_k"]["mean"])


def test_between_two_whole_candidates_a_budget_is_worth_what_lies_between(spec: RewardSpec) -> None:
    cheap, dear = (
        made("cheap", 0, 0.8, tokens=60),
        made("dear", 0, 0.8, tokens=90),
    )  # one dear candidate is 1.5 cheap ones
    compared = Comparison({("cheap", 0): cheap, ("dear", 0): dear}, spec, ROWS, match="tokens")
    assert compared.policies["cheap"].bought.tolist() == [1.5, 3, 4.5, 6] and compared.ks == [1, 2, 3, 4]
    whole = Comparison({("cheap", 0): cheap}, spec, ROWS).policies["cheap"].best_at_k.mean((0, 1))
    found = compared.policies["cheap"].best_at_k.mean((0, 1))
    assert found == pytest.approx([(whole[0] + whole[1]) / 2, whole[2], (whole[3] + whole[4]) / 2, whole[5]])


def test_policies_are_paired_by_their_training_seeds(spec: RewardSpec) -> None:
    """Whatever seeds are missing, and although the strongest baseline differs from budget to budget."""
    steady = made("max_at_k", 0, 0.9)
    steady.reward_matrices[:] = 0.4
    some = {("grpo", seed): made("grpo", seed, 0.9) for seed in (0, 1, 2)} | {("max_at_k", 0): steady}
    some |= {("set_max", seed): made("set_max", seed, 0.7) for seed in (0, 2)}
    pools = {("base", 0): made("base", 0, 0.3)} | some
    pools |= {("vpo", seed): made("vpo", seed, 0.9, m=3) for seed in (0, 1)}
    results = analyse(Comparison(pools, spec, ROWS), candidates=3)
    assert {d["b"]: d["seeds"] for d in results["differences"]} == {
        **{"base": [0, 1], "grpo": [0, 1], "max_at_k": [0], "set_max": [0]}
    }
    assert set(results["strongest"]["names"]) == {"grpo", "max_at_k"}
    alone = Comparison({cell: pool for cell, pool in pools.items() if cell[1] == 0}, spec, ROWS)
    found = {d["b"]: d["best_at_k"] for d in results["differences"]}
    assert found["set_max"] == alone.ahead("vpo", "set_max") and found["max_at_k"] == alone.ahead("vpo", "max_at_k")
    assert found["grpo"] != alone.ahead("vpo", "grpo")
    with pytest.raises(ValueError, match="no training seed in common"):
        Comparison({("grpo", 0): made("grpo", 0, 0.5), ("vpo", 1): made("vpo", 1, 0.5)}, spec, ROWS).ahead(
            "vpo", "grpo"
        )


def test_seeds_of_unequal_length_have_the_curve_of_their_common_steps(pools: Pools, spec: RewardSpec) -> None:
    """Dynamic filtering drops prompts, and so steps."""
    training = {"vpo": [curves(3), curves(5)]}
    results = analyse(Comparison(pools, spec, ROWS), training, candidates=3)
    assert results["training"]["vpo"]["reward"] == [0, 1, 2]


def test_pools_of_other_prompts_are_refused(spec: RewardSpec) -> None:
    pools = {("grpo", 0): made("grpo", 0, 0.5), ("vpo", 0): made("vpo", 0, 0.5)}
    with pytest.raises(ValueError, match="Pools must have the same 11 prompts and 2 objectives"):
        Comparison(pools, spec, ROWS[:-1])


def test_results_hold_every_raw_pool(pools: Pools, spec: RewardSpec, tmp_path: Path) -> None:
    head = {"title": "t", "command": "c", "machine": "m", "versions": {"a": "1"}, "commit": "0", "prompts": PROMPTS}
    training = {name: [curves(), curves()] for name in ("grpo", "set_max", "vpo")}
    results = head | {"objectives": ["gold", "lava"], "seeds": [0, 1]}
    results |= analyse(Comparison(pools, spec, ROWS), training, candidates=3)
    write_experiment(results, {1.0: pools}, tmp_path)
    stored = json.loads((tmp_path / "results.json").read_text())
    assert [(pool["method"], pool["seed"]) for pool in stored["pools"]] == list(pools)
    for kept, pool in zip(stored["pools"], pools.values(), strict=True):
        np.testing.assert_array_equal(unpack_array(kept["reward_matrices"]), pool.reward_matrices)
    assert unpack_array(pack_array(np.arange(6.0).reshape(2, 3))).shape == (2, 3)
    assert stored["methods"][-1]["trained"] == {"tokens": 30, "candidates": 12} and not stored["methods"][0]["trained"]
    summary = (tmp_path / "summary.md").read_text()
    assert "| vpo | 3 |" in summary and "vpo − set_max" in summary  # noqa: RUF001
    plots = {"best_at_k.png", "pass_at_k.png", "gap_at_k.png", "training.png", "sets.png"}
    assert all((tmp_path / name).stat().st_size > 5000 and name in summary for name in plots)


def test_matched_candidates_and_matched_tokens_in_training() -> None:
    settings = ExperimentSettings(rollouts_per_prompt=8)
    bases = [made("base", 0, 0.3, tokens=60), made("base, sets of 3", 0, 0.3, m=3, tokens=50)]  # 10 and 25 a response
    assert single_rollouts(settings, 3, bases) == 24
    assert single_rollouts(settings.model_copy(update={"match": "tokens"}), 3, bases) == 20  # 8 · 25 / 10


def test_objectives_may_differ_in_number_from_prompt_to_prompt(tmp_path: Path) -> None:
    """An objective that a prompt does not have is nan: it counts in no measure and is in no plot."""
    ragged = load_spec("instructions")
    rows = [{**row, "label": json.dumps(row["label"])} for row in read_rows(ragged, "test", 6, 0)]
    numbers = [len(json.loads(row["label"])["instructions"]) for row in rows]
    assert len(set(numbers)) > 1
    generator = np.random.default_rng(0)
    pools = {}
    for name, share in (("base", 0.4), ("vpo_at_k:1", 0.8)):
        matrices = (generator.random((6, 4, 1, max(numbers))) < share).astype(np.float32)
        for of_prompt, number in zip(matrices, numbers, strict=True):
            of_prompt[..., number:] = np.nan
        response = {"candidates": ["a"], "tokens": 5, "parsed": 1, "unique": 1, "response": "a"}
        responses = [{**response, "prompt": prompt} for prompt in range(6) for _ in range(4)]
        pools[name, 0] = Pool(matrices, responses, {})
    compared = Comparison(pools, ragged, rows)
    head = {"title": "t", "command": "c", "machine": "m", "versions": {"a": "1"}, "commit": "0", "prompts": 6}
    results = head | {"objectives": compared.objectives, "seeds": [0]} | analyse(compared, candidates=1)
    assert compared.objectives == [f"instruction_{i + 1}" for i in range(max(numbers))]
    by_hand = np.mean([np.nanmean(of_prompt[:, 0], -1).max() for of_prompt in pools["vpo_at_k:1", 0].reward_matrices])
    assert results["methods"][1]["best_at_k"]["mean"][-1] == pytest.approx(by_hand)
    write_experiment(results, {1.0: pools}, tmp_path)
    assert (tmp_path / "sets.png").stat().st_size > 5000


def test_a_seed_shares_the_settings_and_the_folder_of_its_experiment(tmp_path: Path) -> None:
    settings = ExperimentSettings(name="e", runs=tmp_path, steps=7, seeds=[4])
    of_seed = cell_settings(settings, 4)
    assert (of_seed.steps, of_seed.seed, of_seed.folder) == (7, 4, tmp_path / "e" / "seed-4")


def test_every_rollout_of_a_search_is_told_weights_of_its_own() -> None:
    spec = load_spec("maze_small")
    goals = [goal for label in "ab" for goal in random_goals(spec, label, range(3), seed=1)]
    assert len(goals) == 6 == len({tuple(goal) for goal in goals})
    assert all(sum(goal) == pytest.approx(1) for goal in goals)
    again, others = (random_goals(spec, "a", range(3), seed=seed) for seed in (1, 2))
    assert goals[:3] == again != others


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--methods", "vpo,grpoo"], "no advantage estimator named 'grpoo'"),
        (["--methods", "vpo,maxrl:3"], "maxrl rewards one candidate per response"),
        (["--methods", "vpo,vpo_at_k:7"], "responses have 7 candidates"),
        (["--seeds", "1,1"], "--seeds: names something twice"),
        (["--seeds=-1"], "--seeds.0 is -1: it must be greater than or equal to 0."),
        (["--methods", "grpo,vpo:2", "--match", "tokens"], "vpo:2 writes 2 candidates in a response, and set methods"),
        (["--eval_temperature", "1", "--eval_temperatures", "0.7"], "eval_temperatures are both given: leave"),
        (["--steps", "many"], "--steps is many: it must be a valid integer"),
        (
            ["--spec", "code", "--max_new_tokens", "4000", "--methods", "goal_conditioned"],
            "their number differs between",
        ),
        (["--eval_candidates", "31"], "a multiple of 3"),
        (["--eval_temperatures", "0.7,0"], "--eval_temperatures.1 is 0: it must be greater than 0"),
        (["--eval_temperatures", "0.7,0.7"], "names something twice"),
    ],
)
def test_what_cannot_work_is_said_before_the_start(flags: list[str], said: str, tmp_path: Path) -> None:
    done = vpo("experiment", "--runs", tmp_path, *flags)
    assert done.returncode in (1, 2) and said in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*/seed-*"))


def test_a_server_that_does_not_answer_is_said_before_the_start(tmp_path: Path) -> None:
    done = experiment(tmp_path, PREFECT_API_URL="http://127.0.0.1:9/api")
    assert done.returncode == 1 and "The Prefect server at http://127.0.0.1:9/api does not answer" in done.stderr
    assert not list(tmp_path.glob("*/seed-*"))


def experiment(runs: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The public command, with a Prefect of its own."""
    command = [sys.executable, "-m", "vpo_plugin.cli", "experiment", "--runs", str(runs), *flags]
    environment = {**os.environ, "PREFECT_HOME": str(runs / "prefect"), **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)


@pytest.mark.parametrize(
    "methods", [["goal_conditioned"], pytest.param(["goal_conditioned", "vpo"], marks=pytest.mark.slow)]
)
def test_experiment_runs_to_its_results_and_keeps_finished_cells(tmp_path: Path, methods: list[str]) -> None:
    flags = ["--name", "small", "--methods", ",".join(methods), "--seeds", "0", "--steps", "2", "--parallel", "2"]
    flags += ["--prompts_per_step", "4", "--rollouts_per_prompt", "4", "--eval_prompts", "6", "--eval_candidates", "6"]
    first = experiment(tmp_path, *flags)
    assert first.returncode == 0, first.stdout + first.stderr
    folder = tmp_path / "small"
    results = json.loads((folder / "results.json").read_text())
    bases = ["base", "base, sets of 3"][: len(methods)]
    assert [m["name"] for m in results["methods"]] == bases + methods
    assert {m["trained"]["candidates"] for m in results["methods"][len(bases) :]} == {2 * 4 * 12}
    assert all(len(curve) == 2 for method in methods for curve in results["training"][method].values())
    assert all(m["best_at_k"]["mean"][-1] <= results["ceiling"]["best"] for m in results["methods"])
    assert {pool["method"] for pool in results["pools"]} == {m["name"] for m in results["methods"]}
    assert ("vpo − goal_conditioned" in first.stdout) == ("vpo" in methods)  # noqa: RUF001
    assert results["temperature"] == 1 and results["at"] == []

    made = {path: path.stat().st_mtime_ns for path in folder.glob("**/stage.json")}
    (folder / "results.json").unlink()  # as if killed before the comparison
    second = experiment(tmp_path, *flags)
    assert second.returncode == 0, second.stdout + second.stderr
    assert [path for path in made if path.stat().st_mtime_ns != made[path]] == []
    assert json.loads((folder / "results.json").read_text())["methods"][-1] == results["methods"][-1]

    cells.keep(folder, tmp_path / "kept" / "cells")
    (tmp_path / "kept" / "cells" / "seed-0" / "eval" / "goal_conditioned").rename(tmp_path / "elsewhere")
    cells.keep(folder, tmp_path / "kept" / "cells")  # again, from another machine: only what is missing
    cells.report(tmp_path / "kept" / "cells", read(ExperimentSettings, flags, "vpo experiment"))
    again = json.loads((tmp_path / "kept" / "results.json").read_text())
    assert again["methods"] == results["methods"] and again["training"] == results["training"]

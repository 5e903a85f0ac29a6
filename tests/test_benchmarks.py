"""The benchmarks: what they time is right, and the estimator's figures meet what is promised."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import correlation, scoring, weightings
from benchmarks import estimator as bench
from benchmarks.estimator import vpo_advantages
from vpo_plugin.advantages import default_num_weights, group_z_norm
from vpo_plugin.rewards.files import load_spec
from vpo_plugin.rewards.response import score_response
from vpo_plugin.search.comparison import BASE
from vpo_plugin.search.experiment import pack_array


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_loop_estimates_the_same_advantages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "LOOP_WEIGHTS", 2**15)
    rewards = torch.rand(4, 5, 3, 4, generator=seeded())
    torch.testing.assert_close(bench.loop_advantages(rewards), vpo_advantages(rewards), rtol=0, atol=0.05)
    assert torch.equal(bench.loop_advantages(torch.ones(1, 3, 2, 2)), torch.zeros(1, 3))


def test_the_reference_is_exact_where_there_is_a_closed_form() -> None:
    rewards = torch.rand(3, 4, 2, 5, dtype=torch.float64, generator=seeded())
    reference, error = bench.reference_advantages(rewards, seed=1)
    off = (reference - vpo_advantages(rewards)).square().mean().sqrt().item()
    assert off < 5 * error < 1e-3
    assert error > 0


def test_the_error_is_measured_against_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that returns the reference has no error, so the figures are of the methods, not of the measuring."""
    monkeypatch.setattr(bench, "vpo_advantages", lambda rewards, *_: bench.reference_advantages(rewards, 1)[0])
    monkeypatch.setattr(bench, "REFERENCE_POINTS", 2**10)
    (loop, exact), _ = bench.measure((4, 4, 3, 3), [1], repeats=1, seed=0)
    assert exact.error < 1e-7
    assert loop.error > 0.02
    assert group_z_norm(torch.rand(4, 4)).square().mean() > loop.error


@pytest.mark.parametrize("shape", bench.SHAPES)
def test_default_settings_have_far_less_error(
    shape: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time depends on the machine and its load, so the benchmark shows it and no test asserts it."""
    monkeypatch.setattr(bench, "REFERENCE_POINTS", 2**12)
    few = (bench.REFERENCE_GROUPS, *shape[1:])
    (loop, default), reference_error = bench.measure(few, [default_num_weights(shape[3])], repeats=8, seed=0)
    assert loop.error > 20 * default.error
    assert default.error > 3 * reference_error


@pytest.mark.parametrize("shape", [(4, 5, 1, 1), (3, 6, 2, 1)])
def test_the_formula_of_vpo_at_k_is_the_estimators(
    shape: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one objective a few points are exact, so the benchmark's formula and the estimator's are the same."""
    monkeypatch.setattr(bench, "REFERENCE_POINTS", 2)
    rewards = torch.rand(shape, dtype=torch.float64, generator=seeded())
    reference, error = bench.reference_advantages(rewards, 1, "vpo_at_k")
    torch.testing.assert_close(reference, bench.vpo_at_k_advantages(rewards))
    assert error < 1e-12


@pytest.mark.parametrize(
    ("shape", "most"),
    [
        ((8, 16, 3, 5), 0.01),
        ((8, 24, 1, 6), 0.01),
        ((8, 16, 3, 8), 0.02),
        ((8, 8, 5, 16), 0.02),
        ((2, 64, 1, 16), 0.02),
    ],
)
def test_the_default_of_vpo_at_k_has_the_error_of_the_docs(
    shape: tuple[int, int, int, int], most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "REFERENCE_POINTS", 2**11)
    default = default_num_weights(shape[3]) // 2
    (few, enough), reference_error = bench.measure(shape, [32, default], repeats=2, seed=0, estimator="vpo_at_k")
    assert enough.error < most < few.error
    assert reference_error < enough.error / 3


def test_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "REFERENCE_POINTS", 2**10)
    arguments = ["--shapes", "4x4x3x3", "--num_weights", "64", str(default_num_weights(3)), "--repeats", "1"]
    assert bench.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "4 groups x 4 rollouts x 3 candidates x 3 objectives" in printed
    assert printed.count("vpo, ") == printed.count("vpo_at_k, ") == 2
    assert printed.count("(default)") == 1


@pytest.mark.parametrize("arguments", [["--shapes", "4x4x3"], ["--shapes", "4x4x0x3"], ["--num_weights", "0"]])
def test_bad_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench.main(arguments)
    assert stopped.value.code == 2
    assert "is not a shape" in (said := capsys.readouterr().err) or "not a whole number above 0" in said


@pytest.mark.parametrize("name", scoring.RESPONSES)
def test_what_is_timed_is_scored(name: str) -> None:
    spec = load_spec(name)
    scored = [score_response(spec, response, label, 3) for response, label in scoring.RESPONSES[name](spec)]
    assert all(one.parsed == 3 for one in scored) and sum(one.unique for one in scored) > 2 * len(scored)
    assert sum(one.reward > 0 for one in scored) == len(scored)


def stored(method: str, *vectors: tuple[float, ...]) -> dict[str, object]:
    """A pool of one prompt: one candidate a response."""
    return {
        "method": method,
        "seed": 0,
        "temperature": 1.0,
        "reward_matrices": pack_array(np.array([vectors])[:, :, None]),
    }


def test_weightings_drawn_after_training_are_those_of_their_own_best() -> None:
    corners = stored("vpo_at_k:1", (1, 0, 0), (0, 1, 0), (0, 0, 1))
    middle = stored("max_at_k", (0.4, 0.4, 0.4), (0, 0, 0), (0, 0, 0))
    weights = np.random.default_rng(0).dirichlet(np.ones(3), 1000)
    ours, theirs = (
        weightings.best_under([pool], str(pool["method"]), weights, None)[0, 0] for pool in (corners, middle)
    )
    np.testing.assert_allclose(ours, weights.max(1))
    np.testing.assert_allclose(theirs, 0.4)
    one = weightings.best_under([corners], "vpo_at_k:1", weights, 1)[0, 0]
    np.testing.assert_allclose(one, 1 / 3)


def test_the_gain_stands_beside_the_correlation() -> None:
    corners = np.eye(4).tolist()
    pools = [stored(BASE, *corners), stored("max_at_k", (0.5,) * 4), stored("vpo", *corners)]
    found, lead = correlation.measure({"pools": pools}, load_spec("maze_small"), "vpo", "max_at_k")
    assert found == pytest.approx(-1 / 3)
    assert lead["mean"] == pytest.approx(25 / 48 - 0.5, abs=2e-3)  # the greatest of four weights is 25/48
    with pytest.raises(ValueError, match="no pool of set_max; it has base, max_at_k, vpo"):
        correlation.measure({"pools": pools}, load_spec("maze_small"), "vpo", "set_max")


def test_every_experiment_has_its_lead_in_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also those of equal correlation; two leads of one variant share its row."""
    corners = np.eye(4).tolist()
    files = {name: tmp_path / name / "results.json" for name in ("a", "b", "c/singles", "c/sets", "c/more")}
    for name, file in files.items():
        file.parent.mkdir(parents=True)
        better = stored("vpo", *corners) if name != "b" else stored("vpo", (0.6,) * 4)
        pools = [stored(BASE, *corners), stored("max_at_k", (0.5,) * 4), better]
        file.write_text(json.dumps({"spec": "maze_small", "pools": pools}))
    (tmp_path / "c" / "spec.yaml").write_text("name: variant\nextends: maze_small\n")
    first = ["--lead", "vpo", "max_at_k", *(str(files[name]) for name in ("a", "b", "c/singles", "c/more"))]
    correlation.main([*first, "--lead", "max_at_k", "vpo", str(files["c/sets"])])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:] if line]
    found = {name.strip(): [cell.strip()[:6] for cell in cells] for name, *cells in rows}
    assert found == {
        str(tmp_path / "a"): ["-0.33", "+0.022", ""],
        str(tmp_path / "b"): ["-0.33", "+0.100", ""],
        str(tmp_path / "c"): ["-0.33", "+0.022", "-0.022"],
        str(tmp_path / "c" / "more"): ["-0.33", "+0.022", ""],
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["vpo"], "--lead vpo needs a method, the one it is compared with, and results.json files."),
        (["vpo", "max_at_k"], "--lead vpo max_at_k needs a method"),
        (["vpo", "max_at_k", "no/results.json"], "no/results.json cannot be compared: [Errno 2]"),
        (
            ["vpo", "gdp", "docs/evidence/maze_gold/results.json"],
            "cannot be compared: The experiment has no pool of gdp",
        ),
    ],
)
def test_a_lead_that_cannot_be_measured_is_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        correlation.main(["--lead", *words])
    assert said in capsys.readouterr().err

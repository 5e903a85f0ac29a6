"""The reward specification, the candidate parser and the scoring."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from vpo_plugin.rewards import RewardSpec, SpecError, check_spec, load_spec, parse_candidates
from vpo_plugin.rewards.formats import render_prompt, write_response
from vpo_plugin.rewards.response import score_response
from vpo_plugin.rewards.task import read_rows

SPECS = Path(__file__).parent.parent / "reward_specs"

RESPONSES = st.text(st.characters(exclude_categories=[])) | st.lists(
    st.sampled_from(["<route_1>", "</route_1>", "<route_2>", "</route_2>", "<route_", "UP", " ", "\n", "\ud800"])
).map("".join)


def test_a_hundred_thousand_candidates() -> None:
    spec = load_spec("maze_small")
    texts = [f"UP {slot}" for slot in range(1, 100_001)]
    response = write_response(spec, texts)
    assert parse_candidates(response, "route", 100_000) == texts
    scored = score_response(spec, response, LABEL, 100_000)
    assert scored.matrix.shape == (100_000, 4) and 0 < scored.parsed < 100  # the response is cut to its limit


# ------------------------------------------------------------------------------------------------ the spec


def spec_with(tmp_path: Path, change) -> Path:
    """A copy of the small maze spec, which names its scorer, with a change to its text."""
    text = (SPECS / "maze_small" / "spec.yaml").read_text()
    text = text.replace("limits:", "scorer: reward_specs.maze.maze:score\nlimits:")
    changed = change(text)
    assert changed != text
    (tmp_path / "spec.yaml").write_text(changed)
    return tmp_path


def replace(old: str, new: str):
    return lambda text: text.replace(old, new)


def line_of(folder: Path, start: str) -> int:
    lines = (folder / "spec.yaml").read_text().splitlines()
    return next(number for number, line in enumerate(lines, start=1) if line.strip().startswith(start))


@pytest.mark.parametrize("name", ["maze", "maze_small"])
def test_shipped_specs_prove_themselves(name: str) -> None:
    spec = load_spec(name)
    found = check_spec(spec)
    assert len(found) == 6
    assert spec == load_spec(SPECS / name) == load_spec(SPECS / name / "spec.yaml")
    assert sum(spec.objective_weights) == pytest.approx(1)
    assert "<route_1>" in render_prompt(spec, "A maze.", 1)
    assert "3 different routes" in render_prompt(spec, "A maze.", 3)
    assert "<route_3>" in render_prompt(spec, "A maze.", 3) and "{" not in render_prompt(spec, "A maze.", 3)


@pytest.mark.parametrize(
    ("change", "line", "sentence"),
    [
        (replace("candidates: 3", "candidates: 3\ncolour: red"), "colour:", "The key 'colour' is unknown."),
        (replace("  single:", "  plural: x\n  single:"), "plural:", "The key 'prompt.plural' is unknown."),
        (replace("tag: route\n", ""), "name:", "the key 'tag' is missing."),
        (
            replace("completion: 0.25", "completion: 0.5"),
            "weights:",
            "The weights sum to 1.25, but must sum to 1.",
        ),
        (replace("gold: 0.25", "silver: 0.25"), "weights:", "Each objective needs one weight"),
        (
            replace("completion: 0.25, gold: 0.25", "completion: 0.75, gold: -0.25"),
            "weights:",
            "not negative",
        ),
        (replace("gold: 0.25", "gold: .nan"), "weights:", "finite"),
        (replace("key: gold", "key: completion"), "objectives:", "'completion' is declared twice."),
        (
            replace("in <route_1> tags", "in tags"),
            "prompt:",
            "'single' prompt does not mention its tag <route_1>.",
        ),
        (replace("tag: route", "tag: path"), "prompt:", "does not mention its tag <path_1>."),
        (replace("tag: route", "tag: a<b"), "tag:", "tag: String should match pattern"),
        (replace("maze:score", "maze:sore"), "scorer:", "has no callable 'sore'."),
        (replace("maze.maze:score", "mays.maze:score"), "scorer:", "cannot be imported"),
        (replace("maze:score", "maze.score"), "scorer:", "must read package.module:function."),
        (replace("candidates: 3", "candidates: 0"), "candidates:", "greater than or equal to 1, not 0."),
        (replace("candidates: 3", "candidates: 3\ncandidates: 4"), "candidates: 4", "is given twice."),
        (replace("maze.dataset:rows", "maze.dataset:raws"), "loader:", "has no callable 'raws'."),
    ],
)
def test_a_bad_spec_is_refused_with_file_and_line(tmp_path: Path, change, line: str, sentence: str) -> None:
    folder = spec_with(tmp_path, change)
    with pytest.raises(SpecError) as refusal:
        load_spec(folder)
    [complaint] = str(refusal.value).splitlines()
    assert complaint.startswith(f"{folder / 'spec.yaml'}:{line_of(folder, line)}: "), complaint
    assert sentence in complaint


def test_every_complaint_is_listed_at_once(tmp_path: Path) -> None:
    folder = spec_with(
        tmp_path, lambda text: text.replace("gold: 0.25", "gold: 0.5").replace("maze:score", "maze:sore")
    )
    with pytest.raises(SpecError) as refusal:
        load_spec(folder)
    assert len(str(refusal.value).splitlines()) == 2


@pytest.mark.parametrize("text", ["name: [", "- a list", "", "name: \0"])
def test_a_file_that_is_no_spec(tmp_path: Path, text: str) -> None:
    (tmp_path / "spec.yaml").write_text(text)
    with pytest.raises(SpecError, match=r"spec\.yaml:\d+: "):
        load_spec(tmp_path)


def test_a_spec_that_does_not_exist_lists_the_known_ones() -> None:
    with pytest.raises(SpecError, match=r"no spec 'maize'.*maze, maze_small"):
        load_spec("maize")


def test_a_spec_brings_its_own_scorer(tmp_path: Path) -> None:
    folder = spec_with(tmp_path, replace("reward_specs.maze.maze:score", "own_scorer_for_a_test:score"))
    (tmp_path / "own_scorer_for_a_test.py").write_text("def score(candidate, label):\n    return [1, 0, 0, 0.5]\n")
    spec = load_spec(folder)
    label = next(read_rows(spec, "train", 1, 0))["label"]
    assert score_response(spec, "<route_1> UP </route_1>", label, 1).reward == 1.5 / 4
    with pytest.raises(ValueError, match="should score"):
        check_spec(spec)


def test_check_spec_finds_a_label_without_what_the_scorer_needs(tmp_path: Path) -> None:
    folder = spec_with(tmp_path, replace("reward_specs.maze.dataset:rows", "own_loader_for_a_test:rows"))
    (tmp_path / "own_loader_for_a_test.py").write_text(
        "def rows(split, num_rows, seed, **args):\n    yield {'prompt': 'A maze.', 'label': {'grid': ['SE']}}\n"
    )
    with pytest.raises(ValueError, match=r"row 0 of the split 'train' cannot be used: .*'max_steps'"):
        check_spec(load_spec(folder))


# ------------------------------------------------------------------------------------------------ scoring

LABEL = {"grid": ["S.G", "#.#", "D.E"], "max_steps": 6}
GOLD = "RIGHT RIGHT LEFT DOWN DOWN RIGHT"


@pytest.fixture(scope="module")
def spec() -> RewardSpec:
    return load_spec("maze_small")


def test_a_response_becomes_a_matrix(spec: RewardSpec) -> None:
    bumping = "UP RIGHT DOWN DOWN RIGHT"
    response = write_response(spec, [GOLD, "RIGHT DOWN DOWN RIGHT", bumping])
    scored = score_response(spec, response, LABEL, 4)
    assert scored.matrix.dtype == np.float32
    # The third route repeats the second one's cells, the fourth is missing: both are floor rows.
    assert scored.matrix.tolist() == [[1, 1, 0, 1], [1, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert (scored.parsed, scored.unique) == (3, 2)
    assert scored.reward == pytest.approx((0.75 + 0.5) / 4)
    assert scored.candidates == [GOLD, "RIGHT DOWN DOWN RIGHT", bumping, None]


def test_what_comes_after_the_limit_is_not_read(spec: RewardSpec) -> None:
    response = write_response(spec, [GOLD])
    filler = " " * (spec.limits.response_chars - len(response))
    assert score_response(spec, filler + response, LABEL, 1).parsed == 1
    assert score_response(spec, filler + " " + response, LABEL, 1).parsed == 0


@settings(deadline=None)
@given(RESPONSES, st.integers(1, 4))
def test_any_response_scores_within_the_ranges(response: str, candidates: int) -> None:
    scored = score_response(load_spec("maze_small"), response, LABEL, candidates)
    assert scored.matrix.shape == (candidates, 4)
    assert ((scored.matrix >= 0) & (scored.matrix <= 1)).all()
    assert scored.unique <= scored.parsed <= candidates


@pytest.mark.parametrize(
    ("rewards", "sentence"),
    [
        ("[1, 0, 0, float('nan')]", "'avoid_lava' nan"),
        ("[1, 0, 1.5, 0]", r"'diamond' 1\.5, which is not within 0\.0 to 1\.0"),
        ("[1, 0]", "returned 2 rewards"),
    ],
)
def test_rewards_out_of_range_are_refused(tmp_path: Path, rewards: str, sentence: str) -> None:
    module = f"scorer_{abs(hash(rewards))}"
    (tmp_path / f"{module}.py").write_text(f"def score(candidate, label):\n    return {rewards}\n")
    spec = load_spec(spec_with(tmp_path, replace("reward_specs.maze.maze:score", f"{module}:score")))
    with pytest.raises(ValueError, match=sentence):
        score_response(spec, "<route_1> UP </route_1>", LABEL, 1)


def test_a_scorer_that_raises_is_heard(tmp_path: Path) -> None:
    (tmp_path / "dividing_scorer.py").write_text("def score(candidate, label):\n    return 1 / 0\n")
    spec = load_spec(spec_with(tmp_path, replace("reward_specs.maze.maze:score", "dividing_scorer:score")))
    with pytest.raises(ZeroDivisionError):
        score_response(spec, "<route_1> UP </route_1>", LABEL, 1)


def test_the_floor_is_the_range_minimum(tmp_path: Path) -> None:
    folder = spec_with(tmp_path, replace("- key: completion\n", "- key: completion\n    range: [-1, 1]\n"))
    scored = score_response(load_spec(folder), "", LABEL, 2)
    assert scored.matrix.tolist() == [[-1, 0, 0, 0]] * 2
    assert scored.reward == -0.25


def test_rewards_and_advantages_do_not_import_the_host() -> None:
    import subprocess
    import sys

    code = (
        "import sys, vpo_plugin.rewards as r; r.load_spec('maze_small'); "
        "print([m for m in ('ray', 'openrlhf', 'transformers', 'vllm', 'prefect') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_copied_spec_folder_is_the_same_spec(tmp_path: Path) -> None:
    shutil.copytree(SPECS / "maze_small", tmp_path / "copy", ignore=shutil.ignore_patterns("policy"))
    assert load_spec(tmp_path / "copy") == load_spec("maze_small")
    assert yaml.safe_load((tmp_path / "copy" / "spec.yaml").read_text())["name"] == "maze_small"

"""The `vpo` command, run as people run it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import vpo
from test_musique import write_questions

from vpo_plugin.rewards import load_spec
from vpo_plugin.search.collinear import measure_disagreement, shares_won

LABEL = {"grid": ["S.G", "#.#", "D.E"], "max_steps": 6}
GOLD = "RIGHT RIGHT LEFT DOWN DOWN RIGHT"
DIAMOND = "RIGHT DOWN DOWN LEFT RIGHT RIGHT"
GOOD = {"response": f"<route_1>{GOLD}</route_1><route_2>{DIAMOND}</route_2>", "label": LABEL, "candidates": 3}
SCORED = {"matrix": [[1, 1, 0, 1], [1, 0, 1, 1], [0, 0, 0, 0]], "parsed": 2, "unique": 2, "scalar": 0.5}


def in_a_process(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vpo_plugin.cli", *map(str, arguments)]
    given = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=given)


def write_lines(file: Path, *rows: object) -> Path:
    file.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return file


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


# ------------------------------------------------------------------------------------------------ vpo score


@pytest.mark.parametrize("workers", [1, 2])
def test_rows_become_matrices_in_their_order(tmp_path: Path, workers: int) -> None:
    other = {**GOOD, "response": GOOD["response"].replace("2>", "3>"), "label": json.dumps(LABEL)}
    rows = [GOOD, other] * 150
    source = write_lines(tmp_path / "in.jsonl", *rows)
    done = vpo(
        "score", "--spec", "maze_small", "--input", source, "--output", tmp_path / "out.jsonl", "--workers", workers
    )
    assert done.returncode == 0 and "300 rows scored into" in done.stderr and "0 could not be scored." in done.stderr
    scored = read_lines(tmp_path / "out.jsonl")
    assert scored[0] == SCORED and scored[1] == {**SCORED, "matrix": [[1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 1, 1]]}
    assert scored[::2] == [scored[0]] * 150 and scored[1::2] == [scored[1]] * 150
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


BAD = [
    (b"{", "it is not JSON"),
    (b"\xff\xfe", "it is not UTF-8"),
    (b"[" * 100_000, "it is not JSON"),
    ([1], "A row is an object with a 'response' text"),
    ({"response": 3, "label": LABEL}, "A row is an object with a 'response' text"),
    ({"response": "x"}, "A row is an object with a 'response' text"),
    ({**GOOD, "label": {"grid": []}}, "A maze label needs the keys"),
    ({**GOOD, "label": "{"}, "is not JSON, although the spec says `label: json`"),
    ({**GOOD, "candidates": 0}, "'candidates' is a number from 1 to"),
    ({**GOOD, "candidates": 10**9}, "'candidates' is a number from 1 to"),
    ({**GOOD, "candidates": True}, "'candidates' is a number from 1 to"),
    ({**GOOD, "candidates": "\ud800"}, "'candidates' is a number from 1 to"),
]


def test_bad_rows_are_reported_by_line_and_are_not_fatal(tmp_path: Path) -> None:
    rows = [row for bad, _ in BAD for row in (GOOD, bad)]
    odd = ["\0\ud800\u202e", "<route_1>" * 100_000, f"<route_1>{GOLD}"]
    rows += [{**GOOD, "response": text} for text in odd] + [{**GOOD, "candidates": 100_000}]
    source = write_lines(tmp_path / "in.jsonl", *rows)
    done = vpo("score", "--spec", "maze_small", "--input", source, "--output", tmp_path / "out.jsonl", "--workers", "2")
    assert done.returncode == 0
    scored = read_lines(tmp_path / "out.jsonl")
    assert len(scored) == len(rows)
    for i, (_, sentence) in enumerate(BAD):
        assert scored[2 * i] == SCORED
        assert scored[2 * i + 1]["line"] == 2 * i + 2 and sentence in scored[2 * i + 1]["error"]
        assert re.search(
            rf"^Line {2 * i + 2} of .* cannot be scored: .*{re.escape(sentence)}", done.stderr, re.MULTILINE
        )
    assert all(one["parsed"] == 0 for one in scored[-4:-1]) and len(scored[-1]["matrix"]) == 100_000
    assert f"{len(rows) - len(BAD)} rows scored" in done.stderr and f"{len(BAD)} could not be scored." in done.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_strict_ends_at_the_first_bad_row_and_keeps_an_earlier_output(tmp_path: Path, workers: int) -> None:
    source = write_lines(tmp_path / "in.jsonl", *[GOOD] * 70, {"response": "x"}, *[GOOD] * 500)
    output = tmp_path / "out.jsonl"
    output.write_text("finished before\n")
    done = vpo("score", "--strict", "--spec", "maze_small", "--input", source, "--output", output, "--workers", workers)
    assert done.returncode == 1 and re.search(
        r"^vpo: Line 71 of .*in\.jsonl cannot be scored: ", done.stderr, re.MULTILINE
    )
    assert output.read_text() == "finished before\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def write_scorer(folder: Path, code: str) -> Path:
    """A copy of the small maze spec with a scorer of its own."""
    folder.mkdir()
    text = (Path(__file__).parent.parent / "reward_specs" / "maze_small" / "spec.yaml").read_text()
    module = f"{folder.name}_scorer"
    (folder / "spec.yaml").write_text(f"{text}scorer: {module}:score\n")
    (folder / f"{module}.py").write_text(f"import os\n\n\ndef score(candidate, label):\n    {code}\n")
    return folder


@pytest.mark.parametrize(
    ("rows", "said"), [([], "in.jsonl holds no rows."), ([{"response": "x"}], "0 rows scored into")]
)
def test_nothing_scored_is_no_success(tmp_path: Path, rows: list[object], said: str) -> None:
    source = write_lines(tmp_path / "in.jsonl", *rows)
    done = vpo("score", "--spec", "maze_small", "--input", source, "--output", tmp_path / "out.jsonl")
    assert done.returncode == 1 and said in done.stderr.splitlines()[-1]


def test_a_scorer_that_raises_costs_its_row_only(tmp_path: Path) -> None:
    spec = write_scorer(tmp_path / "raising", "return [1 / len(candidate), 0, 0, 0]")
    source = write_lines(tmp_path / "in.jsonl", GOOD, {**GOOD, "response": "<route_1></route_1>"}, GOOD)
    (tmp_path / "out.jsonl.errors").mkdir()
    for number in range(20):  # of an earlier run
        (tmp_path / "out.jsonl.errors" / f"scorer_error_1_{number}.txt").touch()
    done = vpo("score", "--spec", spec, "--input", source, "--output", tmp_path / "out.jsonl", "--workers", "2")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.search(r"^Line 2 of \S+in\.jsonl: .* failed: ZeroDivisionError: .*raising_scorer\.py:5\)", done.stderr)
    assert ["error" in row for row in read_lines(tmp_path / "out.jsonl")] == [False, True, False]
    assert "2 rows scored into" in done.stderr and "1 could not be scored." in done.stderr
    [kept] = (tmp_path / "out.jsonl.errors").iterdir()
    assert str(kept) in done.stderr and "Traceback" in kept.read_text()
    strict = [*("score", "--strict", "--traceback", "--spec", spec, "--input", source), "--output", tmp_path / "strict"]
    shown = vpo(*strict)
    assert shown.returncode == 1 and "    return [1 / len(candidate)" in shown.stderr and "vpo: Line 2" in shown.stderr
    shown = vpo(*(argument for argument in strict if argument != "--strict"))
    assert "    return [1 / len(candidate)" in shown.stderr and "2 rows scored into" in shown.stderr


def test_a_scorer_that_fails_may_count_as_zero(tmp_path: Path) -> None:
    spec = write_scorer(tmp_path / "dying", "os._exit(9) if not candidate else None; return [1, 0, 0, 0]")
    source = write_lines(tmp_path / "in.jsonl", GOOD, {**GOOD, "response": "<route_1></route_1>"}, b"{")
    output = tmp_path / "out.jsonl"
    done = vpo("score", "--on_scorer_error", "zero", "--spec", spec, "--input", source, "--output", output)
    assert done.returncode == 0, done.stderr
    good, dead, unread = read_lines(output)
    assert good["matrix"] == [[1, 0, 0, 0]] * 2 + [[0] * 4] and "error" not in good
    assert dead["matrix"] == [[0] * 4] * 3 and "ended its process with exit code 9" in dead["error"]
    assert unread["line"] == 3 and "not JSON" in unread["error"]
    assert "2 rows scored into" in done.stderr and "1 responses scored zero because the scorer" in done.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_scoring_refuses_to_run_without_its_sandbox(tmp_path: Path, workers: int) -> None:
    code = "from vpo_plugin.rewards.sandbox import SandboxError\n    raise SandboxError('No boundary here.')"
    spec = write_scorer(tmp_path / f"unboxed{workers}", code)
    source = write_lines(tmp_path / "in.jsonl", *[GOOD] * 3)
    done = vpo("score", "--spec", spec, "--input", source, "--output", tmp_path / "out.jsonl", "--workers", workers)
    assert done.returncode == 1 and done.stderr == "vpo: No boundary here.\n"
    assert not (tmp_path / "out.jsonl").exists()


def test_the_way_around_the_sandbox_reaches_every_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VPO_UNSAFE_NO_SANDBOX", "0")
    spec = write_scorer(tmp_path / "around", "return [float(os.environ.get('VPO_UNSAFE_NO_SANDBOX', '0')), 0, 0, 0]")
    source = write_lines(tmp_path / "in.jsonl", GOOD)
    for flags, reward in (([], 0), (["--unsafe_no_sandbox"], 1)):
        arguments = ["--spec", spec, "--input", source, "--output", tmp_path / "out.jsonl", "--workers", "2", *flags]
        assert vpo("score", *arguments).returncode == 0
        assert read_lines(tmp_path / "out.jsonl")[0]["matrix"][0] == [reward, 0, 0, 0]


def test_a_long_input_is_streamed(tmp_path: Path) -> None:
    """60 MB of responses grow the process by less than they are."""
    source = tmp_path / "in.jsonl"
    row = json.dumps({**GOOD, "response": "x" * 1_000_000}) + "\n"
    with source.open("w") as file:
        file.writelines(row for _ in range(60))
    code = (
        "import resource, sys; from vpo_plugin.rewards.score_file import score_file; from pathlib import Path; "
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
        "from vpo_plugin.rewards import load_spec; from vpo_plugin.rewards.scoring import Scoring; "
        "score_file(Scoring(load_spec('maze_small')), Path(sys.argv[1]), Path(sys.argv[2])); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    command = [sys.executable, "-c", code, source, tmp_path / "out"]
    kibibytes = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert kibibytes < 40_000
    assert len(read_lines(tmp_path / "out")) == 60


def test_wrong_arguments(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", GOOD)
    out = tmp_path / "out.jsonl"
    for arguments, sentence in [
        (("--spec", "maize", "--input", source, "--output", out), "vpo: There is no spec 'maize'"),
        (("--spec", "maze", "--input", tmp_path / "none", "--output", out), "does not exist."),
        (
            ("--spec", "maze", "--input", source, "--output", out, "--workers", "0"),
            "--workers is 0: it must be greater",
        ),
        (("--spec", "maze", "--input", source, "--output", source / "out"), "File exists"),
    ]:
        done = vpo("score", *arguments)
        assert done.returncode == 1 and sentence in done.stderr and "Traceback" not in done.stderr
    assert vpo("score").returncode == 2 and not out.exists()


# ------------------------------------------------------------------------------------------------ vpo spec


def test_help_imports_nothing_heavy() -> None:
    assert "score a file of responses" in in_a_process("--help").stdout
    code = "import sys, vpo_plugin.cli; print([m for m in ('numpy', 'pydantic', 'torch', 'rich') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
    for command in ("run", "experiment", "registry", "open", "show", "evaluate", "search", "warm_start"):
        code = f"import atexit, sys; from vpo_plugin.cli import main; sys.argv = ['vpo', {command!r}, '--help']; "
        code += "atexit.register(lambda: print([m for m in ('torch', 'prefect') if m in sys.modules])); main()"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout.splitlines()[-1] == "[]", command


def test_list() -> None:
    lines = vpo("spec", "list").stdout.splitlines()
    names = [line.split()[0] for line in lines]
    assert names[0] == "name" and {"maze", "maze_small", "musique", "eureqa", "toolrl"} <= set(names)
    assert re.match(r"musique +5 +3 +tags +MuSiQue", lines[names.index("musique")])
    assert max(map(len, lines)) <= 100


def test_a_new_spec_passes_its_check(tmp_path: Path) -> None:
    done = vpo("spec", "new", "my_task", "--folder", tmp_path)
    assert done.returncode == 0 and "vpo spec check" in done.stdout
    check = vpo("spec", "check", tmp_path / "my_task")
    assert check.returncode == 0 and check.stdout.splitlines()[-1] == "The spec 'my_task' is sound.", check.stderr
    again = vpo("spec", "new", "my_task", "--folder", tmp_path)
    assert again.returncode == 1 and "exists already" in again.stderr
    assert "names a Python module" in vpo("spec", "new", "My-Task", "--folder", tmp_path).stderr
    schema = (tmp_path / "my_task" / "spec.yaml").read_text().splitlines()[0].partition("$schema=")[2]
    assert json.loads(Path(schema).read_text())["title"] == "RewardSpec"


def test_check_on_data_that_the_user_names(tmp_path: Path) -> None:
    file = write_questions(tmp_path / "dev.jsonl")
    done = vpo("spec", "check", "musique", "--data", file)
    assert done.returncode == 0, done.stderr
    assert "16 rows of the split 'train'" in done.stdout and "within the 300 of" in done.stdout
    assert "does not take one." in vpo("spec", "check", "maze", "--data", file).stderr
    missing = vpo("spec", "check", "musique", "--data", tmp_path / "none.jsonl")
    assert missing.returncode == 1 and "does not exist" in missing.stderr and "Traceback" not in missing.stderr


def test_check_counts_tokens() -> None:
    policy = Path(__file__).parent.parent / "reward_specs" / "maze_small" / "policy"
    done = vpo("spec", "check", "maze_small", "--tokenizer", policy)
    assert done.returncode == 0, done.stderr
    assert re.search(r"The longest response of 3 known answers has \d+ of the 60 tokens allowed\.", done.stdout)


def test_check_measures_whether_vpo_can_help(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", *[GOOD] * 20, {"response": "bad row"})
    assert (
        vpo("score", "--spec", "maze_small", "--input", source, "--output", tmp_path / "scores.jsonl").returncode == 0
    )
    done = vpo("spec", "check", "maze_small", "--scores", tmp_path / "scores.jsonl")
    assert done.returncode == 0, done.stderr
    assert "20 matrices, 40 candidates that score above the floor" in done.stdout
    assert "The same for all of them: completion, avoid_lava." in done.stdout
    assert "Correlation of gold and diamond: -1.00." in done.stdout and "Mean correlation: -1.00." in done.stdout
    assert re.search(r"mean of 20: 5\d%, 4\d%|50%, 50%", done.stdout)
    assert "Nothing here speaks against VPO." in done.stdout
    (tmp_path / "scores.jsonl").write_text('{"matrix": [[1, 2]]}\n')
    wrong = vpo("spec", "check", "maze_small", "--scores", tmp_path / "scores.jsonl")
    assert wrong.returncode == 1 and "Line 1 of" in wrong.stderr and "holds no matrix of the spec" in wrong.stderr


def test_collinear_objectives_are_told() -> None:
    spec = load_spec("maze_small")
    rng = np.random.default_rng(0)
    together = [np.repeat(rng.uniform(0.1, 1, (3, 1)), 4, axis=1) for _ in range(30)]
    findings = measure_disagreement(spec, together)
    assert "Correlation of completion and gold: +1.00." in findings
    assert findings[-1].startswith("VPO cannot help on these samples: the objectives rise and fall together, and one")
    dominated = [np.array([[0.9, 0.9, 0.9, 0.9], *rng.uniform(0, 0.8, (2, 4))]) for _ in range(30)]
    assert measure_disagreement(spec, dominated)[-1].startswith(
        "VPO cannot help on these samples: one candidate of each"
    )
    one = [np.array([[1, value, 0, 1]]) for value in (0.1, 0.5, 0.9)]
    assert "fewer than two objectives vary" in measure_disagreement(spec, one)[-1]
    assert "no candidate scores above the floor" in measure_disagreement(spec, [np.zeros((3, 4))])[-1]
    apart = [rng.uniform(0, 1, (3, 4)) for _ in range(200)]
    assert measure_disagreement(spec, apart)[-1] == "Nothing here speaks against VPO."


def test_the_weight_space_is_shared_as_it_should_be() -> None:
    """Two candidates at (1, 0, …) and (0, 1, …) win half each; with a third at 0.4 on both, a closed form."""
    assert shares_won(np.array([[1.0, 0.0], [0.0, 1.0]])) == pytest.approx([0.5, 0.5], abs=0.01)
    assert shares_won(np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.6]])) == pytest.approx([0.4, 0.4, 0.2], abs=0.01)
    assert shares_won(np.array([[0.5, 0.5], [0.2, 0.5]])) == pytest.approx([1, 0], abs=0.01)


@pytest.mark.parametrize("spec", ["maze", "maze_small", "musique", "eureqa", "toolrl"])
def test_check_passes_for_the_shipped_specs_on_what_ships_with_them(spec: str) -> None:
    sample = Path(__file__).parent.parent / "reward_specs" / spec / "sample.jsonl"
    done = vpo("spec", "check", spec, *(["--data", sample] if sample.exists() else []))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"The spec '{spec}' is sound."
    assert re.search(
        r"^[1-9]\d* known answers of the split 'test' score what they should\.$", done.stdout, re.MULTILINE
    )


def test_without_its_dataset_a_spec_is_checked_on_its_sample_and_says_so(tmp_path: Path) -> None:
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = in_a_process("spec", "check", "musique", **offline)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("NOT CHECKED on its dataset but on the few rows of ")
    assert "3 rows of the split 'train'" in done.stdout and "dgslibisey/MuSiQue cannot be read" in done.stdout


@pytest.mark.parametrize(
    "command", ["evaluate", "search", "report", "select", "score", "spec check", "run", "experiment"]
)
def test_help_says_how_the_command_is_called_and_what_its_flags_are(command: str) -> None:
    result = vpo(*command.split(), "--help", COLUMNS="100")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"usage: vpo {command} ") and max(map(len, result.stdout.splitlines())) <= 115
    needed = result.stdout.partition("\noptional:")[0]
    assert {"spec check": "\n  SPEC ", "report": "\n  --output PATH"}.get(command, "") in needed
    assert "(required)" not in result.stdout and "(default: {})" not in result.stdout
    flags = re.findall(r"^  (--\S+)", result.stdout, re.MULTILINE)
    assert len(flags) >= 2 and not [flag for flag in flags if "-" in flag[2:]]


def test_a_flag_that_is_unknown_missing_or_spelt_as_it_was(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", GOOD)
    given = ["--spec", "maze_small", "--input", source]
    wrong = vpo("score", *given, "--outptu", tmp_path / "out.jsonl")
    assert (wrong.returncode, wrong.stderr) == (2, "vpo: There is no flag --outptu; is it '--output'?\n")
    assert vpo("score", *given).stderr == "vpo: --output is missing.\n"
    old = vpo("score", *given, "--output", tmp_path / "out.jsonl", "--unsafe-no-sandbox")
    assert old.returncode == 0 and "--unsafe-no-sandbox is written --unsafe_no_sandbox now." in old.stderr
    assert "is it 'score'?" in vpo("scor").stderr and "is it" not in vpo("zzz").stderr
    assert re.fullmatch(r"vpo-plugin \d+\.\d+\.\d+\n", vpo("--version").stdout)


def test_settings_of_a_file_and_flags_that_win(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", GOOD)
    config = tmp_path / "score.yaml"
    config.write_text(f"spec: maze_small\ninput: {source}\noutput: {tmp_path / 'a.jsonl'}\nworkers: 1\n")
    assert vpo("score", "--config", config, "--output", tmp_path / "b.jsonl").returncode == 0
    assert read_lines(tmp_path / "b.jsonl") == [SCORED] and not (tmp_path / "a.jsonl").exists()
    config.write_text("spec: maze_small\nimput: x\nworkers: none\n")
    wrong = vpo("score", "--config", config).stderr
    assert (
        f"{config}: the key 'imput' is unknown; is it 'input'?" in wrong
        and f"{config}: workers is none: it must" in wrong
    )

"""What people copy runs as it stands."""

import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml
from conftest import MARK, Training, kill_marked
from host import importable_host
from prefect.utilities.importtools import import_object

from examples.reward import reward_func
from flows.registry import add_version, promote
from flows.settings import SETTINGS
from vpo_plugin.cli import main
from vpo_plugin.openrlhf.log import read_steps
from vpo_plugin.rewards import load_spec
from vpo_plugin.rewards.formats import render_prompt, write_response
from vpo_plugin.rewards.response import score_response
from vpo_plugin.rewards.task import pareto_front, read_rows

ROOT = Path(__file__).parent.parent
MENU = ROOT / "examples" / "menu"


def launch(*flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The launch script, in the folder of the clone."""
    command = [str(ROOT / "examples" / "train.sh"), *flags]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # the environment is active
    environment = {**os.environ, "PATH": path, **variables}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def test_the_specification_is_sound(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["spec", "check", str(MENU)]) == 0
    assert "The spec 'menu' is sound." in capsys.readouterr().out


def test_the_objectives_pull_apart() -> None:
    """No order is best at everything, so that a set of orders is worth having."""
    spec = load_spec(MENU)
    fronts = [pareto_front(spec, row["label"]) for row in read_rows(spec, "train", 20, seed=0)]
    assert all(len(front) > 1 for front in fronts)
    assert all((front < front.max(0)).any(1).all() for front in fronts)


@pytest.mark.parametrize("junk", ["", "lentils", "rice, rice, rice", "x" * 10_000, "no, such, dish", ", ,"])
def test_what_is_no_order_is_worth_nothing(junk: str) -> None:
    spec = load_spec(MENU)
    label = next(iter(read_rows(spec, "train", 1, seed=0)))["label"]
    matrix = score_response(spec, write_response(spec, [junk]), label, 1).matrix
    assert matrix.tolist() == [[0, 0, 0]]


def test_the_reward_function_gives_what_the_specification_does() -> None:
    spec = load_spec(MENU)
    queries, prompts, labels, expected = [], [], [], []
    for row in read_rows(spec, "train", 20, seed=0):
        order = ", ".join(list(row["label"])[:3])
        prompt, response = render_prompt(spec, row["prompt"], 1), write_response(spec, [order])
        queries.append(prompt + response)
        prompts.append(prompt)
        labels.append(json.dumps(row["label"]))  # as examples/menu/rows.jsonl has it
        expected.append(score_response(spec, response, row["label"], 1).matrix[0])
    with importable_host():
        from vpo_plugin.openrlhf.given_rewards import read_matrix

        given = reward_func(queries, prompts, labels)["rewards"]
        rewards = np.concatenate([read_matrix(spec, row, None) for row in given])
    np.testing.assert_allclose(rewards, np.array(expected), atol=1e-6)
    assert rewards.std(0).min() > 0


def test_the_launch_script_is_right_but_for_what_is_broken() -> None:
    """All of its flags are read and checked: the one mistake that is added is the only one that is said."""
    done = launch("--vpo.alpha", "-1")
    assert done.returncode == 2
    assert "--vpo.alpha" in done.stderr and "mistakes:" not in done.stderr


@pytest.mark.slow
def test_the_launch_script_trains(training: Training, tmp_path: Path) -> None:
    """On what the tests train on: the shipped policy, which reads mazes, with a chat template that adds nothing."""
    policy = shutil.copytree(training.policy, tmp_path / "chat")
    config = json.loads((policy / "tokenizer_config.json").read_text())
    template = {"chat_template": "{{ messages[0]['content'] }}"}
    (policy / "tokenizer_config.json").write_text(json.dumps(config | template))
    command = training.command("--actor.model_name_or_path", str(policy))
    flags = command[command.index("--data.prompt_dataset") :]
    done = launch(*flags, SPEC="maze_small", PROMPTS=str(training.prompts))
    assert done.returncode == 0, done.stdout[-3000:]
    assert len(read_steps(training.output / "vpo")) == 2


@pytest.mark.slow
def test_the_champion_is_served_and_its_successor_after_a_promotion(training: Training, tmp_path: Path) -> None:
    """At one address, as one model; nothing is left when it ends."""
    registry, policies = tmp_path / "registry", [tmp_path / "first", tmp_path / "second"]
    for policy in policies:
        shutil.copytree(training.policy, policy)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--registry", str(registry), "--port", str(port), "--", "--enforce-eager", "--max-model-len", "200"]
    command = [sys.executable, str(ROOT / "examples" / "serve_champion.py"), *flags]
    variables = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    environment = {**os.environ, **variables, MARK: training.mark, "PYTHONPATH": str(ROOT)}
    empty = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert empty.returncode == 1 and "has no champion yet" in empty.stderr
    log = tmp_path / "log"
    over = None
    server = None
    try:
        for policy in policies:
            version = add_version(registry, policy=str(policy), spec="maze_small", candidates=3, parent=over).version
            promote(registry, version, over=over, why="better")
            over = version
            if server is None:
                with log.open("w") as file:
                    server = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
            served = wait_for_model(port, policy, server, log)
            assert [model["id"] for model in served] == ["champion"]
        asked = {"model": "champion", "prompt": "a1=start", "max_tokens": 8}
        url = f"http://127.0.0.1:{port}/v1/completions"
        assert httpx.post(url, json=asked, timeout=60).json()["choices"][0]["text"]
        server.send_signal(signal.SIGTERM)
        server.wait(120)
    finally:
        kill_marked(training.mark)
    assert f"Serving v0002: {policies[1]}" in log.read_text()
    assert training.processes_left() == []


def wait_for_model(port: int, policy: Path, server: "subprocess.Popen[bytes]", log: Path) -> list[dict[str, str]]:
    """What the server serves, once that is the policy of this folder."""
    deadline = time.monotonic() + 300
    while True:
        with suppress(httpx.HTTPError):
            served = httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=5).json()["data"]
            if served[0]["root"] == str(policy):
                return served
        assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(1)


def test_the_deployment_names_a_flow_and_its_parameters() -> None:
    content = yaml.safe_load((ROOT / "examples" / "prefect.yaml").read_text())
    for deployment in content["deployments"]:
        file, name = deployment["entrypoint"].split(":")
        flow = import_object(f"{ROOT / file}:{name}")
        settings = SETTINGS[flow.name](**deployment["parameters"])
        assert load_spec(ROOT / settings.spec).name == "menu"


@pytest.mark.slow
def test_the_cells_of_the_notebook_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the shipped policy and its mazes."""
    small = {"MODEL": "tiny-maze", "SPEC": "maze_small", "STEPS": "1", "PROMPTS": "4", "TOKENS": "64"}
    own = {"RUNS": str(tmp_path / "runs"), "WEIGHTS": "gold=2,avoid_lava=1"}
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # the environment is active
    for name, value in (small | own | path).items():
        monkeypatch.setenv(name, value)
    notebook = json.loads((ROOT / "examples" / "instructions" / "walkthrough.ipynb").read_text())
    names: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    policies = names["report"]["policies"]  # type: ignore[index]
    assert [policy["name"] for policy in policies] == ["base", "grpo", "vpo_at_k:1"]
    assert len((tmp_path / "runs" / "notebook" / "chosen.jsonl").read_text().splitlines()) == 4


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_the_configurations_of_the_walk_through_can_be_planned(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", str(ROOT / "examples" / "instructions" / f"{name}.yaml"), "--dry_run"]
    assert main([*arguments, "model=tiny-maze"]) == 0
    assert "vpo_at_k" in capsys.readouterr().out


@pytest.mark.parametrize("file", sorted((ROOT / "examples").rglob("*.py")), ids=lambda file: file.stem)
def test_an_example_can_be_imported(file: Path) -> None:
    importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))

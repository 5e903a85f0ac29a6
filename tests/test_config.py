"""`vpo run`: settings from YAML files and the command line, what they would do, and what is wrong with them."""

import json
import shlex
import subprocess
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from conftest import vpo
from endpoint import serving
from host import host_arguments, importable_host
from prefect.logging import disable_run_logger
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import deployments, pipeline
from flows.run import load_config, shipped
from flows.server import check_server
from flows.settings import PipelineSettings
from flows.train import check_commands
from vpo_plugin.cli import doctor, main
from vpo_plugin.cli.settings import flags, read
from vpo_plugin.models import TINY, resolve_policy
from vpo_plugin.provenance import masked
from vpo_plugin.rewards import load_spec
from vpo_plugin.search.warm_start import READABLE, WarmStartSettings


def vpo_run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    with chdir(folder):
        return vpo("run", *arguments)


@pytest.mark.parametrize("name", shipped())
def test_shipped_configurations_are_settings(name: str) -> None:
    flow, settings, _ = load_config(name, [])
    assert settings.name == name  # type: ignore[attr-defined]
    assert flow == ("retrain" if "retrain" in name else "pipeline")


def test_listed(tmp_path: Path) -> None:
    lines = vpo_run(tmp_path, "--list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(shipped())
    assert all(len(line.split()) > 3 for line in lines)


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("name: mine\nsteps: 3\nlearning_rate: 1e-6\n")
    overrides = ["steps=2", "methods=[grpo, vpo, maxrl]", "candidates=null", "name=2024", "runs=out", "kl_loss=1e-3"]
    flow, settings, dry_run = load_config(str(config), [*overrides, "host_flags=[--ds.zero_stage=3]", "--seed", "4"])
    assert flow == "pipeline" and not dry_run
    changed = settings.model_dump(mode="json", exclude_defaults=True)
    assert changed == {
        "name": "2024",
        "runs": "out",
        "steps": 2,
        "learning_rate": 1e-6,
        "kl_loss": 1e-3,
        "methods": ["grpo", "vpo", "maxrl"],
        "host_flags": ["--ds.zero_stage=3"],
        "seed": 4,
    }
    assert load_config(str(config), ["flow=train"])[0] == "train"
    config.write_text("warm_start: true\n")
    assert (
        load_config(str(config), [])[1].warm_start and not load_config(str(config), ["warm_start=false"])[1].warm_start
    )
    given = PipelineSettings(warm_start=True, steps=2)
    assert load_config("pipeline", flags(given))[1] == load_config("pipeline", ["--warm_start", "steps=2"])[1] == given


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--logger.wandb.key", "K", "--steps", "2"], ["--logger.wandb.key", "***", "--steps", "2"]),
        (["--logger.wandb.key=K=", "--hub-token=K"], ["--logger.wandb.key=***", "--hub-token=***"]),
        (["--my.password", "K"], ["--my.password", "***"]),
        (["--a.secret", "--b"], ["--a.secret", "--b"]),
        (["--logger.wandb.key"], ["--logger.wandb.key"]),
        *((same, same) for same in (["--data.input_key", "K"], ["--label_key=K"], ["--ckpt.best_metric_key", "K"])),
    ],
)
def test_secrets_in_flags_are_masked(words: list[str], shown: list[str]) -> None:
    assert masked({"host_flags": words, "command": ["python", *words]}) == {
        "host_flags": shown,
        "command": ["python", *shown],
    }
    settings = PipelineSettings(host_flags=words)
    assert flags(settings) == [f"--host_flags={json.dumps(shown)}"] and settings.host_flags == words


@pytest.mark.parametrize(
    ("text", "overrides", "sentence"),
    [
        ("name: x", ["steps=two"], "vpo: --steps is two: it must be a valid integer"),
        ("name: x", ["steps=0"], "vpo: --steps is 0: it must be greater than or equal to 1."),
        ("steps: two", [], "config.yaml: steps is two: it must be a valid integer"),
        ("stepz: 2", [], "config.yaml: the key 'stepz' is unknown; is it 'steps'?"),
        ("name: ../x", [], "config.yaml: name is ../x: String should match pattern"),
        ("flow: retrain\ndeployment_k: 40", [], "vpo: deployment_k is 40, but only 30 candidates"),
        (
            "flow: nothing",
            [],
            "the flow is 'nothing', but must be one of pipeline, prepare-data, train, search-eval, retrain",
        ),
        ("- 1", [], "is not a configuration: it must be a mapping"),
        ("", [], "is not a configuration: it must be a mapping"),
        ("a: [", [], "config.yaml is not YAML"),
        ("a: !!python/object/apply:os.system ['true']", [], "config.yaml is not YAML"),
        ("name: x", ["steps"], "vpo: Write a setting on the command line as KEY=VALUE, not 'steps'."),
        ("name: x", ["methods=[vpo"], "vpo: The value of methods is not YAML: '[vpo'."),
        ("name: x", ["spec=no_such"], "vpo: There is no spec 'no_such'"),
        (
            "name: x",
            ["eval_candidates=7", "methods=[vpo]"],
            "vpo: eval_candidates is 7, but responses have 3 candidates",
        ),
        ("name: x", ["model=./nowhere"], "vpo: ./nowhere is not a model folder"),
        ("name: x", ["model=/"], "vpo: / is not a model folder"),
        (
            "name: x",
            ["methods=[grpo,vpo:6]", "rollouts_per_prompt=2", "max_new_tokens=200"],
            "vpo: The training with vpo:6 would be refused: --rollout.n_samples_per_prompt is 1: vpo compares",
        ),
        (
            "name: x",
            ["methods=[vpo,max_at_k]", "host_flags=[--vpo.k=99]", "steps=1"],
            "vpo: The training with max_at_k would be refused: --vpo.k 99 and --rollout.n_samples_per_prompt 24 do not",
        ),
        ("flow: search-eval", ["policies=[{name: a, model: ./nowhere}]"], "vpo: ./nowhere is not a model folder"),
        (
            "flow: search-eval\npolicies: [{name: a, model: tiny-maze}, {name: b, model: tiny-maze, candidates: 3}]",
            ["max_new_tokens=20"],
            "vpo: max_new_tokens is 20, but 3 candidates of spec 'maze_small' take up to 60",
        ),
        ("name: x", ["methods=[vpo,nope]"], "vpo: --methods.1: There is no advantage estimator named 'nope'."),
        ("methods: [vppo]", [], "config.yaml: methods.0: There is no advantage estimator named 'vppo'; is it 'vpo'?"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str,
    overrides: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(text)
    assert main(["run", "config.yaml", *overrides, "--dry_run"]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("vpo: ") and sentence in printed.err and printed.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("flow", [pipeline.pipeline, deployments.train_flow])
def test_a_flow_checks_all_trainings_before_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flow: Any
) -> None:
    done: list[str] = []
    for name in ("check_specification", "prepare_data", "prepare_policy", "train"):
        monkeypatch.setattr(pipeline, name, lambda *_, name=name: done.append(name) or load_spec("maze_small"))

    def refuse(*_: object) -> None:
        raise ValueError("max_at_k")

    monkeypatch.setattr(pipeline, "training_commands", refuse)
    with pytest.raises(ValueError, match="max_at_k"):
        flow.fn(runs=tmp_path, methods=["vpo", "max_at_k"], host_flags=["--vpo.k=99"])
    assert done == ["check_specification", "prepare_data", "prepare_policy"]


def test_on_a_cluster_the_first_training_checks_what_all_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that only the cluster's nodes have is no mistake."""
    absent, k = "--train.agent_func_path a.py does not exist.", "--vpo.k 99 does not fit."
    found = {"vpo": [absent], "max_at_k": [absent]}
    answer = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer)
    commands = {method: ["python", "-m", "vpo_plugin.train_ppo_ray"] for method in found}
    answer.stdout = f"what the host prints\n{json.dumps(found)}\n"
    check_commands(commands, on_cluster=True)
    with pytest.raises(ValueError, match=r"with vpo would be refused: --train\.agent"):
        check_commands(commands, on_cluster=False)
    answer.stdout = json.dumps(found | {"max_at_k": [absent, k]})
    with pytest.raises(ValueError, match=r"with max_at_k would be refused: --vpo\.k"):
        check_commands(commands, on_cluster=True)


def test_no_such_configuration(tmp_path: Path) -> None:
    done = vpo_run(tmp_path, "nothing")
    assert done.returncode == 1 and done.stderr.startswith("vpo: There is no file or configuration 'nothing'")
    assert vpo_run(tmp_path).returncode == 2


def commands(printed: str) -> list[list[str]]:
    """The host's commands in what a dry run printed, as a shell would read them."""
    blocks = [block for block in printed.split("\n\n") if "vpo_plugin.train_ppo_ray" in block]
    return [shlex.split(block.replace("\\\n", " ")) for block in blocks]


def test_a_dry_run_prints_the_commands_and_leaves_nothing(tmp_path: Path) -> None:
    methods = {"grpo": "24", "vpo_at_k": "8", "vpo_at_k:1": "24", "vpo": "8"}  # with rollouts for each prompt
    told = (f"methods=[{','.join(methods)}]", "host_flags=[--logger.wandb.key, HIDDEN]")
    done = vpo_run(tmp_path, "maze-cpu", "steps=3", *told, "--dry_run")
    assert done.returncode == 0, done.stderr
    stages = [line.split()[1] for line in done.stdout.splitlines() if line[:3].strip().isdigit()]
    assert stages == [
        *("check-spec", "prepare-data", "prepare-policy", *(f"train-{method}" for method in methods)),
        *("evaluate-base", *(f"evaluate-{method}" for method in methods), "report"),
    ]
    assert not list(tmp_path.iterdir())
    for command, (method, rollouts) in zip(commands(done.stdout), methods.items(), strict=True):
        assert command[-2:] == ["--logger.wandb.key", "***"]
        flags = dict(zip(command[3::2], command[4::2], strict=False))
        assert flags["--advantage"] == method.removesuffix(":1") and flags["--rollout.n_samples_per_prompt"] == rollouts
        assert flags["--data.prompt_dataset"] == str(tmp_path / "runs" / "maze-cpu" / "data" / "train")
        assert Path(flags["--ckpt.output_dir"]).parts[-5:] == ("runs", "maze-cpu", "train", method, "policy")


def test_a_dry_run_shows_the_warm_start_and_what_begins_with_it(tmp_path: Path) -> None:
    told = ("methods=[vpo,grpo,vpo_at_k]", "warm_start=true", "steps=1")
    done = vpo_run(tmp_path, "maze-cpu", *told, "--dry_run")
    assert done.returncode == 0, done.stderr
    stages = [line.split()[1] for line in done.stdout.splitlines() if line[:3].strip().isdigit()]
    assert stages[3:7] == ["warm-start-3", "train-vpo", "train-grpo", "train-vpo_at_k"]
    starts = [command[command.index("--actor.model_name_or_path") + 1] for command in commands(done.stdout)]
    taught = str(tmp_path / "runs" / "maze-cpu" / "warm_start_3" / "policy")
    assert starts[0] == starts[2] == taught and Path(starts[1]).name == "policy" and "warm_start" not in starts[1]
    assert f"into {taught}" in done.stdout


@pytest.mark.parametrize("config", [name for name in shipped() if "gpu" in name])
def test_the_commands_for_gpus_are_ones_that_the_host_reads(tmp_path: Path, config: str) -> None:
    """With another model, whose tokenizer needs no hub, and fewer prompts; the flags are those of the file. The cluster
    need not answer."""
    small = ("model=tiny-maze", "steps=1", "prompts_per_step=8", "cluster=http://127.0.0.1:9")
    done = vpo_run(tmp_path, config, *small, "--dry_run")
    assert done.returncode == 0, done.stderr
    with importable_host():
        for command in commands(done.stdout):
            assert command[:3] == ["python", "-m", "vpo_plugin.train_ppo_ray"]  # that of the cluster's nodes
            parsed = host_arguments(*command[3:])
            assert (parsed.actor.adam.lr, parsed.algo.kl.init_coef, parsed.actor.eps_clip) == (1e-6, 1e-3, 0.2)
            assert parsed.train.colocate_all and parsed.vllm.enable_sleep and parsed.ds.enable_sleep
            gpus = parsed.actor.num_nodes * parsed.actor.num_gpus_per_node
            assert parsed.vllm.num_engines * parsed.vllm.tensor_parallel_size == gpus
            assert gpus == (16 if "2x8" in config else 8)
            assert parsed.rollout.top_p == 1.0 and parsed.rollout.temperature == 1.0
            assert vars(parsed.vpo.chat_template_kwargs) == {"enable_thinking": False}


def test_evaluations_have_the_options_of_the_chat_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(pipeline, "run_logged", lambda command, *rest, **more: ran.append(command))
    (tmp_path / "test").mkdir()
    settings = PipelineSettings(runs=str(tmp_path), chat_template_kwargs={"enable_thinking": False})
    with disable_run_logger():
        pipeline.evaluate.fn(settings, "vpo", "a/model", 3, tmp_path)
    (command,) = ran
    assert json.loads(command[command.index("--chat_template_kwargs") + 1]) == {"enable_thinking": False}


def test_a_warm_start_has_what_the_pipeline_says_of_failing_scorers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []

    def run(command: list[str], log: Path, **more: Any) -> None:
        ran.append(command)
        log.write_text(READABLE)

    monkeypatch.setattr(pipeline, "run_logged", run)
    for policy in ("raise", "zero"):
        settings = PipelineSettings(runs=str(tmp_path / policy), spec="maze_small", on_scorer_error=policy)
        with disable_run_logger():
            pipeline.teach_format.fn(settings, resolve_policy(TINY, tmp_path), 3, tmp_path / policy / "policy")
    without, given = ran
    assert given[given.index("--on_scorer_error") + 1] == "zero" and "--on_scorer_error" not in without
    arguments = given[given.index("warm_start") + 1 :]
    assert read(WarmStartSettings, arguments, "vpo warm_start").on_scorer_error == "zero"


def test_other_flows_can_be_planned(tmp_path: Path) -> None:
    data = vpo_run(tmp_path, "maze-cpu", "flow=train", "--dry_run").stdout
    assert "train-vpo" in data and "evaluate" not in data
    retraining = vpo_run(tmp_path, "maze-retrain-cpu", "--dry_run").stdout
    assert "choose-prompts" in retraining and "compare" in retraining and len(commands(retraining)) == 1
    (tmp_path / "search.yaml").write_text("flow: search-eval\npolicies: [{name: a, model: tiny-maze, candidates: 3}]\n")
    assert "evaluate-a" in vpo_run(tmp_path, "search.yaml", "--dry_run").stdout


def test_a_server_that_does_not_answer_is_said_and_nothing_is_started(tmp_path: Path) -> None:
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        done = vpo_run(tmp_path, "maze-cpu")
    assert done.returncode == 1 and done.stderr.startswith("vpo: The Prefect server at http://127.0.0.1:9/api does not")
    assert "Nothing was started." in done.stderr and not (tmp_path / "runs").exists()
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9"}):
        done = vpo_run(tmp_path, "maze-cpu")
    assert "ends in /api: set PREFECT_API_URL to http://127.0.0.1:9/api." in done.stderr


def test_a_server_needs_to_be_named_with_its_api(tmp_path: Path) -> None:
    """Outside /api, Prefect's server answers everything with its page."""

    def prefect(path: str, content: dict) -> tuple[int, object]:
        return 200, True if path == "/api/health" else b"<!doctype html>"

    with serving(prefect) as server:
        for url in (server.url, f"{server.url}/"):
            with temporary_settings({PREFECT_API_URL: url}):
                done = vpo_run(tmp_path, "maze-cpu")
                (finding,) = doctor.check_prefect()
            assert done.returncode == 1 and not (tmp_path / "runs").exists()
            assert f"set PREFECT_API_URL to {server.url}/api. Nothing was started." in done.stderr
            assert finding.state == "lacks" and f"set PREFECT_API_URL to {server.url}/api." in finding.text
        with temporary_settings({PREFECT_API_URL: f"{server.url}/api"}):
            check_server()
            (finding,) = doctor.check_prefect()
        assert finding.state == "ok"

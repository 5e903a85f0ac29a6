"""The pipeline through its public command, on the real Prefect with its temporary server."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import run_pipeline, vpo
from host import host_parser, importable_host
from transformers import AutoModelForCausalLM, AutoTokenizer

from flows.experiment import check_experiment
from flows.process import run_logged
from flows.settings import HOST_ESTIMATORS, ExperimentSettings, PipelineSettings
from flows.stage import file_digest, is_done, working_on
from flows.train import host_command
from vpo_plugin.advantages import advantage_estimator_names
from vpo_plugin.models import SMOLLM2, TINY, micro_batch_size, resolve_policy
from vpo_plugin.openrlhf import cpu
from vpo_plugin.openrlhf.flags import ON_ONE_GPU, words
from vpo_plugin.openrlhf.log import FAILURE, end_of, last_error, last_words, read_steps

SMALL = {
    "name": "small",
    "methods": ["vpo"],
    "steps": 2,
    "prompts_per_step": 4,
    "rollouts_per_prompt": 4,
    "eval_prompts": 6,
    "eval_candidates": 6,
}


@pytest.mark.slow  # test_deployments runs the same flow with a server, test_experiment its resumption
def test_pipeline(tmp_path: Path) -> None:
    """Runs to a report; a second run does again only what is missing."""
    started = time.monotonic()
    first = run_pipeline(tmp_path, **SMALL)
    seconds = time.monotonic() - started
    assert first.returncode == 0, first.stdout + first.stderr
    folder = tmp_path / "small"
    report = json.loads((folder / "report.json").read_text())
    assert [policy["name"] for policy in report["policies"]] == ["base", "vpo"]
    assert [policy["rollouts"] * policy["candidates"] for policy in report["policies"]] == [6, 6]
    assert all(p["best_at_k"]["mean"][-1] <= report["ceiling"]["best"] for p in report["policies"])
    assert len(report["training"][0]["steps"]) == 2
    assert {"report.html", "best_at_k.png"} <= {path.name for path in folder.iterdir()}
    assert "best@6" in first.stdout
    cost = report["overhead"]
    assert cost["stages"] > 0 < cost["seconds"] and cost["stages"] + cost["seconds"] < seconds
    assert f"Orchestration added {cost['seconds']:.0f} s to the" in (folder / "report.html").read_text()
    assert "step 2/2" in first.stderr + first.stdout

    made = {path: path.stat().st_mtime_ns for path in folder.glob("*/**/stage.json")}
    assert len(made) == 4  # data, training, two pools
    (folder / "report.json").unlink()
    second = run_pipeline(tmp_path, **SMALL)
    assert second.returncode == 0, second.stdout + second.stderr
    assert [path for path in made if path.stat().st_mtime_ns != made[path]] == []
    assert json.loads((folder / "report.json").read_text())["policies"] == report["policies"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"spec": "no_such_spec"}, "There is no spec 'no_such_spec'"),
        ({"eval_candidates": 7}, "eval_candidates is 7"),
        ({"max_new_tokens": 30}, "max_new_tokens is 30"),
        ({"model": "./nowhere"}, "./nowhere is not a model folder"),
    ],
)
def test_bad_settings_end_in_a_sentence(tmp_path: Path, settings: dict[str, object], sentence: str) -> None:
    """Before Prefect starts, and so in a moment."""
    result = vpo(
        "run", "pipeline", *(f"{key}={value}" for key, value in (SMALL | settings).items()), f"runs={tmp_path}"
    )
    assert result.returncode == 1
    assert any(line.startswith(f"vpo: {sentence}") for line in result.stderr.splitlines()), result.stderr


def test_a_training_uses_one_gpu_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    one_gpu, given = words(ON_ONE_GPU), ["--vllm.num_engines=4"]
    for devices, added in ((None, []), (2, one_gpu)):
        monkeypatch.setattr(cpu, "own_gpus", lambda: devices)  # noqa: B023
        assert host_command(PipelineSettings(), {"advantage": "vpo"})[3:] == ["--advantage", "vpo", *added]
        assert host_command(PipelineSettings(host_flags=given), {})[3:] == given
        assert host_command(PipelineSettings(cluster="http://head:8265"), {})[3:] == []


def test_a_micro_batch_has_room_for_its_logits() -> None:
    """SmolLM2 with 269 tokens, Qwen3 with 500 and 20,000; batches of 384 and 12."""
    assert [micro_batch_size(384, tokens * words) for tokens, words in ((269, 49152), (500, 151936))] == [32, 4]
    assert micro_batch_size(384, 20_000 * 151_936) == 1 and micro_batch_size(12, 100) == 4


def test_an_experiment_may_compare_the_hosts_own_estimators() -> None:
    """Methods of one candidate may be cut shorter than a set of the spec's would be."""
    check_experiment(ExperimentSettings(methods=["group_norm", "grpo"], spec="code", max_new_tokens=1000))


def test_the_hosts_own_estimators_are_known() -> None:
    with importable_host():
        estimator = next(action for action in host_parser()._actions if action.dest == "algo.advantage.estimator")
    assert {*HOST_ESTIMATORS, *advantage_estimator_names()} == set(estimator.choices or ())


STARTED = (
    "from flows.server import check_server; check_server(); "
    "from prefect.server.api.server import SubprocessASGIServer; server = SubprocessASGIServer(); "
)


def server_program(home: Path, then: str) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a program that has a temporary server of Prefect with its data in `home`."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_API")}
    environment |= {"PREFECT_HOME": str(home), "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300"}
    return [sys.executable, "-c", STARTED + then], environment | {"PYTHONPATH": str(Path(__file__).parent.parent)}


def test_a_temporary_server_ends_with_its_flow_however_that_ends(tmp_path: Path) -> None:
    command, environment = server_program(
        tmp_path, "server.start(); print(server.server_process.pid, flush=True); import time; time.sleep(600)"
    )
    flow = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert flow.stdout is not None
    server = psutil.Process(int(flow.stdout.readline()))
    assert server.is_running()
    flow.kill()
    flow.wait()
    psutil.wait_procs([server], timeout=60)
    assert not server.is_running()


def test_a_temporary_server_is_the_flows_own(tmp_path: Path) -> None:
    """Another server takes the port between Prefect's choice and its use, and answers as a Prefect server does."""
    (tmp_path / "api").mkdir()
    (tmp_path / "api" / "health").write_text("true")
    command, environment = server_program(
        tmp_path,
        "from http.server import HTTPServer, SimpleHTTPRequestHandler; from threading import Thread; "
        "other = HTTPServer(('127.0.0.1', 0), SimpleHTTPRequestHandler); "
        "Thread(target=other.serve_forever, daemon=True).start(); server.port = other.server_port; "
        "server.start(); print('ports', server.port, other.server_port)",
    )
    done = subprocess.run(command, env=environment, timeout=300, cwd=tmp_path, capture_output=True, text=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("ports")]
    _, ours, others = line.split()
    assert ours != others, done.stderr


def test_a_temporary_server_that_cannot_start_ends_the_flow(tmp_path: Path) -> None:
    (tmp_path / "prefect.db").write_text("not a database")
    command, environment = server_program(tmp_path, "server.start()")
    done = subprocess.run(command, env=environment, timeout=300, check=False, capture_output=True, text=True)
    assert "Prefect's temporary server ended at its start with exit code 3." in done.stderr


@pytest.mark.slow
def test_a_flow_does_not_wait_for_a_server_that_was_killed(tmp_path: Path) -> None:
    """Each event would otherwise take seven seconds, and each request a minute."""
    command, environment = server_program(
        tmp_path,
        "import httpx; from prefect.client.orchestration import get_client; from prefect.events import emit_event; "
        "from prefect.events.worker import EventsWorker; server.start(); "
        "events = lambda n: [emit_event('a', {'prefect.resource.id': 'b'}) for _ in range(n)]; events(1); "
        "EventsWorker.instance().wait_until_empty(); client = get_client(sync_client=True); client.read_flows(); "
        "server.server_process.kill(); server.server_process.wait(); events(30)\n"
        "for _ in range(30):\n try: client.read_flows()\n except httpx.ConnectError: pass",
    )
    subprocess.run(command, env=environment, timeout=150, check=True, capture_output=True)


def test_the_last_words_of_a_training_are_its_own_sentence(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    ray = "Traceback (most recent call last):\n  …\nray.exceptions.ActorDiedError: It died.\n\tclass_name: Trainer\n"
    log.write_text(f"{ray}(Trainer pid=3) noise\n{FAILURE}A process or a node of the run died, see above.\n")
    assert last_words(log) == f"A process or a node of the run died, see above. The whole log is {log}."
    log.write_text(ray)
    assert last_words(log).startswith("ray.exceptions.ActorDiedError: It died.\n\tclass_name: Trainer\n")


def test_the_error_of_an_engine_is_the_engines_own(tmp_path: Path) -> None:
    """Lines of a run on an H100 without flashinfer: the training's own error only points to the engine's."""
    log = tmp_path / "train.log"
    core = "\x1b[36m(RolloutRayActor pid=5)\x1b[0m (EngineCore pid=6674) ERROR 11-27 19:11:59 [core.py:1433]"
    end = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n"
    log.write_text(
        f"{core}     from flashinfer import (\n{core} ModuleNotFoundError: No module named 'flashinfer'\n"
        f"Traceback (most recent call last):\n{end}"
    )
    sentence = "the vLLM engine did not start: ModuleNotFoundError: No module named 'flashinfer'"
    assert last_error(log.read_text()) == sentence
    assert last_words(log) == f"{sentence} The whole log is {log}."
    log.write_text(f"{log.read_text()}(Trainer pid=3) noise after the end\n")
    assert last_words(log) == f"{sentence} The whole log is {log}."
    assert last_error(end) == end.strip()


def test_folder_of_another_spec(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "run.json").write_text('{"spec": "maze"}')
    result = vpo("run", "pipeline", "name=small", f"runs={tmp_path}")
    assert result.returncode == 1
    assert "holds a run of spec 'maze'" in result.stderr


def test_settings_refuse_what_they_do_not_know() -> None:
    with pytest.raises(ValueError, match="learning_rat"):
        PipelineSettings(learning_rat=1.0)  # type: ignore[call-arg]


def test_stage_is_done_only_when_its_body_succeeded(tmp_path: Path) -> None:
    folder = tmp_path / "stage"
    with pytest.raises(RuntimeError), working_on(folder, {"a": 1}):
        raise RuntimeError("interrupted")
    assert not is_done(folder, {"a": 1})
    with working_on(folder, {"a": 1}):
        (folder / "result").write_text("x")
    assert is_done(folder, {"a": 1})
    assert not is_done(folder, {"a": 2})


def test_a_stage_keeps_no_secret_and_a_new_one_changes_nothing(tmp_path: Path) -> None:
    flags = ["--logger.wandb.key", "OLD", "--ds.zero_stage=3"]
    with working_on(tmp_path / "stage", {"host_flags": flags}):
        pass
    assert "OLD" not in (tmp_path / "stage" / "stage.json").read_text()
    assert is_done(tmp_path / "stage", {"host_flags": ["--logger.wandb.key", "NEW", "--ds.zero_stage=3"]})
    assert not is_done(tmp_path / "stage", {"host_flags": ["--logger.wandb.key", "NEW", "--ds.zero_stage=2"]})


def test_file_digest_follows_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    before = file_digest(tmp_path)
    (tmp_path / "a").write_text("y")
    assert file_digest(tmp_path) != before


def test_run_logged_says_what_the_program_said_last(tmp_path: Path) -> None:
    program = "import sys; print('(Worker pid=1) noise'); sys.exit('The cause.')"
    with pytest.raises(RuntimeError, match=r"The program failed \(exit code 1\): The cause\. The whole log is"):
        run_logged([sys.executable, "-c", program], tmp_path / "log", what="The program")


def test_the_end_of_a_log_starts_at_its_last_traceback(tmp_path: Path) -> None:
    trace = ["Traceback (most recent call last):", '  File "x.py", line 1, in <module>', "ValueError: the cause", "bye"]
    other = ["RuntimeWarning: unrelated", "Traceback (most recent call last):", "KeyError: earlier", "going on"]
    (tmp_path / "log").write_text("\n".join([*other, *trace, "(Worker pid=7) noise"]))
    assert end_of(tmp_path / "log").splitlines() == trace
    (tmp_path / "log").write_text("\n".join(other[:1] + trace[:1] + ["line"] * 99))
    assert end_of(tmp_path / "log").splitlines() == ["line"] * 60


def test_run_logged_records_no_secret(tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = "import sys; print(open(sys.argv[1] + '.job').read().splitlines()[1:], sys.argv[2:])"
    command = [sys.executable, "-c", program, str(log), "--logger.wandb.key", "HIDDEN"]
    run_logged(command, log, what="The program")
    assert log.read_text() == f"{[*command[:-1], '***']} {command[-2:]}\n"  # the program itself gets the secret


def test_run_logged_stops_the_program_when_left(tmp_path: Path) -> None:
    """An exception while the program runs ends the program and its children."""
    program = (
        "import subprocess, sys, time; "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        "print(child.pid, flush=True); time.sleep(600)"
    )
    log = tmp_path / "log"

    def interrupt() -> None:
        if log.read_text().strip():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_logged([sys.executable, "-c", program], log, what="The program", on_poll=interrupt)
    child = int(log.read_text().split()[0])
    deadline = time.monotonic() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the child is still running"
        time.sleep(0.1)


def test_shipped_policy_is_small_and_writes_routes() -> None:
    policy = Path(resolve_policy(TINY, Path("unused")))
    assert sum(file.stat().st_size for file in policy.iterdir()) < 5_000_000
    AutoTokenizer.from_pretrained(policy)


@pytest.mark.slow
def test_smollm2_becomes_an_ordinary_checkpoint(tmp_path: Path) -> None:
    policy = resolve_policy(SMOLLM2, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(policy)
    model = AutoModelForCausalLM.from_pretrained(policy)
    question = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=10, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert resolve_policy(SMOLLM2, tmp_path) == policy


@pytest.mark.slow
def test_pipeline_does_again_what_follows_from_a_change(tmp_path: Path) -> None:
    """Other held-out prompts: the pools are made again, and the training stays."""
    assert run_pipeline(tmp_path, **SMALL | {"steps": 1}).returncode == 0
    folder = tmp_path / "small"
    made = {path: path.stat().st_mtime_ns for path in folder.glob("*/**/stage.json")}
    second = run_pipeline(tmp_path, **SMALL | {"steps": 1, "eval_prompts": 5})
    assert second.returncode == 0, second.stdout + second.stderr
    again = {path.relative_to(folder).parts[0] for path in made if path.stat().st_mtime_ns != made[path]}
    assert again == {"data", "eval"}


@pytest.mark.slow
def test_pipeline_teaches_the_format_first(tmp_path: Path) -> None:
    """The policy that writes sets begins with what `vpo warm_start` made of the model, and only once."""
    taught = SMALL | {"warm_start": True, "steps": 1}
    first = run_pipeline(tmp_path, **taught)
    assert first.returncode == 0, first.stdout + first.stderr
    made = tmp_path / "small" / "warm_start_3" / "policy" / "model.safetensors"
    assert str(made.parent) in (tmp_path / "small" / "train" / "vpo" / "train.log").read_text()
    assert "Candidates that can be read" in first.stdout + first.stderr
    before = made.stat().st_mtime_ns
    assert run_pipeline(tmp_path, **taught).returncode == 0
    assert made.stat().st_mtime_ns == before


RIVALS = """
extends: maze_small
name: rivals
group_scorer: rivals:score_group
"""

RIVALS_SCORER = """
from reward_specs.maze.maze import score


def score_group(candidates_by_rollout, label):
    texts = [text for rollout in candidates_by_rollout for text in rollout if text]
    if sum(text.startswith("DOWN") for text in texts) % 2:
        raise ArithmeticError("the judge has no answer")
    return [[text and score(text, label) for text in rollout] for rollout in candidates_by_rollout]
"""


@pytest.mark.slow
def test_pipeline_with_a_scorer_of_groups_that_fails(tmp_path: Path) -> None:
    """Every stage gives it all responses to a prompt, and counts those that it fails on, as the settings say."""
    (tmp_path / "rivals").mkdir()
    (tmp_path / "rivals" / "spec.yaml").write_text(RIVALS)
    (tmp_path / "rivals" / "rivals.py").write_text(RIVALS_SCORER)
    own = SMALL | {"spec": str(tmp_path / "rivals"), "steps": 1}
    stopped = run_pipeline(tmp_path, **own)
    assert stopped.returncode != 0 and "the judge has no answer" in stopped.stdout + stopped.stderr
    done = run_pipeline(tmp_path, **own, on_scorer_error="zero")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "small" / "report.json").read_text())
    failed = [policy["scorer_failures"] for policy in report["policies"]]
    assert 0 < failed[0] < 36  # of the base policy, whose pool is the same in every run; the other's may be spared
    assert f"{failed[0]} responses of base scored zero because the scorer failed." in done.stdout
    (step,) = read_steps(tmp_path / "small" / "train" / "vpo" / "policy" / "vpo")
    assert 0 <= step["scorer_errors"] <= 1  # of four prompts

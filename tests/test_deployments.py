"""The deployments of prefect.yaml, as the README says: a real server, a real worker, and what a person finds there."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest
import yaml
from markdown_it import MarkdownIt
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools import validate
from prefect_service import POSTGRES, ROOT, Service, postgres, readme_command, serving, working
from test_retrain import SMALL as RETRAINING
from test_retrain import write_growing_spec

from flows import hooks
from flows.deployments import FLOWS
from flows.process import running as process_of
from flows.registry import champion, versions
from flows.run import shipped
from flows.settings import SETTINGS, PipelineSettings
from vpo_plugin.openrlhf.log import METRICS, read_steps

pytestmark = pytest.mark.timeout(1800)  # for a machine with much else to do
SMALL = {
    "methods": ["vpo"],
    "prompts_per_step": 4,
    "rollouts_per_prompt": 4,
    "eval_prompts": 6,
    "eval_candidates": 6,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture(scope="module")
def service(home: Path) -> Iterator[Service]:
    """A server with nothing on it but what `prefect deploy --all` left where the work pool is absent."""
    with serving(home / "sqlite") as service:
        yield service


@pytest.fixture(scope="module")
def deployed(service: Service) -> Service:
    deploy(service)
    return service


@pytest.fixture(scope="module")
def worked(deployed: Service, home: Path) -> Iterator[Service]:
    with working(deployed, home, limit=2):
        yield deployed


def deploy(service: Service) -> None:
    """The README's commands, typed at a terminal."""
    for start in ("work-pool create", "deploy --all"):
        code, output = service.prefect_on_terminal(*readme_command(start))
        assert code == 0, output


def run_deployment(service: Service, deployment: str, *, wait: bool = True, **parameters: object) -> tuple[dict, str]:
    """The run that `prefect deployment run` made, and what the command printed."""
    given = [part for key, value in parameters.items() for part in ("--param", f"{key}={json.dumps(value)}")]
    watch = ["--watch", "--watch-interval", "1"] if wait else []
    done = service.prefect("deployment", "run", deployment, *given, *watch, timeout=1500)
    return service.runs(deployment.split("/")[0])[-1], done.stdout + done.stderr


def test_an_absent_work_pool_is_said_and_nothing_is_deployed(service: Service) -> None:
    done = service.prefect("deploy", "--all")
    assert done.returncode == 1
    assert "references work pool 'local' which does not exist" in " ".join(done.stdout.split())
    assert service.api("/deployments/filter") == []


def check_choices(form: dict) -> None:
    """What the project has is offered as a choice, in each field of a form that takes it."""
    choices = {"methods": "vpo", "method": "vpo", "spec": "maze_small", "model": "tiny-maze"}
    for key in set(choices) & set(form):
        assert choices[key] in form[key].get("items", form[key])["anyOf"][0]["enum"]


def test_five_flows_are_deployed_with_their_forms(deployed: Service) -> None:
    flows = {flow["id"]: flow["name"] for flow in deployed.api("/flows/filter")}
    found = {flows[deployment["flow_id"]]: deployment for deployment in deployed.api("/deployments/filter")}
    assert set(found) == set(FLOWS) == set(SETTINGS)
    for name, deployment in found.items():
        assert deployment["name"] == "maze-cpu" and deployment["work_pool_name"] == "local"
        assert {"vpo", "maze"} <= set(deployment["tags"]) and deployment["description"]
        assert deployment["enforce_parameter_schema"] and not deployment["paused"]
        assert set(deployment["parameters"]) == {"name"}
        fields = SETTINGS[name].model_fields
        form = deployment["parameter_openapi_schema"]["properties"]
        assert list(form) == list(fields)
        assert all(form[key]["description"] == field.description for key, field in fields.items())
        check_choices(form)
    schedules = found["retrain"]["schedules"]
    assert [("cron" in one["schedule"], "interval" in one["schedule"]) for one in schedules] in (
        [(True, False), (False, True)],
        [(False, True), (True, False)],
    )
    assert not any(schedule["active"] for schedule in schedules)
    assert found["retrain"]["global_concurrency_limit"]["limit"] == 1
    assert not any(found[name]["schedules"] for name in set(found) - {"retrain"})


@pytest.mark.parametrize("name", SETTINGS)
def test_a_flow_takes_what_its_settings_take(name: str) -> None:
    """Types, bounds and defaults of the form are those of the settings."""
    form = parameter_schema(FLOWS[name].fn)
    wanted = SETTINGS[name].model_json_schema()
    for key, field in wanted["properties"].items():
        ours = {k: v for k, v in form.properties[key].items() if k not in ("title", "position")}
        theirs = json.loads(
            json.dumps({k: v for k, v in field.items() if k != "title"}).replace("$defs", "definitions")
        )
        assert ours == theirs
    check_choices(form.properties)
    assert form.required == []
    assert FLOWS[name].validate_parameters({}) == dict(SETTINGS[name]())


CLUSTER_DEPLOYMENT = ROOT / "cluster" / "prefect" / "deployments.yaml"


@pytest.mark.parametrize("file", [*shipped().values(), CLUSTER_DEPLOYMENT], ids=lambda file: file.stem)
def test_a_form_takes_the_parameters_of_a_file(file: Path) -> None:
    """As they are in the file: what a person copies into prefect.yaml is valid. A configuration for GPUs with a
    cluster."""
    given = yaml.safe_load(file.read_text())
    if file == CLUSTER_DEPLOYMENT:
        (deployment,) = given["deployments"]
        given = deployment["parameters"]
        assert given == yaml.safe_load(shipped()[deployment["name"]].read_text()) | {
            "runs": "/shared/runs",
            "cluster": "http://vpo-head-svc:8265",
        }
        template = json.loads((file.parent / "kubernetes.json").read_text())
        assert set(deployment["work_pool"]["job_variables"]) <= set(template["variables"]["properties"])
        assert f"create {deployment['work_pool']['name']} --type" in (file.parent.parent / "README.md").read_text()
    elif "gpu" in file.stem:
        given["cluster"] = "http://HEAD:8265"
    flow = FLOWS[given.pop("flow", "pipeline")]
    validate(given, parameter_schema(flow.fn).model_dump_for_openapi(), raise_on_error=True)
    assert set(given) <= set(SETTINGS[flow.name].model_fields) and flow.validate_parameters(given)


@pytest.mark.parametrize(
    ("parameter", "sentence"),
    [
        ("steps=two", "field 'steps'. Failure reason: 'two' is not of type 'integer'"),
        ("steps=0", "field 'steps'. Failure reason: 0 is less than the minimum of 1"),
        ("stepz=2", "specified but not found on the deployment: 'stepz'"),
        ('methods=["vpo","nope"]', "field 'methods[1]'. Failure reason: 'nope' is not valid"),
    ],
)
def test_a_wrong_parameter_is_refused_before_there_is_a_run(deployed: Service, parameter: str, sentence: str) -> None:
    before = len(deployed.runs("pipeline"))
    done = deployed.prefect("deployment", "run", "pipeline/maze-cpu", "--param", parameter)
    assert done.returncode == 1 and sentence in " ".join((done.stdout + done.stderr).split())
    assert len(deployed.runs("pipeline")) == before


def test_a_misspelt_parameter_of_a_deployment_is_named(worked: Service, tmp_path: Path) -> None:
    """`prefect deploy` takes any parameters of a file; the run fails and says which one is wrong."""
    file = tmp_path / "prefect.yaml"
    text = (
        "name: vpo\npull:\n- prefect.deployments.steps.set_working_directory: {directory: %s}\ndeployments:\n"
        "- {name: unknown, entrypoint: 'flows/deployments.py:prepare_data_flow', work_pool: {name: local}, "
        "parameters: {name: u, stepps: 2}}\n"
    )
    file.write_text(text % ROOT)
    done = worked.prefect("--no-prompt", "deploy", "--prefect-file", str(file), "--name", "unknown")
    assert done.returncode == 0, done.stdout + done.stderr
    run, _ = run_deployment(worked, "prepare-data/unknown", wait=False, runs=str(tmp_path))
    deadline = time.monotonic() + 700
    while (run := worked.runs("prepare-data")[-1])["state"]["type"] != "FAILED":
        assert time.monotonic() < deadline, run["state"]
        time.sleep(1)
    assert run["state"]["message"] == "The parameter 'stepps' is unknown; is it 'steps'?"
    while "failure" not in (artifacts := worked.artifacts(run)):
        assert time.monotonic() < deadline
        time.sleep(1)
    assert "The parameter 'stepps' is unknown" in artifacts["failure"]["data"]


def check_pipeline(service: Service, runs: Path) -> dict:
    given = [f"--param={key}={json.dumps(value)}" for key, value in (SMALL | {"runs": str(runs)}).items()]
    done = service.prefect(*readme_command("deployment run"), *given, timeout=1500)
    run, output = service.runs("pipeline")[-1], done.stdout + done.stderr
    assert run["state"]["type"] == "COMPLETED", output + str(run["state"])
    folder = runs / "maze-cpu"
    assert run["name"] == "maze-cpu" and run["state"]["message"].startswith("best@6: vpo - base = ")
    assert str(folder / "report.html") in run["state"]["message"]
    assert json.loads((folder / "report.json").read_text())["policies"][1]["name"] == "vpo"
    artifacts = service.artifacts(run)
    shown = artifacts["report"]["data"]
    assert "| policy | best@1 |" in shown and f"`vpo open {folder}`" in shown and "file://" not in shown
    for key in ("best-at-k", "training", "training-vpo"):
        assert artifacts[key]["type"] == "image" and artifacts[key]["data"].startswith("data:image/png;base64,")
    assert any(artifact["type"] == "progress" for artifact in artifacts.values())
    return run


def test_a_deployed_pipeline_runs_to_its_report(worked: Service, tmp_path: Path) -> None:
    run = check_pipeline(worked, tmp_path / "runs")
    if not shutil.which("chromium"):
        pytest.skip("ran to its report; no picture of its page: chromium is not installed")
    picture = tmp_path / "page.png"
    done = worked.python("-m", "benchmarks.screenshot", run["id"], "--output", str(picture))
    assert done.returncode == 0, done.stderr
    assert picture.stat().st_size > 20_000
    absent = worked.python("-m", "benchmarks.screenshot", worked.api("/flows/filter")[0]["id"])
    assert absent.returncode == 1 and absent.stderr.startswith("The server has no flow run ")


def test_a_schedule_makes_runs(deployed: Service) -> None:
    """It did not with SQLAlchemy 2.1, silently but for the server's log."""
    name, tomorrow = "retrain/maze-cpu", (datetime.now(UTC) + timedelta(days=1)).isoformat()
    assert not any(run["auto_scheduled"] for run in deployed.api("/flow_runs/filter"))
    try:
        given = ("--interval", "86400", "--anchor-date", tomorrow)
        done = deployed.prefect("deployment", "schedule", "create", name, *given)
        assert done.returncode == 0, done.stdout + done.stderr
        deadline = time.monotonic() + 120
        while not any(run["auto_scheduled"] for run in deployed.api("/flow_runs/filter")):
            assert time.monotonic() < deadline, "no run was scheduled"
            time.sleep(0.5)
    finally:
        deployed.prefect("deployment", "schedule", "clear", name, "--accept-yes")


@pytest.mark.slow
def test_the_block_of_the_readme_pasted_whole(tmp_path: Path) -> None:
    """On a free port, with a small run; and the `kill` below it ends what it started. `set -m` is as in a terminal."""
    section = (ROOT / "README.md").read_text().split("## Deployments")[1]
    block, ends = section.split("```bash\n")[1].split("```")[0], section.split("`kill ")[1].split("`")[0]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    given = " ".join(f"--param '{key}={json.dumps(value)}'" for key, value in (SMALL | {"runs": str(tmp_path)}).items())
    block = block.replace("4200", port).replace("server.log", str(tmp_path / "server.log"))
    block = block.replace("--param steps=2", given)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")} | {
        **{"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DO_NOT_TRACK": "1"},
        **{"PREFECT_HOME": str(tmp_path / "prefect"), "PREFECT_SERVER_API_PORT": port},
    }
    done = subprocess.run(
        ["bash", "-c", f"set -m\n{block}\nstatus=$?\nkill {ends}\nwait\nexit $status"],
        **{"cwd": ROOT, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True},
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert "Flow run finished successfully" in done.stdout
    assert (tmp_path / "maze-cpu" / "report.html").exists()


needs_postgres = pytest.mark.skipif(not POSTGRES, reason="PostgreSQL is not installed: apt-get install postgresql")


@pytest.fixture(scope="module")
def on_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home = tmp_path_factory.mktemp("on_postgres")
    with (
        postgres(home / "database") as url,
        serving(home / "prefect", PREFECT_SERVER_DATABASE_CONNECTION_URL=url) as service,
    ):
        deploy(service)
        with working(service, home):
            yield service


@pytest.mark.slow
@needs_postgres
def test_the_same_on_postgres(on_postgres: Service, tmp_path: Path) -> None:
    run, output = run_deployment(
        on_postgres, "prepare-data/maze-cpu", steps=2, runs=str(tmp_path), prompts_per_step=4, eval_prompts=6
    )
    assert run["state"]["type"] == "COMPLETED", output + str(run["state"])
    assert run["state"]["message"].startswith("8 training prompts and 6 held-out prompts are in ")
    assert (tmp_path / "maze-cpu" / "data" / "stage.json").exists()


@pytest.mark.slow
@needs_postgres
def test_the_whole_pipeline_on_postgres(on_postgres: Service, tmp_path: Path) -> None:
    check_pipeline(on_postgres, tmp_path / "runs")


@pytest.fixture
def messages(deployed: Service, tmp_path: Path) -> Iterator[list[str]]:
    """What the documented automation sends, to a webhook on loopback instead of Slack."""
    received: list[str] = []

    class Webhook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Webhook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        block = (
            "from prefect.blocks.notifications import CustomWebhookNotificationBlock as Block; "
            f"print(Block(name='team', url='http://127.0.0.1:{server.server_port}', "
            "json_data={'text': '{{subject}} {{body}}'}).save('team', overwrite=True))"
        )
        made = deployed.python("-c", block)
        assert made.returncode == 0, made.stderr
        automation = tmp_path / "notify.yaml"
        text = (Path(__file__).parent.parent / "docs" / "notify.yaml").read_text()
        automation.write_text(text.replace("BLOCK_ID", made.stdout.split()[-1]))
        created = deployed.prefect("automation", "create", "--from-file", str(automation))
        assert created.returncode == 0, created.stdout + created.stderr
        yield received
        server.shutdown()


def test_a_failure_says_what_happened(worked: Service, messages: list[str], tmp_path: Path) -> None:
    """The flow run's message is the cause, what is shown of it is text, never HTML, and the automation tells of it."""
    folder = tmp_path / "maze-cpu"
    folder.mkdir()
    (folder / "train.log").write_text("~~~\n<script>alert(1)</script>\n~~~~\nthe last line\n")
    run, _ = run_deployment(worked, "train/maze-cpu", runs=str(tmp_path), spec="<img src=x onerror=alert(1)>")
    assert run["state"]["type"] == "FAILED"
    assert "There is no spec '<img src=x onerror=alert(1)>'" in run["state"]["message"]
    shown = worked.artifacts(run)["failure"]["data"]
    assert "The run failed." in shown and "There is no spec" in shown and "the last line" in shown
    assert f"`vpo open {folder}`" in shown
    page = MarkdownIt().render(shown)
    assert "<script>" not in page and "<img" not in page
    assert "&lt;script&gt;" in page and "&lt;img src=x" in page
    deadline = time.monotonic() + 700
    while not messages:
        assert time.monotonic() < deadline, "no notification"
        time.sleep(0.5)
    assert "train maze-cpu: Failed" in messages[0] and "There is no spec" in messages[0]


def test_a_killed_run_is_crashed_and_says_how_to_go_on(worked: Service, home: Path, tmp_path: Path) -> None:
    """The process of a flow run is killed as the kernel would kill it for want of memory."""
    run, _ = run_deployment(worked, "pipeline/maze-cpu", wait=False, steps=2, runs=str(tmp_path), **SMALL)
    deadline = time.monotonic() + 700
    while not (process := flow_process(run["id"])) or not (tmp_path / "maze-cpu" / "data" / "stage.json").exists():
        assert time.monotonic() < deadline, (home / "worker.log").read_text()
        time.sleep(0.5)
    family = [process, *process.children(recursive=True)]
    process.kill()
    while (run := worked.runs("pipeline")[-1])["state"]["type"] != "CRASHED":
        assert time.monotonic() < deadline, run["state"]
        time.sleep(0.5)
    while "failure" not in (artifacts := worked.artifacts(run)):
        assert time.monotonic() < deadline, (home / "worker.log").read_text()
        time.sleep(0.5)
    assert "was stopped from outside" in artifacts["failure"]["data"]
    assert "to resume from them" in artifacts["failure"]["data"]
    for one in family:  # a killed process cannot end what it started
        if one.is_running():
            one.kill()


@pytest.mark.slow
def test_a_worker_killed_mid_train(tmp_path: Path) -> None:
    """Its training, which nothing could tell, runs on; the same run on another worker follows it to its end."""
    runs = tmp_path / "runs"
    asked = SMALL | {"steps": 40, "runs": str(runs)}
    log = runs / "maze-cpu" / "train" / "vpo" / "train.log"
    with serving(tmp_path / "prefect") as service:
        deploy(service)
        with working(service, tmp_path) as worker:
            run, _ = run_deployment(service, "train/maze-cpu", wait=False, **asked)
            deadline = time.monotonic() + 400
            while not read_steps(log.parent / "policy" / "vpo"):
                assert time.monotonic() < deadline, "no step: " + (tmp_path / "worker.log").read_text()
                time.sleep(0.2)
            process = flow_process(run["id"])
            assert process is not None
            for one in (worker, process):
                one.kill()
                one.wait(60)
        assert process_of(log) is not None
        with working(service, tmp_path):
            run, output = run_deployment(service, "train/maze-cpu", **asked)
    assert run["state"]["type"] == "COMPLETED", output + str(run["state"])
    assert [step["step"] for step in read_steps(log.parent / "policy" / "vpo")] == list(range(1, 41))
    assert log.read_text().count("Started a local Ray instance") == 1
    assert process_of(log) is None


def flow_process(run: str) -> psutil.Process | None:
    """The process that runs a flow run."""
    for process in psutil.process_iter():
        try:
            if process.environ().get("PREFECT__FLOW_RUN_ID") == run and "prefect" in " ".join(process.cmdline()):
                return process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return None


def test_retrainings_never_overlap_and_skip_what_is_too_little(worked: Service, tmp_path: Path) -> None:
    """Two retrainings are asked for at once: the second waits, and neither is a failure for want of prompts."""
    spec = write_growing_spec(tmp_path / "growing", train=3, test=4)
    asked = {"runs": str(tmp_path), "registry": str(tmp_path / "registry"), "spec": str(spec), "eval_prompts": 4}
    for _ in range(2):
        run_deployment(worked, "retrain/maze-cpu", wait=False, **asked)
    deadline = time.monotonic() + 700
    while any(run["state"]["type"] != "COMPLETED" for run in worked.runs("retrain")[-2:]):
        runs = worked.runs("retrain")[-2:]
        assert time.monotonic() < deadline, [run["state"] for run in runs]
        assert all(run["state"]["type"] not in ("FAILED", "CRASHED") for run in runs), runs
        time.sleep(1)
    runs = worked.runs("retrain")[-2:]
    for run in runs:
        assert run["state"]["name"] == "Skipped"
        assert run["state"]["message"].startswith("Skipped: 3 prompts that no version was trained on, but at least 256")
    first, second = sorted(runs, key=lambda run: run["start_time"])
    assert first["end_time"] <= second["start_time"]
    assert [file.name for file in (tmp_path / "registry").glob("v*.json")] == ["v0001.json"]


@pytest.mark.slow
def test_a_schedule_retrains_as_data_grow(tmp_path: Path) -> None:
    """Its clock fires on: one promotes, one finds nothing new, and one, whose worker is killed, keeps the champion."""
    growing, registry, file = tmp_path / "growing", tmp_path / "registry", tmp_path / "prefect.yaml"
    places = {"runs": str(tmp_path / "runs"), "registry": str(registry), "spec": str(growing)}
    deployment = {
        **{"name": "often", "entrypoint": "flows/deployments.py:retrain", "work_pool": {"name": "local"}},
        "schedules": [{"interval": 45, "active": True}],
        "concurrency_limit": {"limit": 1, "collision_strategy": "ENQUEUE"},
    }
    step = {"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}

    def deploy_with(margin: float) -> None:
        parameters = {key: value for key, value in RETRAINING.items() if key != "flow"} | places | {"margin": margin}
        content = {"name": "vpo", "pull": [step], "deployments": [deployment | {"parameters": parameters}]}
        file.write_text(json.dumps(content))
        done = service.prefect("--no-prompt", "deploy", "--prefect-file", str(file), "--all")
        assert done.returncode == 0, done.stdout + done.stderr

    def wait_for_run(*names: str) -> dict:
        deadline = time.monotonic() + 1500
        while True:
            runs = service.runs("retrain")
            assert all(run["state"]["type"] != "FAILED" for run in runs), [run["state"] for run in runs]
            if found := [run for run in runs if run["state"]["name"] in names]:
                return found[-1]
            assert time.monotonic() < deadline, [run["state"]["name"] for run in runs]
            time.sleep(1)

    write_growing_spec(growing, train=8, test=7)
    with serving(tmp_path / "prefect") as service:
        assert service.prefect(*readme_command("work-pool create")).returncode == 0
        deploy_with(-1.0)
        with working(service, tmp_path) as worker:
            wait_for_run("Promoted")
            wait_for_run("Skipped")
            deploy_with(0.9)
            write_growing_spec(growing, train=16, test=7)
            logs = f"runs/small/*/train/vpo/policy/vpo/{METRICS}"
            deadline = time.monotonic() + 1500
            while len(list(tmp_path.glob(logs))) < 2:
                assert time.monotonic() < deadline, service.runs("retrain")[-1]
                time.sleep(0.5)
            worker.kill()
            for run in service.runs("retrain"):
                if run["state"]["type"] == "RUNNING" and (process := flow_process(run["id"])):
                    process.kill()
        with working(service, tmp_path):
            kept = wait_for_run("Kept")
        shown = service.artifacts(kept)["decision"]["data"]
    assert [(version.version, version.parent) for version in versions(registry)] == [
        *(("v0001", None), ("v0002", "v0001"), ("v0003", "v0002")),
    ]
    current = champion(registry)
    assert current is not None and current.version == "v0002" and f"`{registry}`" in shown
    assert [line.split(" | ")[:3] for line in shown.splitlines() if " | v000" in line] == [
        *(["| ", "v0001", ""], ["| *", "v0002", "v0001"], ["| ", "v0003", "v0002"]),
    ]
    assert "kept aside" in shown and "`vpo open " in shown


def test_a_settings_flow_refuses_what_the_settings_refuse() -> None:
    with pytest.raises(ValueError, match="deployment_k is 40"):
        FLOWS["retrain"].fn(deployment_k=40)
    assert PipelineSettings().folder == Path("runs/demo")


def test_fences_hold_any_text() -> None:
    for text in ("plain", "~~~", "a\n~~~~~~\nb", "```\n~~~"):
        lines = hooks.fenced(text).splitlines()
        assert lines[0] == lines[-1] and set(lines[0]) == {"~"} and lines[0] not in lines[1:-1]
        assert "\n".join(lines[1:-1]) == text

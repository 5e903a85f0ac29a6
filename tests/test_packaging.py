"""What installs where: the core without the host, the pinned list without a hole."""

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import distribution, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
CORE_ONLY = """
import importlib.abc, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in {packages}:
            raise ModuleNotFoundError(f"the core must not import {name}")

sys.meta_path.insert(0, Refuse())
import vpo_plugin.advantages, vpo_plugin.rewards
vpo_plugin.rewards.load_spec("maze")
"""
HEAVY = "{'ray', 'openrlhf', 'vllm', 'deepspeed', 'transformers', 'datasets', 'prefect', 'wrapt', 'psutil', 'rich'}"


def test_core_imports_without_host_and_engines() -> None:
    program = CORE_ONLY.replace("{packages}", HEAVY)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def pinned() -> dict[str, str]:
    lines = (ROOT / "requirements" / "cpu.txt").read_text().split()
    pins = dict(line.split("==") for line in lines)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins.items()}


def test_every_pin_is_installed_at_its_version() -> None:
    wrong = {name: v for name, v in pinned().items() if distribution(name).version != v}
    assert wrong == {}


def test_the_pins_meet_what_the_project_asks_for() -> None:
    """Each requirement of the core and of the extras cpu, flows, mlflow, judges and dev is pinned within its range."""
    pins = pinned()
    for line in requires("vpo-plugin") or []:
        requirement = Requirement(line)
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        extras = ("", "cpu", "flows", "mlflow", "judges", "dev")
        wanted = requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras)
        if wanted and name != "vpo-plugin":
            assert name in pins, f"requirements/cpu.txt lacks {name}"
            assert requirement.specifier.contains(pins[name].split("+")[0]), (
                f"{name} {pins[name]} against {requirement}"
            )


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_the_gpu_extra_resolves(tmp_path: Path, python: str) -> None:
    """For each Python that is supported; flash-attn is compiled before it, against the torch of the set."""
    override = tmp_path / "override.txt"
    override.write_text("flash-attn; sys_platform == 'never'\n")
    command = [
        *(
            str(Path(sys.executable).with_name("uv")),
            "pip",
            "compile",
            "pyproject.toml",
            "--extra",
            "gpu",
            "--override",
            str(override),
        ),
        *("--python-version", python, "--python-platform", "x86_64-manylinux_2_28", "--no-annotate", "--no-header"),
        *("--constraint", "requirements/gpu.txt"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    found = dict(line.split("==") for line in done.stdout.split() if "==" in line)
    assert {"liger-kernel", "ring-flash-attn", "openrlhf", "torch", "vllm"} <= set(found), (
        "what the host's flags import"
    )
    if python == "3.11":
        pins = dict(line.split("==") for line in (ROOT / "requirements" / "gpu.txt").read_text().split())
        assert found.items() <= pins.items()


def test_the_wheel_holds_what_a_user_needs(tmp_path: Path) -> None:
    """Installed as `pip install .` does, away from the sources: specifications, policy, report and configurations."""
    source = tmp_path / "source"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--no-build-isolation", "--target", str(target), str(source)], check=True, timeout=300)
    environment = {**os.environ, "PYTHONPATH": str(target)}
    shutil.rmtree(source)

    def vpo(*words: str) -> str:
        command = [sys.executable, "-m", "vpo_plugin.cli", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = "import vpo_plugin, flows, reward_specs; print(vpo_plugin.__file__, flows.__file__, reward_specs.__path__)"
    found = subprocess.run([sys.executable, "-c", where], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.stdout.count(str(target)) == 3, found
    assert (target / "vpo_plugin" / "py.typed").is_file(), "mypy of a project that uses the wheel sees no types"
    assert "maze_small" in vpo("spec", "list")
    assert "'maze_small' is sound" in vpo("spec", "check", "maze_small")
    assert str(target / "reward_specs" / "maze_small" / "policy") in vpo("run", "maze-cpu", "--dry_run")

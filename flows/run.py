"""``vpo run CONFIG [KEY=VALUE …]``: run a flow from a YAML file of settings.

CONFIG is a YAML file, or the name of one that ships (`vpo run --list`). Its keys are the settings of the flow, all with
defaults; the key `flow` names one of pipeline (the default), prepare-data, train, search-eval and retrain. The run is
recorded by the Prefect server that PREFECT_API_URL names, or by a temporary one where it names none.
"""

import argparse
import importlib.resources
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from pydantic import BaseModel

FLOW = "flow"


def main(arguments: list[str]) -> int:
    """Run the command; what is wrong is said in one sentence on stderr, with exit code 1."""
    parser = argparse.ArgumentParser(
        prog="vpo run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", nargs="?", metavar="CONFIG", help="YAML file, or the name of one that ships")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings that win over the file's")
    parser.add_argument("--dry-run", action="store_true", help="print the stages and the host's commands, run nothing")
    parser.add_argument("--list", action="store_true", help="print the configurations that ship")
    args = parser.parse_intermixed_args(arguments)
    if args.list:
        print("\n".join(f"{name:24}{first_comment(file)}" for name, file in shipped().items()))
        return 0
    if args.config is None:
        parser.error("name a CONFIG, or --list")
    try:
        flow, settings = load_config(args.config, args.overrides)
        if args.dry_run:
            from flows.plan import plan

            print(plan(flow, settings))
        else:
            start(flow, settings)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"vpo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("vpo: interrupted; finished stages are kept", file=sys.stderr)
        return 130
    return 0


def start(flow: str, settings: "BaseModel") -> None:
    """Run a flow in this process.

    Raises:
        ConnectionError: a Prefect server is configured and does not answer.
    """
    from flows.process import exit_on_sigterm
    from flows.server import check_server

    exit_on_sigterm()
    check_server()
    import psutil

    from flows import deployments, stage

    stage.command_started = psutil.Process().create_time()
    state = deployments.FLOWS[flow](**dict(settings), return_state=True)
    if state.is_failed() or state.is_crashed():
        state.result()
    print(state.message)


def shipped() -> dict[str, Path]:
    """The configurations that ship, by name."""
    folder = Path(str(importlib.resources.files("flows") / "configs"))
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def first_comment(file: Path) -> str:
    """What a configuration says about itself."""
    line = file.read_text().splitlines()[0]
    return line.removeprefix("#").strip() if line.startswith("#") else ""


def load_config(config: str, overrides: list[str]) -> tuple[str, "BaseModel"]:
    """The flow that a configuration names, and its settings, which are checked.

    Raises:
        ValueError: what is wrong with the file or an override, one line each.
        FileNotFoundError: there is no such configuration.
    """
    from pydantic import ValidationError

    from flows.settings import SETTINGS

    file = shipped().get(config, Path(config))
    if not file.is_file():
        raise FileNotFoundError(f"There is no configuration '{config}': no such file, and {', '.join(shipped())} ship.")
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not YAML: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{file} is no configuration: it must be a mapping of settings to values.")
    data |= {key: value for key, value in map(_override, overrides) if key == FLOW}
    flow = data.pop(FLOW, "pipeline")
    if flow not in SETTINGS:
        raise ValueError(f"{file}: the flow is {flow!r}, and there are {', '.join(SETTINGS)}.")
    model = SETTINGS[flow]
    data |= {
        key: text if _is_text(model, key) else _value(key, text)
        for key, text in map(_override, overrides)
        if key != FLOW
    }
    try:
        return flow, model.model_validate(data)
    except ValidationError as error:
        given = {key for key, _ in map(_override, overrides)}
        complaints = [
            f"{'command line' if set(one['loc'][:1]) & given else file}: {_complaint(dict(one), model)}"
            for one in error.errors()
        ]
        raise ValueError("\n".join(complaints)) from error


def _override(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not (separator and key):
        raise ValueError(f"A setting on the command line reads KEY=VALUE, not {text!r}.")
    return key, value


def _is_text(model: type["BaseModel"], key: str) -> bool:
    field = model.model_fields.get(key)
    return field is not None and field.annotation in (str, Path)


def _value(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"The value of {key} is not YAML: {text!r}.") from error


def _complaint(error: dict[str, Any], model: type["BaseModel"]) -> str:
    where = ".".join(str(step) for step in error["loc"])
    if error["type"] == "extra_forbidden":
        near = get_close_matches(where, model.model_fields, n=1)
        return f"the key '{where}' is unknown" + (f"; is it '{near[0]}'?" if near else ".")
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return f"{where}: {error['msg']}, not {error['input']!r:.80}."

"""Settings of a command: one pydantic model defines its flags, reads its YAML file, and reports errors in either."""

import argparse
import inspect
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsError

from vpo_plugin.cli import UsageError, is_it
from vpo_plugin.provenance import masked

Settings = TypeVar("Settings", bound=BaseModel)
NULL = "null"
VALUES = {
    "dict[str,Any]": "JSON",
    "str": "TEXT",
    "int": "N",
    "float": "X",
    "Path": "PATH",
    "list[str]": "A,B,…",
    "list[int]": "N,N,…",
    "list[float]": "X,X,…",
}
"""What stands in the help for a value of each type."""


class Command(BaseModel):
    """Settings of a command."""

    model_config = ConfigDict(extra="forbid")


def read(
    model: type[Settings],
    arguments: Sequence[str],
    command: str,
    *,
    given: Mapping[str, Any] | None = None,
    file: str = "",
) -> Settings:
    """The settings from a command line; missing ones come from a file or have their defaults.

    Args:
        model: its fields are the flags, with their descriptions; its docstring is the help.
        command: how the command is called, such as `vpo evaluate`.
        given: what `file` holds. Without it, the flag `--config` may name a YAML file.

    Raises:
        UsageError: an unknown flag, or one that is missing.
        ValueError: settings that are not allowed, one per line.
        SystemExit: after printing the help.
    """
    parser = _Parser(command, inspect.cleandoc(model.__doc__ or ""))
    known = ["help", *model.model_fields]
    as_settings: Any = type("Flags", (BaseSettings, model), {"__module__": __name__})
    source: Any = CliSettingsSource(
        as_settings,
        root_parser=parser,
        add_argument_method=_add_argument,
        cli_hide_none_type=True,
        cli_implicit_flags="toggle",
        cli_parse_none_str=NULL,
    )
    if given is None and model.model_fields:
        known.append("config")
        text = "YAML file with any of these settings; flags override it."
        parser.optional.add_argument("--config", metavar="FILE", help=text)
    parser.optional.add_argument("-h", "--help", action="help", help="Show this help and exit.")
    words = _current(arguments, known)
    toggles = [f"--{name}=" for name, field in model.model_fields.items() if field.annotation is bool]
    switched = [word for word in words if word.startswith(tuple(toggles))]  # --warm_start=false, over a file's true
    parsed = vars(parser.parse_args([word for word in words if word not in switched]))
    if given is None and (file := parsed.pop("config", None) or ""):
        given = read_yaml(Path(file))
    try:
        said = source(parsed_args=parsed)()
    except SettingsError as error:
        raise ValueError(str(error)) from error
    said |= {name.removeprefix("--"): value for name, _, value in (word.partition("=") for word in switched)}
    return _checked(model, dict(given or {}), said, file)


def flags(settings: BaseModel) -> list[str]:
    """The flags for those settings that differ from the defaults, secrets masked."""
    given = masked(settings.model_dump(mode="json", exclude_defaults=True))
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in given.items()]


def choose(commands: Mapping[str, Callable[[list[str]], int]], arguments: list[str], command: str) -> int:
    """Run the command of a group that the arguments name, such as `check` of `vpo spec`."""
    named = next((word for word in arguments if word in commands), None)
    if named is not None:
        arguments.remove(named)
        return commands[named](arguments)
    listed = "\n".join(f"  {command} {name:10}{function.__doc__}" for name, function in commands.items())
    if "--help" in arguments or "-h" in arguments:
        print(f"usage: {command} COMMAND …\n\n{listed}")
        return 0
    raise UsageError(f"{command} needs one of the commands {', '.join(commands)}:\n{listed}")


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with the cells of these rows in aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def read_yaml(file: Path) -> dict[str, Any]:
    """The settings in a YAML file.

    Raises:
        ValueError: it is not YAML, or not a mapping.
        FileNotFoundError: the file does not exist.
    """
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not YAML: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{file} is not a configuration: it must be a mapping of settings to values.")
    return data


def complaint(error: Mapping[str, Any], model: type[BaseModel], where: str) -> str:
    """A pydantic error as a sentence.

    Args:
        where: what stands before the name of the setting: the file's name and a colon, or dashes.
    """
    name = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"{where}the key '{name}' is unknown{is_it(name, model.model_fields)}"
    if error["type"] == "value_error":
        return f"{where}{name}: {error['ctx']['error']}" if name else f"{where.rstrip('-')}{error['ctx']['error']}"
    if error["type"] == "missing":
        return f"{where}{name} is missing."
    return f"{where}{name} is {error['input']!s:.80}: {error['msg'].replace('Input should', 'it must')}."


def _checked(model: type[Settings], given: dict[str, Any], said: dict[str, Any], file: str) -> Settings:
    try:
        return model.model_validate(given | said)
    except ValidationError as error:
        found = error.errors()
        lines = []
        for one in found:
            from_file = file and one["loc"] and one["loc"][0] not in said
            lines.append(complaint(one, model, f"{file}: " if from_file else "--"))
        missing = all(one["type"] == "missing" for one in found)
        raise (UsageError if missing else ValueError)("\n".join(lines)) from error


def _current(arguments: Sequence[str], known: Sequence[str]) -> list[str]:
    """The arguments with each flag in its current spelling; refuses unknown flags."""
    words = []
    for word in arguments:
        name, equals, value = word.partition("=")
        if name.startswith("--") and (key := name.removeprefix("--")) not in known:
            today = key.replace("-", "_")
            if today not in known:
                raise UsageError(f"There is no flag {name}{is_it(today, known, '--')}")
            print(f"vpo: {name} is written --{today} now.", file=sys.stderr)
            word = f"--{today}{equals}{value}"
        words.append(word)
    return words


class _Parser(argparse.ArgumentParser):
    def __init__(self, command: str, description: str) -> None:
        super().__init__(
            prog=command, description=description, formatter_class=_Help, add_help=False, allow_abbrev=False
        )
        self.needed = self.add_argument_group("required")
        self.optional = self.add_argument_group("optional")

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help.")


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=min(shutil.get_terminal_size().columns, 110))

    def add_usage(self, usage: str | None, actions: Iterable[argparse.Action], *rest: Any, **named: Any) -> None:
        words = [str(action.metavar) for action in actions if not action.option_strings]
        super().add_usage(" ".join([self._prog, *words, "[--FLAG VALUE …]"]), actions, *rest, **named)


def _add_argument(parser: _Parser, *names: str, **options: Any) -> None:
    """Add a flag as pydantic-settings describes it, with a help for people."""
    if options.get("nargs") == "*":  # words that are taken as they are, commas included
        options |= {"nargs": "+", "action": "extend", "type": json.dumps, "metavar": "WORD"}
    if "metavar" in options:
        options["metavar"] = VALUES.get(options["metavar"], options["metavar"])
    positional = not names[0].startswith("-")
    needed = options["help"].endswith(" (required)") or (positional and options.get("nargs") != "?")
    nothing = r" \(required\)$| \(default: (null|False|\[\]|\{\})\)$| \(default factory: .*\)$"
    text = re.sub(nothing, "", options["help"])
    options["help"] = re.sub(r" \(default: \[(.*)\]\)$", lambda m: f" (default: {m[1].replace(chr(39), '')})", text)
    group = parser.needed if needed else parser.optional
    group.add_argument(*names, **options)

"""The `vpo` command: reward specifications, scoring, search evaluation, reports and flows."""

import importlib
import sys
import traceback
from collections.abc import Iterable
from contextvars import ContextVar
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points, version

COMMANDS = {
    "doctor": "check versions, devices, Ray, sandbox and Prefect, and say what would fail",
    "evaluate": "sample, score and store candidates for each held-out prompt",
    "explain": "show what vpo does on a small exact example, in seconds",
    "open": "serve a run's report and training curves to a browser",
    "report": "compare pools and searches in a browser report",
    "score": "score a file of responses into a file of reward matrices",
    "search": "search for solutions: best-of-k, refinement, evolution",
    "select": "choose the best candidate of a pool for each prompt, under your own weights",
    "show": "print the progress of a run's trainings, and what the policy wrote in a step",
    "spec": "list, check and make reward specifications",
    "warm_start": "teach a policy the candidate format with its own answers",
}
"""Each command is `main` of the module of its name in this package, which is imported when it is called."""
GROUP = "vpo_plugin.commands"
"""Entry points with which packages add commands: a function of the arguments, whose docstring is the help."""

TRACEBACK = ContextVar("--traceback", default=False)
"""Whether the command line asks for tracebacks."""


class UsageError(ValueError):
    """A command line that does not fit the command."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; an error is one sentence on stderr, with exit code 1, or 2 for wrong usage."""
    arguments = sys.argv[1:] if arguments is None else arguments
    TRACEBACK.set("--traceback" in arguments)
    try:
        return dispatch([argument for argument in arguments if argument != "--traceback"])
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if TRACEBACK.get():
            print(getattr(error, "trace", "") or traceback.format_exc(), file=sys.stderr)
        print(f"vpo: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        print("vpo: interrupted; finished work is kept", file=sys.stderr)
        return 130


def dispatch(arguments: list[str]) -> int:
    """Run the command that the first argument names."""
    name, *rest = arguments or [""]
    added = {point.name: point for point in entry_points(group=GROUP)}
    if name in ("-h", "--help"):
        print(help_text(added))
        return 0
    if name == "--version":
        print(f"vpo-plugin {version('vpo-plugin')}")
        return 0
    if name in COMMANDS:
        return importlib.import_module(f"{__name__}.{name}").main(rest)
    if name in added:
        return added[name].load()(rest)
    problem = f"There is no command {name}{is_it(name, [*COMMANDS, *added])}" if name else "A command is missing."
    raise UsageError(f"{problem}\n{help_text(added)}")


def help_text(added: dict[str, EntryPoint]) -> str:
    """What `vpo --help` prints; imports nothing heavy."""
    texts = COMMANDS | {name: point.load().__doc__ or "" for name, point in added.items()}
    lines = [f"  {name:12}{text}" for name, text in sorted(texts.items())]
    return "\n".join(
        [
            "usage: vpo COMMAND …",
            "",
            *lines,
            "",
            "vpo COMMAND --help lists its flags, --traceback shows where an error comes from, vpo --version",
        ]
    )


def is_it(word: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of a sentence on an unknown word, with the most similar known word."""
    near = get_close_matches(word, list(known), n=1)
    return f"; is it '{prefix}{near[0]}'?" if near else "."

"""The host in the process of a test: importable without CUDA, with its own parser and arguments."""

import argparse
import importlib.metadata
import os
import runpy
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from vpo_plugin.openrlhf import cpu, flags, launcher

VERSION = importlib.metadata.version("openrlhf")
OLDER = VERSION == "0.11.1"
"""The older of the two releases that are tested: `make test-host`."""


class _Built(Exception):
    """The host's parser is complete: its command has got to `parse_args`."""


@contextmanager
def importable_host() -> Iterator[None]:
    """Let this process import the host, and leave its environment as it was."""
    with pytest.MonkeyPatch.context() as patch:
        if not cpu.cuda_available():
            for name, value in cpu.environment().items():
                patch.setenv(name, os.environ.get(name, value))
            cpu.install()
        yield


def host_parser() -> argparse.ArgumentParser:
    """A new parser of the host's command with the plugin's flags."""

    def stop(parser: argparse.ArgumentParser, *rest: object) -> None:
        raise _Built(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(_Built) as built:
            runpy.run_module(launcher.HOST_MODULE, run_name="__main__")
    parser = built.value.args[0]
    flags.add_flags(parser, on_cpu=not cpu.cuda_available())
    return parser


def host_arguments(*command: str) -> SimpleNamespace:
    """The arguments as the host's trainer gets them."""
    from openrlhf.utils.config import hierarchize

    return hierarchize(flags.read_flags(host_parser(), command)[0])

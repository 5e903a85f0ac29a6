"""`vpo spec`."""

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg

from vpo_plugin.cli.settings import Command, choose, columns, read

if TYPE_CHECKING:
    from vpo_plugin.rewards import RewardSpec


def main(arguments: list[str]) -> int:
    """Run the command that the first argument names."""
    return choose({"list": show_all, "check": check, "new": new, "schema": schema}, arguments, "vpo spec")


class List(Command):
    """List the specifications that are known by name."""


class Check(Command):
    """Check a specification on its own data, and measure it."""

    spec: CliPositionalArg[str] = Field(description="Specification: name, folder or YAML file.")
    data: str | None = Field(
        None, description="File, folder, URL or hub id instead of the specification's own dataset."
    )
    scores: Path | None = Field(
        None, description="Output of `vpo score`, or a pool of `vpo evaluate`: measure whether VPO can help."
    )
    model: str | None = Field(
        None, description="Policy: sample 16 responses, and report whether they can be read and their rewards."
    )
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description='Options of the chat template for --model, such as {"enable_thinking": false} for Qwen3.'
    )
    tokenizer: str | None = Field(None, description="Model folder or hub id whose tokenizer counts the tokens.")
    on_scorer_error: Literal["raise", "zero"] = Field(
        "raise", description="If the scorer fails on a response: report an error (raise), or count it as zero (zero)."
    )
    unsafe_no_sandbox: bool = Field(False, description="Run scored programs without a sandbox.")


class New(Command):
    """Write a small working specification to start your own from."""

    name: CliPositionalArg[str] = Field(description="Name of the specification, of its folder and its module.")
    folder: Path = Field(Path(), description="Where the new folder goes.")


class Schema(Command):
    """Print the JSON schema of spec.yaml."""


def show_all(arguments: list[str]) -> int:
    """list the specifications that are known by name"""
    read(List, arguments, "vpo spec list")
    from vpo_plugin.rewards.files import SpecError, load_spec, spec_files

    lines = [("name", "k", "m", "format", "description")]
    for name, file in spec_files().items():
        try:
            spec = load_spec(file)
        except SpecError as error:
            lines.append((name, "-", "-", "-", str(error).splitlines()[0]))
            continue
        k = f"1-{spec.ragged.max}" if spec.ragged else str(len(spec.objective_keys))
        form = "tags" if spec.tag else "code blocks" if spec.fence else "separator"
        lines.append((name, k, str(spec.candidates), form, " ".join(spec.description.split())))
    for line in columns(lines):
        print(line if len(line) <= 98 else line[:97] + "…")
    return 0


def check(arguments: list[str]) -> int:
    """check a specification on its own data, and measure it"""
    settings = read(Check, arguments, "vpo spec check")
    from vpo_plugin.rewards.check import check_spec, measure_spec
    from vpo_plugin.rewards.data import SAMPLE, DatasetError
    from vpo_plugin.rewards.files import load_spec, spec_file
    from vpo_plugin.rewards.sandbox import UNSAFE
    from vpo_plugin.rewards.scoring import Scoring
    from vpo_plugin.rewards.task import trial_rows
    from vpo_plugin.search.collinear import measure_disagreement, read_matrices

    if settings.unsafe_no_sandbox:
        os.environ[UNSAFE] = "1"  # read here and in the processes that score
    spec = load_spec(settings.spec)
    if settings.data is not None:
        spec = _with_source(spec, settings.data)
    tokens = None
    if settings.tokenizer:
        from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(settings.tokenizer)

        def tokens(text: str) -> int:
            return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    try:
        trial_rows(spec, 1)
    except DatasetError as error:
        sample = spec_file(settings.spec).parent / SAMPLE
        if settings.data is not None or not sample.is_file():
            raise
        print(f"NOT CHECKED on its dataset but on the few rows of {sample}: {error}")
        spec = _with_source(spec, str(sample))
    with Scoring(spec, on_error=settings.on_scorer_error) as scoring:
        findings = check_spec(spec, scoring) + measure_spec(spec, scoring, tokens)
        if settings.model:
            from vpo_plugin.models import check_policy, resolve_policy
            from vpo_plugin.search.trial import try_model

            check_policy(settings.model)
            with tempfile.TemporaryDirectory() as cache:
                folder = resolve_policy(settings.model, Path(cache))
                options = settings.chat_template_kwargs
                findings += try_model(spec, scoring, settings.spec, settings.model, folder, options)
    if settings.scores is not None:
        findings += measure_disagreement(spec, list(read_matrices(settings.scores, spec)))
    print("\n".join([*findings, *filter(None, [scoring.summary()])]))
    unsound = scoring.zeros or any(finding.startswith("NOT CHECKED") for finding in findings)
    print(f"The spec '{spec.name}' is sound{' in what was checked' if unsound else ''}.")
    return 0


def new(arguments: list[str]) -> int:
    """write a small working specification to start your own from"""
    settings = read(New, arguments, "vpo spec new")
    from vpo_plugin.rewards.files import spec_home
    from vpo_plugin.rewards.skeleton import new_spec

    files = new_spec(settings.name, settings.folder, str(spec_home() / "schema.json"))
    print("\n".join(["Written:", *map(str, files), "", f"Next: vpo spec check {files[0].parent}"]))
    return 0


def schema(arguments: list[str]) -> int:
    """print the JSON schema of spec.yaml"""
    read(Schema, arguments, "vpo spec schema")
    from vpo_plugin.rewards.spec import json_schema

    print(json.dumps(json_schema(), indent=2))
    return 0


def _with_source(spec: "RewardSpec", source: str) -> "RewardSpec":
    import inspect

    from vpo_plugin.rewards.spec import load_entry_point

    if spec.dataset is None:
        raise ValueError(f"--data names a source, but the spec '{spec.name}' has no dataset.")
    loader = spec.dataset.loader
    if "source" not in inspect.signature(load_entry_point(loader)).parameters:
        raise ValueError(f"--data names a source, but the loader {loader} of the spec '{spec.name}' does not take one.")
    dataset = spec.dataset.model_copy(update={"args": {**spec.dataset.args, "source": source}})
    return spec.model_copy(update={"dataset": dataset})

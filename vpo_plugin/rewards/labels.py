"""Labels: turn the value in a dataset's row into the scorer's label, in the same way for every command, and back."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vpo_plugin.files import digest
from vpo_plugin.rewards.spec import RewardSpec

MARK = '{"vpo_label": '  # begins a label that was packed here; text of a spec with `label: text` is never packed


def read_label(spec: RewardSpec, value: Any) -> object:
    """The scorer's label for the value in a dataset's row.

    With `label: text`, text stays as it is, byte for byte; with `label: json`, it is decoded.
    Anything else is a label already. None if the task's scorer needs no label (`label: none`).

    Raises ValueError for text if the spec has no `label`, and for values that do not fit `label`.
    """
    if spec.label == "none":
        return None
    if spec.label == "text":
        if isinstance(value, str):
            return value
        what = "is null" if value is None else f"{str(value)[:80]!r} is not text ({type(value).__name__})"
        raise ValueError(f"The label {what}, although the spec says `label: text`.")
    if not isinstance(value, str):
        return json.loads(_as_json(value))
    packed = value.startswith(MARK)
    if spec.label is None and not packed:
        raise ValueError(
            f"The label {value[:80]!r} is text, and the spec '{spec.name}' does not say of what kind: `label: text` "
            "gives it to the scorer as it is, `label: json` gives what it holds as JSON."
        )
    try:
        return unpack_label(value)[0] if packed else json.loads(value)
    except (ValueError, RecursionError) as error:
        said = ", although the spec says `label: json`" if spec.label else ""
        raise ValueError(f"The label {value[:80]!r} is not JSON{said}: {error}.") from error


def write_label(spec: RewardSpec, label: object) -> str:
    """A label as text for a dataset's column, from which `read_label` reads it."""
    return str(label) if spec.label == "text" else pack_label(label)


def write_prompts(spec: RewardSpec, rows: Sequence[Mapping[str, Any]], folder: Path) -> str:
    """Write rows of a specification as the dataset that the host and the evaluation read; return a fingerprint."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    prompts = [{"input": row["prompt"], "label": write_label(spec, row["label"])} for row in rows]
    Dataset.from_list(prompts).save_to_disk(str(folder))
    return digest(prompts)


def pack_label(label: object, prompt: str | None = None) -> str:
    """A label as text, and the packed prompt if it is needed beside it; `unpack_label` returns both."""
    more = "" if prompt is None else f', "vpo_prompt": {json.dumps(prompt)}'
    return f"{MARK}{_as_json(label)}{more}}}"


def unpack_label(packed: str) -> tuple[object, str | None]:
    """The label and the prompt that `pack_label` wrote."""
    found = json.loads(packed)
    return found["vpo_label"], found.get("vpo_prompt")


def _as_json(label: object) -> str:
    try:
        return json.dumps(label)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"The label {str(label)[:80]!r} cannot be written as JSON: {error}.") from error

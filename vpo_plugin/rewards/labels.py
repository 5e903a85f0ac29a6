"""Labels: turn the value in a dataset's row into the scorer's label, in the same way for every command."""

import json
from typing import Any

from vpo_plugin.rewards.spec import RewardSpec

MARK = '{"vpo_label": '  # begins a label that was packed here


def read_label(spec: RewardSpec, value: Any) -> object:
    """The scorer's label for the value in a dataset's row.

    With `label: text`, text stays as it is, byte for byte; with `label: json`, it is decoded.
    Anything else is a label already. None if the task's scorer needs no label (`label: none`).

    Raises ValueError for text if the spec has no `label`, and for values that do not fit `label`.
    """
    if spec.label == "none":
        return None
    if not isinstance(value, str):
        if spec.label == "text" and value is not None:
            raise ValueError(
                f"The label {str(value)[:80]!r} is not text ({type(value).__name__}), although "
                "the spec says `label: text`."
            )
        return json.loads(_as_json(value))
    if value.startswith(MARK):
        return json.loads(value)["vpo_label"]
    if spec.label == "text":
        return value
    if spec.label is None:
        raise ValueError(
            f"The label {value[:80]!r} is text, and the spec '{spec.name}' does not say of what kind: `label: text` "
            "gives it to the scorer as it is, `label: json` gives what it holds as JSON."
        )
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"The label {value[:80]!r} is not JSON, although the spec says `label: json`: {error}."
        ) from error


def pack_label(label: object, prompt: str | None = None) -> str:
    """A label as text for a dataset's column, which `read_label` restores for any spec; it can carry the packed prompt,
    which `packed_prompt` restores."""
    more = "" if prompt is None else f', "vpo_prompt": {json.dumps(prompt)}'
    return f"{MARK}{_as_json(label)}{more}}}"


def packed_prompt(value: object) -> str | None:
    """The prompt that `pack_label` added to a label."""
    return json.loads(value).get("vpo_prompt") if isinstance(value, str) and value.startswith(MARK) else None


def _as_json(label: object) -> str:
    try:
        return json.dumps(label)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"The label {str(label)[:80]!r} cannot be written as JSON: {error}.") from error

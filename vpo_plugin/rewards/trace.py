"""Where a user's own code failed."""

import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path


def place_of(error: BaseException) -> str:
    """The innermost line of the user's own that raised an error, as ` (file:line)`; empty if there is none."""
    found = place([(frame.filename, frame.lineno or 0) for frame in traceback.extract_tb(error.__traceback__)])
    return f" ({found})" if found else ""


def place(frames: Sequence[tuple[str, int]]) -> str:
    """`file:line` of the innermost frame, of those given from the outermost on, that is the user's own, if any."""
    ours = (str(Path(__file__).parents[1]), *sysconfig.get_paths().values())
    own = [f"{file}:{line}" for file, line in frames if not file.startswith((*ours, "<"))]
    return own[-1] if own else ""

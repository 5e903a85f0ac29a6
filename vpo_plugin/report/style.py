"""Colour and dashes of a policy by its name, the same in every report and plot."""

import hashlib
from collections.abc import Sequence
from typing import Any

# Colours that stand out on white and black (contrast at least 3); dashes help colour-blind readers.
KNOWN = {
    "base": ("#767676", "1.5 3"),
    "grpo": ("#0072B2", "7 4"),
    "vpo": ("#D55E00", ""),
    "vpo_at_k": ("#009E73", ""),
    "max_at_k": ("#C2649A", "8 3 2 3"),
    "set_max": ("#B87D00", "14 3"),
    "multi_rlvr": ("#3A9BD1", "3 2"),
    "gdpo": ("#9A5B13", "7 4"),
    "maxrl": ("#8A67CF", "8 3 2 3"),
    "random_weighting": ("#7D8B2D", "3 2"),
    "goal_conditioned": ("#C0436B", "14 3"),
    "champion": ("#0072B2", "7 4"),
    "challenger": ("#D55E00", ""),
}
"""Colour and dashes (an SVG stroke-dasharray of a line 2.4 wide) of known policy names."""
COLOURS = ("#009E73", "#0072B2", "#D55E00", "#C2649A", "#B87D00", "#3A9BD1", "#8A67CF", "#9A5B13")
DASHES = ("3 2", "14 3", "8 3 2 3", "7 4", "1.5 3", "")


def styles(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and dashes of each policy: those of its name, or the next free ones if these are taken."""
    pairs = [(colour, dash) for dash in DASHES for colour in COLOURS]
    found: dict[str, tuple[str, str]] = {}
    for name in sorted(names, key=lambda name: name not in KNOWN):
        wanted = KNOWN.get(name) or pairs[int(hashlib.sha256(name.encode()).hexdigest(), 16) % len(pairs)]
        if name.startswith("base") and name not in KNOWN:
            wanted = (KNOWN["base"][0], "7 4")
        taken = set(found.values())
        free = (pair for pair in [wanted, *pairs] if pair not in taken)
        found[name] = next(free, wanted)
    return {name: found[name] for name in names}


def lines(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The styles as keyword arguments of matplotlib lines."""
    return {
        name: {"color": colour, "linestyle": (0, [float(part) / 2.4 for part in dash.split()]) if dash else "-"}
        for name, (colour, dash) in styles(names).items()
    }

"""Pack a kit: choose 3 of 18 items, which differ in quality, for six needs.

The objectives are the needs. A special item serves one need, a general one serves three needs half as well. The kit
that is best at equal weights is best at one in eight random weightings, and costs 0.13 at the average one. `shared`
sets how much the needs agree: at 0 an item serves its own needs alone, at 1 all needs alike. The front is exact: it
comes from trying all 816 kits.
"""

import itertools
import random
from collections.abc import Iterator

import moocore
import numpy as np

NEEDS = ("food", "warmth", "light", "tools", "shelter", "water")
SPECIAL = {
    **{"rice": "food", "beans": "food", "blanket": "warmth", "gloves": "warmth", "torch": "light", "candle": "light"},
    **{"knife": "tools", "saw": "tools", "tent": "shelter", "cabin": "shelter", "bottle": "water", "filter": "water"},
}
GENERAL = ("stove", "lighter", "pole", "shovel", "tarp", "pot")  # each serves the need of its place and the next two
ITEMS = (*SPECIAL, *GENERAL)
SERVES = np.array(
    [[float(need == own) for need in NEEDS] for own in SPECIAL.values()]
    + [[0.5 * ((n - place) % len(NEEDS) < 3) for n in range(len(NEEDS))] for place in range(len(GENERAL))]
)
"""How well a unit of each item's quality serves each need: (18, 6), 0 to 1."""
SIZE = 3
QUALITIES = range(3, 10)

Vector = tuple[float, ...]


def rows(split: str, num_rows: int, seed: int, *, shared: float = 0.25) -> Iterator[dict]:
    """`num_rows` rows `{"prompt", "label"}`; the splits are drawn apart, from more than 10^15 prompts."""
    for number in range(num_rows):
        draws = random.Random(f"kit {split} {seed} {number}")
        qualities = [draws.choice(QUALITIES) for _ in ITEMS]
        yield {"prompt": write_prompt(qualities), "label": {"qualities": qualities, "shared": shared}}


def write_prompt(qualities: list[int]) -> str:
    """Each item with its quality; each word is a token of a word-level tokenizer."""
    return " ".join(f"{item} {quality}" for item, quality in zip(ITEMS, qualities, strict=True)) + "\n"


def label_check(label: dict) -> None:
    """Raises ValueError unless a label has a quality of each item, from 3 to 9, and `shared`, from 0 to 1."""
    qualities, shared = label.get("qualities"), label.get("shared")
    if not isinstance(qualities, list) or len(qualities) != len(ITEMS):
        raise ValueError(f"A kit's label holds `qualities`, a list of {len(ITEMS)} numbers, one for each item.")
    if not all(isinstance(quality, int) and quality in QUALITIES for quality in qualities):
        raise ValueError("Each quality in a kit's label is a whole number from 3 to 9.")
    if not isinstance(shared, int | float) or not 0 <= shared <= 1:
        raise ValueError("`shared` in a kit's label is a number from 0 to 1.")


def values(label: dict) -> np.ndarray:
    """What each item adds to each need: (18, 6), 0 to 9."""
    shared = label["shared"]
    return np.array(label["qualities"])[:, None] * ((1 - shared) * SERVES + shared)


def parse_kit(candidate: str) -> list[int] | None:
    """The numbers of the items that a candidate names, ascending; None unless it names 3 different items."""
    names = candidate.lower().replace(",", " ").split()
    if len(names) != SIZE or len(set(names)) < SIZE or not set(names) <= set(ITEMS):
        return None
    return sorted(map(ITEMS.index, names))


def canonical(candidate: str, label: dict) -> str:
    """Kits with the same items are duplicates."""
    kit = parse_kit(candidate)
    return candidate if kit is None else str(kit)


def score(candidate: str, label: dict) -> Vector:
    """For each need, the square of the kit's value as a share of the best kit's; all 0 if it is not a kit.

    The square pays for items that serve the same need: half of the best kit's value earns a quarter.
    """
    kit = parse_kit(candidate)
    if kit is None:
        return (0.0,) * len(NEEDS)
    return tuple(_rewards(values(label), np.array([kit]))[0].tolist())


def front(label: dict) -> list[tuple[str, Vector]]:
    """Every Pareto-optimal kit with its rewards, among all kits; equal rewards appear once."""
    kits = np.array(list(itertools.combinations(range(len(ITEMS)), SIZE)))
    rewards, first = np.unique(_rewards(values(label), kits).round(12), axis=0, return_index=True)
    best = moocore.is_nondominated(rewards, maximise=True)
    names = [" ".join(ITEMS[i] for i in kit) for kit in kits[first][best]]
    return list(zip(names, map(tuple, rewards[best].tolist()), strict=True))


def _rewards(worth: np.ndarray, kits: np.ndarray) -> np.ndarray:
    best = np.sort(worth, axis=0)[-SIZE:].sum(0)
    return (worth[kits].sum(1) / best) ** 2

"""Pack a kit: choose a few of many items, each of which helps with some of six needs.

The objectives are the needs. A kit of three items serves two or three needs well, so a few kits cannot cover all
trade-offs. `shared` sets how much the needs agree: at 0 each item serves one need or two, at 1 every item serves all
needs equally. The front is exact: it comes from trying all kits.
"""

import itertools
import random
import re
import string
from collections.abc import Iterator

import numpy as np

NEEDS = ("food", "water", "light", "warmth", "tools", "rope")
ITEMS, SIZE = 18, 3
MOST = 9  # of one item for one need
SECOND = 0.5  # share of the items that serve a second need

Vector = tuple[float, ...]


def rows(split: str, num_rows: int, seed: int, *, shared: float = 0.25) -> Iterator[dict]:
    """`num_rows` rows `{"prompt", "label"}`; the splits share no rows."""
    for number in range(num_rows):
        items = draw_items(random.Random(f"kit {split} {seed} {number}"), shared)
        label = {"items": items, "size": SIZE}
        yield {"prompt": write_prompt(items), "label": label}


def draw_items(rng: random.Random, shared: float) -> list[list[int]]:
    """The value of each item for each need, 0 to 9."""
    kinds = [number % len(NEEDS) for number in range(ITEMS)]
    rng.shuffle(kinds)
    items = []
    for kind in kinds:
        own = [0] * len(NEEDS)
        own[kind] = rng.randint(4, MOST)
        if rng.random() < SECOND:
            own[rng.choice([need for need in range(len(NEEDS)) if need != kind])] = rng.randint(2, 5)
        quality = rng.randint(0, 7)
        items.append([round((1 - shared) * value + shared * quality) for value in own])
    return items


def write_prompt(items: list[list[int]]) -> str:
    """The items, one per line; each word is a token of a word-level tokenizer."""
    named = zip(string.ascii_uppercase, items, strict=False)
    lines = [f"{name} {' '.join(map(str, values))}" for name, values in named]
    return f"Each item and how much it helps with {' '.join(NEEDS)} :\n" + "\n".join(lines) + "\n"


def label_check(label: dict) -> None:
    """Raises ValueError if a label has no items, or items of different lengths."""
    items, size = label.get("items"), label.get("size")
    if not items or not isinstance(size, int) or not 1 <= size <= len(items) <= len(string.ascii_uppercase):
        raise ValueError("A kit's label holds `items`, a list of at most 26, and `size`, how many of them a kit holds.")
    if {len(values) for values in items} != {len(NEEDS)}:
        raise ValueError(f"Each item has {len(NEEDS)} values, one for each need.")


def parse_kit(candidate: str, label: dict) -> list[int] | None:
    """The numbers of the items that a candidate names, ascending; None unless it names `size` different items."""
    names = re.split(r"[\s,;]+", candidate.strip().upper())
    known = string.ascii_uppercase[: len(label["items"])]
    if len(names) != label["size"] or len(set(names)) < len(names) or any(n not in known or len(n) != 1 for n in names):
        return None
    return sorted(map(known.index, names))


def canonical(candidate: str, label: dict) -> str:
    """Kits with the same items are duplicates."""
    kit = parse_kit(candidate, label)
    return candidate if kit is None else str(kit)


def score(candidate: str, label: dict) -> Vector:
    """For each need, the kit's value as a share of the best kit for that need; all 0 if it is not a kit."""
    kit = parse_kit(candidate, label)
    if kit is None:
        return (0.0,) * len(NEEDS)
    columns = zip(*label["items"], strict=True)
    return tuple(sum(column[i] for i in kit) / best_sum(column, label["size"]) for column in columns)


def best_sum(column: tuple[int, ...], size: int) -> int:
    """The highest value of any kit for one need, at least 1."""
    return max(1, sum(sorted(column)[-size:]))


def front(label: dict) -> list[tuple[str, Vector]]:
    """Every Pareto-optimal kit with its rewards, among all kits; equal rewards appear once."""
    items = np.array(label["items"])
    kits = np.array(list(itertools.combinations(range(len(items)), label["size"])))
    sums = items[kits].sum(1)
    _, first = np.unique(sums, axis=0, return_index=True)
    sums, kits = sums[first], kits[first]
    dominated = ((sums[:, None] >= sums).all(-1) & (sums[:, None] > sums).any(-1)).any(0)
    best = [best_sum(tuple(column), label["size"]) for column in items.T.tolist()]
    names = [" ".join(string.ascii_uppercase[i] for i in kit) for kit in kits[~dominated]]
    return list(zip(names, map(tuple, (sums[~dominated] / best).tolist()), strict=True))

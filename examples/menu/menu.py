"""The rewards and the data of the task. A label is a menu: dish -> [grams of protein, price, 1 for a vegetable]."""

from itertools import combinations
from pathlib import Path

from vpo_plugin.rewards import data

DISHES = 3


def rows(split, num_rows, seed):
    """The prompts and labels of a split, `train` or `test`."""
    return data.rows(split, num_rows, seed, source=str(Path(__file__).with_name("rows.jsonl")))


def read_order(candidate, menu):
    """The dishes of an order, None if it is not an order of this menu. The text may be anything."""
    names = [name.strip().lower() for name in candidate[:500].split(",")]
    return names if len(set(names)) == DISHES == len(names) and set(names) <= set(menu) else None


def canonical(candidate, menu):
    """Orders with the same dishes are duplicates."""
    order = read_order(candidate, menu)
    return candidate if order is None else frozenset(order)


def score(candidate, menu):
    """Protein, price and greens. Anything but an order gets the worst values; price is minimized, so its worst is 1."""
    order = read_order(candidate, menu)
    if order is None:
        return [0.0, 1.0, 0.0]
    protein, price, greens = (sum(menu[name][i] for name in order) for i in range(3))
    most, dearest = (sum(sorted(dish[i] for dish in menu.values())[-DISHES:]) for i in range(2))
    return [protein / most, price / dearest, greens / DISHES]


def front(menu):
    """Every order that no other order dominates, with its rewards: the ceiling in reports."""
    scored = {}
    for order in combinations(menu, DISHES):
        protein, price, greens = score(", ".join(order), menu)
        scored[", ".join(order)] = [protein, 1 - price, greens]

    def beats(a, b):
        return a != b and all(x >= y for x, y in zip(a, b, strict=True))

    return [
        (order, rewards) for order, rewards in scored.items() if not any(beats(o, rewards) for o in scored.values())
    ]


def answers(menu):
    """Candidates with known rewards, which `vpo spec check` verifies."""
    return [("soup of the day", [0, 0, 0])]

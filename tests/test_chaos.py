"""Killed at any moment: the same command then ends with the same results, and leaves nothing behind.

Each command is killed six times in a row, later and later, then runs to its end.
"""

import random

import pytest
from chaos import KILLS, MOMENTS, SEED, VICTIMS, Chaos, chaos

__all__ = ["chaos"]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

IN_A_ROW = 6
ROWS = -(-KILLS // IN_A_ROW)


def planned() -> list[tuple[str, list[tuple[str, str]]]]:
    """Of each row: the command, and the victims with the moments at which they are killed, in order."""
    chance = random.Random(SEED)
    commands = ["pipeline", "evaluate", "pipeline", "experiment", "pipeline", "search", "pipeline", "pipeline"]
    victims: list[str] = []
    rows = []
    for number in range(ROWS):
        name, kills = commands[number % len(commands)], []
        for _ in range(IN_A_ROW):
            victim, moment = "flow", chance.choice(("started", "a pool")) if name == "evaluate" else "started"
            if name in ("pipeline", "experiment"):
                victims = victims or chance.sample(["flow", *VICTIMS], len(VICTIMS) + 1)
                victim = victims.pop()
                possible = {"flow": MOMENTS, "evaluation": ("started", "a pool")}.get(victim, MOMENTS[:3])
                moment = chance.choice(possible)
            kills.append((victim, moment))
        rows.append((name, sorted(kills, key=lambda kill: (kill[0] == "evaluation", MOMENTS.index(kill[1])))))
    return rows


@pytest.mark.parametrize("number", range(ROWS))
def test_killed_at_any_moment(chaos: Chaos, number: int) -> None:
    chance = random.Random(f"{SEED} {number}")
    name, kills = planned()[number]
    chaos.undisturbed(name)
    chaos.forget(name)
    for victim, moment in kills:
        chaos.kill(name, victim, moment, chance)
        print(f"{number}: {name}, {victim} killed at: {moment}")
    chaos.finish(name)

"""Texts on a topic, scored by conflicting word statistics (`textstat`).

A text is short or full of different words, in plain words or in long ones; no text is best at all four, and a text
that does not name its topic gets no reward. A label is `{"topic": str}`.
"""

import random
import re
from collections.abc import Iterator
from typing import Any

from reward_specs.instructions.prompts import TASKS, TOPICS

MOST_WORDS = 60  # words at which brevity is 0, and different words at which detail is 1
LONG_SHARE = 0.4  # share of words of more than six letters at which precise is 1


def rows(split: str, num_rows: int, seed: int) -> Iterator[dict[str, Any]]:
    """Tasks and topics as `{"prompt", "label"}`; `test` and `train` share no topics."""
    rng = random.Random(f"trade-offs {split} {seed}")
    topics = [topic for number, topic in enumerate(TOPICS) if (number % 5 == 0) == (split == "test")]
    for _ in range(num_rows):
        topic = rng.choice(topics)
        yield {"prompt": rng.choice(TASKS).format(topic=topic), "label": {"topic": topic}}


def label_check(label: object) -> None:
    """Raises ValueError if a label has no topic."""
    if not isinstance(label, dict) or not isinstance(label.get("topic"), str) or not label["topic"].strip():
        raise ValueError(f"A label has a 'topic'; this one is {str(label)[:80]!r}.")


def score(candidate: str, label: dict[str, Any]) -> list[float]:
    """names_topic, brevity, detail, plain, precise."""
    import textstat

    words = textstat.lexicon_count(candidate)
    if not words:
        return [0.0] * 5
    named = label["topic"].split()[-1].lower() in candidate.lower()
    different = len(set(re.findall(r"\w+", candidate.lower())))
    long_share = min(1.0, textstat.long_word_count(candidate) / words)
    return [
        float(named),
        max(0.0, 1 - words / MOST_WORDS),
        min(1.0, different / MOST_WORDS),
        max(0.0, 1 - long_share / LONG_SHARE),
        min(1.0, long_share / LONG_SHARE),
    ]


def answers(label: dict[str, Any]) -> list[tuple[str, list[float]]]:
    """The topic alone, and a text that does not name it."""
    words = len(label["topic"].split())
    different = len(set(label["topic"].lower().split()))
    long = sum(len(word) > 6 for word in label["topic"].split())
    share = min(1.0, long / words / LONG_SHARE)
    return [
        (label["topic"], [1.0, 1 - words / MOST_WORDS, different / MOST_WORDS, 1 - share, share]),
        ("Nothing.", [0.0] * 5),
    ]

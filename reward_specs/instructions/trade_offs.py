"""Texts on a topic, scored by conflicting word statistics (`textstat`).

A text is short or has many different words, in plain words or in long ones. In each pair the squares of the two rewards
add up to at most 1: a quarter circle, on which each weighting has another best text, and equal weights the middle. A
text that does not name its topic gets no reward. A label is `{"topic": str}`.
"""

import itertools
import random
import re
from collections.abc import Iterator
from math import sqrt
from typing import Any

from reward_specs.instructions.prompts import TASKS, TOPICS

MOST_WORDS = 60  # words at which brevity is 0, and different words at which detail is 1
LONG_SHARE = 0.4  # share of words of more than six letters at which precise is 1
MIDDLE = """we see it and know how much that can mean to all who come here or go far away from home one day when they
ask, and countless generations remember wonderful afternoons together"""


def rows(split: str, num_rows: int, seed: int) -> Iterator[dict[str, Any]]:
    """At most `num_rows` different prompts as `{"prompt", "label"}`; `test` and `train` share no topics."""
    topics = [topic for number, topic in enumerate(TOPICS) if (number % 5 == 0) == (split == "test")]
    drawn = list(itertools.product(TASKS, topics))
    random.Random(f"trade-offs {split} {seed}").shuffle(drawn)
    for task, topic in drawn[:num_rows]:
        yield {"prompt": task.format(topic=topic), "label": {"topic": topic}}


def label_check(label: object) -> None:
    """Raises ValueError if a label has no topic."""
    if not isinstance(label, dict) or not isinstance(label.get("topic"), str) or not label["topic"].strip():
        raise ValueError(f"A label has a 'topic'; this one is {str(label)[:80]!r}.")


def nouns(topic: str) -> set[str]:
    """The nouns of a topic: the last word before each preposition, and the last of all."""
    return {part.split()[-1] for part in re.split(r" (?:in|of|at|from) ", topic.lower())}


def score(candidate: str, label: dict[str, Any]) -> list[float]:
    """names_topic, brevity, detail, plain, precise."""
    import textstat

    words = textstat.lexicon_count(candidate)
    if not words:
        return [0.0] * 5
    different = set(re.findall(r"\w+", candidate.lower()))
    named = nouns(label["topic"]) <= different
    return [float(named), *_rewards(words, len(different), textstat.long_word_count(candidate))]


def _rewards(words: int, different: int, long: int) -> list[float]:
    """Brevity, detail, plain and precise of a text, from its numbers of words, of different words and of long words."""
    length, share = words / MOST_WORDS, long / words / LONG_SHARE
    detail = min(words, different) / MOST_WORDS  # `a-b-c` is one word
    return [sqrt(max(0, 1 - length)), sqrt(min(1, detail)), sqrt(max(0, 1 - share)), sqrt(min(1, share))]


def answers(label: dict[str, Any]) -> list[tuple[str, list[float]]]:
    """The topic alone, the best text at equal weights (30 words, 6 of them long), and one that does not name it."""
    topic, named = label["topic"].split(), sorted(nouns(label["topic"]))
    words = list(dict.fromkeys([*named, *re.findall(r"\w+", MIDDLE)]))
    plain, long = ([word for word in words if (len(word) > 6) == is_long] for is_long in (False, True))
    return [
        (label["topic"], [1.0, *_rewards(len(topic), len(set(topic)), sum(len(word) > 6 for word in topic))]),
        (" ".join(plain[:24] + long[:6]), [1.0, *[sqrt(0.5)] * 4]),
        ("Nothing.", [0.0] * 5),
    ]

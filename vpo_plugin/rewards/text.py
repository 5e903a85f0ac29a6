"""Comparing texts, for scorers: normalization as SQuAD does it, and F1 of two bags."""

import functools
import re
import string
from collections import Counter
from collections.abc import Hashable, Iterable

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@functools.lru_cache(maxsize=256)
def normalize(text: str) -> str:
    """Lower case, without ASCII punctuation and the articles a, an, the, single spaces (SQuAD's evaluation script)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def multiset_f1(predicted: Iterable[Hashable], gold: Iterable[Hashable]) -> float:
    """F1 of two bags, in [0, 1]; two empty ones are equal and score 1."""
    found, wanted = list(predicted), list(gold)
    if found == wanted:
        return 1.0
    return 2 * (Counter(found) & Counter(wanted)).total() / (len(found) + len(wanted))


def word_f1(predicted: str, gold: str) -> float:
    """F1 of the words of two texts after `normalize`, in [0, 1]."""
    return multiset_f1(normalize(predicted).split(), normalize(gold).split())

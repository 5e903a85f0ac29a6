"""EUREQA (arXiv 2311.09702): resolve the five masked entities of a chain of facts whose last entity is given.

A candidate holds `<entity_A>…</entity_A>` to `<entity_E>…</entity_E>`. The rewards are those of arXiv 2605.22817.
"""

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vpo_plugin.rewards.candidates import texts_between
from vpo_plugin.rewards.data import on_hub, read_dataset, shuffled
from vpo_plugin.rewards.text import normalize

if TYPE_CHECKING:
    from datasets import Dataset

LETTERS = "ABCDE"
TAGS = [f"entity_{letter}" for letter in LETTERS]
NORMAL, HARD = "questions_normal_5", "questions_hard_5"
SHUFFLE_SEED = 0  # of the hard questions, before they are halved


def rows(split: str, num_rows: int, seed: int, *, source: str) -> Iterator[dict]:
    """At most `num_rows` questions of five layers as `{"prompt", "label"}`.

    From the hub, `train` has all normal questions and half of the hard ones, `test` the other half, as in the paper. A
    file or folder of rows in the same format is read unchanged.
    """
    for row in shuffled(_hub_split(source, split) if on_hub(source) else read_dataset(source, split), num_rows, seed):
        masks, entities = row["entity_masks"][: len(LETTERS)], row["entities"][: len(LETTERS)]
        if len(entities) < len(LETTERS):
            raise ValueError(f"A EUREQA question needs 5 masked entities, but {row.get('idx')!r} has {len(entities)}.")
        story = "\n".join(row["question"])
        wanted = "\n".join(f"{letter}: {mask}" for letter, mask in zip(LETTERS, masks, strict=True))
        yield {
            "prompt": f"In this text most names are masked:\n\n{story}\n\n"
            "The last sentence names one entity openly. Go back from it, sentence by sentence, and find what these "
            f"masks stand for:\n{wanted}\n\nName each as the title of its Wikipedia article.\n",
            "label": {"entities": entities},
        }


def _hub_split(source: str, split: str) -> "Dataset":
    from datasets import concatenate_datasets

    hard = read_dataset(source, split, splits={split: HARD}).shuffle(seed=SHUFFLE_SEED)
    half = len(hard) // 2
    if split == "test":
        return hard.select(range(half, len(hard)))
    normal = read_dataset(source, split, splits={split: NORMAL})
    return concatenate_datasets([normal, hard.select(range(half))])


def label_check(label: object) -> None:
    """Raises ValueError if a label is not `{"entities": [five names]}`."""
    entities = label.get("entities") if isinstance(label, dict) else None
    named = isinstance(entities, list) and [isinstance(entity, str) and _name(entity) != "" for entity in entities]
    if named != [True] * len(LETTERS):
        raise ValueError(f"A EUREQA label's 'entities' lists the names of A to E, not {str(entities)[:80]!r}.")


@functools.lru_cache(maxsize=1024)
def _name(entity: str | None) -> str:
    """A Wikipedia title normalized for comparison: underscores become spaces, the rest as in SQuAD."""
    spaced = (entity or "").replace("_", " ")
    return normalize(spaced) or spaced.strip().lower()  # a title may have only articles and punctuation


@functools.lru_cache(maxsize=64)  # canonical and score read the same candidate
def read(candidate: str) -> tuple[str, ...]:
    """The normalized names of A to E in a candidate, empty where missing."""
    return tuple(map(_name, texts_between(candidate, *TAGS)))


def score(candidate: str, label: dict) -> list[float]:
    """entity_a … entity_e."""
    return [float(found == _name(gold)) for found, gold in zip(read(candidate), label["entities"], strict=True)]


def canonical(candidate: str, label: dict) -> tuple[str, ...]:
    """Candidates with the same five names are duplicates, however written."""
    return read(candidate)


def answers(label: dict) -> list[tuple[str, list[float]]]:
    """The gold names score 1 everywhere."""
    named = zip(LETTERS, label["entities"], strict=True)
    return [(" ".join(f"<entity_{letter}>{name}</entity_{letter}>" for letter, name in named), [1.0] * len(LETTERS))]

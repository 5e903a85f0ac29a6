"""MuSiQue (arXiv 2108.00573): answer a question over 20 paragraphs in 2 to 4 hops, and cite a paragraph for each.

A candidate holds `<support>3, 7</support>` and `<answer>…</answer>`. The rewards are those of arXiv 2605.22817.
"""

import functools
import itertools
import re
from collections.abc import Iterator, Mapping

from vpo_plugin.rewards.candidates import texts_between
from vpo_plugin.rewards.data import read_dataset, shuffled
from vpo_plugin.rewards.text import normalize, word_f1

MAX_HOPS = 4
NUMBER = re.compile(r"[0-9]+")


def rows(split: str, num_rows: int, seed: int, *, source: str, splits: Mapping[str, str]) -> Iterator[dict]:
    """At most `num_rows` answerable questions of MuSiQue's own jsonl format as `{"prompt", "label"}`."""
    dataset = read_dataset(source, split, splits=splits)
    if "answerable" in dataset.column_names:
        dataset = dataset.filter(lambda answerable: answerable is not False, input_columns="answerable")
    for row in shuffled(dataset, num_rows, seed):
        paragraphs = "\n\n".join(f"[{p['idx']}] {p['title']}\n{p['paragraph_text']}" for p in row["paragraphs"])
        yield {
            "prompt": f"Here are {len(row['paragraphs'])} numbered paragraphs, few of which matter.\n\n{paragraphs}\n\n"
            f"Question: {row['question']}\n\n"
            "The answer takes several steps, each on a paragraph of its own.\n",
            "label": {
                "support": [hop["paragraph_support_idx"] for hop in row["question_decomposition"]],
                "answers": [row["answer"], *(row["answer_aliases"] or [])],
            },
        }


def label_check(label: object) -> None:
    """Raises ValueError if a label is not `{"support": [int, 1 to 4 of them], "answers": [str, at least one]}`."""
    support, answers = (label.get("support"), label.get("answers")) if isinstance(label, dict) else (None, None)
    if not isinstance(support, list) or not 1 <= len(support) <= MAX_HOPS or not all(type(i) is int for i in support):
        raise ValueError(f"A MuSiQue label's 'support' lists the paragraph of each of 1 to 4 hops, not {support!r}.")
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and a.strip() for a in answers):
        raise ValueError(f"A MuSiQue label's 'answers' lists the answer and its aliases, not {str(answers)[:80]!r}.")


@functools.lru_cache(maxsize=64)  # canonical and score read the same candidates
def read(candidate: str) -> tuple[tuple[str, ...], str]:
    """The first 4 distinct paragraph numbers that a candidate cites, and its answer, empty if missing."""
    support, answer = texts_between(candidate, "support", "answer")
    cited = dict.fromkeys(number.lstrip("0") or "0" for number in NUMBER.findall(support or ""))
    return tuple(itertools.islice(cited, MAX_HOPS)), answer or ""


def score(candidate: str, label: dict) -> list[float]:
    """hop_1 … hop_4 and answer_f1."""
    cited, answer = read(candidate)
    if not answer:
        return [0.0] * (MAX_HOPS + 1)
    hops = [float(str(paragraph) in cited) for paragraph in label["support"]]
    hops += [1.0] * (MAX_HOPS - len(hops))
    return [*hops, max([word_f1(answer, gold) for gold in label["answers"]])]


def canonical(candidate: str, label: dict) -> tuple[frozenset[str], str]:
    """Candidates with the same citations and answer are duplicates, however written."""
    cited, answer = read(candidate)
    return frozenset(cited), normalize(answer)


def answers(label: dict) -> list[tuple[str, list[float]]]:
    """The gold answer and each alias score 1 everywhere."""
    support = ", ".join(map(str, label["support"]))
    return [
        (f"<support>{support}</support> <answer>{answer}</answer>", [1.0] * (MAX_HOPS + 1))
        for answer in label["answers"]
    ]

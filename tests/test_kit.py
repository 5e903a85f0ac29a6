"""The kit task: what a kit earns, which kits are the same, the exact front, and the policy's examples."""

import itertools
import string

import numpy as np
import pytest

from benchmarks.kit_policy import sft_examples
from reward_specs.kit import kit
from vpo_plugin.rewards import load_spec
from vpo_plugin.rewards.formats import parse

LABEL = {"items": [[9, 0, 0, 0, 0, 3], [0, 9, 0, 0, 0, 0], [3, 0, 9, 0, 0, 0], [1, 1, 1, 1, 1, 1]], "size": 2}


def test_a_kit_earns_its_share_of_the_best_for_each_need() -> None:
    assert kit.score("A B", LABEL) == kit.score("b, a", LABEL) == (9 / 12, 9 / 10, 0, 0, 0, 3 / 4)
    assert kit.score("A D", LABEL)[5] == 1


@pytest.mark.parametrize("text", ["A", "A A", "A B C", "A E", "", "AB", "A 1", "A B and more"])
def test_what_is_no_kit_earns_nothing(text: str) -> None:
    assert kit.score(text, LABEL) == (0,) * 6


def test_kits_of_the_same_items_are_the_same() -> None:
    assert kit.canonical("A C", LABEL) == kit.canonical("c a", LABEL) != kit.canonical("A B", LABEL)


def test_the_front_is_every_kit_that_no_other_dominates() -> None:
    for row in kit.rows("test", 3, 0):
        label = row["label"]
        names = string.ascii_uppercase[: kit.ITEMS]
        vectors = np.array([kit.score(" ".join(k), label) for k in itertools.combinations(names, kit.SIZE)])
        front = np.array([rewards for _, rewards in kit.front(label)])
        reached = (front[:, None] >= vectors - 1e-9).all(-1).any(0)
        assert reached.all()
        assert len(np.unique(front, axis=0)) == len(front)
        assert not ((front[:, None] >= front).all(-1) & (front[:, None] > front).any(-1)).any()
        assert all(np.allclose(kit.score(text, label), rewards) for text, rewards in kit.front(label))


def test_shared_decides_how_far_the_needs_agree() -> None:
    def correlation(shared: float) -> float:
        values = [kit.draw_items(kit.random.Random(seed), shared) for seed in range(40)]
        return float(np.corrcoef(np.concatenate(values).T)[np.triu_indices(6, 1)].mean())

    found = [correlation(shared) for shared in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert found == sorted(found) and found[0] < 0 and found[-1] > 0.99


def test_rows_are_seeded_and_the_splits_differ() -> None:
    rows = list(kit.rows("train", 4, 1))
    assert rows == list(kit.rows("train", 4, 1)) != list(kit.rows("train", 4, 2))
    assert not {row["prompt"] for row in rows} & {row["prompt"] for row in kit.rows("test", 4, 1)}


def test_labels_are_checked() -> None:
    kit.label_check(LABEL)
    for broken in ({}, {"items": [], "size": 1}, {"items": [[1] * 6], "size": 2}, {"items": [[1] * 5], "size": 1}):
        with pytest.raises(ValueError):
            kit.label_check(broken)


def test_examples_are_different_kits_in_the_format() -> None:
    spec = load_spec("kit")
    examples = list(sft_examples(spec, 32, seed=3))
    assert examples == list(sft_examples(spec, 32, seed=3)) != list(sft_examples(spec, 32, seed=4))
    for i, example in enumerate(examples):
        kits = parse(spec, example["response"], 1 if i % 2 else 3)
        assert None not in kits and len({frozenset(str(text).split()) for text in kits}) == len(kits)

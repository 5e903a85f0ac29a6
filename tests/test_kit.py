"""The kit task: what a kit earns, which kits are the same, the exact front, and the policy's examples."""

import itertools

import numpy as np
import pytest

from benchmarks.kit_policy import sft_examples
from reward_specs.kit import kit
from vpo_plugin.rewards import load_spec
from vpo_plugin.rewards.formats import parse

QUALITIES = {"rice": 8, "beans": 4, "torch": 9, "candle": 4, "pot": 6}
LABEL = {"qualities": [QUALITIES.get(item, 3) for item in kit.ITEMS], "shared": 0}


def test_a_kit_earns_the_square_of_its_share_of_the_best_for_each_need() -> None:
    # Best for food: rice 8, beans 4, half of pot's 6. Best for light: torch 9, candle 4, half of a quality of 3.
    shares = dict(zip(kit.NEEDS, kit.score("rice torch pot", LABEL), strict=True))
    assert shares["food"] == pytest.approx((11 / 15) ** 2) and shares["light"] == pytest.approx((9 / 14.5) ** 2)
    assert shares["tools"] == 0
    assert kit.score("Pot, rice,torch", LABEL) == kit.score("rice torch pot", LABEL)
    assert kit.score("beans rice pot", LABEL)[0] == 1


def test_every_need_is_served_by_as_many_items() -> None:
    assert (kit.SERVES > 0).sum(0).tolist() == [5] * 6
    assert (kit.SERVES > 0).sum(1).tolist() == [1] * 12 + [3] * 6


@pytest.mark.parametrize(
    "text", ["rice", "rice rice pot", "rice pot", "rice pot car", "", "rice pot saw tent", "a b c"]
)
def test_what_is_no_kit_earns_nothing(text: str) -> None:
    assert kit.score(text, LABEL) == (0,) * 6


def test_kits_of_the_same_items_are_the_same() -> None:
    assert kit.canonical("rice pot saw", LABEL) == kit.canonical("saw rice, Pot", LABEL)
    assert kit.canonical("rice pot saw", LABEL) != kit.canonical("rice pot tent", LABEL)


def test_the_front_is_every_kit_that_no_other_dominates() -> None:
    for row in kit.rows("test", 2, 0):
        label = row["label"]
        vectors = np.array([kit.score(" ".join(k), label) for k in itertools.combinations(kit.ITEMS, kit.SIZE)])
        front = np.array([rewards for _, rewards in kit.front(label)])
        reached = (front[:, None] >= vectors - 1e-9).all(-1).any(0)
        assert reached.all()
        assert len(np.unique(front, axis=0)) == len(front)
        assert not ((front[:, None] >= front).all(-1) & (front[:, None] > front).any(-1)).any()
        assert all(np.allclose(kit.score(text, label), rewards) for text, rewards in kit.front(label))


def test_what_is_best_at_equal_weights_is_far_from_best_at_others() -> None:
    weights = np.random.default_rng(0).dirichlet(np.ones(len(kit.NEEDS)), 500)
    fronts = [np.array([rewards for _, rewards in kit.front(row["label"])]) for row in kit.rows("test", 100, 0)]
    worth = [front @ weights.T for front in fronts]
    chosen = [values[front.mean(1).argmax()] for values, front in zip(worth, fronts, strict=True)]
    best = [values.max(0) for values in worth]
    assert np.mean(best) - np.mean(chosen) == pytest.approx(0.13, abs=0.02)  # as kit's README says, over 200 prompts
    assert np.mean(np.isclose(best, chosen)) == pytest.approx(1 / 8, abs=0.03)


def test_shared_decides_how_far_the_needs_agree() -> None:
    def correlation(shared: float) -> float:
        rewards = [reward for row in kit.rows("train", 4, 0, shared=shared) for _, reward in sample(row["label"])]
        return float(np.corrcoef(np.array(rewards).T)[np.triu_indices(6, 1)].mean())

    def sample(label: dict) -> list[tuple[str, kit.Vector]]:
        kits = list(itertools.combinations(kit.ITEMS, kit.SIZE))[::7]
        return [(text, kit.score(text, label)) for text in map(" ".join, kits)]

    found = [correlation(shared) for shared in (0.0, 0.2, 0.5, 1.0)]
    assert found == sorted(found) and found[0] < 0 and found[-1] > 0.99


def test_rows_are_seeded_and_the_splits_differ() -> None:
    rows = list(kit.rows("train", 4, 1))
    assert rows == list(kit.rows("train", 4, 1)) != list(kit.rows("train", 4, 2))
    assert not {row["prompt"] for row in rows} & {row["prompt"] for row in kit.rows("test", 4, 1)}


def test_labels_are_checked() -> None:
    kit.label_check(LABEL)
    good = LABEL["qualities"]
    for broken in ({}, {"qualities": good}, {"qualities": good[:-1], "shared": 0}, {"qualities": good, "shared": 2}):
        with pytest.raises(ValueError):
            kit.label_check(broken)
    with pytest.raises(ValueError, match="from 3 to 9"):
        kit.label_check({"qualities": [2, *good[1:]], "shared": 0})


def test_examples_are_different_kits_in_the_format() -> None:
    spec = load_spec("kit")
    examples = list(sft_examples(spec, 32, seed=3))
    assert examples == list(sft_examples(spec, 32, seed=3)) != list(sft_examples(spec, 32, seed=4))
    for i, example in enumerate(examples):
        kits = parse(spec, example["response"], 1 if i % 2 else 3)
        assert None not in kits and len({frozenset(str(text).split()) for text in kits}) == len(kits)

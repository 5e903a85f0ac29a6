"""The MuSiQue task: golden rewards, its own file format, and any text as a candidate."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_specs.musique.musique import canonical, label_check, read, rows, score
from vpo_plugin.rewards import RewardSpec, check_spec, load_spec
from vpo_plugin.rewards.response import score_response
from vpo_plugin.rewards.text import multiset_f1, normalize, word_f1

LABEL = {"support": [3, 11], "answers": ["The Eiffel Tower", "la tour Eiffel"]}
FOUR = {"support": [0, 5, 9, 19], "answers": ["1889"]}


def candidate(support: str, answer: str) -> str:
    return f"<support>{support}</support> <answer>{answer}</answer>"


@pytest.mark.parametrize(
    ("text", "label", "rewards"),
    [
        (candidate("3, 11", "the Eiffel tower!"), LABEL, [1, 1, 1, 1, 1]),
        (candidate("11 and 3", "La Tour Eiffel"), LABEL, [1, 1, 1, 1, 1]),
        # Hops that the question does not have are 1; citations of others cost nothing but their place.
        (candidate("7", "the tower"), LABEL, [0, 0, 1, 1, 2 / 3]),
        (candidate("7, 8, 9, 3, 11", "Paris"), LABEL, [1, 0, 1, 1, 0]),
        (candidate("7, 7, 7, 7, 3, 11", "Paris"), LABEL, [1, 1, 1, 1, 0]),
        (candidate("[03], [0011]", "Eiffel"), LABEL, [1, 1, 1, 1, 2 / 3]),
        (candidate("31, 1", "Eiffel tower Paris France"), LABEL, [0, 0, 1, 1, 2 / 3]),
        (candidate("", "Eiffel tower"), LABEL, [0, 0, 1, 1, 1]),
        ("<answer>Eiffel tower</answer>", LABEL, [0, 0, 1, 1, 1]),
        (candidate("0, 5, 9, 19", "1889"), FOUR, [1, 1, 1, 1, 1]),
        (candidate("0, 19", "in 1889"), FOUR, [1, 0, 0, 1, 2 / 3]),
        # No answer, no reward.
        ("<support>3, 11</support>", LABEL, [0] * 5),
        (candidate("3, 11", "  "), LABEL, [0] * 5),
        ("3, 11: the Eiffel Tower", LABEL, [0] * 5),
        ("", LABEL, [0] * 5),
    ],
)
def test_golden_rewards(text: str, label: dict[str, Any], rewards: list[float]) -> None:
    assert score(text, label) == pytest.approx(rewards)
    scored = score_response(load_spec("musique"), f"<response_1>{text}</response_1>", label, 1)
    assert scored.reward == pytest.approx((sum(rewards[:4]) + 3 * rewards[4]) / 7)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (candidate("3, 11", "The Tower"), candidate("11;3;3", "tower."), True),
        (candidate("3", "tower"), candidate("3, 11", "tower"), False),
        (candidate("3", "tower"), candidate("3", "towers"), False),
        ("reasons differ " + candidate("3", "x"), candidate("3", "x"), True),
    ],
)
def test_duplicates(a: str, b: str, same: bool) -> None:
    assert (canonical(a, LABEL) == canonical(b, LABEL)) is same


TEXT = st.text(st.characters(exclude_categories=[]), max_size=40)


@settings(deadline=None)
@given(
    st.one_of(
        TEXT,
        st.builds(candidate, TEXT, TEXT),
        st.lists(st.sampled_from(["<support>", "</support>", "<answer>", "</answer>", "3", ",", "tower", "\0"])).map(
            "".join
        ),
    )
)
def test_any_candidate_has_rewards(text: str) -> None:
    rewards = score(text, LABEL)
    assert len(rewards) == 5 and all(0 <= reward <= 1 for reward in rewards)
    assert any(rewards) == bool(read(text)[1]) and rewards[2] == rewards[3]
    hash(canonical(text, LABEL))


def test_a_megabyte_of_citations() -> None:
    assert score(candidate("9" * 1_000_000, "tower"), LABEL)[:2] == [0, 0]
    assert score(candidate("3," * 500_000, "tower"), LABEL)[:2] == [1, 0]


# SQuAD's own examples of what counts as equal, and F1 by hand.
@pytest.mark.parametrize(
    ("a", "b"), [("The  Cat.", "cat"), ("a-an-the", "aanthe"), ("U.S.", "us"), ("An apple a day", "apple day")]
)
def test_normalization(a: str, b: str) -> None:
    assert normalize(a) == b


def test_f1() -> None:
    assert word_f1("the cat sat", "a cat") == pytest.approx(2 / 3)
    assert word_f1("cat cat", "cat") == pytest.approx(2 / 3)
    assert word_f1("", "the") == multiset_f1([], []) == 1 and word_f1("dog", "cat") == multiset_f1([1], []) == 0


@pytest.mark.parametrize(
    ("label", "sentence"),
    [
        ({"answers": ["x"]}, "'support' lists"),
        ({"support": [1, None], "answers": ["x"]}, "'support' lists"),
        ({"support": [1] * 5, "answers": ["x"]}, "'support' lists"),
        ({"support": [1], "answers": []}, "'answers' lists"),
        ({"support": [1], "answers": [" "]}, "'answers' lists"),
        ([], "'support' lists"),
    ],
)
def test_labels_that_cannot_be_scored(label: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        label_check(label)


def question(number: int, hops: int, answerable: bool = True) -> dict[str, Any]:
    """A row as MuSiQue's files have it."""
    gold = random.Random(number).sample(range(20), hops)
    return {
        "id": f"{hops}hop__{number}",
        "paragraphs": [
            {"idx": i, "title": f"Title {i}", "paragraph_text": f"Text {number} {i}.", "is_supporting": i in gold}
            for i in range(20)
        ],
        "question": f"Who is {number}?",
        "question_decomposition": [
            {
                "id": 100 + i,
                "question": "#1 >> x",
                "answer": "y",
                "paragraph_support_idx": index if answerable else None,
            }
            for i, index in enumerate(gold)
        ],
        "answer": f"Person {number}",
        "answer_aliases": [f"P. {number}"] if number % 2 else [],
        "answerable": answerable,
    }


def write_questions(file: Path, number: int = 24) -> Path:
    questions = [question(i, 2 + i % 3) for i in range(number)] + [question(99, 2, answerable=False)]
    file.write_text("".join(json.dumps(q) + "\n" for q in questions))
    return file


def with_source(spec: RewardSpec, source: Path) -> RewardSpec:
    args = {**spec.dataset.args, "source": str(source)}
    return spec.model_copy(update={"dataset": spec.dataset.model_copy(update={"args": args})})


def test_the_spec_proves_itself_on_a_file_of_the_real_format(tmp_path: Path) -> None:
    spec = with_source(load_spec("musique"), write_questions(tmp_path / "musique_ans_v1.0_dev.jsonl"))
    found = check_spec(spec)
    assert found[0].startswith("16 rows of the split 'train'") and found[2].startswith("4 rows of the split 'test'")
    assert spec.objective_weights == pytest.approx([1 / 7] * 4 + [3 / 7]) and spec.candidates == 3


def test_rows_hold_the_paragraphs_by_number(tmp_path: Path) -> None:
    source = str(write_questions(tmp_path / "dev.jsonl"))
    train, test = (list(rows(split, 99, 0, source=source, splits={})) for split in ("train", "test"))
    assert len(train) + len(test) == 24 and train == list(rows("train", 99, 0, source=source, splits={}))
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in test}
    assert train != list(rows("train", 99, 1, source=source, splits={}))
    row = train[0]
    number = int(row["label"]["answers"][0].split()[1])
    original = question(number, 2 + number % 3)
    assert row["label"]["support"] == [hop["paragraph_support_idx"] for hop in original["question_decomposition"]]
    assert f"[19] Title 19\nText {number} 19." in row["prompt"] and f"Question: Who is {number}?" in row["prompt"]
    assert "<support>" not in row["prompt"] and "is_supporting" not in row["prompt"]

"""The EUREQA task: golden rewards, its own row format, and any text as a candidate."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_specs.eureqa.eureqa import LETTERS, answers, canonical, label_check, read, rows, score
from vpo_plugin.rewards import check_spec, load_spec
from vpo_plugin.rewards.response import score_response
from vpo_plugin.rewards.task import read_rows

NAMES = ["Robert_Rodriguez", "From_Dusk_till_Dawn:_The_Series", "32nd_European_Film_Awards", "The_The", "São_Paulo"]
LABEL = {"entities": NAMES}


def candidate(*names: str) -> str:
    return "\n".join(f"<entity_{x}> {name} </entity_{x}>" for x, name in zip(LETTERS, names, strict=False))


@pytest.mark.parametrize(
    ("text", "rewards"),
    [
        (candidate(*NAMES), [1, 1, 1, 1, 1]),
        (candidate("the robert rodriguez!", "from dusk till dawn the series"), [1, 1, 0, 0, 0]),
        (
            candidate("Rodriguez", "From Dusk till Dawn", "32nd European Film Award", "the the", "Sao Paulo"),
            [0, 0, 0, 1, 0],
        ),
        (candidate(*NAMES[::-1]), [0, 0, 1, 0, 0]),
        ("<entity_E>são paulo</entity_E> then <entity_A>Robert Rodriguez</entity_A>", [1, 0, 0, 0, 1]),
        ("<entity_a>Robert Rodriguez</Entity_A>", [1, 0, 0, 0, 0]),
        ("Robert_Rodriguez", [0] * 5),
        (candidate("", "", "", "", ""), [0] * 5),
        ("", [0] * 5),
    ],
)
def test_golden_rewards(text: str, rewards: list[float]) -> None:
    assert score(text, LABEL) == rewards
    scored = score_response(load_spec("eureqa"), f"<response_1>{text}</response_1>", LABEL, 1)
    assert scored.reward == pytest.approx(sum(rewards) / 5)


def test_duplicates() -> None:
    assert canonical(candidate("Robert_Rodriguez", "x"), LABEL) == canonical(candidate("robert rodriguez.", "X"), LABEL)
    assert canonical(candidate("Robert_Rodriguez", "x"), LABEL) != canonical(candidate("Robert_Rodriguez", "y"), LABEL)


@settings(deadline=None)
@given(
    st.one_of(
        st.text(st.characters(exclude_categories=[])),
        st.lists(st.text(max_size=9), max_size=5).map(lambda n: candidate(*n)),
    )
)
def test_any_candidate_has_rewards(text: str) -> None:
    assert set(score(text, LABEL)) <= {0.0, 1.0} and len(read(text)) == 5


@settings(deadline=None)
@given(
    st.lists(st.text(min_size=1).filter(lambda name: name.strip("_ \n") and "<" not in name), min_size=5, max_size=5)
)
def test_gold_names_score_one_everywhere(names: list[str]) -> None:
    label = {"entities": names}
    try:
        label_check(label)
    except ValueError:
        return  # names of nothing but separators
    [(text, rewards)] = answers(label)
    assert score(text, label) == rewards == [1] * 5


@pytest.mark.parametrize(
    "label", [{}, {"entities": NAMES[:4]}, {"entities": [*NAMES[:4], " "]}, {"entities": [1] * 5}, None]
)
def test_labels_that_cannot_be_scored(label: object) -> None:
    with pytest.raises(ValueError, match="lists the names of A to E"):
        label_check(label)


def question(number: int) -> dict[str, Any]:
    """A row as the hub's dataset has it: six masks and entities, the last of which the text names."""
    masks = [
        f"{kind} {letter}"
        for kind, letter in zip(["Person", "Film", "Award", "Band", "City", "Country"], "ABCDEF", strict=True)
    ]
    facts = [f"{masks[i]} is related to {masks[i + 1]}." for i in range(5)] + [f"Country F is Brazil{number}."]
    return {"idx": number, "question": facts, "entity_masks": masks, "entities": [*NAMES, f"Brazil{number}"]}


def test_the_spec_proves_itself_on_rows_of_the_real_format(tmp_path: Path) -> None:
    for split, numbers in (("train", range(20)), ("test", range(20, 25))):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(question(i)) + "\n" for i in numbers))
    spec = load_spec("eureqa")
    spec = spec.model_copy(update={"dataset": spec.dataset.model_copy(update={"args": {"source": str(tmp_path)}})})
    assert check_spec(spec)[1] == "16 known answers of the split 'train' score what they should."
    assert spec.objective_weights == pytest.approx([0.2] * 5) and spec.candidates == 3
    assert [len(list(read_rows(spec, split, 99, 0))) for split in ("train", "test")] == [20, 5]
    [row] = rows("test", 1, 0, source=str(tmp_path))
    assert "Person A is related to Film B.\nFilm B is" in row["prompt"] and "E: City E\n" in row["prompt"]
    assert "F: " not in row["prompt"] and row["label"] == LABEL and "Rodriguez" not in row["prompt"]

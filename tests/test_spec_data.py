"""Where rows come from: local files, folders and what cannot be read."""

import gzip
import json
from pathlib import Path

import pytest

from vpo_plugin.rewards.data import on_hub, read_dataset, rows

LINES = [{"text": f"row {i}", "label": i} for i in range(20)]
JSONL = "".join(json.dumps(line) + "\n" for line in LINES)


def texts(*args, **more) -> list[str]:
    return [row["text"] for row in rows(*args, **more)]


def test_one_file_holds_both_splits(tmp_path: Path) -> None:
    (tmp_path / "all.jsonl").write_text(JSONL)
    source = str(tmp_path / "all.jsonl")
    train, test = texts("train", 99, 0, source=source), texts("test", 99, 0, source=source)
    assert len(train) == 17 and len(test) == 3 and sorted(train + test) == sorted(line["text"] for line in LINES)
    assert texts("train", 5, 0, source=source) == train[:5]
    assert texts("train", 99, 1, source=source) != train and set(texts("train", 99, 1, source=source)) == set(train)


def test_files_for_each_split(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "train.jsonl.gz", "wt") as file:
        file.write(JSONL)
    (tmp_path / "validation.csv").write_text("text,label\nonly,1\n")
    (tmp_path / "README.md").write_text("not data")
    splits = {"test": "validation"}
    assert len(texts("train", 99, 0, source=str(tmp_path), splits=splits)) == 20
    assert texts("test", 99, 0, source=str(tmp_path), splits=splits) == ["only"]
    assert texts("test", 99, 0, source=f"{tmp_path}/{{split}}.csv", splits=splits) == ["only"]
    with pytest.raises(ValueError, match=r"dataset .* cannot be read \(ValueError: Couldn't infer the same data file"):
        read_dataset(str(tmp_path), "test")


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("/no/such/file.jsonl", "The dataset's file /no/such/file.jsonl does not exist."),
        ("/no/such/folder", "is neither a folder nor a file of a known kind"),
        ("https://example.org/data.zip", "is neither a folder nor a file of a known kind"),
    ],
)
def test_sources_that_cannot_be_read(source: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        read_dataset(source, "train")


def test_a_broken_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "all.jsonl").write_text('{"text": ')
    with pytest.raises(ValueError, match=r"^Line 1 of .*all\.jsonl cannot be read: it is not JSON \("):
        read_dataset(str(tmp_path / "all.jsonl"), "train")
    with pytest.raises(ValueError, match="'train' and 'test', not 'dev'"):
        read_dataset(str(tmp_path / "all.jsonl"), "dev")


def test_what_is_on_the_hub(tmp_path: Path) -> None:
    (tmp_path / "all.jsonl").write_text(JSONL)
    assert on_hub("owner/name") and not on_hub(str(tmp_path)) and not on_hub(str(tmp_path / "all.jsonl"))

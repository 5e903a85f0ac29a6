"""Where rows come from: local files, folders and what cannot be read."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from hub import hub

from vpo_plugin.rewards.data import on_hub, read_dataset, rows

ROOT = Path(__file__).parent.parent
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


def test_a_dataset_on_the_hub_is_read_by_its_id(tmp_path: Path) -> None:
    """Both layouts, a Parquet file of each split and JSON lines, through the real client from a hub on this machine."""
    parquet, lines = tmp_path / "hub" / "own" / "parquet" / "data", tmp_path / "hub" / "dgslibisey" / "MuSiQue"
    parquet.mkdir(parents=True)
    lines.mkdir(parents=True)
    for split in ("train", "validation"):
        asked = [{"input": f"{split} {i}"} for i in range(20)]
        Dataset.from_list(asked).to_parquet(parquet / f"{split}-00000-of-00001.parquet")
        sample = (ROOT / "reward_specs" / "musique" / "sample.jsonl").read_text()
        (lines / f"musique_ans_v1.0_{split}.jsonl").write_text(sample)
    read = """
from vpo_plugin.rewards.data import open_dataset, read_dataset
print(open_dataset("own/parquet", "train")[3]["input"])
print(sorted(read_dataset("own/parquet", "test", splits={"test": "validation[:2]"})["input"]))
for source, split in (("own/absent", "train"), ("own/parquet", "dev")):
    try:
        open_dataset(source, split)
    except ValueError as error:
        print(error)
"""
    with hub(tmp_path / "hub") as address:
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home")}
        environment |= {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}
        commands = (["-c", read], ["-m", "vpo_plugin.cli", "spec", "check", "musique"])
        by_id, checked = [
            subprocess.run([sys.executable, *of], capture_output=True, text=True, timeout=300, env=environment)
            for of in commands
        ]
    assert by_id.returncode == 0, by_id.stderr
    row, held_out, absent, unknown = by_id.stdout.splitlines()
    assert (row, held_out) == ("train 3", "['validation 0', 'validation 1']")
    assert absent.startswith("The split 'train' of the dataset own/absent cannot be read (DatasetNotFoundError: ")
    assert "Unknown split \"dev\". Should be one of ['train', 'validation']" in unknown
    assert checked.returncode == 0, checked.stderr
    assert "NOT CHECKED" not in checked.stdout and checked.stdout.endswith("The spec 'musique' is sound.\n")

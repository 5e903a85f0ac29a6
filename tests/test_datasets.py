"""Datasets as people have them, read alike at every door: the files of tests/cases/datasets, folders, chats."""

import bz2
import gzip
import json
import lzma
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from host import importable_host
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vpo_plugin.cli import main
from vpo_plugin.rewards import RewardSpec, load_spec
from vpo_plugin.rewards.data import open_dataset, read_dataset, read_records
from vpo_plugin.rewards.prompts import MARK, ask, pack_prompt, read_prompt, shown_prompt
from vpo_plugin.rewards.task import read_rows
from vpo_plugin.search.policy import Request, as_chat
from vpo_plugin.search.pool import full_prompt, load_prompts

FILES = Path(__file__).parent / "cases" / "datasets"
ROWS = [{"input": f"p {i}", "label": {"x": i}} for i in range(4)]
CHAT = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "p 0"}]
SPEC = """
name: anyd
description: two objectives that any text has
objectives: [{key: a, description: one}, {key: b, description: two}]
candidates: 2
tag: s
label: json
prompt: {single: "Write <s_1> … </s_1>", multi: "Write {candidates}: <s_1> … <s_{candidates}>"}
scorer: any_scorer:score
dataset: {loader: vpo_plugin.rewards.data:rows, columns: {prompt: input}, args: {source: DATA}}
limits: {response_chars: 4000, tokens_per_candidate: 10}
"""


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[object], RewardSpec]:
    """A specification whose rows are those of a dataset."""

    def made(data: object) -> RewardSpec:
        folder = tmp_path / "anyd"
        folder.mkdir(exist_ok=True)
        (folder / "any_scorer.py").write_text("def score(candidate, label):\n    return [0.5, 1.0]\n")
        (folder / "spec.yaml").write_text(SPEC.replace("DATA", str(data)))
        monkeypatch.syspath_prepend(str(folder))
        return load_spec(folder)

    return made


@pytest.fixture(scope="module", autouse=True)
def host() -> Iterator[None]:
    with importable_host():
        yield


def trained_on(spec: RewardSpec, data: object, chat: bool = True) -> str:
    """What the training's check says of a dataset; empty if it would start."""
    from vpo_plugin.openrlhf.checks import check_rows

    given = {
        **{"data.prompt_dataset": str(data), "data.prompt_split": "train", "data.max_samples": 10**8, "use_ms": False},
        **{"data.input_key": "input", "data.label_key": "label", "data.apply_chat_template": chat},
        **{"reward.remote_url": None, "vpo.candidates": 2},
    }
    return "".join(check_rows(given, spec, "data.prompt_dataset", "data.prompt_split"))


def host_reads(data: object, split: str = "train") -> list[dict[str, Any]]:
    """The rows that the host's trainer gets in a run with a specification."""
    from vpo_plugin.openrlhf.prompts import patch_datasets

    module = SimpleNamespace(blending_datasets=None)
    patch_datasets(module)
    strategy = SimpleNamespace(args=SimpleNamespace(use_ms=False))
    return list(module.blending_datasets(str(data), None, strategy, dataset_split=split))


GOOD = {
    "01-mixed-types.jsonl": None,
    "07-chat.jsonl": None,
    "08-chat-parts.jsonl": None,
    "11-crlf-bom.jsonl": None,
    "12-dict-label.jsonl": [{"y": "t"}, {"x": 19}],
    "13-blank-lines.jsonl": [{"x": 0}, {"x": 1}, {"x": 7}],
    "14-extra-columns-differ.jsonl": [{"x": 0}, {"x": 5}],
    "16-unicode.jsonl": [{"x": "é"}, {"x": "é"}],
    "17-list.json": [{"x": 0}, {"x": 1}, {"x": 2}],
    "18.csv": [{"x": 0}, {"x": 1}],
    "23.jsonl.gz": [{"x": 0}, {"x": 1}, {"x": 2}],
}
BAD = {
    "02-truncated-line.jsonl": "Line 3 of FILE cannot be read: it is not JSON (",
    "03-empty.jsonl": "The file FILE holds no rows.",
    "04-null-prompt.jsonl": "The prompt is null.",
    "06-empty-prompt.jsonl": "The prompt is empty.",
    "09-sharegpt.jsonl": "The chat has a message with the keys ['from', 'value']: it needs 'role' and 'content'.",
    "10-chat-empty.jsonl": "The chat has no messages.",
    "15-int-prompt.jsonl": "The prompt is neither a text nor a list of messages: '0'.",
    "19-lone-surrogate.jsonl": "Line 1 of FILE contains half of a character (a lone surrogate).",
    "24-cut.jsonl.gz": "The file FILE is cut or damaged: ",
}
BAD_ROW = {"04-null-prompt.jsonl": 2, "06-empty-prompt.jsonl": 2, "10-chat-empty.jsonl": 2}


@pytest.mark.parametrize("name", GOOD)
def test_a_file_is_read_alike_by_training_evaluation_and_loaders(name: str, spec: Any) -> None:
    file = FILES / name
    task = spec(file)
    if name.startswith("01"):
        task = task.model_copy(update={"label": "none"})  # its labels are numbers and text that is no JSON
    rows = load_prompts(task, file)
    assert trained_on(task, file) == ""
    if GOOD[name] is not None:
        assert [json.loads(row["label"]) for row in rows] == GOOD[name]
    assert [pack_prompt(row["input"]) for row in host_reads(file)] == [row["input"] for row in rows]
    loaded = [*read_rows(task, "train", 99, 0), *read_rows(task, "test", 99, 0)]
    assert sorted(pack_prompt(row["prompt"]) for row in loaded) == sorted(row["input"] for row in rows)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_by_training_and_evaluation_in_the_same_words(
    name: str, spec: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = FILES / name
    task, sentence = spec(file), BAD[name].replace("FILE", str(file))
    asked = [*("evaluate", "--model", "m", "--url", "http://localhost:9", "--spec", str(tmp_path / "anyd"))]
    assert main([*asked, "--data", str(file), "--rollouts", "1", "--output", str(tmp_path / "pool")]) == 1
    said = capsys.readouterr().err
    assert sentence in said and len(said.splitlines()) == 1 and not (tmp_path / "pool").exists()
    refused = trained_on(task, file)
    assert sentence in refused and "\n" not in refused
    if name in BAD_ROW:
        assert f"ow {BAD_ROW[name]} " in said and f"ow {BAD_ROW[name]} " in refused


def test_folders_with_and_without_splits(spec: Any, tmp_path: Path) -> None:
    task = spec(tmp_path / "one")
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    DatasetDict(train=Dataset.from_list(ROWS[:3]), test=Dataset.from_list(ROWS[3:])).save_to_disk(tmp_path / "both")
    DatasetDict(rl=Dataset.from_list(ROWS)).save_to_disk(tmp_path / "rl")
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for split, rows in (("train", ROWS[:3]), ("test", ROWS[3:])):
        Dataset.from_list(rows).to_parquet(tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet")
    expected = [{"input": row["input"], "label": json.dumps(row["label"])} for row in ROWS]
    assert load_prompts(task, tmp_path / "one") == expected == load_prompts(task, tmp_path / "rl")
    for folder in ("both", "hub"):
        assert load_prompts(task, tmp_path / folder) == expected[3:]
        assert load_prompts(task, tmp_path / folder, "train") == expected[:3]
        assert [row["input"] for row in host_reads(tmp_path / folder)] == [row["input"] for row in ROWS[:3]]
        assert list(read_dataset(str(tmp_path / folder), "test")) == ROWS[3:]
        assert [row for _, _, row in read_records(tmp_path / folder)] == ROWS[3:]
    assert host_reads(f"{tmp_path / 'one'}, {tmp_path / 'both'}") == ROWS + ROWS[:3]
    assert trained_on(task, tmp_path / "both") == ""
    assert "has no split 'train', it has rl" in trained_on(task, tmp_path / "rl")


@pytest.mark.parametrize("name", ["rows.ndjson", "rows.jsonl.bz2", "rows.json.xz", "rows.jsonl.zip", "part_*.jsonl"])
def test_packed_files_and_patterns(name: str, spec: Any, tmp_path: Path) -> None:
    """Whatever `datasets` reads, also named in a specification, relative to it."""
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    file = tmp_path / "anyd" / name
    task = spec(name)
    match name.rpartition(".")[2]:
        case "zip":
            with zipfile.ZipFile(file, "w") as packed:
                packed.writestr("rows.jsonl", lines)
        case "jsonl":
            for i, line in enumerate(lines.splitlines()):
                file.with_name(f"part_{i}.jsonl").write_bytes(line)
        case kind:
            file.write_bytes({"bz2": bz2.compress, "xz": lzma.compress}.get(kind, bytes)(lines))
    task = load_spec(tmp_path / "anyd")
    expected = [{"input": row["input"], "label": json.dumps(row["label"])} for row in ROWS]
    assert load_prompts(task, file) == expected and trained_on(task, file) == ""
    assert host_reads(file) == ROWS == [row for _, _, row in read_records(file)]
    assert len([*read_rows(task, "train", 99, 0), *read_rows(task, "test", 99, 0)]) == len(ROWS)


def test_a_bad_line_of_a_pattern_and_a_pattern_without_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(ROWS[0]))
    (tmp_path / "b.jsonl").write_text("{")
    with pytest.raises(ValueError, match=rf"Line 1 of {tmp_path}/b.jsonl cannot be read: it is not JSON \("):
        open_dataset(f"{tmp_path}/*.jsonl")
    with pytest.raises(ValueError, match=r"The dataset's file .*/\*\.csv does not exist"):
        open_dataset(f"{tmp_path}/*.csv")
    (tmp_path / "cut.jsonl.bz2").write_bytes(bz2.compress(b'{"input": "p"}')[:-9])
    for read in (open_dataset, lambda file: list(read_records(Path(file)))):
        with pytest.raises(ValueError, match=r"The dataset .*cut\.jsonl\.bz2 cannot be read \("):
            read(str(tmp_path / "cut.jsonl.bz2"))


def test_other_columns_and_rows_that_cannot_be_used(spec: Any, tmp_path: Path) -> None:
    task = spec(tmp_path / "x")
    Dataset.from_list([{"question": "q", "answer": "1"}]).to_parquet(tmp_path / "gsm.parquet")
    assert load_prompts(task, tmp_path / "gsm.parquet", None, ("question", "answer")) == [{"input": "q", "label": "1"}]
    with pytest.raises(ValueError, match="has no column 'input' \\(it has question, answer\\): name the columns"):
        load_prompts(task, tmp_path / "gsm.parquet")
    assert "it has no column 'input' (it has question, answer)" in trained_on(task, tmp_path / "gsm.parquet")
    (tmp_path / "t.tsv").write_text('input\tlabel\n"a, b"\t1\n')
    assert load_prompts(task, tmp_path / "t.tsv") == [{"input": "a, b", "label": "1"}]
    (tmp_path / "no.parquet").write_bytes((tmp_path / "gsm.parquet").read_bytes()[:-40])
    for read in (open_dataset, lambda file: list(read_records(Path(file)))):
        with pytest.raises(ValueError, match=r"The dataset .*no\.parquet cannot be read \("):
            read(str(tmp_path / "no.parquet"))
    assert "is a chat, which needs --data.apply_chat_template" in trained_on(task, FILES / "07-chat.jsonl", chat=False)


# ------------------------------------------------------------------------------------------------ chats

PART = st.fixed_dictionaries({"type": st.just("text"), "text": st.text()}) | st.just({"type": "image"})
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant"]), "content": st.text() | st.lists(PART, max_size=3)}
)


@settings(deadline=None)
@given(st.text().filter(lambda text: not text.startswith(MARK)) | st.lists(MESSAGE, max_size=4))
def test_a_prompt_comes_back_as_it_was_packed(prompt: Any) -> None:
    assert read_prompt(pack_prompt(prompt)) == prompt
    assert isinstance(shown_prompt(pack_prompt(prompt)), str)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chat=st.lists(MESSAGE, max_size=3))
def test_the_instruction_joins_the_last_message_of_the_user_alone(chat: list[dict[str, Any]], spec: Any) -> None:
    asked = [*chat, {"role": "user", "content": "Now."}, {"role": "assistant", "content": "<s_1>"}]
    found = ask(spec("x"), asked, 2)
    assert found[:-2] == chat and found[-1] == asked[-1]
    assert found[-2]["content"] == "Now.\nWrite 2: <s_1> … <s_2>\n"


class Template:
    """A tokenizer with a chat template, or none."""

    def __init__(self, template: str | None = "there") -> None:
        self.chat_template = template

    def apply_chat_template(self, chat: list[dict[str, Any]], **options: Any) -> str:
        return "".join(f"<{message['role']}>{message['content']}" for message in chat)


def test_what_the_policy_reads_of_a_chat(spec: Any) -> None:
    prompt = full_prompt(spec("x"), pack_prompt(CHAT), 1)
    assert as_chat([prompt], Template()) == ["<system>Be short.<user>p 0\nWrite <s_1> … </s_1>\n"]
    assert Request(prompt).prompt == prompt
    with pytest.raises(ValueError, match=re.escape("Prompt 2 is a chat, but the model has no chat template.")):
        as_chat(["text", prompt], Template(None))
    with pytest.raises(ValueError, match="Prompt 1 has parts that are not text: only an endpoint"):
        as_chat([[{"role": "user", "content": [{"type": "image"}]}]], Template())


def test_what_datasets_reads_of_a_chat_with_parts_is_what_was_written(spec: Any, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "p"}]}]
    Dataset.from_list([{"input": chat, "label": 1}]).to_parquet(tmp_path / "chat.parquet")
    [row] = load_prompts(spec("x"), tmp_path / "chat.parquet")
    assert read_prompt(row["input"]) == chat
    assert shown_prompt(row["input"]) == "user: [image] p"
    assert host_reads(tmp_path / "chat.parquet")[0]["input"] != chat  # it has nulls beside


LINE = '{"response": "<s_1> a </s_1>", "label": {"x": 1}, "candidates": 1}'


@pytest.mark.parametrize(
    "content",
    [
        f"{LINE}\r\n{LINE}\r\n".encode(),
        f"\ufeff{LINE}\n{LINE}".encode(),
        f"{LINE}\n\n   \n{LINE}\n\n".encode(),
        f"[\n {LINE},\n {LINE}\n]".encode(),
        gzip.compress(f"{LINE}\n{LINE}\n".encode()),
    ],
    ids=["windows", "bom", "blank lines", "array", "gzip"],
)
def test_responses_to_score_are_read_however_they_are_written(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(content)
    assert [row for _, _, row in read_records(tmp_path / "in.jsonl")] == [json.loads(LINE)] * 2


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (f"{LINE}\n".encode("utf-16"), "is UTF-16, not UTF-8: convert it"),
        (b" \n", "holds no rows"),
        (b"[1", "but is not"),
    ],
)
def test_responses_that_cannot_be_read_are_one_sentence(content: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        list(read_records(tmp_path / "in.jsonl"))

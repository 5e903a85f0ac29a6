"""What `vpo spec new` writes: a small working task to start from."""

import importlib.util
from pathlib import Path

from vpo_plugin.files import json_lines, making
from vpo_plugin.rewards.files import SpecError

SPEC = """\
# yaml-language-server: $schema={schema}
name: {name}
description: Say facts in one sentence. More facts make it longer, so no sentence is best at everything.
task: {name}
objectives:
  - key: sentence
    description: 1 if the candidate is one sentence that ends with a full stop
  - key: facts
    description: share of the facts that are named
  - key: length
    description: number of words divided by 30, the shorter the better
    direction: minimize
weights: (sentence + 3*facts + length) / 5
gates:
  - {{objective: sentence, at_least: 1}}
outside_range: clamp
candidates: 3
tag: sentence
prompt:
  single: "Write one sentence: <sentence_1> … </sentence_1>"
  multi: "Write {{candidates}} sentences, from short to complete, in <sentence_1> to <sentence_{{candidates}}> tags."
dataset:
  columns: {{prompt: text, label: facts}}
limits:
  response_chars: 4000
  tokens_per_candidate: 100
"""

MODULE = '''\
"""The rewards and the data of the task."""

from pathlib import Path

from vpo_plugin.rewards import data


def rows(split, num_rows, seed):
    """The prompts and labels of a split, `train` or `test`."""
    return data.rows(split, num_rows, seed, source=str(Path(__file__).with_name("rows.jsonl")))


def score(candidate, facts):
    """One value for each objective, in the order of spec.yaml."""
    is_sentence = candidate.endswith(".") and candidate.count(".") == 1
    named = sum(fact.lower() in candidate.lower() for fact in facts)
    return [float(is_sentence), named / len(facts), len(candidate.split()) / 30]


def answers(facts):
    """Candidates whose rewards are known: `vpo spec check` proves that they get them."""
    everything = " and ".join(facts) + "."
    return [(everything, [1, 1, 1 - len(everything.split()) / 30]), ("No full stop", [0, 0, 0])]
'''

ROWS = [
    ("Say where and when Marie Curie was born.", ["Warsaw", "1867"]),
    ("Say what water boils at, in Celsius and in Fahrenheit.", ["100", "212"]),
    ("Say which planets have rings.", ["Jupiter", "Saturn", "Uranus", "Neptune"]),
    ("Say what the primary colours of light are.", ["red", "green", "blue"]),
    ("Say which countries Lake Constance lies between.", ["Germany", "Austria", "Switzerland"]),
    ("Say who walked on the Moon first, and when.", ["Armstrong", "1969"]),
    ("Say what an insect's body is made of.", ["head", "thorax", "abdomen"]),
    ("Say which states of matter there are.", ["solid", "liquid", "gas", "plasma"]),
    ("Say what a triangle's angles sum to, in degrees and in radians.", ["180", "pi"]),
]


def skeleton_files(name: str, schema: str) -> dict[str, str]:
    """File name -> content; `schema` is where editors find the JSON schema."""
    return {
        "spec.yaml": SPEC.format(name=name, schema=schema),
        f"{name}.py": MODULE,
        "rows.jsonl": json_lines({"text": text, "facts": facts} for text, facts in ROWS),
    }


def new_spec(name: str, folder: Path, schema: str) -> list[Path]:
    """Write a working spec into `folder / name` and return its files.

    Raises SpecError if the name is not a valid module name, belongs to another module, or the folder exists.
    """
    if not (name.isidentifier() and name.isascii() and name.islower()):
        raise SpecError(f"'{name}' names a Python module too: use lower-case letters, digits and underscores.")
    home = folder / name
    if home.exists():
        raise SpecError(f"{home} exists already: choose another name or --folder.")
    if (found := importlib.util.find_spec(name)) is not None:
        place = found.origin or [*(found.submodule_search_locations or [])]
        raise SpecError(f"'{name}' is a module that Python finds in {place}: choose another name.")
    files = skeleton_files(name, schema)
    with making(home) as unfinished:
        for file, content in files.items():
            (unfinished / file).write_text(content, encoding="utf-8")
    return [home / file for file in files]

"""How often each kind of instruction is followed.

`python -m benchmarks.instructions docs/evidence/instructions/results.json` prints a table with a column for each pool,
and what a constant answer gets on the same prompts. It reads the stored pools of an experiment on `instructions`. The
held-out prompts are in `prompts.jsonl` beside them; without that file they are made again from the settings.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from reward_specs.instructions.instructions import score
from vpo_plugin.files import digest
from vpo_plugin.report.tables import markdown_table
from vpo_plugin.rewards import load_spec
from vpo_plugin.rewards.prompts import pack_prompt
from vpo_plugin.rewards.task import read_rows
from vpo_plugin.search.experiment import unpack_array

CONSTANT = "."
NAMES = {
    "change_case:english_capital": "all capitals",
    "change_case:english_lowercase": "lower case",
    "detectable_format:number_bullet_lists": "number of bullet points",
    "detectable_format:title": "title",
    "keywords:existence": "keywords",
    "keywords:forbidden_words": "forbidden words",
    "length_constraints:number_words": "number of words",
    "punctuation:no_comma": "no comma",
    "startend:end_checker": "ending phrase",
    "startend:quotation": "quotation marks",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="results.json of the experiment")
    file = parser.parse_args().results
    results = json.loads(file.read_text())
    labels = [row["label"] for row in read_prompts(results, file.with_name("prompts.jsonl"))]
    shares: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for pool in results["pools"]:
        name = f"{pool['method']}, T = {pool['temperature']:g}"
        for label, matrices in zip(labels, unpack_array(pool["reward_matrices"]), strict=True):
            for number, instruction in enumerate(label["instructions"]):
                shares[name_of(instruction)][name].append(float(matrices[..., number].mean()))
    names = list(next(iter(shares.values())))
    body = [
        [kind, str(len(of[names[0]])), *(f"{sum(of[name]) / len(of[name]):.2f}" for name in names)]
        for kind, of in sorted(shares.items())
    ]
    print(markdown_table(["instruction", "prompts", *names], body))
    floor = [sum(score(CONSTANT, label)) / len(label["instructions"]) for label in labels]
    print(f"The answer {CONSTANT!r} follows {sum(floor) / len(floor):.2f} of the instructions of these prompts.")


def read_prompts(results: dict[str, Any], file: Path) -> list[dict[str, Any]]:
    if file.exists():
        return [json.loads(line) for line in file.read_text().splitlines()]
    settings = results["settings"]
    rows = list(read_rows(load_spec(settings["spec"]), "test", results["prompts"], settings["seed"]))
    if results["prompts_digest"] != digest([pack_prompt(row["prompt"]) for row in rows]):
        raise SystemExit(f"The spec '{results['spec']}' makes other prompts now than those of these pools.")
    return rows


def name_of(instruction: dict[str, Any]) -> str:
    name = NAMES.get(instruction["id"], instruction["id"])
    return f"{name}, {relation}" if (relation := instruction["arguments"].get("relation")) else name


if __name__ == "__main__":
    main()

"""How often each kind of instruction is followed.

`python -m benchmarks.instructions docs/evidence/instructions/results.json` prints a table with a column for each pool.
It reads the stored pools of an experiment on `instructions`, and makes its held-out prompts again from its settings.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

from vpo_plugin.report.tables import markdown_table
from vpo_plugin.rewards import load_spec
from vpo_plugin.rewards.task import read_rows
from vpo_plugin.search.experiment import unpack_array


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="results.json of the experiment")
    results = json.loads(parser.parse_args().results.read_text())
    rows = list(read_rows(load_spec(results["spec"]), "test", results["prompts"], results["settings"]["seed"]))
    shares: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for pool in results["pools"]:
        name = f"{pool['method']}, T = {pool['temperature']:g}"
        for row, matrices in zip(rows, unpack_array(pool["reward_matrices"]), strict=True):
            for number, instruction in enumerate(row["label"]["instructions"]):
                shares[instruction["id"]][name].append(float(matrices[..., number].mean()))
    names = list(next(iter(shares.values())))
    body = [
        [kind, str(len(of[names[0]])), *(f"{sum(of[name]) / len(of[name]):.2f}" for name in names)]
        for kind, of in sorted(shares.items())
    ]
    print(markdown_table(["instruction", "prompts", *names], body))


if __name__ == "__main__":
    main()

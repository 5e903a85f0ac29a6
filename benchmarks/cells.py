"""Evidence: an experiment in parts, on several machines.

    python -m benchmarks.cells keep runs/kit docs/evidence/kit/cells
    python -m benchmarks.cells report docs/evidence/kit/cells --name kit --spec kit --methods grpo,vpo --seeds 0,1,2 …

`keep` copies the pools and the training curves of finished cells from a run's folder, without the policies. `report`
takes the flags of `vpo experiment` and writes results.json, summary.md and the plots above the folder of cells, from
those that are there. It says which ones are missing, also in summary.md.
"""

import json
import re
import shutil
import sys
from pathlib import Path

from flows.experiment import training_curves, write_comparison
from flows.pipeline import candidates_of
from flows.settings import ExperimentSettings
from vpo_plugin import files
from vpo_plugin.cli.settings import read
from vpo_plugin.rewards import load_spec
from vpo_plugin.search.comparison import BASE
from vpo_plugin.search.pool import Pool, load_pool


def portable(path: Path | str) -> str:
    """The path as it is committed: git on Windows takes no colon, as in vpo_at_k:1."""
    return str(path).replace(":", "-")


def keep(run: Path, cells: Path) -> None:
    """Copy every finished pool that the cells do not have yet, and the curves of its training.

    Raises:
        FileNotFoundError: the folder has no pool.
        ValueError: the cells have another pool of the same name.
    """
    set_aside = re.compile(r".*\.[0-9a-f]{16}")  # flows.stage keeps the results of other settings under such names
    pools = [pool for pool in sorted(run.glob("seed-*/eval/*/pool")) if not set_aside.fullmatch(pool.parent.name)]
    if not pools:
        raise FileNotFoundError(f"{run} is not the folder of an experiment: it has no pool (seed-*/eval/*/pool).")
    for pool in pools:
        place = cells / portable(pool.parent.relative_to(run))
        try:
            found = load_pool(pool)
        except (ValueError, FileNotFoundError) as error:
            print(f"Not kept: {error}")
            continue
        if not place.exists():
            with files.making(place) as copy:
                shutil.copytree(pool, copy, ignore=shutil.ignore_patterns(".lock"), dirs_exist_ok=True)
            print(f"Kept {place}.")
        elif load_pool(place).responses != found.responses:
            raise ValueError(f"{place} has other responses than {pool}: delete it, or keep the run in another folder.")
        log = pool.parents[2] / "train" / pool.parent.name / "policy" / "vpo"
        curves = place.parents[1] / "train" / f"{place.name}.json"
        if log.exists():  # a policy that has a pool is trained to its end
            files.write(curves, json.dumps(training_curves(log)) + "\n")


def report(cells: Path, settings: ExperimentSettings) -> None:
    """Write the comparison of the cells that are there.

    Raises:
        ValueError: the base policy's pool is missing, or the last method's, or a pool cannot be read, or has other
            prompts or another temperature than it should.
    """
    spec, usual = load_spec(settings.spec), settings.eval_temperature or settings.temperature
    m, first = settings.candidates or spec.candidates, settings.seeds[0]
    wanted = [(BASE, BASE, first)]
    if m > 1 and any(candidates_of(method, m) == m for method in settings.methods):
        wanted.append((f"{BASE}, sets of {m}", f"{BASE}_sets_of_{m}", first))
    wanted += [(method, method, seed) for method in settings.methods for seed in settings.seeds]
    pools: dict[float, dict[tuple[str, int], Pool]] = {t: {} for t in settings.temperatures}
    training: dict[str, list[dict[str, list[float]]]] = {}
    missing = []
    for shown, name, seed in wanted:
        names = {t: name if t == usual else f"{name}-T{t:g}" for t in pools}
        places = {t: cells / f"seed-{seed}" / "eval" / portable(of_t) for t, of_t in names.items()}
        curves = [cells / f"seed-{seed}" / "train" / portable(f"{name}.json")] if name in settings.methods else []
        if absent := [str(place) for place in [*places.values(), *curves] if not place.exists()]:
            missing.append(f"{shown} with seed {seed}")
            print(f"Missing: {missing[-1]} ({', '.join(absent)}).")
            continue
        for t, place in places.items():
            pools[t][shown, seed] = load_pool(place)
        for file in curves:
            training.setdefault(name, []).append(json.loads(file.read_text()))
    there = pools[settings.temperatures[0]]
    if (BASE, first) not in there or settings.methods[-1] not in training:
        raise ValueError(
            f"{cells} holds nothing to compare: it needs the base policy's cell of seed {first}, and one of "
            f"{settings.methods[-1]}, the last method, which is compared with the others. Keep them first."
        )
    write_comparison(settings, spec, pools, there[BASE, first].rows, training, cells.parent, missing)


def main(arguments: list[str]) -> None:
    """Run a command; a mistake ends in a sentence."""
    command, *words = arguments or [""]
    try:
        if command == "keep" and len(words) == 2:
            keep(*map(Path, words))
        elif command == "report" and words:
            report(Path(words[0]), read(ExperimentSettings, words[1:], "python -m benchmarks.cells report"))
        else:
            raise SystemExit(__doc__)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main(sys.argv[1:])

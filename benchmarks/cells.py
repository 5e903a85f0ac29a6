"""Evidence: an experiment in parts, on several machines.

    python -m benchmarks.cells keep runs/kit docs/evidence/kit/cells
    python -m benchmarks.cells report docs/evidence/kit/cells --name kit --spec kit --methods grpo,vpo --seeds 0,1,2 …

`keep` copies the pools and the training curves of finished cells from a run's folder, without the policies. `report`
takes the flags of `vpo experiment` and writes results.json, summary.md and the plots above the folder of cells, from
those that are there. It says which ones are missing.
"""

import json
import shutil
import sys
from pathlib import Path

from flows.experiment import training_curves, write_comparison
from flows.pipeline import candidates_of
from flows.settings import ExperimentSettings
from vpo_plugin import files
from vpo_plugin.cli.settings import read
from vpo_plugin.rewards import load_spec
from vpo_plugin.search.experiment import BASE
from vpo_plugin.search.pool import Pool, load_pool


def portable(path: Path | str) -> str:
    """The path as it is committed: git on Windows takes no colon, as in vpo_at_k:1."""
    return str(path).replace(":", "-")


def keep(run: Path, cells: Path) -> None:
    """Copy every finished pool, and the curves of its training, that the cells do not have yet."""
    for pool in sorted(run.glob("seed-*/eval/*/pool")):
        place = cells / portable(pool.parent.relative_to(run))
        try:
            load_pool(pool)
        except (ValueError, FileNotFoundError) as error:
            print(f"Not kept: {error}")
            continue
        if not place.exists():
            shutil.copytree(pool, place, ignore=shutil.ignore_patterns(".lock"))
            print(f"Kept {place}.")
    for log in sorted(run.glob("seed-*/train/*/policy/vpo")):
        name = portable(log.parents[1].relative_to(run))
        files.write(cells / f"{name}.json", json.dumps(training_curves(log)) + "\n")


def report(cells: Path, settings: ExperimentSettings) -> None:
    """Write the comparison of the cells that are there."""
    spec, usual = load_spec(settings.spec), settings.eval_temperature or settings.temperature
    m, first = settings.candidates or spec.candidates, settings.seeds[0]
    wanted = [(BASE, BASE, first)]
    if m > 1 and any(candidates_of(method, m) == m for method in settings.methods):
        wanted.append((f"{BASE}, sets of {m}", f"{BASE}_sets_of_{m}", first))
    wanted += [(method, method, seed) for method in settings.methods for seed in settings.seeds]
    pools: dict[float, dict[tuple[str, int], Pool]] = {t: {} for t in settings.temperatures}
    for shown, name, seed in wanted:
        names = {t: name if t == usual else f"{name}-T{t:g}" for t in pools}
        places = {t: cells / f"seed-{seed}" / "eval" / portable(of_t) for t, of_t in names.items()}
        if missing := [str(place) for place in places.values() if not place.exists()]:
            print(f"Missing: {', '.join(missing)}.")
            continue
        for t, place in places.items():
            pools[t][shown, seed] = load_pool(place)
    there = pools[settings.temperatures[0]]
    training = {
        method: [
            json.loads((cells / f"seed-{seed}" / "train" / portable(f"{method}.json")).read_text())
            for seed in settings.seeds
            if (method, seed) in there
        ]
        for method in settings.methods
        if any(name == method for name, _ in there)
    }
    write_comparison(settings, spec, pools, there[BASE, first].rows, training, cells.parent)


def main() -> None:
    """Run a command."""
    command, *words = sys.argv[1:] or [""]
    if command == "keep" and len(words) == 2:
        keep(*map(Path, words))
    elif command == "report" and words:
        report(Path(words[0]), read(ExperimentSettings, words[1:], "python -m benchmarks.cells report"))
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main()

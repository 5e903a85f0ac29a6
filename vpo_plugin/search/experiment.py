"""What an experiment of several methods and seeds says: figures with intervals, plots, and every raw pool.

A method's pools are `(seeds, prompts, candidates, objectives)`: the same held-out prompts for every seed and method,
the same budget. Intervals resample prompts and seeds, each with replacement and crossed with the other, the
same draws for both sides of a difference (Owen, arXiv 0712.1111: the bootstrap of a two-way layout).
"""

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vpo_plugin.rewards import RewardSpec
from vpo_plugin.rewards.task import pareto_front
from vpo_plugin.search.metrics import best_at_k, expected_set_reward, mean_pairwise_l1, pass_at_k

Floats = NDArray[np.float64]
RESAMPLES = 4000
BASE = "base"
ABLATIONS = ("set_max",)
"""Methods that are compared, but are no scalar baseline: vpo without its random weightings."""
LEVEL = 0.95

# Okabe-Ito and three greys, dashes say it twice; the method of interest is drawn over the others, the base in grey.
COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C510A", "#5E3C99", "#999933")
DASHES = ("-", "--", "-.", ":")


@dataclass(frozen=True)
class Cell:
    """One policy, trained with one method and one seed, and its pool."""

    method: str
    seed: int
    reward_matrices: np.ndarray
    """(prompts, rollouts, candidates, objectives)"""
    tokens_per_prompt: float
    """Generated tokens in a prompt's pool, mean over prompts."""
    unique: float
    """Different candidates in a response, mean over responses."""
    training: dict[str, list[float]]
    """By step: `set_reward` of all of a prompt's candidates, `diversity`, `reward`, `tokens`, `candidates`."""


@dataclass(frozen=True)
class Targets:
    """What the specification asks of each prompt, and the best that any policy can reach."""

    weights: Floats
    """Deployment weights, (prompts, objectives)."""
    solved: Floats
    """Reward from which a candidate counts as correct, (prompts,)."""
    best: float | None
    """Exact ceiling of best@k, the mean over prompts; None where the specification has no solver."""
    set_reward: float | None
    """Exact ceiling of `E_w` of the pool."""


def read_targets(spec: RewardSpec, labels: Sequence[object], objectives: int) -> Targets:
    """The deployment weights, the solved condition and the exact ceiling for prompts with these labels."""
    weights = np.array([spec.weights_of(objectives)] * len(labels))
    if not spec.front:
        return Targets(weights, np.full(len(labels), spec.solved), None, None)
    fronts = [np.asarray(pareto_front(spec, label)) for label in labels]
    best = np.array([(front @ row).max() for front, row in zip(fronts, weights, strict=True)])
    worth = [expected_set_reward(front[None], seed=0).item() for front in fronts]
    return Targets(weights, spec.solved * best, float(best.mean()), float(np.mean(worth)))


class Method:
    """The cells of one method, measured at the budgets of an experiment."""

    def __init__(self, cells: list[Cell], targets: Targets, budgets: Floats, *, in_tokens: bool) -> None:
        self.cells, self.targets = cells, targets
        self.name = cells[0].method
        self.candidates = cells[0].reward_matrices.shape[2]
        self.tokens_per_prompt = float(np.mean([cell.tokens_per_prompt for cell in cells]))
        matrices = np.array([cell.reward_matrices for cell in cells], dtype=np.float64)
        seeds, prompts, rollouts, m, objectives = matrices.shape
        size = rollouts * m
        per_candidate = self.tokens_per_prompt / size if in_tokens else 1.0
        #: candidates that each budget pays for, not always whole
        self.bought = np.clip(budgets / per_candidate, 1, size)
        kept = max(1, int(self.bought[-1] + 1e-9) // m)
        #: (seeds, prompts, candidates, objectives): whole responses, as many as the last budget pays for
        self.pools = matrices[:, :, :kept].reshape(seeds, prompts, kept * m, objectives)
        #: scalar rewards of all candidates under the deployment weights, (seeds, prompts, size)
        self.rewards = np.einsum("spnk,pk->spn", matrices.reshape(seeds, prompts, size, objectives), targets.weights)

    def _at_budgets(self, values: Any, measure: Callable[..., Floats]) -> Floats:
        """An @k measure at each budget, linear between two whole k, (seeds, prompts, budgets)."""
        low = np.floor(self.bought).astype(int)
        high, part = np.minimum(low + 1, self.rewards.shape[-1]), self.bought - low
        needed = sorted({*low.tolist(), *high.tolist()})
        curves = np.array([measure(of_seed, needed) for of_seed in values])
        return (
            curves[..., np.searchsorted(needed, low)] * (1 - part) + curves[..., np.searchsorted(needed, high)] * part
        )

    @cached_property
    def best_at_k(self) -> Floats:
        """(seeds, prompts, budgets)"""
        return self._at_budgets(self.rewards, best_at_k)

    @cached_property
    def pass_at_k(self) -> Floats:
        """(seeds, prompts, budgets)"""
        return self._at_budgets(self.rewards >= self.targets.solved[:, None] - 1e-6, pass_at_k)

    @cached_property
    def set_reward(self) -> Floats:
        """`E_w` of the best of the pool, (seeds, prompts)."""
        return np.array([expected_set_reward(pool, seed=0) for pool in self.pools])

    @cached_property
    def diversity(self) -> Floats:
        """Mean L1 distance of two candidates of a prompt's pool, (seeds, prompts)."""
        return np.array([mean_pairwise_l1(pool) for pool in self.pools])

    @cached_property
    def distinct_rewards(self) -> Floats:
        """Different reward vectors in a response, (seeds, prompts): what is left of a set where it collapsed."""
        counts = [
            [np.mean([len(np.unique(matrix, axis=0)) for matrix in rollouts]) for rollouts in cell.reward_matrices]
            for cell in self.cells
        ]
        return np.array(counts)


class Resampling:
    """The same bootstrap draws of prompts and of seeds for every figure of an experiment."""

    def __init__(self, prompts: int, *, seed: int = 0) -> None:
        self.generator = np.random.default_rng(seed)
        self.prompts = self.generator.multinomial(prompts, np.full(prompts, 1 / prompts), size=RESAMPLES) / prompts
        self.of_seeds: dict[int, Floats] = {}

    def interval(self, values: Floats) -> dict[str, Any]:
        """`{"mean", "low", "high"}` of values `(seeds, prompts, ...)`."""
        number = len(values)
        if number not in self.of_seeds:
            draws = self.generator.multinomial(number, np.full(number, 1 / number), size=RESAMPLES)
            self.of_seeds[number] = draws / number
        # over prompts first: (resamples, seeds, ...), then the drawn mix of seeds
        means = np.einsum("bp,sp...->bs...", self.prompts, values)
        means = np.einsum("bs,bs...->b...", self.of_seeds[number], means)
        low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        return {"mean": values.mean((0, 1)).tolist(), "low": low.tolist(), "high": high.tolist()}


def analyse(cells: Sequence[Cell], targets: Targets, *, candidates: int, match: str = "candidates") -> dict[str, Any]:
    """All figures of an experiment. The last method is compared with each of the others.

    Args:
        cells: of every method the same seeds, or one (the base policy); pools of the same prompts and candidates.
        candidates: m of the set methods, the budget of one response: from there on the growth of a gap is measured.
        match: what a budget counts, ``candidates`` or ``tokens``. In tokens, a budget pays each method for as many of
            its candidates as it has tokens for, and the largest is what the method with the shortest responses spent.

    Returns:
        A JSON-serialisable dictionary: ``ks`` (the budgets), ``ceiling``, ``methods`` (measures are ``{"mean", "low",
        "high"}``), ``differences``, ``strongest`` (the gap to the strongest scalar baseline at each budget) and
        ``training``.

    Raises:
        ValueError: the pools differ in prompts or candidates.
    """
    names = list(dict.fromkeys(cell.method for cell in cells))
    shapes = {(len(cell.reward_matrices), cell.reward_matrices[0, ..., 0].size) for cell in cells}
    if len(shapes) != 1:
        raise ValueError(f"Pools can be compared on the same prompts and candidates only, these have {sorted(shapes)}.")
    prompts, size = shapes.pop()
    budgets = np.arange(1, size + 1, dtype=float)
    if in_tokens := match == "tokens":
        spent = [np.mean([c.tokens_per_prompt for c in cells if c.method == name]) for name in names]
        budgets = np.arange(max(spent) / size, min(spent) + 1e-9, max(spent) / size)
    methods = {
        name: Method([cell for cell in cells if cell.method == name], targets, budgets, in_tokens=in_tokens)
        for name in names
    }
    draws = Resampling(prompts)
    last = methods[names[-1]]
    ks = budgets.round().astype(int).tolist()
    others = [name for name in names[:-1] if not name.startswith(BASE)]
    scalars = [name for name in others if name not in ABLATIONS]

    # where a method has fewer seeds than the last, the base has one, its values count for each seed
    def gap(a: Floats, b: Floats) -> dict[str, Any]:
        return draws.interval(a - (b if len(b) == len(a) else np.broadcast_to(b.mean(0), a.shape)))

    one_set = min(candidates, len(ks)) - 1
    results: dict[str, Any] = {
        "match": match,
        "ks": ks,
        "ceiling": None if targets.best is None else {"best": targets.best, "expected_set_reward": targets.set_reward},
        "methods": [
            {
                "name": name,
                "seeds": len(method.cells),
                "candidates": method.candidates,
                "best_at_k": draws.interval(method.best_at_k),
                "pass_at_k": draws.interval(method.pass_at_k),
                "expected_set_reward": draws.interval(method.set_reward),
                "pairwise_l1": draws.interval(method.diversity),
                "distinct_rewards": draws.interval(method.distinct_rewards),
                "unique": float(np.mean([cell.unique for cell in method.cells])),
                "best_by_seed": method.best_at_k[..., -1].mean(1).tolist(),
                "searched": {
                    "candidates": float(method.bought[-1]),
                    "tokens": method.tokens_per_prompt * float(method.bought[-1]) / size,
                },
                "trained": {
                    key: float(np.mean([sum(cell.training[key]) for cell in method.cells]))
                    for key in ("tokens", "candidates")
                    if all(cell.training.get(key) for cell in method.cells)
                },
            }
            for name, method in methods.items()
        ],
        "differences": [
            {
                "a": last.name,
                "b": name,
                "best_at_k": gap(last.best_at_k, methods[name].best_at_k),
                "expected_set_reward": gap(last.set_reward, methods[name].set_reward),
                "growth": {
                    "from_k": ks[one_set],
                    **gap(
                        last.best_at_k[..., -1] - last.best_at_k[..., one_set],
                        methods[name].best_at_k[..., -1] - methods[name].best_at_k[..., one_set],
                    ),
                },
            }
            for name in names[:-1]
        ],
        "training": {
            name: {
                key: np.array([cell.training[key] for cell in method.cells]).mean(0).tolist()
                for key in ("set_reward", "diversity", "reward")
                if all(cell.training.get(key) for cell in method.cells)
            }
            for name, method in methods.items()
        },
    }
    if scalars:
        strongest = [max(scalars, key=lambda n: methods[n].best_at_k[..., i].mean()) for i in range(len(ks))]
        at_each = np.stack([methods[name].best_at_k[..., i] for i, name in enumerate(strongest)], axis=-1)
        results["strongest"] = {"names": strongest, **gap(last.best_at_k, at_each)}
    return results


# ------------------------------------------------------------------------------------------------ what is written


def write_experiment(results: dict[str, Any], cells: Sequence[Cell], folder: Path) -> None:
    """Write results.json with every raw pool, summary.md, and the plots."""
    folder.mkdir(parents=True, exist_ok=True)
    pools = [{"method": c.method, "seed": c.seed, "reward_matrices": pack_array(c.reward_matrices)} for c in cells]
    _write(folder / "results.json", json.dumps(results | {"pools": pools}, indent=1) + "\n")
    plots = {
        "best_at_k": lambda figure: plot_at_k(figure, results, "best"),
        "pass_at_k": lambda figure: plot_at_k(figure, results, "pass"),
        "gap_at_k": lambda figure: plot_gaps(figure, results),
        "training": lambda figure: plot_training(figure, results),
        "sets": lambda figure: plot_sets(figure, results, cells),
    }
    sizes = {"training": (10.0, 4.2), "sets": (11.0, 2.6 * -(-len(results["methods"]) // 5) + 0.6)}
    for name, plot in plots.items():
        figure = Figure(figsize=sizes.get(name, (8.0, 4.8)), layout="constrained")
        with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
                                    "grid.alpha": 0.2, "text.parse_math": False}):  # fmt: skip
            plot(figure)
        figure.savefig(folder / f"{name}.png", dpi=150)
    _write(folder / "summary.md", format_summary(results))


def pack_array(array: np.ndarray) -> str:
    """An array as text: a compressed .npz in base64."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, array=array)
    return base64.b64encode(buffer.getvalue()).decode()


def unpack_array(text: str) -> np.ndarray:
    """The array that `pack_array` wrote."""
    with np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False) as arrays:
        return arrays["array"]


def format_summary(results: dict[str, Any]) -> str:
    """The tables and the plots of an experiment in Markdown."""
    ks, ceiling = results["ks"], results["ceiling"]
    shown = [i for i in sorted({0, 4, len(ks) - 1}) if i < len(ks)]  # one candidate, five, all
    unit = "" if results["match"] == "candidates" else " tokens"
    last = results["methods"][-1]["name"]
    head = ["method", "m", *(f"best@{ks[i]}{unit}" for i in shown), "95 % interval", "by seed",
            f"pass@{ks[-1]}{unit}", "E_w of pool",
            "L1 distance", "distinct in a set"]  # fmt: skip
    rows = []
    for method in results["methods"]:
        best = method["best_at_k"]
        rows.append(
            [
                method["name"],
                str(method["candidates"]),
                *(f"{best['mean'][i]:.3f}" for i in shown),
                f"{best['low'][-1]:.3f} to {best['high'][-1]:.3f}",
                ", ".join(f"{value:.3f}" for value in method["best_by_seed"]),
                f"{method['pass_at_k']['mean'][-1]:.3f}",
                _with_interval(method["expected_set_reward"]),
                f"{method['pairwise_l1']['mean']:.2f}",
                f"{method['distinct_rewards']['mean']:.2f} of {method['candidates']}",
            ]
        )
    if ceiling:
        rows.append(["exact ceiling", "", *[f"{ceiling['best']:.3f}"] * len(shown), "", "", "",
                     f"{ceiling['expected_set_reward']:.3f}", "", ""])  # fmt: skip
    differences = [
        [
            f"{last} − {d['b']}",  # noqa: RUF001
            *(f"{d['best_at_k']['mean'][i]:+.3f}" for i in shown),
            _interval(d["best_at_k"]["low"][-1], d["best_at_k"]["high"][-1]),
            f"{d['growth']['mean']:+.3f} ({_interval(d['growth']['low'], d['growth']['high'])})",
            f"{d['expected_set_reward']['mean']:+.3f} "
            f"({_interval(d['expected_set_reward']['low'], d['expected_set_reward']['high'])})",
        ]
        for d in results["differences"]
    ]
    from_k = results["differences"][0]["growth"]["from_k"]
    growth = f"growth of the gap from {from_k} to {ks[-1]}{unit}"
    compute = [
        [
            m["name"],
            f"{m['trained']['candidates']:,.0f}" if m["trained"] else "–",  # noqa: RUF001
            f"{m['trained']['tokens']:,.0f}" if m["trained"] else "–",  # noqa: RUF001
            f"{m['searched']['candidates']:.1f}".removesuffix(".0"),
            f"{m['searched']['tokens']:.0f}",
        ]
        for m in results["methods"]
    ]
    parts = [
        f"# {results['title']}\n",
        f"`{results['command']}`\n",
        f"{results['machine']}; "
        + ", ".join(f"{name} {number}" for name, number in results["versions"].items())
        + f"; commit {results['commit']}.\n",
        f"{results['prompts']} held-out prompts, seeds {', '.join(map(str, results['seeds']))}; intervals are 95 %, "
        "over prompts and seeds; best@k and pass@k under the deployment weights.\n",
        "## Results\n",
        _table(head, rows),
        f"## {last} against each of the others\n",
        _table(
            ["best@k", *(f"at {ks[i]}{unit}" for i in shown), f"interval at {ks[-1]}", growth, "E_w of the pool"],
            differences,
        ),
        "![best@k](best_at_k.png)\n![the gap](gap_at_k.png)\n![pass@k](pass_at_k.png)\n",
        "![training](training.png)\n![sets](sets.png)\n",
        f"## Compute, matched in {results['match']}\n",
        _table(
            [
                "method",
                "candidates trained on",
                "tokens trained on",
                "candidates a test prompt",
                "tokens a test prompt",
            ],
            compute,
        ),
    ]
    return "\n".join(parts)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _interval(low: float, high: float) -> str:
    return f"{low:+.3f} to {high:+.3f}"


def _with_interval(measure: dict[str, float]) -> str:
    return f"{measure['mean']:.3f} ({measure['low']:.3f} to {measure['high']:.3f})"


def _write(path: Path, text: str) -> None:
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text(text)
    unfinished.replace(path)


# ------------------------------------------------------------------------------------------------ plots


def _styles(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Line style of each method: the last strong and red, the base policies grey, the others thin."""
    names = [method["name"] for method in results["methods"]]
    styles: dict[str, dict[str, Any]] = {}
    others = [name for name in names[:-1] if not name.startswith(BASE)]
    for i, name in enumerate(others):
        styles[name] = {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)], "linewidth": 1.6}
    for i, name in enumerate(name for name in names if name.startswith(BASE)):
        styles[name] = {"color": "#888888", "linestyle": DASHES[i % 2], "linewidth": 1.2}
    styles[names[-1]] = {"color": "#D55E00", "linestyle": "-", "linewidth": 2.8, "zorder": 5}
    return styles


def _legend(axes: Any) -> None:
    """Beside the plot, in the order in which the lines end."""
    lines = sorted(axes.get_lines(), key=lambda line: -line.get_ydata()[-1])
    lines = [line for line in lines if not line.get_label().startswith("_")]
    axes.legend(handles=lines, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _axis(results: dict[str, Any]) -> str:
    return "k, candidates searched" if results["match"] == "candidates" else "tokens generated in the search"


def plot_at_k(figure: Figure, results: dict[str, Any], kind: str) -> None:
    """best@k or pass@k of every method with its interval, and the exact ceiling."""
    axes, styles = figure.add_subplot(), _styles(results)
    for method in results["methods"]:
        measure, style = method[f"{kind}_at_k"], styles[method["name"]]
        axes.plot(results["ks"], measure["mean"], label=method["name"], **style)
        if method is results["methods"][-1]:
            axes.fill_between(results["ks"], measure["low"], measure["high"], color=style["color"], alpha=0.2, lw=0)
    if results["ceiling"] and kind == "best":
        axes.axhline(results["ceiling"]["best"], color="black", linewidth=1, label="exact ceiling")
    axes.set(xlabel=_axis(results), ylabel=f"{kind}@k under the deployment weights", xlim=(results["ks"][0], None))
    axes.set_title(f"{kind}@k (band: 95 % interval over prompts and seeds)", fontsize=11)
    _legend(axes)


def plot_gaps(figure: Figure, results: dict[str, Any]) -> None:
    """How far the last method is ahead of each of the others, and of the strongest scalar baseline, at every k."""
    axes, styles = figure.add_subplot(), _styles(results)
    last = results["methods"][-1]["name"]
    for difference in results["differences"]:
        if not difference["b"].startswith(BASE):
            axes.plot(results["ks"], difference["best_at_k"]["mean"], label=difference["b"], **styles[difference["b"]])
    if strongest := results.get("strongest"):
        axes.plot(results["ks"], strongest["mean"], color="black", linewidth=2.5, label="strongest at each k")
        axes.fill_between(results["ks"], strongest["low"], strongest["high"], color="black", alpha=0.15, linewidth=0)
    axes.axhline(0, color="black", linewidth=0.8, label="_zero")
    axes.set(xlabel=_axis(results), ylabel=f"best@k of {last} minus the method's", xlim=(results["ks"][0], None))
    axes.set_title(f"How far {last} is ahead (band: 95 % interval)", fontsize=11)
    _legend(axes)


def plot_training(figure: Figure, results: dict[str, Any]) -> None:
    """Set reward of all candidates of a prompt, and their diversity, over training; the mean over seeds."""
    styles = _styles(results)
    labels = {
        "set_reward": "E_w of the best of a prompt's candidates",
        "diversity": "L1 distance of a prompt's candidates",
    }
    panels = figure.subplots(1, len(labels))
    for axes, (key, label) in zip(panels, labels.items(), strict=True):
        for name, curves in results["training"].items():
            if key in curves:
                values = np.array(curves[key])
                window = np.ones(2 * (len(values) // 20) + 1)
                smooth = np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")
                axes.plot(np.arange(1, len(values) + 1), smooth, label=name, **styles[name])
        axes.set(xlabel="training step", title=label)
        axes.title.set_fontsize(11)
    _legend(panels[-1])


def plot_sets(figure: Figure, results: dict[str, Any], cells: Sequence[Cell]) -> None:
    """Where each method's candidates lie in the plane of the two objectives that agree least; area is their share."""
    k = len(results["objectives"])
    pools: Mapping[str, Floats] = {
        name: np.concatenate([cell.reward_matrices.reshape(-1, k) for cell in cells if cell.method == name])
        for name in dict.fromkeys(cell.method for cell in cells)
    }
    objectives = results["objectives"]
    x, y = _trade_off(np.concatenate(list(pools.values())))
    columns = min(5, len(pools))
    panels = figure.subplots(-(-len(pools) // columns), columns, sharex=True, sharey=True, squeeze=False)
    styles = _styles(results)
    for axes, (name, vectors) in zip(panels.flat, pools.items(), strict=False):
        points, counts = np.unique(vectors[:, [x, y]].round(3), axis=0, return_counts=True)
        axes.scatter(*points.T, s=1500 * counts / counts.sum(), color=styles[name]["color"], alpha=0.6, linewidth=0)
        axes.set_title(name, fontsize=10)
        axes.margins(0.15)
    for axes in panels.flat[len(pools) :]:
        axes.set_visible(False)
    figure.supxlabel(objectives[x], fontsize=10)
    figure.supylabel(objectives[y], fontsize=10)


def _trade_off(vectors: Floats) -> tuple[int, int]:
    """The two objectives whose rewards correlate least, of those that vary; the first one twice if only one does."""
    varying = np.flatnonzero(vectors.std(0) > 0)
    if len(varying) < 2:
        return (int(varying[0]),) * 2 if len(varying) else (0, 0)
    correlation = np.corrcoef(vectors[:, varying].T)
    np.fill_diagonal(correlation, np.inf)
    first, second = np.unravel_index(correlation.argmin(), correlation.shape)
    return int(varying[first]), int(varying[second])

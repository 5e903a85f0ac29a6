"""The plots of reports and experiments: PNG, in the colours of `style.py`."""

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from vpo_plugin.report.style import lines

Results = dict[str, Any]
STYLE = {
    "text.parse_math": False,  # a $ in a name is text
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.2,
    "axes.titlesize": 11,
}


def picture(plot: Callable[[Figure], None], size: tuple[float, float] = (7.0, 4.5), dpi: int = 200) -> bytes:
    """A plot as a PNG."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        plot(figure)
        figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def at_k(figure: Figure, results: Results, kind: str = "best", *, axis: str = "k, candidates searched") -> None:
    """Plot best@k or pass@k of every policy with its interval, and the exact ceiling."""
    axes, policies = figure.add_subplot(), results["policies"]
    styles = lines([policy["name"] for policy in policies])
    for policy in policies:
        measure, style = policy[f"{kind}_at_k"], styles[policy["name"]]
        axes.plot(results["ks"], measure["mean"], label=short(policy["name"]), linewidth=2, **style)
        if len(policies) <= 4 or policy is policies[-1]:
            axes.fill_between(
                results["ks"], measure["low"], measure["high"], color=style["color"], alpha=0.15, linewidth=0
            )
    ceiling = (results["ceiling"] or {}).get(kind)
    if ceiling is not None:
        axes.axhline(ceiling, color="black", linewidth=1, label="exact ceiling")
    axes.set(xlabel=axis, ylabel=f"{kind}@k under the deployment weights", xlim=(results["ks"][0], None))
    axes.set_title(f"{kind}@k (band: 95 % interval)")
    legend(axes)


def gaps(figure: Figure, results: Results, *, axis: str) -> None:
    """Plot the lead of the last policy over each other one, and over the strongest scalar baseline, at every k."""
    axes = figure.add_subplot()
    styles = lines([policy["name"] for policy in results["policies"]])
    last = results["policies"][-1]["name"]
    for difference in results["differences"]:
        name = difference["b"]
        axes.plot(results["ks"], difference["best_at_k"]["mean"], label=short(name), **styles[name])
    if strongest := results.get("strongest"):
        axes.plot(results["ks"], strongest["mean"], color="black", linewidth=2.5, label="strongest at each k")
        axes.fill_between(results["ks"], strongest["low"], strongest["high"], color="black", alpha=0.15, linewidth=0)
    axes.axhline(0, color="black", linewidth=0.8, label="_zero")
    axes.set(xlabel=axis, ylabel=f"best@k of {last} minus the method's", xlim=(results["ks"][0], None))
    axes.set_title(f"How far {last} is ahead (band: 95 % interval)")
    legend(axes)


def training(figure: Figure, curves: Mapping[str, Mapping[str, ArrayLike]], labels: Mapping[str, str]) -> None:
    """Plot each policy's curves by step, a panel per key of `labels`: running means over a tenth of the steps."""
    styles = lines(list(curves))
    panels = figure.subplots(1, len(labels), squeeze=False)[0]
    for axes, (key, label) in zip(panels, labels.items(), strict=True):
        for name, of_policy in curves.items():
            if key in of_policy:
                values = running_mean(of_policy[key])
                axes.plot(np.arange(1, len(values) + 1), values, label=short(name), **styles[name])
        axes.set(xlabel="training step", title=label)
    legend(panels[-1])


LIVE = {"set_reward": "Set reward", "group_diversity": "L1 distance", "kl": "KL", "response_length": "Length, tokens"}
"""Metrics of `openrlhf.log.training_curve` that the small plot of trainings shows."""


def live(trainings: Mapping[str, Sequence[Mapping[str, float]]]) -> bytes:
    """A small plot of trainings, finished or not, from the steps of each by name."""
    curves = {
        name: {key: [step[key] for step in steps] for key in LIVE if steps and all(key in step for step in steps)}
        for name, steps in trainings.items()
    }
    labels = {key: label for key, label in LIVE.items() if any(key in curve for curve in curves.values())}
    return picture(partial(training, curves=curves, labels=labels), (3.0 * len(labels) + 1.0, 2.8), 90)


def running_mean(values: ArrayLike) -> np.ndarray:
    """The mean around each value, over a tenth of the values."""
    array = np.asarray(values, dtype=float)
    window = np.ones(2 * (len(array) // 20) + 1)
    return np.convolve(array, window, "same") / np.convolve(np.ones_like(array), window, "same")


def sets(figure: Figure, vectors: Mapping[str, np.ndarray], objectives: Sequence[str]) -> None:
    """Plot each policy's candidates, (n, objectives), in the plane of the two objectives that correlate least.

    A mark's area is its share of the candidates. Objectives that a prompt lacks are NaN.
    """
    x, y = trade_off(np.concatenate(list(vectors.values())))
    columns = min(5, len(vectors))
    panels = figure.subplots(-(-len(vectors) // columns), columns, sharex=True, sharey=True, squeeze=False)
    styles = lines(list(vectors))
    for axes, (name, of_policy) in zip(panels.flat, vectors.items(), strict=False):
        shown = of_policy[:, [x, y]].round(3)
        points, counts = np.unique(shown[np.isfinite(shown).all(1)], axis=0, return_counts=True)
        axes.scatter(*points.T, s=1500 * counts / counts.sum(), color=styles[name]["color"], alpha=0.6, linewidth=0)
        axes.set_title(short(name), fontsize=10)
        axes.margins(0.15)
    for axes in panels.flat[len(vectors) :]:
        axes.set_visible(False)
    figure.supxlabel(objectives[x], fontsize=10)
    figure.supylabel(objectives[y], fontsize=10)


def trade_off(vectors: np.ndarray) -> tuple[int, int]:
    """The two varying objectives whose rewards correlate least; if only one varies, that one twice."""
    known = np.ma.masked_invalid(vectors)
    varying = np.flatnonzero(known.std(0).filled(0) > 0)
    if len(varying) < 2:
        return (int(varying[0]),) * 2 if len(varying) else (0, 0)
    correlation = np.ma.corrcoef(known[:, varying], rowvar=False).filled(np.inf)
    np.fill_diagonal(correlation, np.inf)
    first, second = np.unravel_index(correlation.argmin(), correlation.shape)
    return int(varying[first]), int(varying[second])


def short(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"


def legend(axes: Axes) -> None:
    """Add a legend beside the plot, in the order of the lines' last values."""
    shown = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    shown.sort(key=lambda line: -line.get_ydata()[-1])
    axes.legend(handles=shown, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)

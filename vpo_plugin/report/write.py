"""The report of a search evaluation: a table for the terminal, and report.json, report.html, best_at_k.png.

All of it is made from one plain dictionary, `results`, which report.json repeats:

    title, spec, command, machine: str     objectives: [name]     weights: [float]     versions: {name: str}
    ks: [1, …]           the k of best@k and pass@k, ascending
    ceiling: {"best": float, …} | None     the best that any policy can reach: best, pass, expected_set_reward
    policies: [{"name", "rollouts", "candidates", "best_at_k", "pass_at_k", "expected_set_reward",
                "pairwise_l1", "objective_means"}]     a measure is {"mean", "low", "high"}, over prompts
    differences: [{"a", "b", "k", "mean", "low", "high"}]     best@k of a minus best@k of b, same prompts
    training: [{"name", "steps": [{"step", "reward", "set_reward", "diversity", "seconds"}]}]

and, each optional:

    prompts: int         left_out: int, prompts that not all pools share
    matched: {"by": "candidates" or "tokens", "tokens_per_k": float | None, what one k stands for}
    solved: float        the share of the ceiling that passes
    overhead: {"seconds", "stages"}, what orchestration added to the seconds that the stages worked
    of a policy: tokens_per_prompt, tokens_per_solved: float | None, and the measures pareto_size, hypervolume,
        coverage, duplicates, regret
    fronts: {policy: [per prompt: [the reward vector of each candidate that no other dominates; shorter, or None,
        where the prompt lacks objectives]]}
    solved_at: [per prompt of fronts: the deployment reward that counts as solved]
    search: [{"policy", "procedure", "budget": [int], "solved": {"mean": [], "low": [], "high": []}}]
    only_solved_by: {policy: [prompt number]}
    prompts_shown: [{"number", "prompt", "label", "policies": [{"name", "responses": [{"response", "candidates":
        [{"text": str | None, "rewards"}]}]}], "drawing": what RewardSpec.draw returns (optional)}]

Prompt numbers count from 0, as `fronts` does. Numbers that are not finite count as missing. Texts of models are
untrusted: the template escapes everything, report.js makes text nodes only, and the page's policy allows no other
script than that one.
"""

import base64
import hashlib
import io
import json
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vpo_plugin.report import page as report_page
from vpo_plugin.report.page import TRAINING, Results, number

INK = "#010203"  # text and axes; in the page it becomes the page's own text colour, light or dark


def write_report(results: Results, out_dir: str | Path) -> None:
    """Write report.json, report.html (one self-contained file) and best_at_k.png into `out_dir`.

    Everything is rendered before anything is written, and each file is replaced whole, so an error leaves an
    earlier report as it was.

    Raises:
        KeyError: `results` lacks a part.
        OSError: the folder cannot be written to.
    """
    results = _plain(results)
    files = {
        "report.json": (json.dumps(results, indent=1) + "\n").encode(),
        "report.html": _html(results).encode(),
        "best_at_k.png": _draw(partial(_plot_at_k, results=results, kind="best"), size=(7, 4.5), format="png"),
    }
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        _replace(folder / name, content)


def format_table(results: Results) -> str:
    """The headline measures of all policies and the ceiling as plain text, at most 100 columns wide."""
    results = _plain(results)
    header, *rows = [[str(cell) for cell in row] for row in _table(results)]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines]
    return "\n".join(text + [_difference(difference) for difference in results["differences"]])


def _plain(results: Results) -> Results:
    """The results as JSON holds them: NumPy numbers become numbers, NaN and infinities become None."""
    text = json.dumps(results, default=lambda value: value.tolist())
    return json.loads(text, parse_constant=lambda _: None)


def _table(results: Results) -> list[list[str]]:
    """Header, one row a policy, and the ceiling: best@k for a few k, pass@k, E_w of the pool, diversity."""
    ks = results["ks"]
    shown = sorted({ks[0], *({5} & set(ks)), ks[-1]})
    header = [
        "policy",
        *(f"best@{k}" for k in shown),
        "95 % interval",
        f"pass@{ks[-1]}",
        "E_w pool",
        "L1 dist",
    ]
    rows = []
    for policy in results["policies"]:
        best, passed = policy["best_at_k"], policy["pass_at_k"]
        means = [best["mean"][ks.index(k)] for k in shown]
        interval = f"{number(best['low'][-1])} to {number(best['high'][-1])}"
        rest = [passed["mean"][-1], policy["expected_set_reward"]["mean"], policy["pairwise_l1"]["mean"]]
        rows.append([policy["name"], *map(number, means), interval, *map(number, rest)])
    if ceiling := results["ceiling"]:
        best = [number(ceiling.get("best"))] * len(shown)
        rest = [ceiling.get(name) for name in ("pass", "expected_set_reward", "pairwise_l1")]
        rows.append(["ceiling", *best, "", *map(number, rest)])
    return [header, *rows]


def _difference(difference: dict[str, Any]) -> str:
    a, b, low, high = (difference[key] for key in ("a", "b", "low", "high"))
    verdict = f"{a} is ahead" if low > 0 else f"{b} is ahead" if high < 0 else "no difference beyond chance"
    interval = f"95 % interval {low:+.3f} to {high:+.3f}"
    return f"best@{difference['k']}: {a} - {b} = {difference['mean']:+.3f} ({interval}): {verdict}"


def _html(results: Results) -> str:
    home = Path(__file__).parent
    script = (home / "report.js").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(home),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, difference=_difference)
    return environment.get_template("report.html.j2").render(
        results=results,
        styles=report_page.styles(results),
        plots={kind: _svg(kind, partial(_plot_at_k, results=results, kind=kind)) for kind in ("best", "pass")},
        curves={
            label: _svg(key, partial(_plot_training, results=results, key=key), size=(3.6, 2.8))
            for key, label in TRAINING.items()
            if any(step.get(key) is not None for run in results["training"] for step in run["steps"])
        },
        bars=report_page.bars(results),
        measures=report_page.measures(results),
        table_rows=report_page.table_rows(len(results["ks"])),
        tokens_per_k=report_page.tokens_per_k(results),
        search=report_page.search_table(results),
        prompts=report_page.prompts(results),
        shown_numbers=[prompt["number"] for prompt in results.get("prompts_shown", [])],
        data=report_page.chart_data(results),
        css=Markup((home / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _styles(results: Results) -> dict[str, dict[str, Any]]:
    """Colour and dashes of each policy, as matplotlib's lines take them."""
    return {
        name: {"color": colour, "linestyle": (0, [float(part) / 2.4 for part in dash.split()]) if dash else "-"}
        for name, (colour, dash) in zip(report_page.names(results), report_page.styles(results), strict=True)
    }


def _short(name: str) -> str:
    return name if len(name) <= 24 else name[:23] + "…"


def _plot_at_k(axes: Axes, results: Results, kind: str) -> None:
    ks, styles = results["ks"], _styles(results)
    for policy in results["policies"]:
        measure, style = policy[f"{kind}_at_k"], styles[policy["name"]]
        axes.plot(ks, measure["mean"], label=_short(policy["name"]), linewidth=2, **style)
        axes.fill_between(ks, measure["low"], measure["high"], color=style["color"], alpha=0.15, linewidth=0)
    ceiling = (results["ceiling"] or {}).get(kind)
    if ceiling is not None:
        axes.axhline(ceiling, color=INK, linewidth=1, label="ceiling")
    tokens = report_page.tokens_per_k(results)
    axes.set_xlabel(f"k, in units of {tokens:,.0f} tokens" if tokens else "k, candidates searched")
    axes.set_ylabel(f"{kind}@k")
    axes.legend(frameon=False, loc="lower right" if kind == "best" else "upper left")


def _plot_training(axes: Axes, results: Results, key: str) -> None:
    """The measured points, faint, and their running mean over a tenth of the steps."""
    styles = _styles(results)
    for run in results["training"]:
        points = [(step["step"], step[key]) for step in run["steps"] if step.get(key) is not None]
        if not points:
            continue
        steps, values = np.array(points, dtype=float).T
        style = styles[run["name"]]
        axes.plot(steps, values, color=style["color"], alpha=0.35, linewidth=1)
        window = np.ones(2 * (len(values) // 20) + 1)
        smooth = np.convolve(values, window, "same") / np.convolve(np.ones_like(values), window, "same")
        axes.plot(steps, smooth, label=_short(run["name"]), linewidth=2, **style)
    axes.set_xlabel("training step")
    axes.set_ylabel(TRAINING[key].lower())
    axes.legend(frameon=False)


def _draw(plot: Callable[[Axes], None], *, size: tuple[float, float], format: str, salt: str = "") -> bytes:
    style = {
        "svg.fonttype": "none",  # text stays text: small, sharp and readable by a screen reader
        "svg.hashsalt": salt,  # of the ids of an SVG, which must differ between the plots of a page
        "text.parse_math": False,
        "font.size": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.12,
        **dict.fromkeys(["text.color", "axes.edgecolor", "axes.labelcolor", "grid.color"], INK),
        **dict.fromkeys(["xtick.color", "ytick.color"], INK),
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        plot(figure.add_subplot())
        buffer = io.BytesIO()
        figure.savefig(buffer, format=format, dpi=200, transparent=format == "svg", metadata=None)
    return buffer.getvalue()


def _svg(name: str, plot: Callable[[Axes], None], *, size: tuple[float, float] = (4.6, 3.2)) -> Markup:
    """A plot as an SVG element for the page: in its text colour, as wide as its column."""
    text = _draw(plot, size=size, format="svg", salt=name).decode()
    svg = text[text.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)  # figure_1, line2d_1: not unique on a page of several plots
    return Markup(re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2))


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)

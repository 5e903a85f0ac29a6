"""Write the report of a search evaluation: report.json, report.html and best_at_k.png.

All are made from one plain dictionary, `results`, which report.json repeats:

    title, spec, command, machine: str     objectives: [name]     weights: [float]     versions: {name: str}
    ks: [1, …]           the k of best@k and pass@k, ascending
    ceiling: {"best", "expected_set_reward"} | None     the best that any policy can reach
    policies: [{"name", "rollouts", "candidates", "best_at_k", "pass_at_k", "expected_set_reward",
                "pairwise_l1", "objective_means"}]     a measure is {"mean", "low", "high"}, over prompts
    differences: [{"a", "b", "k", "mean", "low", "high"}]     best@k of a minus best@k of b, same prompts
    training: [{"name", "steps": [{"step", "reward", "set_reward", "group_diversity", "seconds"}]}]

and, each optional:

    prompts: int         left_out: int, prompts that not all pools share
    repeats: str | None  the sentence on prompts that repeat an earlier one
    matched: {"by": "candidates" or "tokens", "tokens_per_k": float | None, what one k stands for}
    solved: float        the share of the ceiling that passes
    overhead: {"seconds", "stages"}, seconds that orchestration took beside those that the stages worked
    of a policy: tokens_per_prompt, tokens_per_solved: float | None, and the measures pareto_size, hypervolume,
        coverage, duplicates, regret
    fronts: {policy: [per prompt: [the reward vector of each non-dominated candidate; shorter, or with None, where the
        prompt lacks objectives]]}
    solved_at: [per prompt of fronts: the deployment reward that counts as solved]
    search: [{"policy", "procedure", "budget": [int], "solved": {"mean": [], "low": [], "high": []}}]
    only_solved_by: {policy: [prompt number]}
    pools: {policy: how its pool was made}     settings: {name: value}     date, commit: str

Prompt numbers count from 0, as in `fronts`. Numbers that are not finite count as missing. Prompts and responses are
only in the page, in a packed block per prompt (`page.pack_prompts`). Model output is untrusted: the template escapes
everything, report.js makes text nodes only, and the page's policy allows no script but report.js.
"""

import base64
import hashlib
import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from vpo_plugin import files
from vpo_plugin.report import page, plots
from vpo_plugin.report.style import styles
from vpo_plugin.report.tables import Results, number, say_difference
from vpo_plugin.search.comparison import MEASURES

HOME = Path(__file__).parent


def write_report(results: Results, out_dir: str | Path, prompts: Iterable[dict[str, Any]] = ()) -> None:
    """Write report.json, report.html (one self-contained file) and best_at_k.png into `out_dir`, all or none.

    Args:
        prompts: the prompts to show, as `Comparison.prompts` gives them: `{"number", "prompt", "label",
            "policies": [{"name", "pairwise_l1", "responses": [{"response", "candidates": [{"text": str | None,
            "rewards", "value", "solved"}]}]}], "drawing": what rewards.task.draw returns}`.

    Raises:
        KeyError: `results` lacks a part.
        OSError: the folder cannot be written to.
    """
    results = plain(results)
    folder = Path(out_dir)
    tokens = page.tokens_per_k(results)
    axis = f"k, in units of {tokens:,.0f} tokens" if tokens else "k, candidates searched"
    files.write_all(
        {
            folder / "report.json": json.dumps(results, indent=1) + "\n",
            folder / "report.html": _html(results, prompts),
            folder / "best_at_k.png": plots.picture(partial(plots.at_k, results=results, axis=axis)),
        }
    )


def plain(results: Results) -> Results:
    """The results as plain JSON values: NumPy numbers become numbers, NaN and infinities become None."""
    text = json.dumps(results, default=lambda value: value.tolist())
    return json.loads(text, parse_constant=lambda _: None)


def render(template: str, **values: Any) -> str:
    """Render a template of this folder; every value that is not Markup is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HOME),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, difference=say_difference, soft=_soft)
    css = Markup((HOME / "report.css").read_text(encoding="utf-8"))
    return environment.get_template(template).render(css=css, **values)


def _html(results: Results, prompts: Iterable[dict[str, Any]]) -> str:
    script = (HOME / "report.js").read_text(encoding="utf-8")
    packed = list(page.pack_prompts(prompts, results, results.get("prompts", 1)))
    return render(
        "report.html.j2",
        results=results,
        styles=styles(page.names(results)),
        bars=page.bars(results),
        measures=page.measures(results),
        table_rows=page.table_rows(len(results["ks"])),
        tokens_per_k=page.tokens_per_k(results),
        search=page.search_table(results),
        nothing_solved=page.nothing_solved(results),
        meanings=MEASURES,
        commands={name: page.evaluate_command(made) for name, made in results.get("pools", {}).items() if made},
        data=page.chart_data(results, [line for line, _ in packed]),
        blocks=[block for _, block in packed],
        script=Markup(script),
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _soft(name: str) -> Markup:
    """A name that may only break into lines after an underscore."""
    return Markup("_<wbr>").join(name.split("_"))

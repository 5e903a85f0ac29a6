"""Build the content of report.html from the results dictionary of `write.py`: plain lists for the template, numbers
for the charts of report.js, and a block of packed data for each prompt. Nothing here is markup.
"""

import base64
import json
import shlex
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from vpo_plugin.report.style import styles
from vpo_plugin.report.tables import number, shown_ks
from vpo_plugin.search.comparison import MEASURES

Results = dict[str, Any]

MAX_FRONT_NUMBERS = 400_000  # rewards for the weights slider; the page omits further prompts and says so
MAX_TABLE_ROWS = 60
PROMPTS_BYTES = 14_000_000  # of all packed prompts, so that the page stays below 20 MB
TEXT_LIMITS = (20_000, 4_000, 1_000, 200, 40)  # characters of a text; the largest limit that fits applies
INDEX_CHARS = 200  # characters of a prompt that the list of prompts shows and searches
TRAINING = {
    "set_reward": "Set reward",
    "reward": "Reward",
    "group_diversity": "L1 distance between a prompt's candidates",
    "kl": "KL to the first policy",
    "response_length": "Response length, tokens",
    "candidates_parsed": "Candidates read from a response",
}


def names(results: Results) -> list[str]:
    """The policies, then those only trained or only searched, without repeats."""
    searched = [run["policy"] for run in results.get("search", [])]
    return list(dict.fromkeys([part["name"] for part in results["policies"] + results["training"]] + searched))


def training_labels(results: Results) -> dict[str, str]:
    """Labels of the training metrics to draw, by key."""
    logged = dict.fromkeys(key for run in results["training"] for step in run["steps"] for key in step)
    objectives = {key: f"Objective {key.partition('/')[2]}" for key in logged if key.startswith("objective/")}
    return TRAINING | objectives


def nothing_solved(results: Results) -> bool:
    """Whether no candidate of any policy solves its prompt, so that pass@k says nothing."""
    return not any(policy["pass_at_k"]["mean"][-1] for policy in results["policies"])


def bars(results: Results) -> list[dict[str, Any]]:
    """The most important numbers: one panel per measure, with the ceiling and a bar with its interval per policy.

    All reward panels share one scale, so bars of equal length mean equal values; pass@k runs from 0 to 1.
    """
    ks, ceiling = results["ks"], results["ceiling"] or {}
    chosen: list[tuple[str, str, int | None, str | None]] = [
        (f"best@{ks[0]}", "best_at_k", 0, "best"),
        (f"best@{ks[-1]}", "best_at_k", -1, "best"),
        (MEASURES["expected_set_reward"][0], "expected_set_reward", None, "expected_set_reward"),
    ]
    if not nothing_solved(results):
        chosen.append((f"pass@{ks[-1]}", "pass_at_k", -1, None))
    panels: list[dict[str, Any]] = []
    for label, key, at, bound in chosen[1 if len(ks) == 1 else 0 :]:
        rows: list[dict[str, Any]] = [
            {"name": policy["name"]}
            | {part: policy[key][part] if at is None else policy[key][part][at] for part in ("mean", "low", "high")}
            for policy in results["policies"]
        ]
        panels.append({"key": key, "label": label, "rows": rows, "ceiling": bound and ceiling.get(bound)})
    rewards = [panel for panel in panels if panel["key"] != "pass_at_k"]
    for panel in panels:
        alike = rewards if panel in rewards else [panel]
        ends = [row[part] for of in alike for row in of["rows"] for part in ("mean", "low", "high")]
        ends = [value for value in ends + [of["ceiling"] for of in alike] if value is not None]
        low, high = min([0.0, *ends]), max([1.0, *ends])

        def percent(value: float | None, low: float = low, high: float = high) -> float:
            return 100 * ((low if value is None else value) - low) / (high - low)

        for row in panel["rows"]:
            row["percent"] = {part: percent(row[part]) for part in ("mean", "low", "high")}
        panel["at_ceiling"] = None if panel["ceiling"] is None else percent(panel["ceiling"])
        panel["ticks"] = [f"{low + (high - low) * part:.3g}" for part in (0, 0.5, 1)]
    return panels


def measures(results: Results) -> list[dict[str, Any]]:
    """Rows of the table of all measures: label, meaning, a cell `{value, interval}` per policy, and the ceiling."""
    ks, ceiling, policies = results["ks"], results["ceiling"] or {}, results["policies"]
    rows = []

    def add(label: str, meaning: str, cells: list[dict[str, str]], limit: float | None = None) -> None:
        rows.append(
            {"label": label, "meaning": meaning, "cells": cells, "ceiling": "" if limit is None else number(limit)}
        )

    set_ks = results.get("set_ks") or []
    for key, (label, meaning) in MEASURES.items():
        if key.startswith("pass") and nothing_solved(results):
            continue
        if "_at_k" in key:
            every = set_ks if key.endswith("_sets") else ks
            for k in shown_ks(every) if every else []:
                found = [{part: of[every.index(k)] for part, of in policy[key].items()} for policy in policies]
                add(label.replace("@k", f"@{k}"), meaning, [*map(_cell, found)], ceiling.get(key.partition("_")[0]))
        elif any(key in policy for policy in policies):
            add(label, meaning, [_cell(policy.get(key)) for policy in policies], ceiling.get(key))
    for key, label, meaning in (
        ("tokens_per_prompt", "tokens per prompt", "written by the policy in all of its responses"),
        ("tokens_per_solved", "tokens per solved prompt", "tokens of all prompts, divided by the solved prompts"),
    ):
        if any(key in policy for policy in policies):
            add(label, meaning, [_text(_whole(policy.get(key))) for policy in policies])
    for objective in results["objectives"]:
        add(
            f"objective {objective}",
            "mean over all candidates",
            [_text(number(p["objective_means"].get(objective))) for p in policies],
        )
    pools = [f"{policy['rollouts']} × {policy['candidates']}" for policy in policies]  # noqa: RUF001 (times)
    add("pool", "rollouts × candidates in each", [_text(pool) for pool in pools])  # noqa: RUF001
    return rows


def _cell(measure: dict[str, float | None] | None) -> dict[str, str]:
    if not measure:
        return _text(number(None))
    low, high = measure["low"], measure["high"]
    return {"value": number(measure["mean"]), "interval": "" if low is None else f"{number(low)} to {number(high)}"}


def _text(value: str) -> dict[str, str]:
    return {"value": value, "interval": ""}


def _whole(value: float | None) -> str:
    return number(None) if value is None else f"{value:,.0f}"


def table_rows(count: int) -> list[int]:
    """Indices of the rows that a table of `count` rows shows: all, or fewer and fewer towards the end."""
    if count <= MAX_TABLE_ROWS:
        return list(range(count))
    return sorted({round(count ** (i / (MAX_TABLE_ROWS - 1))) - 1 for i in range(MAX_TABLE_ROWS)})


def search_table(results: Results) -> list[dict[str, Any]]:
    """Solved prompts at the largest budget of each search, with intervals."""
    return [
        {
            "name": run["policy"],
            "procedure": run["procedure"],
            "budget": run["budget"][-1],
            **_cell({part: run["solved"][part][-1] for part in ("mean", "low", "high")}),
        }
        for run in results.get("search", [])
        if run["budget"]
    ]


def pack_prompts(
    prompts: Iterable[dict[str, Any]], results: Results, count: int
) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield each prompt's line in the list and its packed block (zlib, base64), which the page unpacks on demand.

    All blocks share `PROMPTS_BYTES`: texts that do not fit are cut, and say so.
    """
    left = PROMPTS_BYTES
    for place, prompt in enumerate(prompts):
        record, line = _record(prompt, results)
        fair = left / max(1, count - place)
        for limit in TEXT_LIMITS:
            block = base64.b64encode(zlib.compress(json.dumps(_cut(record, limit)).encode(), 6)).decode()
            if len(block) <= fair:
                break
        left -= len(block)
        yield line, block


def _record(prompt: dict[str, Any], results: Results) -> tuple[dict[str, Any], dict[str, Any]]:
    """A prompt's full record for its block, and its line in the list. Policies are indices into `names`."""
    every = names(results)
    policies: list[dict[str, Any]] = []
    for policy in prompt["policies"]:
        candidates = _distinct(policy["responses"])
        places = {candidate["text"]: place for place, candidate in enumerate(candidates)}
        written = [[c["text"] for c in response["candidates"]] for response in policy["responses"]]
        policies.append(
            {
                "of": every.index(policy["name"]),
                "candidates": candidates,
                "responses": [
                    {"text": response["response"], "set": sorted({places[text] for text in texts if text is not None})}
                    for response, texts in zip(policy["responses"], written, strict=True)
                ],
                "missing": sum(text is None for texts in written for text in texts),
            }
        )
    drawing = prompt.get("drawing")
    if drawing:
        for policy in policies:
            for candidate in policy["candidates"]:
                candidate["route"] = drawing["routes"].get(candidate["text"])
        drawing = {key: drawing[key] for key in ("width", "height", "tiles")}
    label = prompt.get("label")
    label = label if label is None or isinstance(label, str) else json.dumps(label, indent=1)
    best = [policy["candidates"][0] if policy["candidates"] else None for policy in policies]
    line = {
        "number": prompt["number"],
        "text": prompt["prompt"][:INDEX_CHARS],
        "of": [policy["of"] for policy in policies],
        "best": [None if one is None else round(one["value"], 4) for one in best],
        "solved": [one is not None and one["solved"] for one in best],
        "apart": [round(policy.get("pairwise_l1") or 0.0, 4) for policy in prompt["policies"]],
    }
    record = {"number": prompt["number"], "prompt": prompt["prompt"], "label": label, "drawing": drawing}
    return {**record, "policies": policies}, line


def _cut(value: Any, limit: int) -> Any:
    """The value with every text cut to a maximum length and a note on the number of missing characters."""
    if isinstance(value, str) and len(value) > limit:
        return f"{value[:limit]} … ({len(value) - limit:,} more characters are in the pool)"
    if isinstance(value, dict):
        return {key: _cut(one, limit) for key, one in value.items()}
    return [_cut(one, limit) for one in value] if isinstance(value, list) else value


def _distinct(responses: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The distinct candidates, best first, and how often each was written."""
    found: dict[str, dict[str, Any]] = {}
    for response in responses:
        for candidate in response["candidates"]:
            if candidate["text"] is None:
                continue
            first = {**candidate, "count": 0}  # repeats in a response got no reward
            found.setdefault(candidate["text"], first)["count"] += 1
    return sorted(found.values(), key=lambda candidate: -candidate["value"])


def evaluate_command(made: dict[str, Any]) -> str:
    """The `vpo evaluate` command that sampled this pool; pools of earlier versions hold neither it nor `--data`."""
    if "command" in made:
        return shlex.join(made["command"])
    told = ("model", "spec", "rollouts", "candidates", "prompts", "batch", "max_new_tokens", "temperature", "seed")
    words = [
        word for key in (*told, "url", "api") if made.get(key) is not None for word in (f"--{key}", str(made[key]))
    ]
    if options := made.get("chat_template_kwargs"):
        words += ["--chat_template_kwargs", json.dumps(options)]
    if made.get("tell_weights"):
        words.append("--tell_weights")
    return f"{shlex.join(['vpo', 'evaluate', *words])}  # and --data, if the prompts were not the specification's"


def chart_data(results: Results, lines: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """The numbers for report.js, and the lines of the list of prompts. Policies are indices into `names`."""
    every = names(results)
    ks, ceiling = results["ks"], results["ceiling"] or {}

    def panel(key: str, xs: Sequence[int]) -> dict[str, Any]:
        series = [{"of": every.index(p["name"]), "x": xs, **p[key]} for p in results["policies"]]
        return {"label": MEASURES[key][0], "ceiling": ceiling.get(key.partition("_")[0]), "series": series}

    at_k = [panel("best_at_k", ks)]
    if set_ks := results.get("set_ks"):
        at_k.append(panel("best_at_k_sets", set_ks))
    if not nothing_solved(results):
        at_k.append(panel("pass_at_k", ks))
    charts: dict[str, Any] = {"at-k": {"unit": "k", "panels": at_k}}
    search = [run for run in results.get("search", []) if run["budget"]]
    procedures = list(dict.fromkeys(run["procedure"] for run in search))
    if procedures:
        charts["search"] = {
            "unit": "budget",
            "panels": [
                {
                    "label": procedure,
                    "ceiling": None,
                    "series": [
                        {"of": every.index(run["policy"]), "x": run["budget"], **run["solved"]}
                        for run in search
                        if run["procedure"] == procedure
                    ],
                }
                for procedure in procedures
            ],
        }
    training = [
        {
            "label": label,
            "ceiling": None,
            "smooth": True,
            "series": [
                {"of": every.index(run["name"]), "x": [p[0] for p in points], "mean": [p[1] for p in points]}
                for run in results["training"]
                if (points := [(s["step"], s[key]) for s in run["steps"] if s.get(key) is not None])
            ],
        }
        for key, label in training_labels(results).items()
    ]
    if training := [panel for panel in training if panel["series"]]:
        charts["training"] = {"unit": "step", "panels": training}
    fronts, kept = _fronts(results, every)
    return {
        "names": every,
        "styles": list(styles(every).values()),
        "objectives": results["objectives"],
        "weights": results["weights"],
        "charts": charts,
        "fronts": fronts,
        "frontPrompts": kept,
        "matched": _whole(tokens) if (tokens := tokens_per_k(results)) else None,
        "prompts": list(lines),
    }


def tokens_per_k(results: Results) -> float | None:
    """Tokens per unit of k, if policies are matched by tokens; None if by candidates."""
    return (results.get("matched") or {}).get("tokens_per_k")


def _fronts(results: Results, every: list[str]) -> tuple[list[dict[str, Any]], int]:
    """The rounded fronts of each policy over the same first prompts, as many as fit in the page."""
    stored = {name: front for name, front in (results.get("fronts") or {}).items() if name in every}
    kept, numbers = 0, 0
    for prompt in zip(*stored.values(), strict=True):
        numbers += sum(len(vector) for front in prompt for vector in front)
        if numbers > MAX_FRONT_NUMBERS and kept:
            break
        kept += 1
    rounded = [
        {
            "of": every.index(name),
            "prompts": [[[r if r is None else round(r, 4) for r in v] for v in front] for front in fronts[:kept]],
        }
        for name, fronts in stored.items()
    ]
    return sorted(rounded, key=lambda front: front["of"]), kept

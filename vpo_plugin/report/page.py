"""What report.html shows, prepared from the results dictionary of `report.py`: plain lists for the template and the
numbers for the charts of report.js. Nothing here is markup, except the paths of drawn routes, which are numbers.
"""

from typing import Any

from vpo_plugin.report.style import styles
from vpo_plugin.report.tables import number, shown_ks
from vpo_plugin.search.comparison import MEASURES
from vpo_plugin.search.targets import solves

Results = dict[str, Any]

MAX_FRONT_NUMBERS = 400_000  # rewards in the page for the weights slider; prompts beyond are left out, and it says so
MAX_TABLE_ROWS = 60
TRAINING = {"set_reward": "Set reward", "reward": "Reward", "diversity": "L1 distance of a prompt's candidates"}


def names(results: Results) -> list[str]:
    """The policies, then those that were only trained or only searched, each once."""
    searched = [run["policy"] for run in results.get("search", [])]
    return list(dict.fromkeys([part["name"] for part in results["policies"] + results["training"]] + searched))


def value_of(rewards: list[float | None], weights: list[float]) -> float:
    """The deployment reward of a candidate; where the prompt has fewer objectives, over those that it has."""
    present = [(w, r) for w, r in zip(weights, rewards, strict=False) if r is not None]
    total = sum(w for w, _ in present)
    return sum(w * r for w, r in present) / total if total else 0.0


def bars(results: Results) -> list[dict[str, Any]]:
    """The numbers that matter first: one panel a measure, a bar with interval for each policy, the ceiling."""
    ks, ceiling = results["ks"], results["ceiling"] or {}
    chosen: list[tuple[str, str, int | None, str]] = [
        (f"best@{ks[0]}", "best_at_k", 0, "best"),
        (f"best@{ks[-1]}", "best_at_k", -1, "best"),
        (f"pass@{ks[-1]}", "pass_at_k", -1, "pass"),
        ("any weighting", "expected_set_reward", None, "expected_set_reward"),
    ]
    panels = []
    for label, key, at, bound in chosen[1 if len(ks) == 1 else 0 :]:
        rows = []
        for policy in results["policies"]:
            measure = {
                part: policy[key][part] if at is None else policy[key][part][at] for part in ("mean", "low", "high")
            }
            rows.append({"name": policy["name"], **measure})
        limit = ceiling.get(bound)
        ends = [v for row in rows for v in (row["mean"], row["low"], row["high"])] + [limit]
        low, high = min([0.0, *(v for v in ends if v is not None)]), max([1e-9, *(v for v in ends if v is not None)])
        for row in rows:
            row["percent"] = {
                part: 100 * ((row[part] if row[part] is not None else low) - low) / (high - low)
                for part in ("mean", "low", "high")
            }
        at_ceiling = None if limit is None else 100 * (limit - low) / (high - low)
        panels.append({"label": label, "rows": rows, "ceiling": limit, "at_ceiling": at_ceiling})
    return panels


def measures(results: Results) -> list[dict[str, Any]]:
    """The rows of the table of all measures: label, meaning, a cell `{value, interval}` a policy, and the ceiling."""
    ks, ceiling, policies = results["ks"], results["ceiling"] or {}, results["policies"]
    rows = []

    def add(label: str, meaning: str, cells: list[dict[str, str]], limit: float | None = None) -> None:
        rows.append(
            {"label": label, "meaning": meaning, "cells": cells, "ceiling": "" if limit is None else number(limit)}
        )

    set_ks = results.get("set_ks") or []
    for key, (label, meaning) in MEASURES.items():
        if "_at_k" in key:
            every = set_ks if key.endswith("_sets") else ks
            for k in shown_ks(every) if every else []:
                found = [{part: of[every.index(k)] for part, of in policy[key].items()} for policy in policies]
                add(label.replace("@k", f"@{k}"), meaning, [*map(_cell, found)], ceiling.get(key.partition("_")[0]))
        elif any(key in policy for policy in policies):
            add(label, meaning, [_cell(policy.get(key)) for policy in policies], ceiling.get(key))
    for key, label, meaning in (
        ("tokens_per_prompt", "tokens a prompt", "written by the policy in all of its responses"),
        ("tokens_per_solved", "tokens a solved prompt", "tokens of all prompts, divided by the prompts solved"),
    ):
        if any(key in policy for policy in policies):
            add(label, meaning, [_text(_whole(policy.get(key))) for policy in policies])
    for objective in results["objectives"]:
        add(f"mean {objective}", "", [_text(number(p["objective_means"].get(objective))) for p in policies])
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
    """Which of `count` rows a table shows: all, or the first and then ever fewer."""
    if count <= MAX_TABLE_ROWS:
        return list(range(count))
    return sorted({round(count ** (i / (MAX_TABLE_ROWS - 1))) - 1 for i in range(MAX_TABLE_ROWS)})


def search_table(results: Results) -> list[dict[str, Any]]:
    """Solved prompts at the largest budget that all searches reached, and at the end of each."""
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


def prompts(results: Results) -> list[dict[str, Any]]:
    """The prompts of the browser: for each policy its distinct candidates, best first, and its responses."""
    solved_at = results.get("solved_at") or []
    shown = []
    for prompt in results.get("prompts_shown", []):
        bar = solved_at[prompt["number"]] if prompt["number"] < len(solved_at) else None
        drawing = prompt.get("drawing")
        policies = []
        for policy in prompt["policies"]:
            candidates = _distinct(policy["responses"], results["weights"], bar)
            policies.append(
                {
                    "name": policy["name"],
                    "candidates": candidates,
                    "lines": _add_routes(candidates, drawing["routes"]) if drawing else [],
                    "missing": sum(c["text"] is None for r in policy["responses"] for c in r["candidates"]),
                    "responses": [response["response"] for response in policy["responses"]],
                    "best": candidates[0]["value"] if candidates else None,
                    "solved": bool(candidates) and candidates[0]["solved"],
                }
            )
        legend = {tile["name"]: tile for tile in (drawing or {"tiles": []})["tiles"]}
        shown.append({**prompt, "policies": policies, "legend": list(legend.values()), "solved_at": bar})
    return shown


def _distinct(responses: list[dict[str, Any]], weights: list[float], bar: float | None) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for response in responses:
        for candidate in response["candidates"]:
            if candidate["text"] is None:
                continue
            value = value_of(candidate["rewards"], weights)
            first = {
                "text": candidate["text"],
                "rewards": candidate["rewards"],
                "value": value,
                "count": 0,
                "line": None,
            }
            first["solved"] = bar is not None and bool(solves(value, bar))
            found.setdefault(candidate["text"], first)["count"] += 1  # a repetition in a response scored nothing
    return sorted(found.values(), key=lambda candidate: -candidate["value"])


def _add_routes(candidates: list[dict[str, Any]], routes: dict[str, list[list[int]]]) -> list[dict[str, Any]]:
    """The lines `{points, end, width}` of the candidates, whose `line` becomes the place of theirs.

    Candidates that visit the same tiles share a line, the thicker the more often it was written. Lines lie side by
    side, so that those over one tile stay apart.
    """
    paths: dict[tuple[tuple[int, int], ...], int] = {}
    for candidate in candidates:
        if route := routes.get(candidate["text"]):
            path = tuple((x, y) for i, (x, y) in enumerate(route) if i == 0 or route[i - 1] != [x, y])
            candidate["line"] = list(paths).index(path) if path in paths else len(paths)
            paths[path] = paths.get(path, 0) + candidate["count"]
    lanes = min(len(paths), 7)
    lines = []
    for i, (path, count) in enumerate(paths.items()):
        shift = 0.5 if lanes == 1 else 0.5 + ((i % lanes) / (lanes - 1) - 0.5) * 0.5
        points = " ".join(f"{x + shift:.2f},{y + shift:.2f}" for x, y in path)
        width = 0.06 + 0.1 * (count / sum(paths.values())) ** 0.5
        lines.append({"points": points, "end": [value + shift for value in path[-1]], "width": width})
    return lines


def chart_data(results: Results) -> dict[str, Any]:
    """The numbers of report.js. Policies are places in `names`; texts of candidates are not among them."""
    every = names(results)
    ks, ceiling = results["ks"], results["ceiling"] or {}
    charts: dict[str, Any] = {
        "at-k": {
            "unit": "k",
            "panels": [
                {
                    "label": f"{kind}@k",
                    "ceiling": ceiling.get(kind),
                    "series": [
                        {"of": every.index(p["name"]), "x": ks, **p[f"{kind}_at_k"]} for p in results["policies"]
                    ],
                }
                for kind in ("best", "pass")
            ],
        }
    }
    if set_ks := results.get("set_ks"):
        charts["at-k"]["panels"].insert(
            1,
            {
                "label": MEASURES["best_at_k_sets"][0],
                "ceiling": ceiling.get("best"),
                "series": [
                    {"of": every.index(p["name"]), "x": set_ks, **p["best_at_k_sets"]} for p in results["policies"]
                ],
            },
        )
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
        for key, label in TRAINING.items()
    ]
    if training := [panel for panel in training if panel["series"]]:
        charts["training"] = {"unit": "step", "panels": training}
    fronts, kept = _fronts(results, every)
    shown = [
        {
            "number": prompt["number"],
            "sets": [
                {
                    "of": every.index(policy["name"]),
                    "sets": [_set(response["candidates"]) for response in policy["responses"]],
                }
                for policy in prompt["policies"]
                if policy["name"] in every
            ],
        }
        for prompt in results.get("prompts_shown", [])
    ]
    return {
        "names": every,
        "styles": list(styles(every).values()),
        "objectives": results["objectives"],
        "weights": results["weights"],
        "charts": charts,
        "fronts": fronts,
        "frontPrompts": kept,
        "matched": _whole(tokens) if (tokens := tokens_per_k(results)) else None,
        "shown": shown,
    }


def tokens_per_k(results: Results) -> float | None:
    """What one k stands for, where policies are matched by tokens and not by candidates."""
    return (results.get("matched") or {}).get("tokens_per_k")


def _set(candidates: list[dict[str, Any]]) -> list[list[float | None]]:
    """The reward vectors of a response's different candidates; a repeated one scored nothing."""
    first = {candidate["text"]: candidate["rewards"] for candidate in reversed(candidates)}
    return [rewards for text, rewards in reversed(first.items()) if text is not None]


def _fronts(results: Results, every: list[str]) -> tuple[list[dict[str, Any]], int]:
    """The fronts of each policy over the same first prompts, as many as the page can hold, rounded."""
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

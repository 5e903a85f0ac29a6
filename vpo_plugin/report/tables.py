"""Tables for the terminal and for Markdown."""

from collections.abc import Sequence
from io import StringIO
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vpo_plugin.metrics import figure
from vpo_plugin.search.searches import Search

Results = dict[str, Any]
WIDTH = 100
PLAIN = box.Box("    \n" * 2 + " -- \n" + "    \n" * 5)  # a line of dashes below the header


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A table as plain text, at most 100 characters wide; the first `left` columns are words, the others numbers."""
    table = Table(box=PLAIN, show_edge=False, pad_edge=False, padding=(0, 1))
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i < left else "right", no_wrap=i >= left, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    out = StringIO()
    Console(file=out, width=WIDTH, color_system=None).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; markup in cells is escaped."""
    lines = [
        header,
        ["---"] * len(header),
        *([cell.replace("|", "\\|").replace("<", "&lt;") for cell in row] for row in rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def number(value: float | None, decimals: int = 3) -> str:
    """Format a number of a report: without decimals from 100 on, a dash if it is missing."""
    if value is None:
        return "–"  # noqa: RUF001 (a dash for a missing number)
    return f"{value:.{decimals}f}" if abs(value) < 100 else f"{value:,.0f}"


def format_table(results: Results) -> str:
    """The table of the main measures of all policies, with the ceiling and the differences in words."""
    said = [results["repeats"]] if results.get("repeats") else []
    said += [
        f"{policy['scorer_failures']} responses of {policy['name']} scored zero because the scorer failed."
        for policy in results["policies"]
        if policy.get("scorer_failures")
    ]
    return "\n".join([text_table(*headline(results)), *said, *map(say_difference, results["differences"])])


def headline(results: Results) -> tuple[list[str], list[list[str]]]:
    """The table of the main measures: its header, and a row for each policy and the ceiling.

    best@k counts any k candidates, sets@k whole responses; the interval belongs to the largest k.
    """
    ks, set_ks, ceiling = results["ks"], results.get("set_ks") or [], results["ceiling"]
    shown, in_sets = shown_ks(ks), set_ks[:1]
    header = ["policy", *(f"best@{k}" for k in shown), *(f"sets@{k}" for k in in_sets)]
    header += ["95 % interval", f"pass@{ks[-1]}", "E_w", "L1 distance"]
    rows = []
    for policy in results["policies"]:
        best, rest = policy["best_at_k"], [policy[key]["mean"] for key in ("expected_set_reward", "pairwise_l1")]
        means = [best["mean"][ks.index(k)] for k in shown]
        means += [policy["best_at_k_sets"]["mean"][set_ks.index(k)] for k in in_sets]
        interval = f"{number(best['low'][-1])} to {number(best['high'][-1])}"
        rows.append(
            [policy["name"], *map(number, means), interval, number(policy["pass_at_k"]["mean"][-1]), *map(number, rest)]
        )
    if ceiling:
        best = [number(ceiling.get("best"))] * (len(shown) + len(in_sets))
        rows.append(["ceiling", *best, "", "", number(ceiling.get("expected_set_reward")), ""])
    return header, rows


def shown_ks(ks: Sequence[int]) -> list[int]:
    """The k values of a short table: the smallest, 5 and the largest."""
    return sorted({ks[0], *({5} & set(ks)), ks[-1]})


def say_difference(difference: dict[str, Any]) -> str:
    """A difference of two policies in words; names a leader only if the interval excludes 0."""
    a, b, low, high = (difference[key] for key in ("a", "b", "low", "high"))
    verdict = f"{a} is ahead" if low > 0 else f"{b} is ahead" if high < 0 else "no difference beyond chance"
    interval = f"95 % interval {low:+.3f} to {high:+.3f}"
    return f"best@{difference['k']}: {a} - {b} = {difference['mean']:+.3f} ({interval}): {verdict}"


def format_searches(searches: Sequence[tuple[str, str, Search]]) -> str:
    """A table of policy, procedure and the share of prompts solved within some budgets, with 95 % intervals."""
    budget = max(search.made["budget"] for _, _, search in searches)
    shown = sorted({max(1, budget // 8), max(1, budget // 4), max(1, budget // 2), budget})
    header = ["policy", "procedure", *(f"@{k}" for k in shown), "95 % interval", "tokens/solved"]
    rows = []
    for policy, procedure, search in searches:
        measure = figure([[[after <= k for k in shown] for after in search.solved_after]])
        solved = measure["mean"][-1] * len(search.rows)
        rows.append(
            [
                policy,
                procedure,
                *map(number, measure["mean"]),
                f"{number(measure['low'][-1])} to {number(measure['high'][-1])}",
                f"{search.tokens / solved:.0f}" if solved else "-",
            ]
        )
    prompts = len(searches[0][2].rows)
    table = text_table(header, rows, left=2)
    return f"{table}\n@k: share of {prompts} prompts that are solved within k candidates."

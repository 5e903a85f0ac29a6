"""``vpo search``: spend a budget of candidates on each prompt, by one or several procedures, until it is solved.

A search is a folder with `search.json`, which says how it is made, one Parquet file for each round, in which every
prompt that is still open got a response, a row a response, and at the end `result.parquet`, a row a prompt. Files are
written whole or not at all. A search that is gone on with repeats the rounds that are there from their files, so
nothing is sampled or scored twice.
"""

import argparse
import asyncio
import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from vpo_plugin.rewards import RewardSpec, load_spec
from vpo_plugin.rewards.scoring import read_label, score_all
from vpo_plugin.search.evaluate import (
    add_policy_flags,
    as_columns,
    batch_seed,
    make_policy,
    progress_bar,
    read_task,
)
from vpo_plugin.search.metrics import mean_and_interval
from vpo_plugin.search.policy import Policy, Request
from vpo_plugin.search.pool import ROUNDING, claim_folder, load_pool, read_settings, write_rows
from vpo_plugin.search.procedures import (
    BestOfK,
    Problem,
    Procedure,
    Proposal,
    Question,
    Refinement,
    solved_at,
)

SETTINGS = "search.json"
SCHEMA = pa.schema(
    [
        ("prompt", pa.int64()),  # number of the prompt, from 0
        ("question", pa.int64()),  # number of the question about it, from 0
        ("input", pa.string()),
        ("label", pa.string()),
        ("asked", pa.string()),  # the text that the policy was given, before any chat template
        ("start", pa.string()),  # what the response was made to begin with
        ("known", pa.int64()),  # how many of its candidates that is, tried before
        ("response", pa.string()),
        ("candidates", pa.list_(pa.string())),
        ("rewards", pa.list_(pa.list_(pa.float32()))),
        ("tokens", pa.int64()),
        ("parsed", pa.int64()),
        ("unique", pa.int64()),
        ("seed", pa.int64()),
    ]
)
RESULT = "result.parquet"
RESULT_SCHEMA = pa.schema(
    [
        ("input", pa.string()),
        ("label", pa.string()),
        ("solved_after", pa.int64()),  # candidates, null if it was not solved
        ("tried", pa.int64()),  # candidates
        ("best", pa.string()),  # candidate, null if none could be parsed
        ("reward", pa.float64()),  # of the best, under the deployment weights
    ]
)
PROCEDURES = ("best_of_k", "refinement", "evolution")


@dataclass(frozen=True)
class Search:
    """A stored search."""

    made: Mapping[str, Any]
    """Model, spec, procedure, budget, sampling, versions."""
    rows: Sequence[Mapping[str, Any]]
    """The prompts: input and label."""
    solved_after: np.ndarray
    """(prompts,): how many candidates it took to solve each; inf where the budget did not suffice."""
    tokens: int
    """Written for all prompts together."""


def main(arguments: list[str] | None = None) -> int:
    """The command; prints the share of solved prompts against the budget."""
    parser = argparse.ArgumentParser(prog="vpo search", description=__doc__.partition("\n")[0].replace("``", "`"))
    add_policy_flags(parser)
    parser.add_argument("--procedure", nargs="+", choices=PROCEDURES, default=list(PROCEDURES), help="(all)")
    parser.add_argument("--budget", type=int, required=True, metavar="N", help="candidates for each prompt, at most")
    parser.add_argument(
        "--unsolved_in",
        type=Path,
        nargs="+",
        metavar="POOL",
        help="search the prompts of these pools that none of them solves",
    )
    parser.add_argument("--openevolve", type=Path, metavar="FILE", help="configuration of OpenEvolve for the evolution")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER", help="a folder for each procedure in it"
    )
    args = parser.parse_args(arguments)
    if args.budget < 1:
        raise ValueError(f"--budget is {args.budget}: a search tries at least 1 candidate.")
    rows = unsolved_prompts(load_spec(args.spec), args.unsolved_in)[: args.prompts] if args.unsolved_in else None
    spec, rows, settings = read_task(args, rows)
    settings |= {"budget": args.budget}
    procedures = {name: make_procedure(name, args.openevolve) for name in dict.fromkeys(args.procedure)}
    if "evolution" in procedures and args.openevolve:
        settings |= {"openevolve": args.openevolve.read_text()}
    policy = None
    for name, procedure in procedures.items():
        folder = args.output / name
        made = settings | {"procedure": name}
        claim_folder(folder, made, SETTINGS)
        if not (folder / RESULT).exists():
            if policy is None:
                policy = make_policy(args, spec, rows, settings, more=4 * settings["max_new_tokens"] + 256)
            search_all(policy, spec, rows, procedure, made, folder)
    searches = {name: load_search(args.output / name) for name in procedures}
    print(format_searches([(args.output.name, name, search) for name, search in searches.items()]))
    return 0


def make_procedure(name: str, openevolve: Path | None = None) -> Procedure:
    """The procedure of this name, one of `PROCEDURES`."""
    if name == "best_of_k":
        return BestOfK()
    if name == "refinement":
        return Refinement()
    from vpo_plugin.search.evolution import Evolution  # imports openevolve

    return Evolution(openevolve)


def unsolved_prompts(spec: RewardSpec, pools: Sequence[Path]) -> list[dict[str, Any]]:
    """The prompts that are in all of these pools and that no candidate in them solves.

    Raises:
        ValueError: there is no such prompt, or what `load_pool` and `shared_prompts` refuse.
    """
    from vpo_plugin.search.compare import shared_prompts

    loaded, rows, _ = shared_prompts({str(folder): load_pool(folder) for folder in pools})
    unsolved = []
    for number, row in enumerate(rows):
        needed = solved_at(spec, read_label(row["label"])) - ROUNDING
        vectors = [pool.candidates[number] for pool in loaded.values()]
        best = max(float((v[:, ~np.isnan(v[0])] @ spec.weights_of((~np.isnan(v[0])).sum())).max()) for v in vectors)
        if best < needed:
            unsolved.append(dict(row))
    if not unsolved:
        raise ValueError(
            f"The pools {[str(folder) for folder in pools]} solve all of their prompts: nothing to search."
        )
    return unsolved


# ------------------------------------------------------------------------------------------------ all prompts at once


def search_all(
    policy: Policy,
    spec: RewardSpec,
    rows: Sequence[dict[str, Any]],
    procedure: Procedure,
    settings: dict[str, Any],
    folder: Path,
) -> None:
    """Run a procedure on every prompt, from where the claimed folder's rounds end, and store the result.

    Raises:
        RuntimeError: the policy cannot be asked, or the scorer failed; the rounds before are kept.
    """
    with progress_bar(len(rows) * settings["budget"], "candidate", settings["procedure"]) as bar:
        rounds = Rounds(policy, spec, settings, folder, bar)
        problems = [
            Problem(
                number,
                row,
                spec,
                settings["budget"],
                settings["candidates"],
                settings["seed"],
                rounds.ask,
                tell_weights=settings["tell_weights"],
            )
            for number, row in enumerate(rows)
        ]
        rounds.problems = problems
        asyncio.run(_run_all(procedure, problems))
        rounds.show_progress()
    write_rows(folder / RESULT, [_result(problem) for problem in problems], RESULT_SCHEMA)


async def _run_all(procedure: Procedure, problems: Sequence[Problem]) -> None:
    await asyncio.gather(*(procedure.run(problem) for problem in problems))


def _result(problem: Problem) -> dict[str, Any]:
    best = problem.best
    return {
        **problem.row,
        "solved_after": problem.solved_after,
        "tried": len(problem.tried),
        "best": best.text if best else None,
        "reward": best.value if best else None,
    }


class Rounds:
    """Collects what the prompts ask until all of them wait, and answers it as one batch, which it stores."""

    def __init__(
        self, policy: Policy, spec: RewardSpec, settings: dict[str, Any], folder: Path, bar: "tqdm[Any]"
    ) -> None:
        self.policy, self.spec, self.settings, self.folder, self.bar = policy, spec, settings, folder, bar
        self.problems: Sequence[Problem] = []
        stored = [_read(file, SCHEMA).to_pylist() for file in _round_files(folder)]
        self.number = len(stored)
        self.recorded = {(row["prompt"], row["question"]): row for rows in stored for row in rows}
        self.waiting: list[tuple[Problem, Question, asyncio.Future[Proposal]]] = []

    async def ask(self, problem: Problem, question: Question) -> Proposal:
        """The response to a question: the stored one, or one of the next round."""
        recorded = self.recorded.pop((problem.number, question.number), None)
        if recorded is not None:
            return _proposal(problem, recorded)
        loop = asyncio.get_running_loop()
        if not self.waiting:
            loop.call_soon(self._answer)  # after all that can run now, hence when every prompt waits
        self.waiting.append((problem, question, loop.create_future()))
        return await self.waiting[-1][2]

    def _answer(self) -> None:
        waiting, self.waiting = self.waiting, []
        try:
            rows = self._round(waiting)
        except Exception as error:
            for _, _, future in waiting:
                future.set_exception(error)
            return
        for (problem, _, future), row in zip(waiting, rows, strict=True):
            future.set_result(_proposal(problem, row))
        self.show_progress()

    def _round(self, waiting: Sequence[tuple[Problem, Question, Any]]) -> list[dict[str, Any]]:
        seed = batch_seed(self.settings["seed"], self.number)
        answers = self.policy.generate(
            [Request(question.text, start=question.start) for _, question, _ in waiting], seed
        )
        rows = [
            {
                "prompt": problem.number,
                "question": question.number,
                "input": problem.row["input"],
                "label": problem.row["label"],
                "asked": question.text,
                "start": question.start,
                "known": question.known,
                "response": answer.text,
                "tokens": answer.tokens,
                "seed": seed,
            }
            for (problem, question, _), [answer] in zip(waiting, answers, strict=True)
        ]
        scores = score_all(self.spec, [(row["response"], row["label"]) for row in rows], self.settings["candidates"])
        rows = [row | as_columns(score) for row, score in zip(rows, scores, strict=True)]
        write_rows(round_file(self.folder, self.number), rows, SCHEMA)
        self.number += 1
        return rows

    def show_progress(self) -> None:
        """The candidates that were tried or are no longer needed, and how many prompts are solved."""
        done = sum(len(problem.tried) if problem.open else problem.budget for problem in self.problems)
        solved = sum(problem.solved_after is not None for problem in self.problems)
        self.bar.set_postfix_str(f"{solved} of {len(self.problems)} prompts solved", refresh=False)
        self.bar.update(done - self.bar.n)


def _proposal(problem: Problem, row: Mapping[str, Any]) -> Proposal:
    pairs = list(zip(row["candidates"], row["rewards"], strict=True))[row["known"] :]
    return Proposal(row["response"], [problem.candidate(text, rewards) for text, rewards in pairs])


# ------------------------------------------------------------------------------------------------ on disk


def round_file(folder: Path, number: int) -> Path:
    """The Parquet file of a round, numbered from 0."""
    return folder / f"round-{number:05}.parquet"


def load_search(folder: Path) -> Search:
    """Read a stored search.

    Raises:
        FileNotFoundError: the folder holds no search.
        ValueError: a search that is not finished, or a file that was damaged.
    """
    made = read_settings(folder, SETTINGS)
    if made is None:
        raise FileNotFoundError(f"{folder} holds no search (no {SETTINGS}).")
    if not (folder / RESULT).exists():
        raise ValueError(f"The search {folder} is not finished: run the same `vpo search` again, it goes on.")
    rows = _read(folder / RESULT, RESULT_SCHEMA).to_pylist()
    solved_after = np.array([row["solved_after"] or np.inf for row in rows])
    prompts = [{"input": row["input"], "label": row["label"]} for row in rows]
    tokens = sum(_read(file, SCHEMA)["tokens"].to_numpy().sum() for file in _round_files(folder))
    return Search(made, prompts, solved_after, int(tokens))


def _round_files(folder: Path) -> list[Path]:
    numbers = itertools.takewhile(lambda number: round_file(folder, number).exists(), itertools.count())
    return [round_file(folder, number) for number in numbers]


def _read(file: Path, schema: pa.Schema) -> pa.Table:
    try:
        return pq.read_table(file, schema=schema)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{file} is damaged ({error}): delete it and run the same `vpo search` again.") from error


# ------------------------------------------------------------------------------------------------ what a person sees


def format_searches(searches: Sequence[tuple[str, str, Search]]) -> str:
    """A table of policy, procedure and the share of prompts solved within some budgets, with 95 % intervals."""
    budget = max(search.made["budget"] for _, _, search in searches)
    shown = sorted({max(1, budget // 8), max(1, budget // 4), max(1, budget // 2), budget})
    lines = [["policy", "procedure", *(f"solved@{k}" for k in shown), "95 % interval", "tokens/solved"]]
    for policy, procedure, search in searches:
        solved = search.solved_after[:, None] <= np.array(shown)
        measure = mean_and_interval(solved, seed=0)
        low, high = (measure[end][-1] for end in ("low", "high"))  # type: ignore[index]
        cost = f"{search.tokens / solved[:, -1].sum():.0f}" if solved[:, -1].any() else "-"
        shares = [f"{share:.3f}" for share in solved.mean(0)]
        lines.append([policy, procedure, *shares, f"{low:.3f} to {high:.3f}", cost])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    rows = [
        "  ".join([*map(str.ljust, line[:2], widths), *map(str.rjust, line[2:], widths[2:])]).rstrip() for line in lines
    ]
    prompts = len(searches[0][2].rows)
    return "\n".join([*rows, f"Share of {prompts} prompts that are solved within so many candidates."])


if __name__ == "__main__":
    sys.exit(main())

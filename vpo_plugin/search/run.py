"""`vpo search`: spend a budget of candidates on each prompt, with one or several procedures, until it is solved.

A resumed search replays its stored rounds (`searches.py`), so nothing is sampled or scored twice.
"""

import asyncio
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vpo_plugin.locks import owned
from vpo_plugin.rewards import RewardSpec, load_spec
from vpo_plugin.rewards.prompts import pack_prompt
from vpo_plugin.rewards.scoring import OnError, Scoring
from vpo_plugin.search.evaluate import (
    as_columns,
    batch_seed,
    make_policy,
    progress_bar,
    read_task,
    score_samples,
)
from vpo_plugin.search.policy import Policy, Request
from vpo_plugin.search.pool import check_objectives, claim_folder, load_pool, read_table, shared_prompts, write_rows
from vpo_plugin.search.procedures import (
    BestOfK,
    Problem,
    Procedure,
    Proposal,
    Question,
    Refinement,
)
from vpo_plugin.search.searches import (
    COMMAND,
    RESULT,
    RESULT_SCHEMA,
    SCHEMA,
    SETTINGS,
    Search,
    load_search,
    round_file,
    round_files,
)
from vpo_plugin.search.settings import PolicySettings
from vpo_plugin.targets import read_targets


def run_searches(
    settings: PolicySettings,
    procedures: Iterable[str],
    budget: int,
    unsolved_in: Sequence[Path],
    openevolve: Path | None,
    folder: Path,
) -> dict[str, Search]:
    """Run the unfinished part of each procedure; return the searches by procedure.

    Args:
        budget: maximum number of candidates per prompt.
        unsolved_in: pools; only prompts that none of them solves are searched.
        openevolve: OpenEvolve's configuration for `evolution`.
        folder: output folder with a subfolder per procedure; resumed if it exists.

    Raises:
        RuntimeError: another command works there, or see `search_all`.
    """
    procedures = list(procedures)
    if settings.temperature == 0 and budget > 1 and "best_of_k" in procedures:
        raise ValueError(
            "temperature is 0, so best_of_k would repeat the same response: sample at a temperature above "
            "0, or leave best_of_k out (--procedure)."
        )
    open_prompts = unsolved_prompts(load_spec(settings.spec), unsolved_in)[: settings.prompts] if unsolved_in else None
    spec, rows, made = read_task(settings, open_prompts)
    if spec.group_scorer:
        raise ValueError(
            f"The scorer of {spec.name!r} compares the rollouts of a prompt, but a search scores them one by one: use "
            "`vpo evaluate`."
        )
    made |= {"budget": budget}
    made_procedures = {name: make_procedure(name, openevolve) for name in procedures}
    if "evolution" in made_procedures and openevolve:
        made |= {"openevolve": openevolve.read_text()}
    policy = None
    for name, procedure in made_procedures.items():
        place = folder / name
        claim_folder(place, made | {"procedure": name}, SETTINGS)
        if not (place / RESULT).exists():
            with owned(place):
                if policy is None:
                    policy = make_policy(settings, spec, rows, made, more=4 * made["max_new_tokens"] + 256)
                made_here = made | {"procedure": name}
                search_all(policy, spec, rows, procedure, made_here, place, settings.on_scorer_error)
    return {name: load_search(folder / name) for name in made_procedures}


def make_procedure(name: str, openevolve: Path | None = None) -> Procedure:
    """The procedure with this name, one of `PROCEDURES`."""
    if name == "best_of_k":
        return BestOfK()
    if name == "refinement":
        return Refinement()
    from vpo_plugin.search.evolution import Evolution  # imports openevolve

    return Evolution(openevolve)


def unsolved_prompts(spec: RewardSpec, pools: Sequence[Path]) -> list[dict[str, Any]]:
    """The prompts that are in all of these pools and that no candidate in them solves.

    Raises:
        ValueError: there is no such prompt, or see `load_pool` and `shared_prompts`.
    """
    loaded, rows, _ = shared_prompts({str(folder): load_pool(folder) for folder in pools})
    for folder, pool in loaded.items():
        check_objectives(folder, pool, spec)
    targets = read_targets(spec, rows)
    solved = np.any([targets.solved(targets.rewards(pool.candidates)).any(1) for pool in loaded.values()], axis=0)
    if solved.all():
        raise ValueError(
            f"The pools {[str(folder) for folder in pools]} solve all their prompts: there is nothing to search."
        )
    return [dict(row) for row, done in zip(rows, solved, strict=True) if not done]


# ------------------------------------------------------------------------------------------------ all prompts at once


def search_all(
    policy: Policy,
    spec: RewardSpec,
    rows: Sequence[dict[str, Any]],
    procedure: Procedure,
    settings: dict[str, Any],
    folder: Path,
    on_scorer_error: OnError = "raise",
) -> None:
    """Run a procedure on every prompt, after replaying the claimed folder's rounds, and store the result.

    Raises:
        RuntimeError: the policy cannot be reached, or the scorer failed; finished rounds are kept.
    """
    scoring = Scoring(spec, on_error=on_scorer_error, failures=folder)
    with scoring, progress_bar(len(rows) * settings["budget"], "candidate", settings["procedure"]) as bar:
        rounds = Rounds(policy, scoring, settings, folder, bar)
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
    if said := scoring.summary():
        print(said, file=sys.stderr)


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
    """Collects questions until all prompts wait, answers them as one batch, and stores the batch."""

    def __init__(
        self, policy: Policy, scoring: Scoring, settings: dict[str, Any], folder: Path, bar: "tqdm[Any]"
    ) -> None:
        self.policy, self.scoring, self.settings, self.folder, self.bar = policy, scoring, settings, folder, bar
        self.problems: Sequence[Problem] = []
        stored = [read_table(file, SCHEMA, COMMAND).to_pylist() for file in round_files(folder)]
        self.number = len(stored)
        self.recorded = {(row["prompt"], row["question"]): row for rows in stored for row in rows}
        self.waiting: list[tuple[Problem, Question, asyncio.Future[Proposal]]] = []

    async def ask(self, problem: Problem, question: Question) -> Proposal:
        """The response to a question, from a stored round or from the next one."""
        recorded = self.recorded.pop((problem.number, question.number), None)
        if recorded is not None:
            return _proposal(problem, recorded)
        loop = asyncio.get_running_loop()
        if not self.waiting:
            loop.call_soon(self._answer)  # runs when every prompt waits
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
                "asked": pack_prompt(question.text),
                "start": question.start,
                "known": question.known,
                "response": answer.text,
                "tokens": answer.tokens,
                "seed": seed,
            }
            for (problem, question, _), [answer] in zip(waiting, answers, strict=True)
        ]
        scores = score_samples(self.scoring, rows, self.settings["candidates"])
        rows = [row | as_columns(score) for row, score in zip(rows, scores, strict=True)]
        write_rows(round_file(self.folder, self.number), rows, SCHEMA)
        self.number += 1
        return rows

    def show_progress(self) -> None:
        """Show the number of candidates tried or no longer needed, and of solved prompts."""
        done = sum(len(problem.tried) if problem.open else problem.budget for problem in self.problems)
        solved = sum(problem.solved_after is not None for problem in self.problems)
        self.bar.set_postfix_str(f"{solved} of {len(self.problems)} prompts solved", refresh=False)
        self.bar.update(done - self.bar.n)


def _proposal(problem: Problem, row: Mapping[str, Any]) -> Proposal:
    pairs = list(zip(row["candidates"], row["rewards"], strict=True))[row["known"] :]
    return Proposal(row["response"], [problem.candidate(text, rewards) for text, rewards in pairs])

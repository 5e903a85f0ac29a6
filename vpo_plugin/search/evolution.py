"""Evolutionary search on OpenEvolve 0.4's program database; the policy writes the children.

OpenEvolve provides the islands and migration, a MAP-Elites grid per island (its dimensions are the objectives), the
archive, and the choice of parents. Its controller is not used: it runs one problem with a pool of processes, each with
its own model client. Here one engine writes the children of all prompts in a batch.
"""

import copy
import dataclasses
import logging
import random
import uuid
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from openevolve.config import Config, LLMModelConfig
from openevolve.database import Program, ProgramDatabase
from openevolve.llm.base import LLMInterface
from openevolve.llm.ensemble import LLMEnsemble

from vpo_plugin.rewards.formats import start_response
from vpo_plugin.rewards.prompts import pack_prompt, read_prompt
from vpo_plugin.rewards.spec import load_entry_point
from vpo_plugin.search.procedures import Candidate, Problem, Proposal

ISLANDS = 2
MIGRATION_INTERVAL = 5
SHOWN = 3  # candidates beside the parent that a prompt shows

logging.getLogger("openevolve").setLevel(logging.ERROR)  # it logs every program


class PolicyClient(LLMInterface):
    """The policy as a model of OpenEvolve's configuration (`LLMModelConfig.init_client`)."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.model = "policy"  # OpenEvolve logs it

    async def generate(self, prompt: str, **kwargs: Any) -> Proposal:
        return await self.problem.propose(read_prompt(prompt), **kwargs)

    async def generate_with_context(
        self, system_message: str, messages: list[dict[str, str]], **kwargs: Any
    ) -> Proposal:
        return await self.generate("\n\n".join([*filter(None, [system_message]), messages[-1]["content"]]), **kwargs)


class Evolution:
    """Evolve candidates: each island in turn draws a parent, and the policy writes a child.

    If the specification names a `mutation`, it writes the beginning of a candidate from the parent, and the policy
    completes it. A policy that writes sets then gets other candidates of the island as the first of its set. Without a
    `mutation`, the policy sees the parent and some other candidates with their rewards. An island that is still empty,
    because no response could be parsed, starts again. OpenEvolve keeps programs in Python sets, so its draws differ
    between processes.

    Args:
        config: OpenEvolve's configuration file; default: two islands, an archive of a tenth of the budget, and
            migration every five generations. The feature dimensions are always the objectives.
    """

    def __init__(self, config: Path | None = None) -> None:
        try:
            self.config = Config.from_yaml(config) if config else None
            unknown = _unknown_keys(yaml.safe_load(config.read_text()) or {}, self.config) if config else []
        except Exception as error:  # of YAML, dacite or OpenEvolve
            raise ValueError(
                f"{config} is not an OpenEvolve configuration ({type(error).__name__}: {error})."
            ) from error

        if unknown:
            raise ValueError(f"{config} has keys that OpenEvolve does not know: {'; '.join(unknown)}.")

    async def run(self, problem: Problem) -> None:
        database, models = self._openevolve(problem)
        mutation = load_entry_point(problem.spec.mutation) if problem.spec.mutation else None
        generation = 0
        while problem.open:
            island = generation % len(database.islands)
            text, start, known = problem.text(), "", 0
            if database.islands[island]:
                parent, others = database.sample_from_island(island, problem.m - 1 if mutation else SHOWN)
                if mutation:
                    chance = random.Random(f"{problem.seed} {problem.number} {generation}")
                    changed = mutation(parent.code, problem.label, chance)
                    start = start_response(problem.spec, changed, [program.code for program in others], problem.m)
                    known = len(others)
                else:
                    text = problem.text([_candidate(problem, program) for program in (parent, *others)])
            message = {"role": "user", "content": pack_prompt(text)}
            child = await models.generate_with_context("", [message], start=start, known=known)
            _add(database, problem, child, generation, island)
            generation += 1

    def _openevolve(self, problem: Problem) -> tuple[ProgramDatabase, LLMEnsemble]:
        config = copy.deepcopy(self.config) if self.config else _config(problem.budget)
        config.database.feature_dimensions = problem.objectives
        config.database.random_seed = None  # it would reseed Python's generator for every prompt
        config.database.db_path = None  # the search stores its own rounds
        config.llm.models = [LLMModelConfig(name="policy", init_client=lambda _: PolicyClient(problem))]
        return ProgramDatabase(config.database), LLMEnsemble(config.llm.models)


def _config(budget: int) -> Config:
    config = Config()
    config.database.num_islands = ISLANDS
    config.database.population_size = max(budget, 10)
    config.database.archive_size = max(budget // 10, 2 * ISLANDS)
    config.database.migration_interval = MIGRATION_INTERVAL
    return config


def _add(database: ProgramDatabase, problem: Problem, child: Proposal, generation: int, island: int) -> None:
    """Add the response's new candidates that earned any reward to the island."""
    known = {problem.canonical(program.code) for program in database.programs.values()}
    for candidate in child.candidates:
        if candidate.text is None or candidate.value <= problem.floor:
            continue
        if (key := problem.canonical(candidate.text)) in known:
            continue
        known.add(key)
        rewards = dict(zip(problem.objectives, candidate.rewards.tolist(), strict=True))
        program = Program(
            id=str(uuid.uuid4()),
            code=candidate.text,
            generation=generation,
            metrics={**rewards, "combined_score": candidate.value},
        )
        database.add(program, iteration=generation, target_island=island)
    database.increment_island_generation(island)
    if database.should_migrate():
        database.migrate_programs()


def _candidate(problem: Problem, program: Program) -> Candidate:
    return problem.candidate(program.code, [program.metrics[key] for key in problem.objectives])


def _unknown_keys(given: dict[str, Any], config: Any, where: str = "") -> list[str]:
    """Keys of the YAML file that OpenEvolve would ignore, each with the most similar setting."""
    unknown = []
    known = [field.name for field in dataclasses.fields(config)]
    for key, value in given.items():
        if key not in known:
            near = get_close_matches(key, known, n=1)
            unknown.append(f"{where}{key}" + (f", is it {near[0]!r}?" if near else ""))
        elif isinstance(value, dict) and dataclasses.is_dataclass(inner := getattr(config, key)):
            unknown += _unknown_keys(value, inner, f"{where}{key}.")
    return unknown

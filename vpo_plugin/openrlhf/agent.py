"""The agent executor of a run with a specification: generates a response and gets its rewards.

The host loads this file by path (`--train.agent_func_path`) in every rollout actor. The writer is the host's
single-turn executor or the user's unchanged agent (`--train.agent_func_path` of the command). Rewards come from the
agent (`extra_logs["reward_matrix"]`), from the user's function (`--reward.remote_url`), or from the spec, which scores
the text of the last turn without the environment's messages. `extra_logs` carries the matrix to the trainer.
"""

import asyncio
from typing import Any

from openrlhf.utils.agent import AgentExecutorBase, SingleTurnAgentExecutor

from vpo_plugin.openrlhf import given_rewards
from vpo_plugin.openrlhf.matrices import INFO_KEY
from vpo_plugin.openrlhf.prompts import label_of
from vpo_plugin.openrlhf.scorer import start_scoring
from vpo_plugin.openrlhf.settings import current_settings
from vpo_plugin.rewards.candidates import opened_thought
from vpo_plugin.rewards.files import load_checked
from vpo_plugin.rewards.response import ScoredResponse
from vpo_plugin.rewards.scoring import Item


class Listener:
    """Wraps the engine for a writer; keeps the text of each generation under its tokens."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.texts: dict[tuple[int, ...], str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    async def generate(self, *args: Any, **kwargs: Any) -> Any:
        output = await self.engine.generate(*args, **kwargs)
        said = output.outputs[0]
        self.texts[tuple(said.token_ids)] = said.text
        return output

    def last_text(self, output: dict[str, Any], tokenizer: Any) -> str:
        """The text of a rollout's last turn, as the engine wrote it, after a `<think>` that ends its prompt."""
        start, end = output["action_ranges"][-1] if output["action_ranges"] else (0, 0)
        tokens = output["observation_tokens"][start:end]
        before = tokenizer.decode(output["observation_tokens"][max(0, start - 8) : start], skip_special_tokens=False)
        text = self.texts.get(tuple(tokens))  # None if the agent changed the engine's output
        return opened_thought(before) + (tokenizer.decode(tokens, skip_special_tokens=True) if text is None else text)


class Group:
    """The rollouts of one prompt, for a scorer that compares them; scored when the last rollout is complete."""

    def __init__(self, call: Any) -> None:
        self.call = call  # kept, so that its id stays unique
        self.size = 0
        self.items: list[Item] = []
        self.scored: asyncio.Future[list[ScoredResponse]] = asyncio.get_running_loop().create_future()

    def hand_out(self, submitted: "asyncio.Future[list[ScoredResponse]]") -> None:
        """Pass the outcome of the group to its rollouts."""
        if (error := submitted.exception()) is not None:
            self.scored.set_exception(error)
        else:
            self.scored.set_result(submitted.result())


def load_agent(file: str) -> AgentExecutorBase:
    """Load the user's executor as the host does."""
    from openrlhf.trainer.ray.vllm_engine import _load_agent_executor  # imports vLLM, present in a rollout actor

    return _load_agent_executor(file)


class AgentExecutor(AgentExecutorBase):
    """Let the writer generate one rollout; return it to the host with its scalar reward and reward matrix."""

    def __init__(self) -> None:
        self.run = run = current_settings()
        self.spec = load_checked(str(run.spec), run.spec_data)
        self.writer = load_agent(run.own_agent) if run.own_agent else SingleTurnAgentExecutor()
        self.function = given_rewards.RewardFunction(run.own_reward) if run.own_reward else None
        self.scoring = start_scoring(run) if self.spec.scores and not self.function else None
        self.groups: dict[int, Group] = {}

    async def execute(self, prompt: str, label: Any, hf_tokenizer: Any, llm_engine: Any, **more: Any) -> dict[str, Any]:
        """Run one rollout. The host passes everything by name; `more` is for the writer."""
        engine = Listener(llm_engine)
        group = self.group_of(more.get("sampling_params")) if self.spec.group_scorer else None
        output = await self.writer.execute(
            prompt=prompt, label=label, hf_tokenizer=hf_tokenizer, llm_engine=engine, **more
        )
        logs = dict(output.get("extra_logs") or {})
        given = logs.pop(INFO_KEY, None)
        if self.function is None and given is None:
            told = await self.score(prompt, engine.last_text(output, hf_tokenizer), label, group)
            return {**output, **told, "extra_logs": {**logs, **told["extra_logs"]}}
        if group is not None:
            group.size -= 1  # this rollout has its rewards: the scorer compares the others
            self.score_complete(group)
        query = hf_tokenizer.decode(output["observation_tokens"], skip_special_tokens=False)
        who = self.run.own_agent or ", ".join(self.run.own_reward)
        try:
            if self.function is not None:
                given, logs = await self.function(query, prompt, label)
            matrix = given_rewards.read_matrix(self.spec, given, label)
        except Exception as error:
            matrix = given_rewards.failed(self.run, self.spec, query, label, who, error)
            return {**output, **given_rewards.host_fields(self.spec, matrix, logs, failed=True)}
        return {**output, **given_rewards.host_fields(self.spec, matrix, logs)}

    def group_of(self, call: Any) -> "Group":
        """Join the group of a prompt. The host starts all rollouts of a prompt at once, in one actor, with one sampling
        parameters object (vllm_engine.py, `generate_responses`), so all have joined before the first is complete."""
        group = self.groups.setdefault(id(call), Group(call))
        group.size += 1
        return group

    def score_complete(self, group: "Group") -> None:
        """Score a group if its last rollout is complete."""
        if len(group.items) < group.size:
            return
        self.groups.pop(id(group.call))
        if group.items and self.scoring is not None:
            submitted = asyncio.wrap_future(self.scoring.submit_group(group.items))
            submitted.add_done_callback(group.hand_out)

    async def score(self, prompt: str, response: str, label: Any, group: "Group | None" = None) -> dict[str, Any]:
        """Score a response with the spec; return the fields for the host. Raises ValueError without a scorer."""
        if self.scoring is None:
            raise ValueError(
                f"The agent {self.run.own_agent} gave no extra_logs[{INFO_KEY!r}], but the spec {self.spec.name!r} has "
                "no scorer."
            )
        known, original = label_of(self.spec, self.run, label)
        item = Item(response, known, self.run.candidates, "A response of the policy", original or prompt)
        if group is None:
            scored = await asyncio.wrap_future(self.scoring.submit(item))
        else:
            place = len(group.items)
            group.items.append(item)
            self.score_complete(group)
            scored = (await group.scored)[place]
        failed = scored.error is not None
        return given_rewards.fields(scored.matrix, scored.reward, scored.parsed, scored.unique, failed)

"""The host's agent executor (``--train.agent_func_path``) that scores each response into a reward matrix.

The host loads this file by path in every rollout actor. Generation is the host's own single-turn path, unchanged; the
text that is scored is the engine's, and the matrix travels to the trainer in ``extra_logs``.
"""

import asyncio
from typing import Any

from openrlhf.utils.agent import SingleTurnAgentExecutor

from vpo_plugin.openrlhf import given_rewards
from vpo_plugin.openrlhf.scorer import start_scoring
from vpo_plugin.openrlhf.settings import current_settings
from vpo_plugin.rewards.labels import read_label
from vpo_plugin.rewards.scoring import Item


class _Listener:
    """The engine as the host's executor sees it, keeping the text of what it generated."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.text = ""

    async def generate(self, *args: Any, **kwargs: Any) -> Any:
        output = await self.engine.generate(*args, **kwargs)
        self.text = output.outputs[0].text
        return output


class AgentExecutor(SingleTurnAgentExecutor):
    """Generate one response, score its candidates, and return the host's scalar reward and the reward matrix."""

    def __init__(self) -> None:
        super().__init__(remote_rm_url=None)
        run = current_settings()
        self.candidates = run.candidates
        self.scoring = start_scoring(run)
        self.spec = self.scoring.spec

    async def execute(
        self,
        prompt: str,
        label: Any,
        sampling_params: Any,
        max_length: int,
        hf_tokenizer: Any,
        llm_engine: Any,
        images: Any = None,
    ) -> dict[str, Any]:
        engine = _Listener(llm_engine)
        output = await super().execute(prompt, label, sampling_params, max_length, hf_tokenizer, engine, images)
        return {**output, **await self.score(prompt, engine.text, label)}

    async def score(self, prompt: str, response: str, label: Any) -> dict[str, Any]:
        """What the host is told of a response's rewards."""
        item = Item(response, read_label(self.spec, label), self.candidates, "A response of the policy", prompt)
        return given_rewards.scored(await asyncio.wrap_future(self.scoring.submit(item)))

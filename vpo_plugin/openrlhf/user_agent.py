"""The executor of a run with an agent of the user's own: `--vpo.spec` together with `--train.agent_func_path`.

The agent runs as it is, with as many turns and tools as it likes. If its `extra_logs` have a `reward_matrix`, a
vector or a matrix, that is its reward; else the text of its last turn is scored by the spec. What the environment said
between the turns is no part of that text.
"""

from typing import Any

from openrlhf.trainer.ray.vllm_engine import _load_agent_executor

from vpo_plugin.openrlhf import agent, given_rewards, matrices
from vpo_plugin.openrlhf.settings import current_settings


class Listener:
    """The engine as the user's agent sees it, keeping the text of each generation by its tokens."""

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


class AgentExecutor(agent.AgentExecutor):
    """Run the user's agent, and return the reward matrix that it gives or that the spec makes of its last turn."""

    def __init__(self) -> None:
        super().__init__()
        self.users = _load_agent_executor(str(current_settings().own_agent))

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
        engine = Listener(llm_engine)
        output = await self.users.execute(
            prompt=prompt,
            label=label,
            sampling_params=sampling_params,
            max_length=max_length,
            hf_tokenizer=hf_tokenizer,
            llm_engine=engine,
            images=images,
        )
        logs = dict(output.get("extra_logs") or {})
        rewards = logs.pop(matrices.INFO_KEY, None)
        if rewards is not None:
            what = f"extra_logs[{matrices.INFO_KEY!r}] of the agent {current_settings().own_agent}"
            matrix = given_rewards.read_matrix(self.spec, rewards, label, what)
            return {**output, **given_rewards.given(self.spec, matrix, logs)}
        start, end = output["action_ranges"][-1] if output["action_ranges"] else (0, 0)
        tokens = output["observation_tokens"][start:end]
        text = engine.texts.get(tuple(tokens))
        if text is None:  # the agent has changed what it took from the engine
            text = hf_tokenizer.decode(tokens, skip_special_tokens=True)
        told = await self.score(prompt, text, label)
        return {**output, **told, "extra_logs": {**logs, **told["extra_logs"]}}

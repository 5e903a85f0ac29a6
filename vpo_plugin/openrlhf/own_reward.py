"""The executor of a run with a reward function of the user's own: `--vpo.spec` together with `--reward.remote_url`.

The function, `reward_func(queries, prompts, labels)` in a Python file or an HTTP server, is called as the host calls
it, with one query at a time. Its `rewards` are one entry a query: a vector or a matrix instead of a number.
"""

import os
import traceback
from typing import Any

import numpy as np
from openrlhf.utils.agent import SingleTurnAgentExecutor

from vpo_plugin.openrlhf import given_rewards
from vpo_plugin.openrlhf.settings import current_settings
from vpo_plugin.rewards import load_spec


class AgentExecutor(SingleTurnAgentExecutor):
    """Generate one response, and ask the user's function for its reward vector or matrix."""

    def __init__(self) -> None:
        super().__init__(remote_rm_url=None)
        self.run = current_settings()
        self.spec = load_spec(str(self.run.spec))
        # The host swallows what goes wrong in a reward function: it is called here, after the host's own path.
        self.users = SingleTurnAgentExecutor(list(self.run.own_reward))

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
        output = await super().execute(prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine, images)
        query = hf_tokenizer.decode(output["observation_tokens"], skip_special_tokens=False)
        try:
            fetch = self.users._fetch_rewards_via_func if self.users.reward_func else self.users._fetch_rewards_via_http
            (answer,) = await fetch([query], [prompt], [label])
            matrix = given_rewards.read_matrix(
                self.spec, entry_of(answer), label, f"The reward of {', '.join(self.run.own_reward)}"
            )
        except Exception as error:
            path = self._save_error(query, label)
            if self.run.on_scorer_error == "zero":
                nothing = given_rewards.floor(self.spec, label, self.run.candidates)
                return {**output, **given_rewards.given(self.spec, nothing, {}, failed=True)}
            raise RuntimeError(
                f"{', '.join(self.run.own_reward)} failed on a response ({type(error).__name__}: {error}). Prompt, "
                f"response and traceback are in {path}. Fix it, or pass --vpo.on_scorer_error zero to score such "
                "responses zero and count them."
            ) from error
        return {**output, **given_rewards.given(self.spec, matrix, answer.get("extra_logs") or {})}

    def _save_error(self, query: str, label: Any) -> str:
        path = self.run.log_dir / f"scorer_error_{os.getpid()}_{abs(hash(query)) % 10**8}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = f"# prompt and response\n{query}\n\n# label\n{label!r}\n\n# error\n{traceback.format_exc()}"
        path.write_text(text, errors="backslashreplace")
        return str(path)


def entry_of(answer: Any) -> Any:
    """The reward of the one query in a reward function's answer: what is in `rewards` at its place.

    Raises:
        ValueError: there is none.
    """
    rewards = answer.get("rewards") if isinstance(answer, dict) else None
    if rewards is None:
        raise ValueError(f'it returned {str(answer)[:200]}, and not {{"rewards": …}}')
    if not hasattr(rewards, "detach"):
        rewards = np.asarray(rewards, dtype=np.float64)
    return rewards[0] if rewards.ndim and len(rewards) == 1 else rewards

"""A multi-turn agent for program repair: the policy writes a program, sees its first failed test, and tries again.

    python -m vpo_plugin.train_ppo_ray --advantage vpo --vpo.spec code --vpo.candidates 1 \\
        --train.agent_func_path examples/program_repair.py --data.prompt_dataset … --data.label_key label …

It is an ordinary OpenRLHF agent (`openrlhf.utils.agent`) plus one line: the rewards of all attempts as a matrix in
`extra_logs`, a row per attempt and a column per test. Programs run in the sandbox, which needs bubblewrap.
"""

import asyncio
import json
from typing import Any

import torch
from openrlhf.utils.agent import AgentInstanceBase, MultiTurnAgentExecutor

from reward_specs.code.code import LIMITS, count, score
from vpo_plugin.rewards.candidates import parse_fenced
from vpo_plugin.rewards.sandbox import StdinTest, run_program

ATTEMPTS = 3
SHOWN = 400
"""Most characters of an input or output that the policy sees."""


class Repair(AgentInstanceBase):
    """One prompt's attempts."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.rows: list[list[float]] = []

    async def step(self, state_dict: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Judge the program of this turn, and say which test it fails."""
        label = json.loads(state_dict["label"])
        (program,) = parse_fenced(state_dict["action_text"], "python", 1)
        rewards = [0.0] * count(label) if program is None else await asyncio.to_thread(score, program, label)
        self.rows.append(rewards)
        done = all(rewards) or len(self.rows) == ATTEMPTS
        return {
            "rewards": torch.tensor(max(map(sum, self.rows)) / len(rewards)),
            "environment_feedback": "" if done else await asyncio.to_thread(feedback, program, rewards, label),
            "done": done,
            "extra_logs": {"reward_matrix": torch.tensor(self.rows), "attempts": float(len(self.rows))},
        }


def feedback(program: str | None, rewards: list[float], label: dict[str, Any]) -> str:
    """The feedback that the policy reads before its next attempt."""
    if program is None:
        return "\n\nThere is no program in a ```python block. Write one.\n\n"
    number = rewards.index(0.0)
    test = label["tests"][number]
    said = f"\n\nTest {number + 1} of {len(rewards)} fails"
    if "stdin" in test:
        (outcome,) = run_program(program, [StdinTest(test["stdin"])], preamble=label.get("preamble", ""), limits=LIMITS)
        printed = outcome.output.decode(errors="replace") if outcome.status == "ok" else outcome.status
        said += f".\nInput:\n{test['stdin'][:SHOWN]}\nExpected:\n{test['stdout'][:SHOWN]}\nGot:\n{printed[:SHOWN]}"
    return f"{said}\nWrite the whole program again, in a ```python block.\n\n"


class AgentExecutor(MultiTurnAgentExecutor):
    """The executor that the host looks for in this file."""

    def __init__(self) -> None:
        super().__init__(Repair)

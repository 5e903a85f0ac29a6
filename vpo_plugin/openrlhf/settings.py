"""Settings of a run that its processes need, but that the host's arguments do not carry.

The launcher writes the settings into an environment variable of the run's Ray workers. Their children inherit it: so
does a vLLM process that joins Ray by itself, and the actors that it starts.
"""

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

VARIABLE = "VPO_RUN_SETTINGS"
"""The environment variable that holds the settings as JSON."""


@dataclass(frozen=True)
class Settings:
    """The settings of one run."""

    spec: str | None
    """Path of the reward specification; None leaves prompts and rewards to the host."""
    candidates: int
    """Candidates in one response (m)."""
    on_scorer_error: Literal["raise", "zero"]
    """What to do with a response whose scorer raises."""
    log_dir: Path
    """Folder of `metrics.jsonl`, the reward matrices of each step, and scorer errors."""
    on_cpu: bool
    """Whether the run's machines have no CUDA."""
    run: str = ""
    """Identifier of this start, kept in the log folder, so that a start can tell when a later one replaced it."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """Options for the chat template."""
    own_agent: str | None = None
    """File of the user's own agent executor."""
    own_reward: tuple[str, ...] = ()
    """File or server addresses of the user's own reward function."""
    spec_data: dict[str, Any] | None = None
    """Content of the specification, for processes that must not import what it names."""
    engines: int = 1
    """Number of rollout engines, which share a machine's cores for scoring."""
    goal: tuple[float, int] | None = None
    """Dirichlet parameter and seed of the objective weights that each prompt states; None states none."""

    def dump(self) -> str:
        """The settings as JSON, the value of `VARIABLE`."""
        return json.dumps(dataclasses.asdict(self), default=str)


def load_settings(text: str) -> Settings:
    """The settings that `Settings.dump` wrote."""
    values: dict[str, Any] = json.loads(text)
    goal = values["goal"] and tuple(values["goal"])
    own_reward = tuple(values["own_reward"])
    return Settings(**values | {"log_dir": Path(values["log_dir"]), "goal": goal, "own_reward": own_reward})


def current_settings() -> Settings:
    """The settings of the run that this process belongs to.

    Raises:
        RuntimeError: the process belongs to no run of `vpo_plugin.train_ppo_ray`.
    """
    if VARIABLE not in os.environ:
        raise RuntimeError(
            "This process has no run settings: start training with `python -m vpo_plugin.train_ppo_ray`, "
            "which passes them to every Ray worker."
        )
    return load_settings(os.environ[VARIABLE])

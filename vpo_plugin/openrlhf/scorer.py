"""Scoring beside generation: a process of its own on the engine's node, so that a scorer that computes does not share
Python's lock with the engine's event loop."""

import itertools
import os
import traceback
from typing import Any

from vpo_plugin.openrlhf.settings import Settings
from vpo_plugin.rewards import ScoredResponse, load_spec
from vpo_plugin.rewards.sandbox import SandboxError
from vpo_plugin.rewards.scoring import score_response

RESTARTS = 3
"""How often a scorer's process that died is started again, with the responses that it was scoring."""


class Scorer:
    """Scores responses with the specification of the run, several at a time."""

    def __init__(self, settings: Settings, devices: str | None) -> None:
        if devices is not None:  # a reward model in the scorer has the engine's GPU; Ray hides all of them
            os.environ["CUDA_VISIBLE_DEVICES"] = devices
        self.settings = settings
        self.spec = load_spec(str(settings.spec))
        self._error_numbers = itertools.count(1)

    def score(self, prompt: str, response: str, label: Any) -> tuple[ScoredResponse, bool]:
        """The scored response, and whether its scorer failed and it was given zeros.

        Raises RuntimeError, which names the file with prompt, response and traceback, for a scorer that fails where
        the run does not say to score zeros, and for a sandbox that does not work.
        """
        try:
            return score_response(self.spec, response, label, self.settings.candidates), False
        except Exception as error:
            path = self.settings.log_dir / f"scorer_error_{os.getpid()}_{next(self._error_numbers)}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(
                f"# prompt\n{prompt}\n\n# response\n{response}\n\n# label\n{label!r}\n\n"
                f"# error\n{traceback.format_exc()}",
                errors="backslashreplace",
            )
            if self.settings.on_scorer_error == "zero" and not isinstance(error, SandboxError):
                return score_response(self.spec, "", label, self.settings.candidates), True
            raise RuntimeError(
                f"The scorer of spec {self.spec.name!r} failed on a response ({type(error).__name__}: {error}). "
                f"Prompt, response and traceback are in {path}. Fix the scorer, or pass --vpo.on_scorer_error zero "
                "to score such responses zero and count them."
            ) from error


def start_scorer(settings: Settings) -> Any:
    """A Ray actor with a `Scorer` on this process's node; it ends with this process."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(Scorer).options(
        num_cpus=0,
        scheduling_strategy=here,
        max_concurrency=min(32, (os.cpu_count() or 1) + 4),
        max_restarts=RESTARTS,
        max_task_retries=RESTARTS,
    )
    return actor.remote(settings, engine_devices())


def engine_devices() -> str | None:
    """``CUDA_VISIBLE_DEVICES`` of this process's engine, None where the machine has no such variable.

    With tensor parallel sizes above 1 the host drops the variable (vllm_engine.py, `_configure_device_env`) and names
    the bundles of the placement group that hold the engine's GPUs: the first one's is the scorer's.
    """
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    bundles = os.environ.get("VLLM_RAY_BUNDLE_INDICES")
    if bundles is None:
        return os.environ.get("CUDA_VISIBLE_DEVICES")
    there = PlacementGroupSchedulingStrategy(ray.util.get_current_placement_group(), int(bundles.split(",")[0]))

    @ray.remote(num_cpus=0, num_gpus=0.01, scheduling_strategy=there)
    def visible() -> str | None:
        return os.environ.get("CUDA_VISIBLE_DEVICES")

    return ray.get(visible.remote())

"""Start the scoring service of a rollout engine; its processes run on the engine's node."""

import os

from vpo_plugin.openrlhf.settings import Settings
from vpo_plugin.rewards.files import load_checked
from vpo_plugin.rewards.scoring import Scoring


def start_scoring(settings: Settings) -> Scoring:
    """Start scoring for an engine's process; the scoring processes end with that process."""
    devices = engine_devices()  # a reward model in a scorer uses the engine's GPU
    return Scoring(
        load_checked(str(settings.spec), settings.spec_data),
        processes=max(1, len(os.sched_getaffinity(0)) // settings.engines),
        on_error=settings.on_scorer_error,
        failures=settings.log_dir,
        flag="--vpo.on_scorer_error",
        environment={} if devices is None else {"CUDA_VISIBLE_DEVICES": devices},
    )


def engine_devices() -> str | None:
    """`CUDA_VISIBLE_DEVICES` of this process's engine, None if the variable is not set.

    With a tensor parallel size above 1, the host drops the variable (vllm_engine.py, `_configure_device_env`) and names
    the placement group bundles that hold the engine's GPUs. The scorer then uses the GPU of the first bundle.
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

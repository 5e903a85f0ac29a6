"""Patches of the host's trainers that write the log of a run with a specification.

The unpatched driver makes the actor classes of both trainers. They pickle their base class by reference, so in a
worker they inherit the methods below.
"""

from collections.abc import Sequence
from typing import Any

from vpo_plugin import files
from vpo_plugin.openrlhf.log import REMARK, check_owner, forget_steps_after, log_step
from vpo_plugin.openrlhf.settings import current_settings

UNREAD_STEPS = 3
"""The warning is repeated after this many consecutive steps without a readable candidate."""


def patch_trainer(module: Any) -> None:
    """Wrap methods of the host's `BasePPOTrainer`."""
    trainer = module.BasePPOTrainer
    original_step, original_states = trainer.train_step, trainer.init_checkpoint_states
    original_logs, original_best = trainer.save_logs_and_checkpoints, trainer.save_best_checkpoint

    def train_step(self: Any, rollout_samples: Any, global_step: int) -> Any:
        run = current_settings()
        check_owner(run.log_dir, run.run)
        self.experience_maker.global_step = global_step
        self.experience_maker.groups_used = None
        self.unread = count_unread(self, rollout_samples, global_step + 1)
        keep_shared_logs(rollout_samples)
        status, next_step = original_step(self, rollout_samples, global_step)
        # The actor reports nothing of a step with fewer rollouts than a micro-batch.
        for key in ("reward", "response_length"):
            if (mean := f"rollout/{key}_mean") in status:
                status.setdefault(key, status[mean])
        status["groups"] = len(rollout_samples) // self.args.rollout.n_samples_per_prompt
        if self.experience_maker.groups_used is not None:  # set only by an estimator of the plugin
            status["groups_used"] = self.experience_maker.groups_used
        status["scorer_zeros"] = int(sum(float(sample.info["scorer_errors"]) for sample in rollout_samples))
        return status, next_step

    def save_logs_and_checkpoints(
        self: Any, global_step: int, logs_dict: dict[str, Any] | None = None, client_states: Any = None
    ) -> None:
        log_step(current_settings().log_dir, global_step, logs_dict or {})
        original_logs(self, global_step, logs_dict, client_states)

    def save_best_checkpoint(
        self: Any, eval_metrics: dict[str, Any] | None, global_step: int, client_states: Any = None
    ) -> None:
        log_step(current_settings().log_dir, global_step, eval_metrics or {})
        original_best(self, eval_metrics, global_step, client_states)

    def init_checkpoint_states(self: Any) -> Any:
        states = original_states(self)
        forget_steps_after(current_settings().log_dir, states["global_step"])
        return states

    trainer.train_step, trainer.init_checkpoint_states = train_step, init_checkpoint_states
    trainer.save_logs_and_checkpoints, trainer.save_best_checkpoint = save_logs_and_checkpoints, save_best_checkpoint


def patch_actor(module: Any) -> None:
    """Wrap `ppo_train` of the host's `ActorPPOTrainer`: add the number of optimizer steps to its status."""
    original = module.ActorPPOTrainer.ppo_train

    def ppo_train(self: Any, kl_ctl: float) -> dict[str, Any]:
        engine = self.actor.model
        before = engine.global_steps
        status = original(self, kl_ctl)
        return {**status, "optimizer_steps": engine.global_steps - before}

    module.ActorPPOTrainer.ppo_train = ppo_train


def keep_shared_logs(samples: Sequence[Any]) -> None:
    """Drop what only some rollouts log: the host joins them, and a user's code that failed on one logs nothing."""
    shared = set.intersection(*(set(sample.info) for sample in samples)) if samples else set()
    for sample in samples:
        sample.info = {key: value for key, value in sample.info.items() if key in shared}


def count_unread(trainer: Any, samples: Sequence[Any], step: int) -> int:
    """Count consecutive steps without a readable candidate; warn at the first and at every third such step.

    Args:
        trainer: the host's trainer, which holds the count as `unread`.
        samples: the rollouts of the step, each an experience of one row.
        step: the number of the step (1-based).
    """
    if any(float(sample.info["candidates_parsed"]) for sample in samples):
        return 0
    unread = getattr(trainer, "unread", 0) + 1
    if hasattr(trainer, "unread") and unread % UNREAD_STEPS:
        return unread
    run, sample = current_settings(), samples[0]
    response = trainer.tokenizer.decode(sample.sequences[0][1:][sample.action_mask[0].bool()])
    file = run.log_dir / f"unreadable_step_{step:06d}.txt"
    text = f"# prompt\n{sample.prompts[0]}\n\n# response\n{response}\n"
    files.write(file, text.encode(errors="backslashreplace"))
    print(
        f"{REMARK}0 of {len(samples) * run.candidates} candidates of step {step} could be read, so nothing was learnt: "
        f"{file} has an example prompt and response.",
        flush=True,
    )
    return unread

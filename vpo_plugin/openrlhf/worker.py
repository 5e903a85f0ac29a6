"""What every Ray worker process of a run does before the host's code runs in it.

`SETUP` is the run's `worker_process_setup_hook`: a name, since Ray refuses a hook that is a function where vLLM joins
it from within a worker (`ray/_private/runtime_env/setup_hook.py`, Ray 2.55). It imports neither torch nor the host,
so it costs a worker nothing; each patch takes effect right after the host imports the module concerned. Symbols of
OpenRLHF 0.11 touched here, on every machine:

======================================================= ==============================================================
symbol                                                  why
======================================================= ==============================================================
`RemoteExperienceMaker.compute_advantages_and_returns` has a fixed list of estimators (`experience`)
`BasePPOTrainer.train_step`                             knows the step's number, which the method above needs
`BasePPOTrainer.save_logs_and_checkpoints`              has a step's complete metrics, timing included, for our log
`BasePPOTrainer.save_best_checkpoint`                   has the metrics of an evaluation, for our log
`BasePPOTrainer.init_checkpoint_states`                 knows the step from which the run and its log continue
`ppo_trainer.blending_datasets`                         reads fewer kinds of datasets than the plugin
`ppo_trainer.compute_eval_metrics`                      knows only means of a set's rewards
`ActorPPOTrainer.ppo_train`                             does not say how many optimizer steps it took
`ActorPPOTrainer.broadcast_to_vllm`,                    send and save LoRA's own parameters: here the merged weights
`DeepspeedStrategy.save_model`
`SamplesGenerator._generate_vllm`,                      filter prompts by their mean reward: here by whether the
`._process_response_into_experience`                    estimator tells their rollouts apart
`DeepspeedStrategy.save_ckpt`                           fails with a DeepSpeed error that does not say what to do
`prompts_dataset.preprocess_data`                       asks each prompt for m candidates before the chat template, and
                                                        takes no options of that template
======================================================= ==============================================================
"""

from typing import Any

import wrapt

from vpo_plugin.openrlhf import cpu
from vpo_plugin.openrlhf.settings import current_settings

SETUP = "vpo_plugin.openrlhf.worker.setup"


def setup() -> None:
    """Prepare this process for the run: CPU runtime where needed, then the patches of the host."""
    run = current_settings()
    if run.on_cpu:
        cpu.install()
    if run.spec is not None:
        wrapt.register_post_import_hook(_patch_prompts, "openrlhf.datasets.prompts_dataset")
        wrapt.register_post_import_hook(_patch_experience_maker, "openrlhf.trainer.ppo_utils.experience_maker")
        wrapt.register_post_import_hook(_patch_trainer, "openrlhf.trainer.ppo_trainer")
        wrapt.register_post_import_hook(_patch_filter, "openrlhf.trainer.ppo_utils.samples_generator")
    wrapt.register_post_import_hook(_patch_actor, "openrlhf.trainer.ray.ppo_actor")
    wrapt.register_post_import_hook(_patch_strategy, "openrlhf.utils.deepspeed.deepspeed")


def _patch_prompts(module: Any) -> None:
    from vpo_plugin.openrlhf.prompts import patch_prompts

    patch_prompts(module)


def _patch_experience_maker(module: Any) -> None:
    from vpo_plugin.openrlhf.experience import compute_advantages_and_returns

    maker = module.RemoteExperienceMaker
    original = maker.compute_advantages_and_returns

    def compute(self: Any, experiences: list[Any]) -> list[Any]:
        return compute_advantages_and_returns(self, experiences, original)

    maker.compute_advantages_and_returns = compute


def _patch_trainer(module: Any) -> None:
    from vpo_plugin.openrlhf.evaluation import patch_evaluation
    from vpo_plugin.openrlhf.prompts import patch_datasets
    from vpo_plugin.openrlhf.trainer import patch_trainer

    patch_trainer(module.BasePPOTrainer)
    patch_evaluation(module)
    patch_datasets(module)


def _patch_actor(module: Any) -> None:
    from vpo_plugin.openrlhf import lora, trainer

    lora.patch_actor(module.ActorPPOTrainer)
    trainer.patch_actor(module.ActorPPOTrainer)


def _patch_filter(module: Any) -> None:
    from vpo_plugin.openrlhf.dynamic_filter import patch_generator

    patch_generator(module.SamplesGenerator)


def _patch_strategy(module: Any) -> None:
    from vpo_plugin.openrlhf import lora
    from vpo_plugin.openrlhf.checkpoints import why_not_saved

    lora.patch_strategy(module.DeepspeedStrategy, module.torch_dist_barrier_and_cuda_sync)

    original = module.DeepspeedStrategy.save_ckpt

    def save_ckpt(self: Any, model: Any, save_dir: str, tag: str | None = None, *rest: Any, **more: Any) -> None:
        try:
            original(self, model, save_dir, tag, *rest, **more)
        except (OSError, RuntimeError) as error:
            if (sentence := why_not_saved(error, tag, save_dir)) is None:
                raise
            raise RuntimeError(sentence) from error

    module.DeepspeedStrategy.save_ckpt = save_ckpt

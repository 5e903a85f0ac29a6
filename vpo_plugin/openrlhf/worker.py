"""Set up each Ray worker process of a run before the host's code runs in it.

`SETUP` is the run's `worker_process_setup_hook`. It is a name because Ray refuses a function as hook if vLLM joins Ray
from within a worker (`ray/_private/runtime_env/setup_hook.py`, Ray 2.55). It imports neither torch nor the host, so it
costs a worker nothing; each patch takes effect right after the host imports the module concerned. Symbols of OpenRLHF
0.11 touched here, on every machine:

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
`ActorPPOTrainer.broadcast_to_vllm`,                    send and save LoRA's own parameters: now the merged weights
`DeepspeedStrategy.save_model`
`SamplesGenerator._generate_vllm`,                      filter prompts by their mean reward: now by whether the
`._process_response_into_experience`                    estimator tells their rollouts apart
`DeepspeedStrategy.save_ckpt`                           fails with a DeepSpeed error that does not say what to do
`prompts_dataset.preprocess_data`                       asks each prompt for m candidates before the chat template, and
                                                        takes no options of that template
======================================================= ==============================================================
"""

import wrapt

from vpo_plugin.openrlhf import cpu
from vpo_plugin.openrlhf.settings import current_settings

SETUP = "vpo_plugin.openrlhf.worker.setup"
OF_ALL = (
    ("openrlhf.trainer.ray.ppo_actor", "lora:patch_actor"),
    ("openrlhf.trainer.ray.ppo_actor", "trainer:patch_actor"),
    ("openrlhf.utils.deepspeed.deepspeed", "lora:patch_strategy"),
    ("openrlhf.utils.deepspeed.deepspeed", "checkpoints:patch_strategy"),
)
"""Modules of the host, and the functions of this package that patch them."""
OF_A_SPEC = (
    ("openrlhf.datasets.prompts_dataset", "prompts:patch_prompts"),
    ("openrlhf.trainer.ppo_utils.experience_maker", "experience:patch_experience_maker"),
    ("openrlhf.trainer.ppo_trainer", "trainer:patch_trainer"),
    ("openrlhf.trainer.ppo_trainer", "evaluation:patch_evaluation"),
    ("openrlhf.trainer.ppo_trainer", "prompts:patch_datasets"),
    ("openrlhf.trainer.ppo_utils.samples_generator", "dynamic_filter:patch_generator"),
)
"""The same for a run with a specification."""


def setup() -> None:
    """Prepare this process for the run: CPU runtime where needed, then the patches of the host."""
    run = current_settings()
    if run.on_cpu:
        cpu.install()
    for module, patch in (*OF_ALL, *(() if run.spec is None else OF_A_SPEC)):
        wrapt.register_post_import_hook(f"vpo_plugin.openrlhf.{patch}", module)

#!/usr/bin/env bash
# OpenRLHF's launch script for one node with GPUs, with the two lines that change: the module, and the estimator with its
# specification. Before, they were
#   python -m openrlhf.cli.train_ppo_ray \
#     --algo.advantage.estimator group_norm --reward.remote_url my_reward.py \
# Add further flags, or override those below, on the command line: examples/train.sh --rollout.temperature 0.8
set -euo pipefail
model=${MODEL:-Qwen/Qwen3-1.7B} spec=${SPEC:-examples/menu} prompts=${PROMPTS:-examples/menu/rows.jsonl}

gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c GPU || true) placement=()
if ((gpus)); then  # training and engines take turns on each; without GPUs the plugin has its own defaults
  placement=(--actor.num_gpus_per_node "$gpus" --ref.num_gpus_per_node "$gpus" --vllm.num_engines "$gpus"
    --train.colocate_all --vllm.enable_sleep --ds.enable_sleep --vllm.gpu_memory_utilization 0.6)
fi

exec python -m vpo_plugin.train_ppo_ray \
  --advantage vpo --vpo.spec "$spec" --vpo.candidates 3 \
  --actor.model_name_or_path "$model" --vpo.chat_template_kwargs '{"enable_thinking": false}' \
  --data.prompt_dataset "$prompts" --data.input_key text --data.label_key menu --data.apply_chat_template \
  --data.max_len 1024 --rollout.max_new_tokens 512 \
  --rollout.batch_size 128 --rollout.n_samples_per_prompt 8 --rollout.temperature 1 \
  --train.batch_size 1024 --actor.adam.lr 1e-6 \
  --algo.kl.use_loss --algo.kl.estimator k3 --algo.kl.init_coef 1e-3 \
  --ckpt.output_dir runs/menu \
  "${placement[@]}" "$@"

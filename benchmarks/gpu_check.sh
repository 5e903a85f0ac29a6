#!/usr/bin/env bash
# What works on this machine's GPU: estimator and experience hook on CUDA tensors beside the CPU's, then a training of the
# tiny policy. One command, in the environment in which trainings run; each part says what it needs and does not find.
#   bash benchmarks/gpu_check.sh > gpu_check.txt
# Wheels for a machine without a network: pip download --no-deps -r requirements/gpu.txt, in pieces with split -b 60M, joined
# there with cat. flash-attn is compiled; without it its import is stood in for, and the training packs no samples.
set -u
cd "$(dirname "$0")/.." || exit
python=${PYTHON:-python}

echo "== device and versions"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || echo "no NVIDIA device"
"$python" - <<'END'
import importlib.metadata
import platform

print("python", platform.python_version())
for package in ("torch", "vllm", "openrlhf", "deepspeed", "ray", "transformers", "flash-attn"):
    try:
        print(package, importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        print(package, "is not installed")
END

echo "== estimator, CUDA beside CPU"
"$python" - <<'END'
import time

try:
    import torch

    from vpo_plugin.advantages import RewardBatch, get_advantage_estimator
except ImportError as error:
    raise SystemExit(f"did not run: {error}")
if not torch.cuda.is_available():
    raise SystemExit("did not run: torch sees no CUDA device")

vpo = get_advantage_estimator("vpo")
for groups, rollouts, candidates, objectives in ((128, 8, 3, 4), (128, 8, 5, 16), (512, 8, 5, 16)):
    rewards = torch.rand(groups, rollouts, candidates, objectives, generator=torch.Generator().manual_seed(0))
    result = {}
    for device in ("cpu", "cuda"):
        matrices, seconds = rewards.to(device), []
        for _ in range(6):
            start = time.perf_counter()
            result[device] = vpo(RewardBatch(matrices, generator=torch.Generator().manual_seed(0))).cpu()
            seconds.append(time.perf_counter() - start)
        print(f"{groups}x{rollouts}x{candidates}x{objectives} {device:4} {1e3 * min(seconds[1:]):8.1f} ms")
    print(f"largest difference of an advantage: {(result['cpu'] - result['cuda']).abs().max():.2e}")
END

export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
if ! "$python" -c "import flash_attn" 2>/dev/null; then
    echo "flash-attn is not installed: its import is stood in for, and packed samples are not tried"
    stand_in=$(mktemp -d)
    trap 'rm -rf "$stand_in"' EXIT
    mkdir -p "$stand_in/flash_attn/utils"
    touch "$stand_in/flash_attn/__init__.py" "$stand_in/flash_attn/utils/__init__.py"
    echo "index_first_axis = pad_input = rearrange = unpad_input = None" > "$stand_in/flash_attn/bert_padding.py"
    echo "all_gather = None" > "$stand_in/flash_attn/utils/distributed.py"
    export PYTHONPATH="$PYTHONPATH:$stand_in"
fi

echo "== experience hook, CUDA beside CPU"
if said=$("$python" -m benchmarks.simulate hook 2>&1); then
    echo "$said"
else
    echo "did not run: $(tail -1 <<< "$said")"
fi

echo "== training"
if "$python" -c "import openrlhf, vllm" 2>/dev/null; then
    "$python" -m vpo_plugin.cli doctor --train
else
    echo "did not run: it needs openrlhf and vllm ($("$python" -c 'import openrlhf, vllm' 2>&1 | tail -1))"
fi

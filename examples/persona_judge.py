"""Serve SmolLM2 as the judge of the personas spec, with vLLM, on a CPU or a GPU: python -m examples.persona_judge

Further flags go to vLLM's server: `--port 8001`, `--max-num-seqs 32`.
"""

import os
import sys
from pathlib import Path

from vpo_plugin.models import SMOLLM2, resolve_policy
from vpo_plugin.openrlhf.cpu import environment


def main() -> None:
    import torch

    model = resolve_policy(SMOLLM2, Path("runs") / "policies")
    if not torch.cuda.is_available():
        for name, value in environment().items():
            os.environ.setdefault(name, value)
    # The server's module, because vLLM's own command needs a package named vllm, and the CPU build has another name.
    server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    flags = ["--model", model, "--served-model-name", SMOLLM2, "--host", "127.0.0.1", "--max-model-len", "2048"]
    os.execv(server[0], [*server, *flags, "--enforce-eager", *sys.argv[1:]])


if __name__ == "__main__":
    main()

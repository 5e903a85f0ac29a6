"""`python -m vpo_plugin.train_sft`: the host's supervised trainer, `openrlhf.cli.train_sft`, flags unchanged.

On a machine with CUDA this is the host's command and nothing else (use `deepspeed --module` for several GPUs, as
with the host). Without CUDA it trains in this one process.
"""

import os
import runpy
import socket
import sys

import torch

from vpo_plugin.openrlhf import cpu


def main() -> None:
    if not torch.cuda.is_available():
        cpu.install()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        single = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in single.items():
            os.environ.setdefault(name, value)
    sys.argv[0] = "openrlhf.cli.train_sft"
    runpy.run_module("openrlhf.cli.train_sft", run_name="__main__")


if __name__ == "__main__":
    main()

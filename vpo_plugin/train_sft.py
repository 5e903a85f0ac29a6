"""`python -m vpo_plugin.train_sft`: the host's supervised trainer, `openrlhf.cli.train_sft`, flags unchanged.

Started by a launcher (`deepspeed --module`, `torchrun`), it trains on the launcher's processes, as the host does.
Started on its own, it trains in this one process: without the launcher's variables DeepSpeed would ask MPI for them.
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
    if "RANK" not in os.environ:
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

"""Serve the champion of a registry with vLLM at one address, and switch after each promotion or rollback.

    python examples/serve_champion.py --registry runs/registry --port 8000

Clients use the model `champion` at http://HOST:8000/v1, whichever version that is. vLLM loads the new version when the
registry names it. Until it answers, requests are refused, so clients must retry. Flags after `--` are for vLLM.
"""

import argparse
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from flows.registry import RegistryError, champion
from vpo_plugin.locks import exit_on_sigterm, temporary_home

VLLM = (sys.executable, "-m", "vllm.entrypoints.openai.api_server")
"""The same as `vllm serve`, which vLLM's CPU build lacks."""
POLL_SECONDS = 5.0
STOP_SECONDS = 60.0


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C; if vLLM ends by itself, end with its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--registry", type=Path, default=Path("runs/registry"))
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("vllm", nargs="*", metavar="-- FLAG", help="further flags of `vllm serve`")
    args = parser.parse_args(arguments)
    exit_on_sigterm()
    temporary_home()
    current, served, server = None, None, None
    try:
        while server is None or server.poll() is None:
            with suppress(*[RegistryError] if served else []):  # keep serving while the registry changes
                current = champion(args.registry)
            if current is None:
                sys.exit(f"The registry {args.registry} has no champion yet: run a retraining first.")
            if current.version != served:
                stop(server)
                print(f"Serving {current.version}: {current.policy}", flush=True)
                command = [*VLLM, "--model", current.policy, "--served-model-name", "champion"]
                server = subprocess.Popen([*command, "--host", args.host, "--port", str(args.port), *args.vllm])
                served = current.version
            time.sleep(POLL_SECONDS)
        return server.returncode
    finally:
        stop(server)


def stop(server: "subprocess.Popen[bytes] | None") -> None:
    """End a server after it finishes its open requests."""
    if server is None:
        return
    server.terminate()
    try:
        server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


if __name__ == "__main__":
    sys.exit(main())

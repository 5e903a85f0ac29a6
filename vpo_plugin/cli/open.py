"""`vpo open`."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg

from vpo_plugin.cli.settings import Command, read


class Open(Command):
    """Serve a run's report, plots and logs to a browser until Ctrl-C, and print the address.

    On a machine without a browser, forward the port: ssh -L 8080:127.0.0.1:8080 MACHINE, with --port 8080 there.
    """

    run: CliPositionalArg[Path] = Field(description="Folder of the run.")
    host: str = Field("127.0.0.1", description="Address to listen on; other than loopback, the network can read it.")
    port: int = Field(0, ge=0, le=65535, description="Port; 0 picks a free one.")


def main(arguments: list[str]) -> int:
    """Serve until it is interrupted."""
    settings = read(Open, arguments, "vpo open")
    from vpo_plugin.report.serve import serving

    with serving(settings.run, settings.host, settings.port) as server:
        host, port = server.server_address[:2]
        print(f"http://{host!s}:{port}/", flush=True)
        server.serve_forever()
    return 0

"""The Prefect server that flows report to: the configured one, or a temporary one that ends with its flow."""

import functools
import subprocess
from typing import Any

from prefect.events.clients import PrefectEventsClient
from prefect.events.worker import EventsWorker
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import PREFECT_API_URL

from vpo_plugin.cli.doctor import server_trouble
from vpo_plugin.locks import after_this_process


def check_server() -> None:
    """Check that a configured server answers, before anything starts.

    Without a configured server, Prefect starts a temporary one; make that one end with this process, however it ends.

    Raises:
        ConnectionError: the server does not answer.
    """
    url = PREFECT_API_URL.value()
    if not url:
        end_servers_with_this_process()
        return
    if trouble := server_trouble(url):
        raise ConnectionError(f"The Prefect {trouble} Nothing was started.")


@functools.cache
def end_servers_with_this_process() -> None:
    """Give each temporary server that Prefect starts here a watcher, which survives a SIGKILL of this process.

    `SubprocessASGIServer._run_uvicorn_command` (Prefect 3.4 to 3.7) starts the server, and only `atexit` ends it. A
    server that was killed does not come back: then each event is lost at once, not after ten attempts of a second.
    """
    start = SubprocessASGIServer._run_uvicorn_command

    def start_watched(self: SubprocessASGIServer) -> "subprocess.Popen[Any]":
        server = start(self)
        after_this_process('kill "$0" 2> /dev/null', str(server.pid))
        EventsWorker.set_client_override(PrefectEventsClient, api_url=self.api_url, reconnection_attempts=2)
        return server

    SubprocessASGIServer._run_uvicorn_command = start_watched  # type: ignore[method-assign]

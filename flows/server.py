"""The Prefect server that flows report to: the configured one, or a temporary one that ends with its flow."""

import functools
import subprocess
import time
from contextlib import suppress
from typing import Any

import psutil
import wrapt
from prefect.client.base import PrefectHttpxAsyncClient, PrefectHttpxSyncClient
from prefect.events.clients import PrefectEventsClient
from prefect.events.worker import EventsWorker
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS

from vpo_plugin.cli.doctor import server_trouble
from vpo_plugin.locks import after_this_process

END = """
import sys
import psutil
try:
    server = psutil.Process(int(sys.argv[1]))
    if abs(server.create_time() - float(sys.argv[2])) < 60:  # not another process with its id
        server.terminate()
except psutil.Error:
    pass
"""
ATTEMPTS = 5
"""How often a temporary server is started, if each time another process takes its port."""


def check_server() -> None:
    """Check that a configured server answers, before anything starts.

    Without a configured server, Prefect starts a temporary one; make that one end with this process, however it ends.

    Raises:
        ConnectionError: the server does not answer.
    """
    url = PREFECT_API_URL.value()
    if not url:
        watch_temporary_servers()
        return
    if trouble := server_trouble(url):
        raise ConnectionError(f"The Prefect {trouble} Nothing was started.")


@functools.cache
def watch_temporary_servers() -> None:
    """Give each temporary server that Prefect starts here a watcher, and a port that is its own.

    `SubprocessASGIServer._run_uvicorn_command` (Prefect 3.4 to 3.7) starts the server on a random port that was free a
    few seconds before it listens. If another flow's server took that port in between, Prefect would use the other
    server, which ends with the other flow. Only `atexit` ends the server: the watcher survives a SIGKILL of this
    process. A server that was killed does not come back: then each event is lost at once, not after ten attempts of a
    second, and each request fails at once, not after a minute (`PrefectHttpx…Client._send_with_retry`).
    """
    start = SubprocessASGIServer._run_uvicorn_command
    started: list[subprocess.Popen[Any]] = []

    def start_watched(self: SubprocessASGIServer) -> "subprocess.Popen[Any]":
        for _ in range(ATTEMPTS):
            server = start(self)
            begun = repr(psutil.Process(server.pid).create_time())
            after_this_process(END, str(server.pid), begun)
            if listens(server, self.port) or server.poll() is None:
                break
            if self.is_port_available(self.port):
                raise RuntimeError(f"Prefect's temporary server ended at its start with exit code {server.returncode}.")
            self.port = self.find_available_port()
        EventsWorker.set_client_override(PrefectEventsClient, api_url=self.api_url, reconnection_attempts=2)
        started.append(server)
        return server

    def send(wrapped: Any, _client: Any, _arguments: Any, given: dict[str, Any]) -> Any:
        ended = started and started[-1].poll() is not None
        return wrapped(**given | ({"retry_exceptions": ()} if ended else {}))

    SubprocessASGIServer._run_uvicorn_command = start_watched  # type: ignore[method-assign]
    for client in (PrefectHttpxSyncClient, PrefectHttpxAsyncClient):
        wrapt.wrap_function_wrapper(client, "_send_with_retry", send)


def listens(server: "subprocess.Popen[Any]", port: int) -> bool:
    """Whether a started server itself listens on the port; False if it ended, or took too long."""
    deadline = time.monotonic() + PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value()
    while server.poll() is None and time.monotonic() < deadline:
        with suppress(psutil.NoSuchProcess):
            if any(
                c.laddr.port == port and c.status == psutil.CONN_LISTEN
                for c in psutil.Process(server.pid).net_connections("tcp4")
            ):
                return True
        time.sleep(0.1)
    return False

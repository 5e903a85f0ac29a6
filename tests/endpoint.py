"""A local HTTP server whose answers a test decides: endpoints that fail in every way."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server:
    """A local server that answers each request as `reply(path, content)` says: (status, JSON)."""

    def __init__(self, reply: Callable[[str, dict], tuple[int, Any]]) -> None:
        self.requests: list[dict] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append(content)
                self.answer(content)

            def do_GET(self) -> None:
                self.answer({})

            def answer(self, content: dict) -> None:
                status, answer = reply(self.path, content)
                body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@contextlib.contextmanager
def serving(reply: Callable[[str, dict], tuple[int, Any]]) -> Iterator[Server]:
    server = Server(reply)
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()

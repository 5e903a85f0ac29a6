"""A reward server as OpenRLHF asks one: it answers what the `reward_func` of a Python file returns. A spec for it."""

import json
import runpy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

NAMES_ONLY = """
name: moves
description: shares of the moves
objectives:
  - {key: up, description: share of UP}
  - {key: down, description: share of DOWN}
  - {key: left, description: share of LEFT}
  - {key: right, description: share of RIGHT}
candidates: 1
tag: route
prompt: {single: null, multi: "Write {candidates} in <route_1>."}
scorer: null
dataset: null
limits: {response_chars: 1000, tokens_per_candidate: 20}
"""
"""What a user writes whose own code gives the rewards."""


@contextmanager
def reward_server(file: Path) -> Iterator[str]:
    """Its address, on a free port of this machine; a function that raises closes the connection."""
    reward_func = runpy.run_path(str(file))["reward_func"]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = reward_func(asked["query"], asked["prompts"], asked["labels"])
            body = json.dumps(answer, default=lambda tensor: tensor.tolist()).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.handle_error = lambda *of: None  # type: ignore[method-assign]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/get_reward"
        server.shutdown()

"""A Hugging Face hub on this machine: the part of its HTTP API through which `datasets` reads, over a folder.

The client is the real one. What it asks: the list of a repository's files, what lies at some paths, and a file.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(root: Path) -> Iterator[str]:
    """The address of a hub whose datasets are the folders `root/OWNER/NAME`; what is not there is 404, as there."""

    def entry(repository: Path, path: Path) -> dict[str, object]:
        name = path.relative_to(repository).as_posix()
        if path.is_dir():
            return {"type": "directory", "oid": COMMIT, "size": 0, "path": name}
        return {"type": "file", "oid": oid(path), "size": path.stat().st_size, "path": name}

    def oid(path: Path) -> str:
        return sha256(path.read_bytes()).hexdigest()[:40]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.serve({})

        def do_HEAD(self) -> None:
            self.serve({})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            is_json = "json" in self.headers.get("Content-Type", "")
            self.serve(json.loads(body) if is_json else parse_qs(body))

        def serve(self, asked: dict[str, list[str]]) -> None:
            match [unquote(part) for part in urlparse(self.path).path.strip("/").split("/")]:
                case ["api", "datasets", owner, name, *rest]:
                    self.of_api(root / owner / name, rest, asked)
                case ["datasets", owner, name, "resolve", _, *path]:
                    self.of_file(root / owner / name, root.joinpath(owner, name, *path))
                case _:
                    self.answer(404, b"", {})

        def of_api(self, repository: Path, rest: list[str], asked: dict[str, list[str]]) -> None:
            if not repository.is_dir():
                self.answer(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
                return
            files = sorted(path for path in repository.rglob("*") if path.is_file())
            match rest:
                case [] | ["revision", _]:
                    siblings = [{"rfilename": path.relative_to(repository).as_posix()} for path in files]
                    name = repository.relative_to(root).as_posix()
                    self.answer_json({"id": name, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False})
                case ["paths-info", _]:
                    paths = [repository / path for path in asked["paths"]]
                    self.answer_json([entry(repository, path) for path in paths if path.exists()])
                case ["tree", _, *inside]:
                    folder = repository.joinpath(*inside)
                    deep = "true" in parse_qs(urlparse(self.path).query).get("recursive", ["false"])[0].lower()
                    if folder.is_dir():
                        found = sorted(folder.rglob("*") if deep else folder.iterdir())
                        self.answer_json([entry(repository, path) for path in found])
                    else:
                        self.answer(404, b'{"error": "not found"}', {"X-Error-Code": "EntryNotFound"})
                case _:
                    self.answer(404, b"", {})

        def of_file(self, repository: Path, file: Path) -> None:
            if file.is_file():
                self.answer(200, file.read_bytes(), {"ETag": f'"{oid(file)}"', "X-Repo-Commit": COMMIT})
            else:
                error = "EntryNotFound" if repository.is_dir() else "RepoNotFound"
                self.answer(404, b"", {"X-Error-Code": error, "X-Repo-Commit": COMMIT})

        def answer_json(self, value: object) -> None:
            self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()

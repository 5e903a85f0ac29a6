"""`vpo open`: serve a run's folder read-only over HTTP: reports, plots, progress of its trainings, logs."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from vpo_plugin.openrlhf.log import end_of, training_curve
from vpo_plugin.report import plots
from vpo_plugin.report.rollouts import find_trainings, format_training
from vpo_plugin.report.write import render

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".png": "image/png",
    ".json": "application/json",
    ".jsonl": "text/plain; charset=utf-8",
    ".md": "text/plain; charset=utf-8",
    ".log": "text/plain; charset=utf-8",
}
"""Types of served files; an HTML file only if it is a report, whose own policy allows only its own script."""
REPORT = "report.html"
LIVE = "live.png"
LOOPBACK = ("127.0.0.1", "localhost")
POLICY = "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'"
LOGS = 10
REFRESH_SECONDS = 20


def serving(run: Path, host: str, port: int) -> ThreadingHTTPServer:
    """A server of a run's folder, already listening.

    Raises:
        FileNotFoundError: there is no such folder.
        OSError: the port is taken.
    """
    if not run.is_dir():
        raise FileNotFoundError(f"There is no run in {run}.")
    handler = type("RunHandler", (Handler,), {"run": run.resolve(), "local": host in LOOPBACK})
    return ThreadingHTTPServer((host, port), handler)


class Handler(BaseHTTPRequestHandler):
    """Answers GET: the run's page, the plot of its trainings, and files of `TYPES` in its folder."""

    run: Path
    local: bool

    def do_GET(self) -> None:
        """Send a page or a file."""
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        path = unquote(urlsplit(self.path).path).lstrip("/")
        file = (self.run / path).resolve()
        if self.local and host not in LOOPBACK:  # another site's name that resolves here
            self.send_error(403, "This server only answers its own machine.")
        elif not path:
            self.send(page(self.run).encode(), TYPES[".html"], POLICY)
        elif path == LIVE and (trainings := find_trainings(self.run)):
            self.send(plots.live({name: training_curve(log) for name, log in trainings.items()}), TYPES[".png"])
        elif self.may_be_read(file):
            self.send(file.read_bytes(), TYPES[file.suffix])
        else:
            self.send_error(404, "There is no such page.")

    def may_be_read(self, file: Path) -> bool:
        """Whether the file is served."""
        inside = file.is_relative_to(self.run) and not any(
            part.startswith(".") for part in file.relative_to(self.run).parts
        )
        return inside and file.is_file() and file.suffix in TYPES and (file.suffix != ".html" or file.name == REPORT)

    def send(self, content: bytes, kind: str, policy: str | None = None) -> None:
        """Send content of a MIME type, with a content security policy if given."""
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        if policy:
            self.send_header("Content-Security-Policy", policy)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Do not log requests."""


def page(run: Path) -> str:
    """The page of a run: the files in its folder and the progress of its trainings."""
    logs = sorted(run.rglob("*.log"), key=lambda log: -log.stat().st_mtime)[:LOGS]

    def found(*patterns: str) -> list[Path]:
        return [file.relative_to(run) for pattern in patterns for file in sorted(run.glob(pattern))]

    return render(
        "run.html.j2",
        run=run,
        reports=found(REPORT, f"*/{REPORT}"),
        results=found("*.md", "*.json"),
        trainings=[format_training(name, log) for name, log in find_trainings(run).items()],
        live=LIVE,
        pictures=found("*.png"),
        logs=[log.relative_to(run) for log in logs],
        end=end_of(logs[0]) if logs else "",
        refresh_seconds=REFRESH_SECONDS,
    )

"""`vpo open`: a run's folder over HTTP, to be read: its reports and plots, how its trainings go, its logs."""

from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from vpo_plugin.openrlhf.log import end_of, training_curve
from vpo_plugin.report import plots
from vpo_plugin.report.rollouts import find_trainings, format_training

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".png": "image/png",
    ".json": "application/json",
    ".jsonl": "text/plain; charset=utf-8",
    ".md": "text/plain; charset=utf-8",
    ".log": "text/plain; charset=utf-8",
}
"""Files that are served; an HTML file only if it is a report, whose own policy allows no script but its own."""
REPORT = "report.html"
LIVE = "live.png"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
POLICY = "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'"
LOGS = 10
REFRESH_SECONDS = 20


def serving(run: Path, host: str, port: int) -> ThreadingHTTPServer:
    """A server of a run's folder, which listens already.

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
        if self.local and host not in LOOPBACK:  # a page of another site that has its name point here
            self.send_error(403, "This server is for its own machine.")
        elif not path:
            self.send(page(self.run).encode(), TYPES[".html"], POLICY)
        elif path == LIVE and (trainings := find_trainings(self.run)):
            self.send(plots.live({name: training_curve(log) for name, log in trainings.items()}), TYPES[".png"])
        elif self.may_be_read(file):
            self.send(file.read_bytes(), TYPES[file.suffix])
        else:
            self.send_error(404, "There is no such page.")

    def may_be_read(self, file: Path) -> bool:
        """Whether a file is one of those that are served."""
        inside = file.is_relative_to(self.run) and not any(
            part.startswith(".") for part in file.relative_to(self.run).parts
        )
        return inside and file.is_file() and file.suffix in TYPES and (file.suffix != ".html" or file.name == REPORT)

    def send(self, content: bytes, kind: str, policy: str | None = None) -> None:
        """Send content of a type."""
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
        """Say nothing of each request."""


def page(run: Path) -> str:
    """The page of a run: what is in its folder, and how its trainings go."""
    home = Path(__file__).parent
    reports = [file for pattern in (REPORT, f"*/{REPORT}") for file in sorted(run.glob(pattern))]
    pictures = sorted(run.glob("*.png"))
    results = [*sorted(run.glob("*.md")), *sorted(run.glob("*.json"))]
    logs = sorted(run.rglob("*.log"), key=lambda log: -log.stat().st_mtime)[:LOGS]
    trainings = find_trainings(run)
    parts = [f"<h1>{escape(run.name)}</h1>", f'<p class="soft">{escape(str(run))}</p>']
    if reports:
        parts += ["<h2>Reports</h2>", _list([*reports, *results], run)]
    elif results:
        parts += ["<h2>Results</h2>", _list(results, run)]
    if trainings:
        parts += ["<h2>Trainings</h2>", f'<img src="/{LIVE}" alt="Curves of the trainings">']
        parts += [_text(format_training(name, log)) for name, log in trainings.items()]
    if logs and not reports:
        parts += ["<h2>The end of the newest log</h2>", f"<p>{_link(logs[0], run)}</p>", _text(end_of(logs[0]))]
    parts += [f"<h2>{escape(file.stem)}</h2>{_image(file, run)}" for file in pictures]
    if logs:
        parts += ["<h2>Logs</h2>", _list(logs, run)]
    refresh = "" if reports else f'<meta http-equiv="refresh" content="{REFRESH_SECONDS}">'
    css = (home / "report.css").read_text(encoding="utf-8")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{refresh}<meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>{escape(run.name)}</title><style>{css}{STYLE}</style>'
        f"</head><body><main>{''.join(parts)}</main></body></html>"
    )


STYLE = "img { max-width: 100%; background: #fff; } pre { overflow-x: auto; font-size: .85rem; }"


def _list(files: list[Path], run: Path) -> str:
    return "<ul>" + "".join(f"<li>{_link(file, run)}</li>" for file in files) + "</ul>"


def _link(file: Path, run: Path) -> str:
    place = file.relative_to(run)
    return f'<a href="/{quote(str(place))}">{escape(str(place))}</a>'


def _image(file: Path, run: Path) -> str:
    return f'<img src="/{quote(str(file.relative_to(run)))}" alt="{escape(file.stem)}">'


def _text(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"

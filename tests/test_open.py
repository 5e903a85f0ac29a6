"""`vpo open`: a run in a browser, from its own machine."""

import http.client
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from report_results import made_up_results, write

from vpo_plugin.cli import main
from vpo_plugin.openrlhf.log import log_step
from vpo_plugin.report.serve import serving

STEP = {
    **dict.fromkeys(("reward", "set_reward", "group_diversity", "candidates_parsed", "kl", "response_length"), 0.5),
    **{"groups": 4, "groups_used": 1},
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with a report, a training that ended early, and what is not to be read."""
    folder = tmp_path / "runs" / "a <b> run"
    write(made_up_results(), folder)
    for step in (1, 2):
        log_step(folder / "train" / "vpo" / "policy" / "vpo", step, STEP)
    (folder / "train" / "vpo" / "train.log").write_text("(Worker pid=1) x\nValueError: <script>bad</script>\n")
    (folder / "page.html").write_text("not ours")
    (folder / ".hidden.json").write_text("{}")
    (folder / "policy.safetensors").write_text("weights")
    (tmp_path / "outside.json").write_text("{}")
    (folder / "link.json").symlink_to(tmp_path / "outside.json")
    return folder


@pytest.fixture
def port(run: Path) -> Iterator[int]:
    with serving(run, "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def get(port: int, path: str, host: str = "localhost") -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path, headers={"Host": host})
    answer = connection.getresponse()
    return answer.status, answer.headers["Content-Type"], answer.read()


def test_the_page_leads_to_the_report(port: int, run: Path) -> None:
    status, kind, body = get(port, "/")
    page = body.decode()
    assert status == 200 and kind.startswith("text/html")
    assert '<a href="/report.html">' in page and '<img src="/best_at_k.png"' in page and "a &lt;b&gt; run" in page
    assert "Training vpo: 2 steps" in page and "Wrong: Only 1 of 4 groups of step 2 teach anything" in page
    assert "The training ended without a policy: ValueError: &lt;script&gt;" in page and "<script>" not in page
    for path, kind in (
        ("/report.html", "text/html; charset=utf-8"),
        ("/report.json", "application/json"),
        ("/best_at_k.png", "image/png"),
        ("/train/vpo/train.log", "text/plain; charset=utf-8"),
    ):
        assert get(port, path) == (200, kind, (run / path.lstrip("/")).read_bytes())
    assert get(port, "/live.png")[2].startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "path",
    [
        "/page.html",
        "/.hidden.json",
        "/policy.safetensors",
        "/link.json",
        "/../../outside.json",
        "/%2e%2e/%2e%2e/outside.json",
        "/no",
    ],
)
def test_what_is_not_of_the_run_is_not_served(port: int, path: str) -> None:
    assert get(port, path)[0] == 404


def test_the_page_of_another_site_gets_nothing(port: int) -> None:
    """Whose name was made to point to this machine."""
    assert get(port, "/report.json", host=f"evil.example:{port}")[0] == 403


def test_what_cannot_be_opened_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["open", str(tmp_path / "nothing")]) == 1
    assert "There is no run in" in capsys.readouterr().err

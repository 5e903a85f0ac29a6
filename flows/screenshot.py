"""A picture of a run's page in Prefect, taken in a real browser (Chromium, from Debian's package).

``python -m flows.screenshot [RUN_ID] [--output page.png]``: the page of a flow run, of the newest one by default, on
the server that PREFECT_API_URL names.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import PREFECT_UI_URL

from flows.server import check_server

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main(arguments: list[str] | None = None) -> int:
    """Take the picture; what is wrong is said in one sentence on stderr, with exit code 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", metavar="RUN_ID", help="default: the newest run")
    parser.add_argument("--output", type=Path, default=Path("run_page.png"))
    parser.add_argument("--tab", default="Artifacts", choices=["Logs", "Artifacts", "Parameters", "Details"])
    args = parser.parse_args(arguments)
    try:
        check_server()
        url = f"{PREFECT_UI_URL.value()}/runs/flow-run/{args.run or newest_run()}?tab={args.tab}"
        take(url, args.output)
    except (OSError, RuntimeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{url} is in {args.output}")
    return 0


def newest_run() -> str:
    """The id of the newest flow run that has started."""
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)
    if not runs:
        raise ValueError("The server has no flow runs.")
    return str(runs[0].id)


def take(url: str, output: Path, size: tuple[int, int] = (1400, 1800)) -> None:
    """Open a page in a headless browser and save what it shows.

    Raises:
        RuntimeError: no browser is installed, or it saved nothing.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise RuntimeError("No browser is installed: apt-get install chromium.")
    with tempfile.TemporaryDirectory() as profile:
        command = [browser, "--headless=new", f"--user-data-dir={profile}", "--hide-scrollbars", "--disable-gpu"]
        command += [f"--window-size={size[0]},{size[1]}", "--virtual-time-budget=40000"]
        command += ["--no-sandbox"] if os.geteuid() == 0 else []  # the browser's own sandbox refuses root
        done = subprocess.run([*command, f"--screenshot={output.resolve()}", url], capture_output=True, timeout=180)
    if done.returncode or not output.exists():
        raise RuntimeError(f"{browser} took no picture of {url}: {done.stderr.decode(errors='replace')[-300:]}")


if __name__ == "__main__":
    sys.exit(main())

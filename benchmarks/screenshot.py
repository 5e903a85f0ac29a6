"""Take a picture of a run's page in Prefect with a real browser (Chromium, from Debian's package).

`python -m benchmarks.screenshot [RUN_ID] [--output page.png]` shows a flow run, by default the newest one, on the
server that PREFECT_API_URL names.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import PREFECT_UI_URL

from flows.server import check_server

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LOADING_SECONDS = 120.0


def main(arguments: list[str] | None = None) -> int:
    """Take the picture; a mistake is one sentence on stderr and exit code 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=UUID, metavar="RUN_ID", help="default: the newest run")
    parser.add_argument("--output", type=Path, default=Path("run_page.png"))
    parser.add_argument("--tab", default="Artifacts", choices=["Logs", "Artifacts", "Parameters", "Details"])
    args = parser.parse_args(arguments)
    try:
        check_server()
        url = f"{PREFECT_UI_URL.value()}/runs/flow-run/{find_run(args.run)}"
        take(url, args.tab, args.output)
    except (OSError, RuntimeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{args.tab} of {url} are in {args.output}")
    return 0


def find_run(run: UUID | None) -> UUID:
    """The id of this flow run, or of the newest one that has started, if the server has it.

    Raises:
        ValueError: the server has no such run.
    """
    wanted = None if run is None else FlowRunFilter(id=FlowRunFilterId(any_=[run]))
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=wanted, sort=FlowRunSort.START_TIME_DESC, limit=1)
    if not runs:
        raise ValueError("The server has no flow runs." if run is None else f"The server has no flow run {run}.")
    return runs[0].id


def take(url: str, tab: str, output: Path) -> None:
    """Open a run's page in a headless browser, choose a tab, and save a picture of it.

    Raises:
        RuntimeError: no browser is installed, or the page does not show that tab.
    """
    from playwright.sync_api import Error, sync_playwright

    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise RuntimeError("No browser is installed: apt-get install chromium.")
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []  # the browser's sandbox refuses root
    with sync_playwright() as playwright:
        try:
            page = playwright.chromium.launch(executable_path=browser, args=flags).new_page(
                viewport={"width": 1400, "height": 1800}
            )
            page.set_default_timeout(LOADING_SECONDS * 1000)
            page.goto(url)
            tabs = page.get_by_role("tablist")
            tabs.get_by_text(tab, exact=True).click()  # some are hidden until the page knows the run
            page.wait_for_load_state("networkidle")
            page.wait_for_timeout(2000)  # wait for fading elements
            page.screenshot(path=output)
        except Error as error:
            raise RuntimeError(f"{browser} took no picture of {url}: {error.message.splitlines()[0]}") from error


if __name__ == "__main__":
    sys.exit(main())

"""What a person finds on a run's page in Prefect: the result in words and pictures, and what to do after a failure."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import get_client
from prefect.artifacts import MarkdownArtifact, create_image_artifact, create_markdown_artifact
from prefect.states import Failed

from vpo_plugin.cli import is_it

TAIL_LINES = 25
LOGS_SHOWN = 10


def show_results(folder: Path, table: str, sentence: str) -> None:
    """The page's summary: what came out, the table, the plot, and where the files are."""
    files = [folder / name for name in ("report.html", "report.json", "best_at_k.png")]
    create_markdown_artifact(
        f"{sentence}\n\n{fenced(table)}\n\n{links([*files, *logs(folder)])}",
        key="report",
        description="What came out, and where its files are.",
    )
    plot = base64.b64encode((folder / "best_at_k.png").read_bytes()).decode()
    create_image_artifact(
        f"data:image/png;base64,{plot}", key="best-at-k", description="best@k of each policy against k."
    )


def explain_failure(flow: Any, flow_run: Any, state: Any) -> None:
    """Hook for ``on_failure`` and ``on_crashed``: an artifact with the error, the last lines of the log, the way on."""
    parameters = flow_run.parameters or {}
    folder = Path(str(parameters.get("runs", "runs"))) / str(parameters.get("name", ""))
    message = state.message or "It left no message."
    unknown = [name for name in parameters if name not in flow.parameters.properties]
    if state.is_crashed() and unknown:  # Prefect ends the process before there is a run that could fail
        known = list(flow.parameters.properties)
        message = " ".join(f"The parameter '{name}' is unknown{is_it(name, known)}" for name in unknown)
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(flow_run.id, Failed(message=message), force=True)
    how = "was ended from outside" if state.is_crashed() and not unknown else "failed"
    text = [f"The run {how}.", fenced(message)]
    for newest in logs(folder)[:1]:
        text += [f"The last lines of the newest log, `{newest}`:", fenced(tail(newest))]
    text += [
        "Finished stages are kept. Start the run again with the same parameters (the page's *Retry*, or the same "
        "command), and it resumes from them.",
        links(logs(folder)),
    ]
    MarkdownArtifact(
        key="failure",
        markdown="\n\n".join(text),
        description="What went wrong, and how to go on.",
        flow_run_id=flow_run.id,
    ).create(_sync=True)


def logs(folder: Path) -> list[Path]:
    """The newest logs of a run's stages, newest first."""
    return sorted(folder.rglob("*.log"), key=lambda log: log.stat().st_mtime, reverse=True)[:LOGS_SHOWN]


def tail(log: Path) -> str:
    """The end of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-TAIL_LINES:])


def fenced(text: str) -> str:
    """Text as a block of code that it cannot end itself: programs and models wrote it."""
    longest = max((len(run) for run in text.split() if set(run) == {"~"}), default=0)
    fence = "~" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def links(files: Sequence[Path]) -> str:
    """A list of files on the machine that ran the flow."""
    return "\n".join(f"- [{file.name}]({file.resolve().as_uri()}) `{file.resolve()}`" for file in files)

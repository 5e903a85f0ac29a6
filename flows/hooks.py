"""Artifacts on a run's page in Prefect: the result in words and plots, and what to do after a failure."""

import base64
import platform
import shlex
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import get_client
from prefect.artifacts import MarkdownArtifact, create_image_artifact, create_markdown_artifact
from prefect.states import Failed

from vpo_plugin.cli import is_it
from vpo_plugin.openrlhf.log import end_of
from vpo_plugin.report.plots import live
from vpo_plugin.report.tables import headline, markdown_table, say_difference


def show_results(folder: Path, results: dict[str, Any], sentence: str) -> None:
    """Show the result, the table and the plots on the run's page, and how to open the whole report."""
    differences = "\n".join(f"- {say_difference(difference)}" for difference in results["differences"])
    create_markdown_artifact(
        f"{sentence}\n\n{markdown_table(*headline(results))}\n{differences}\n\n{how_to_open(folder)}",
        key="report",
        description="The result, and how to open the whole report.",
    )
    show_picture("best-at-k", (folder / "best_at_k.png").read_bytes(), "best@k of each policy against k.")
    trainings = {run["name"]: run["steps"] for run in results["training"] if run["steps"]}
    if trainings:
        show_picture("training", live(trainings), "The trainings by step.")


def show_picture(key: str, png: bytes, description: str) -> UUID:
    """Show a picture on the run's page; return the artifact's id."""
    return create_image_artifact(as_url(png), key=key, description=description)


def as_url(png: bytes) -> str:
    """A PNG as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def how_to_open(folder: Path) -> str:
    """The command that shows a run's files in a browser, in a sentence."""
    return (
        f"On the machine that ran it ({platform.node()}), `vpo open {shlex.quote(str(folder.resolve()))}` prints an "
        "address where a browser shows the whole report, the trainings, plots and logs."
    )


def explain_failure(flow: Any, flow_run: Any, state: Any) -> None:
    """Hook for `on_failure` and `on_crashed`: an artifact with the error, the end of the log, and how to resume."""
    parameters = flow_run.parameters or {}
    folder = Path(str(parameters.get("runs", "runs"))) / str(parameters.get("name", ""))
    message = state.message or "The run left no message."
    unknown = [name for name in parameters if name not in flow.parameters.properties]
    if state.is_crashed() and unknown:  # Prefect ends the process before the run starts
        known = list(flow.parameters.properties)
        message = " ".join(f"The parameter '{name}' is unknown{is_it(name, known)}" for name in unknown)
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(flow_run.id, Failed(message=message), force=True)
    how = "was stopped from outside" if state.is_crashed() and not unknown else "failed"
    text = [f"The run {how}.", fenced(message)]
    written = sorted(folder.rglob("*.log"), key=lambda log: log.stat().st_mtime, reverse=True)  # newest first
    for log in [log for log in written if str(log.resolve()) in message][:1] or written[:1]:
        text += [f"The end of the log `{log.resolve()}`:", fenced(end_of(log))]
    text += [
        "Finished stages are kept. Start the run again with the same parameters (*Retry* on this page, or the same "
        "command) to resume from them.",
        *([how_to_open(folder)] if folder.is_dir() else []),
    ]
    MarkdownArtifact(
        key="failure",
        markdown="\n\n".join(text),
        description="What went wrong, and how to resume.",
        flow_run_id=flow_run.id,
    ).create(_sync=True)


def fenced(text: str) -> str:
    """A code block with untrusted text, which cannot close the block."""
    longest = max((len(run) for run in text.split() if set(run) == {"~"}), default=0)
    fence = "~" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"

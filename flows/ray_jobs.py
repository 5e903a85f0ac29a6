"""Run a heavy program as a job on a Ray cluster, with Ray's own job API.

The submission id identifies the work, so a restarted flow finds its job, and Ray refuses a second job with the same id.
An id cannot be used twice, so its last part counts the attempts.
"""

import asyncio
import re
import shlex
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
from prefect.blocks.core import Block
from pydantic import Field
from ray.job_submission import JobStatus, JobSubmissionClient

from flows.process import pause
from vpo_plugin.openrlhf.log import last_words

POLL_SECONDS = 1.0
LOST_SECONDS = 30.0
"""A job counts as lost when its cluster has not answered for this long."""
STOP_SECONDS = 25.0
NO_ANSWER = (OSError, RuntimeError)
"""Errors of a request without a valid answer; those of `requests` are OSErrors."""


class Client(JobSubmissionClient):
    """Ray's client with a timeout; without it, requests to an unreachable machine would wait for ever.

    `_do_request` (Ray 2.55) passes its options to `requests.request`.
    """

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        return super()._do_request(method, endpoint, **options | {"timeout": LOST_SECONDS})


class RayCluster(Block):
    """A Ray cluster for training, by the address of its dashboard."""

    _block_type_slug = "ray-cluster"
    _block_type_name = "Ray cluster"
    _description = "A Ray cluster to which trainings are submitted as jobs."

    address: str = Field(description="Address of the dashboard, http://HOST:8265.")
    env_vars: dict[str, str] = Field({}, description="Environment of the jobs and their workers, such as HF_HOME.")


def resolve_cluster(cluster: str) -> RayCluster:
    """The cluster at an address, or of a saved block named `ray-cluster/NAME`.

    Raises:
        ValueError: there is no such block.
    """
    slug, _, name = cluster.partition("/")
    if slug != RayCluster._block_type_slug:
        return RayCluster(address=cluster)
    loaded: Any = RayCluster.load(name)  # ValueError if there is none
    return loaded


def connect(cluster: RayCluster) -> JobSubmissionClient:
    """A client of the cluster's job API.

    Raises:
        ConnectionError: nothing answers at its address.
    """
    try:
        return Client(cluster.address)
    except NO_ANSWER as error:
        reason = str(error).splitlines()[0]
        raise ConnectionError(
            f"The Ray cluster {cluster.address} does not answer ({reason}). Its dashboard must run, and the address "
            "must be the dashboard's, http://HOST:8265."
        ) from error


def run_job(
    command: Sequence[str],
    log: Path,
    *,
    cluster: RayCluster,
    name: str,
    result: Path,
    what: str,
    on_poll: Callable[[], None] = lambda: None,
) -> None:
    """Run a command on the cluster with its output in `log`, calling `on_poll` about once a second.

    A running job of that name is followed; a job that succeeded counts if its result still exists. If this function
    exits early, it stops the job.

    Raises:
        RuntimeError: the cluster was lost, or the job failed; the message ends with its last error and names the log.
        ConnectionError: the cluster does not answer at the start.
    """
    client = connect(cluster)
    pause(what, 0)
    job, is_new = submit(client, command, cluster, name, result)
    if is_new and log.exists():  # of an earlier attempt
        tries = len(list(log.parent.glob(f"{log.stem}.*{log.suffix}")))
        log.rename(log.with_suffix(f".{tries + 1}{log.suffix}"))
    copier = threading.Thread(target=_copy_log, args=(client, job, log), daemon=True)
    copier.start()
    try:
        status = _follow(client, job, what, on_poll)
    except ConnectionError as error:
        raise RuntimeError(f"{what} is lost: the Ray cluster {cluster.address} is gone. The log is {log}.") from error
    except BaseException:
        stop(client, job)
        raise
    copier.join(STOP_SECONDS)
    on_poll()
    if status != JobStatus.SUCCEEDED:
        raise RuntimeError(f"{what} failed (Ray job {job}, {status.value.lower()}): {last_words(log)}")


def submit(
    client: JobSubmissionClient, command: Sequence[str], cluster: RayCluster, name: str, result: Path
) -> tuple[str, bool]:
    """The id of the job of that name that runs or left its result, else of a new job; and whether it is new."""
    number = re.compile(re.escape(name) + r"-(\d+)")
    tries = [(int(m[1]), job) for job in client.list_jobs() if (m := number.fullmatch(job.submission_id or ""))]
    last, latest = max(tries, key=lambda numbered: numbered[0], default=(0, None))
    if latest is not None:
        has_left = latest.status == JobStatus.SUCCEEDED and result.exists()
        if has_left or not latest.status.is_terminal():
            return f"{name}-{last}", False
    job = f"{name}-{last + 1}"
    deadline = time.monotonic() + LOST_SECONDS
    while True:
        try:
            env = {"env_vars": cluster.env_vars}
            return client.submit_job(entrypoint=shlex.join(command), submission_id=job, runtime_env=env), True
        except RuntimeError as error:
            if job in {other.submission_id for other in client.list_jobs()}:  # another flow was faster
                return job, False
            if time.monotonic() > deadline:  # until then, the cluster may still be starting
                reason = str(error).splitlines()[0]
                raise RuntimeError(
                    f"The Ray cluster {cluster.address} does not take the job {job}: {reason}"
                ) from error
        time.sleep(POLL_SECONDS)


def stop(client: JobSubmissionClient, job: str) -> None:
    """Stop a job and wait until it has ended or the cluster no longer answers."""
    with suppress(*NO_ANSWER):
        client.stop_job(job)
        deadline = time.monotonic() + STOP_SECONDS
        while not client.get_job_status(job).is_terminal() and time.monotonic() < deadline:
            time.sleep(0.2)


def _follow(client: JobSubmissionClient, job: str, what: str, on_poll: Callable[[], None]) -> JobStatus:
    """Wait for a job's end. Raises ConnectionError if its cluster has not answered for `LOST_SECONDS`."""
    answered = time.monotonic()
    while True:
        try:
            status = client.get_job_status(job)
        except NO_ANSWER as error:
            if time.monotonic() - answered > LOST_SECONDS:
                raise ConnectionError(f"{job}: {error}") from error
        else:
            answered = time.monotonic()
            on_poll()
            if status.is_terminal():
                return status
        pause(what)


def _copy_log(client: JobSubmissionClient, job: str, log: Path) -> None:
    """Copy a job's output, which Ray sends from the beginning, until the job ends."""

    async def copy() -> None:
        with log.open("w") as file:
            async for text in client.tail_job_logs(job):
                file.write(text)
                file.flush()

    with suppress(*NO_ANSWER, aiohttp.ClientError):  # the cluster is gone: keep what was received
        asyncio.run(copy())

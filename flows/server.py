"""The Prefect server that flows report to."""

from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL


def check_server() -> None:
    """Refuse to start anything when a server is configured and does not answer.

    Where none is configured, Prefect starts a temporary one, and there is nothing to check.

    Raises:
        ConnectionError: the server does not answer.
    """
    url = PREFECT_API_URL.value()
    if not url:
        return
    with get_client(sync_client=True) as client:
        error = client.api_healthcheck()
    if error:
        raise ConnectionError(
            f"The Prefect server at {url} does not answer ({error}). Start it with `prefect server start`, or unset "
            "PREFECT_API_URL (`prefect config unset PREFECT_API_URL`) to run without one. Nothing was started."
        )

"""The Prefect flows: they chain, retry, skip and record the work, which lives in `vpo_plugin`."""

import os

# Prefect gives its temporary server 20 s to start, too little on a busy laptop. Telemetry is off unless the user turns
# it on.
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")

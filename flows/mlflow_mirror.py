"""Mirror the registry of policies to MLflow's if a tracking URI is set (`MLFLOW_TRACKING_URI`)."""

import os
from pathlib import Path
from typing import Any

from flows.registry import Version, champion, versions

TAG = "vpo.version"
ALIAS = "champion"


def tracking_uri() -> str | None:
    """The URI of MLflow's registry, None if none is set."""
    return os.environ.get("MLFLOW_TRACKING_URI") or None


def check_mlflow() -> None:
    """If a tracking URI is set, check MLflow before anything is spent.

    Raises:
        RuntimeError: mlflow is not installed, or its server does not answer.
    """
    uri = tracking_uri()
    if uri is None:
        return
    try:
        _client(uri).search_registered_models(max_results=1)
    except ImportError as error:
        raise RuntimeError(
            f"MLFLOW_TRACKING_URI is {uri}, but mlflow is not installed: pip install 'vpo-plugin[mlflow]', or unset it."
        ) from error
    except Exception as error:  # MLflow raises any error of its stores
        raise RuntimeError(f"The MLflow registry at {uri} does not answer: {error}") from error


def mirror(folder: Path) -> str | None:
    """Bring MLflow's registered model up to date with a registry: versions, figures, files, champion.

    The model is named `vpo-SPEC` after the registry's specification. Nothing is mirrored twice, so the next call makes
    up for an earlier failure.

    Returns:
        What was done, in a sentence; None if no tracking URI is set or the registry has no champion.
    """
    uri = tracking_uri()
    if uri is None:
        return None
    client = _client(uri)
    known, current = versions(folder), champion(folder)
    if current is None:
        return None
    name = f"vpo-{current.spec}"
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    mirrored = {one.tags.get(TAG): one.version for one in client.search_model_versions(f"name = '{name}'")}
    added = [version for version in known if version.version not in mirrored]
    for version in added:
        mirrored[version.version] = _add(client, name, version)
    client.set_registered_model_alias(name, ALIAS, mirrored[current.version])
    return f"MLflow's model {name!r} at {uri}: versions added {len(added)}, champion {current.version}."


def _add(client: Any, name: str, version: Version) -> str:
    run = client.create_run("0", run_name=f"{name} {version.version}").info
    for key in ("parent", "spec", "candidates"):
        client.log_param(run.run_id, key, getattr(version, key))
    for metric, change in (version.evaluation or {}).get("changes", {}).items():
        client.log_metric(run.run_id, metric.replace("@", "_at_").replace(" ", "_"), change["challenger"])
    if Path(version.policy).is_dir():
        client.log_artifacts(run.run_id, version.policy, "policy")
    else:
        client.log_text(run.run_id, version.policy, "policy/model_id.txt")
    client.set_terminated(run.run_id)
    source = f"{run.artifact_uri}/policy"
    tags = {TAG: version.version, "vpo.policy": version.policy}
    return client.create_model_version(name, source=source, run_id=run.run_id, tags=tags).version


def _client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)

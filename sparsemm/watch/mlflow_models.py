"""Watches a model registered in MLflow whose artifacts are a Hugging Face checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

from sparsemm.errors import RegistryError, WatchError
from sparsemm.params import WatchParams
from sparsemm.registry.client import answering, connect, registry_uri
from sparsemm.watch.arrival import Arrival
from sparsemm.watch.incoming import fetched


def newest(source: WatchParams, key: str, root: Path) -> Arrival | None:
    """Downloads the version that models:/name@alias (or models:/name/version) names. MLFLOW_TRACKING_URI applies.

    Raises:
        WatchError: if the registry does not answer or has no such model, or `location` is not models:/name@alias.
    """
    where = f"watch.{key}: {source.location}"
    name, at, alias = source.location.removeprefix("models:/").partition("@")
    if not source.location.startswith("models:/") or not name or not (at or "/" in name):
        raise WatchError("not models:/name@alias or models:/name/version", where=where)
    try:
        uri = registry_uri(None, root=root)
        client = connect(uri)
        with answering(uri):
            version = client.get_model_version_by_alias(name, alias).version if at else name.rpartition("/")[2]
            fixed = f"models:/{name if at else name.rpartition('/')[0]}/{version}"

            def fetch(folder: Path) -> None:
                from mlflow.artifacts import download_artifacts

                shutil.rmtree(folder)  # MLflow cannot resume a download
                folder.mkdir()
                download_artifacts(fixed, dst_path=str(folder), tracking_uri=uri, registry_uri=uri)

            return fetched(root, key, f"v{version}", fetch)
    except RegistryError as error:
        raise WatchError(error.what, where=where, hint=error.hint or "check MLFLOW_TRACKING_URI") from error
    except OSError as error:
        raise WatchError(f"cannot be downloaded: {error}", where=where, hint="try again") from error

"""Stores and reads the files of runs, through the server or, without one, in the folder that the server serves."""

from __future__ import annotations

import shutil
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from sparsemm.errors import RegistryError
from sparsemm.registry.client import files_folder, sqlite_file

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Location of experiments that are created without a server: a server reads it as a path in its own folder of files.
LOCATION = "mlflow-artifacts:/runs"


def upload(client: MlflowClient, run_id: str, source: Path, folder: str) -> None:
    """Stores the content of `source` as the folder `folder` of a run's files."""
    if (place := _local_place(client, run_id)) is None:
        client.log_artifacts(run_id, str(source), folder)
    else:
        shutil.copytree(source, place / folder, dirs_exist_ok=True)


def download(client: MlflowClient, run_id: str, name: str, target: Path) -> Path:
    """Copies a file or folder of a run into `target`, and returns the path of the copy.

    Raises RegistryError if the run's folder on this machine does not hold it.
    """
    if (place := _local_place(client, run_id)) is None:
        return Path(client.download_artifacts(run_id, name, str(target)))
    source, copy = place / name, target / name
    copy.parent.mkdir(parents=True, exist_ok=True)
    try:
        if source.is_dir():
            shutil.copytree(source, copy, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, copy)
    except OSError as error:
        raise RegistryError(f"cannot be read: {error}", where=str(source), hint="publish it again") from error
    return copy


def _local_place(client: MlflowClient, run_id: str) -> Path | None:
    """Returns the folder of a run's files beside a SQLite store, or None where MLflow's client can reach them itself.

    Raises RegistryError if the address leaves the folder.
    """
    store = sqlite_file(client.tracking_uri)
    address = urlsplit(client.get_run(run_id).info.artifact_uri)
    if store is None or address.scheme != "mlflow-artifacts":
        return None
    path = PurePosixPath(unquote(address.path).lstrip("/"))
    if address.netloc or ".." in path.parts:
        raise RegistryError("the files of this run are not beside the registry", where=address.geturl())
    return files_folder(store) / path

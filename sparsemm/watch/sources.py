"""The kinds of watched sources: a folder, a branch on the hub, a prefix on S3, and a model registered in MLflow.

Downloaded checkpoints are kept in data/incoming/<model key>/<revision of the source>.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparsemm import fetch
from sparsemm.errors import FetchError, RegistryError, WatchError
from sparsemm.files import fill_folder
from sparsemm.params import WatchParams
from sparsemm.registry.client import answering, connect, registry_uri
from sparsemm.watch.arrival import Arrival, is_complete, local_arrival


def newest(source: WatchParams, key: str, root: Path = Path(".")) -> Arrival | None:
    """Returns the newest complete checkpoint of a source, ready to be loaded, or None if there is none yet.

    `source` is the entry of the model `key` under `watch` in params.yaml. Raises WatchError if it cannot be reached.
    """
    return SOURCES[source.source](source, key, root)


def in_folder(source: WatchParams, key: str, root: Path) -> Arrival | None:
    """Returns the newest complete checkpoint: the folder itself if it is one, else its newest complete subfolder.

    Raises WatchError if the folder does not exist, or cannot be read.
    """
    folder, where = root / source.location, f"watch.{key}: {source.location}"
    if not folder.is_dir():
        raise WatchError("no such folder", where=where, hint="create it, or correct `location`")
    try:
        candidates = [folder] if (folder / "config.json").exists() else [p for p in folder.iterdir() if p.is_dir()]
        complete = [path for path in candidates if is_complete(path, source.settle_seconds)]
        if not complete:
            return None
        chosen = max(complete, key=lambda path: ((path / "config.json").stat().st_mtime_ns, path.name))
        return local_arrival(chosen, key, root)
    except OSError as error:  # missing permissions, or files that are being deleted at the same time
        raise WatchError(f"cannot be read: {error}", where=where, hint="check its permissions, or try again") from error


def on_hub(source: WatchParams, key: str, root: Path) -> Arrival | None:
    """Returns the commit that `branch` points at, without downloading it. HF_ENDPOINT and HF_TOKEN apply.

    Raises WatchError if the hub cannot be reached, or has no such checkpoint or branch.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    transport: Any = HfHubHTTPError.__bases__[0]  # the error of the HTTP library that huggingface_hub uses
    try:
        sha = HfApi().model_info(source.location, revision=source.branch, timeout=30).sha
    except (HfHubHTTPError, transport, HFValidationError, OSError) as error:
        what, hint = f"cannot read the branch from the hub: {error}", "check the id, the branch and the network"
        raise WatchError(what, where=f"watch.{key}: {source.location}", hint=hint) from error
    return Arrival(source.location, sha) if sha else None


def on_s3(source: WatchParams, key: str, root: Path) -> Arrival | None:
    """Downloads the checkpoint under s3://bucket/prefix. Its revision is a hash of names, sizes and etags.

    Endpoint, region and credentials come from the environment or boto3's own files. A checkpoint that is still being
    uploaded is incomplete and is not returned yet. A download that was stopped is resumed. Raises WatchError if the
    store cannot be reached, a file cannot be downloaded, or `location` is not s3://bucket/prefix.
    """
    where = f"watch.{key}: {source.location}"
    folder = root / "data" / "incoming" / key
    try:
        place = fetch.open_s3(source.location, folder / ".blocks")
        if not place.files:
            return None
        for name in place.files:
            _inside(folder, name, where)

        def save(partial: Path) -> None:
            for name, file in place.files.items():
                path = _inside(partial, name, where)
                if not path.is_file() or path.stat().st_size != file.size:  # files of an earlier try were verified
                    file.save(path)

        arrival = _downloaded(root, key, place.revision, save)
    except (FetchError, OSError) as error:
        what, hint = (error.what, error.hint) if isinstance(error, FetchError) else (str(error), None)
        raise WatchError(what, where=where, hint=hint) from error
    shutil.rmtree(folder / ".blocks", ignore_errors=True)
    return arrival


def in_mlflow(source: WatchParams, key: str, root: Path) -> Arrival | None:
    """Downloads the version that models:/name@alias (or models:/name/version) names. MLFLOW_TRACKING_URI applies.

    Its artifacts are a Hugging Face checkpoint. Raises WatchError if the registry does not answer or has no such model,
    or `location` is not models:/name@alias.
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

            def download(folder: Path) -> None:
                from mlflow.artifacts import download_artifacts

                shutil.rmtree(folder)  # MLflow cannot resume a download
                folder.mkdir()
                download_artifacts(fixed, dst_path=str(folder), tracking_uri=uri, registry_uri=uri)

            return _downloaded(root, key, f"v{version}", download)
    except RegistryError as error:
        raise WatchError(error.what, where=where, hint=error.hint or "check MLFLOW_TRACKING_URI") from error
    except OSError as error:
        raise WatchError(f"cannot be downloaded: {error}", where=where, hint="try again") from error


SOURCES: dict[str, Callable[[WatchParams, str, Path], Arrival | None]] = {
    "folder": in_folder,
    "hub": on_hub,
    "s3": on_s3,
    "mlflow": in_mlflow,
}


def _downloaded(root: Path, key: str, revision: str, download: Callable[[Path], None]) -> Arrival | None:
    """Returns the local copy of a revision, which is downloaded if it is missing; None if it is not complete yet.

    `download` writes the files to a hidden folder, which may already hold complete files of an earlier try.
    """
    folder = root / "data" / "incoming" / key / revision
    return local_arrival(folder, key, root) if fill_folder(folder, download, is_complete) else None


def _inside(folder: Path, name: str, where: str) -> Path:
    """Returns the path of a downloaded file. Raises WatchError if the name leads out of the folder."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()) or path == folder.resolve():
        raise WatchError(f"the name {name!r} leads out of the checkpoint", where=where)
    return path

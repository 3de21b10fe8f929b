"""The manifest of a publication: the size and SHA-256 of every file, checked before a file is used."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsemm.errors import RegistryError
from sparsemm.files import sha256_file
from sparsemm.registry import artifacts

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

FOLDER = "published"  # folder of the run's artifacts that holds them
NAME = "manifest.json"
FORMAT = 1
MOST = 1 << 20  # bytes a manifest may have


def build(folder: Path, **about: str) -> dict[str, Any]:
    """Returns the manifest of every file under `folder`; the entries of `about` are stored in it too."""
    files = sorted((p.relative_to(folder).as_posix(), p) for p in folder.rglob("*") if p.is_file())
    listed = {name: {"sha256": sha256_file(path), "size": path.stat().st_size} for name, path in files}
    return {"format": FORMAT, **about, "files": listed}


def safe_name(name: Any) -> str:
    """Returns the name of an artifact if it stays inside its folder.

    Raises RegistryError if it is absolute, leaves its folder, or holds anything but letters, digits and . _ - /.
    """
    parts = name.split("/") if isinstance(name, str) else []
    if not parts or not all(re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", part) for part in parts):
        raise RegistryError(f"{str(name)[:80]!r} is not a valid artifact name")
    return str(name)


def parse(path: Path) -> dict[str, Any]:
    """Reads a manifest. Raises RegistryError if it is malformed, or names a file outside its folder."""
    try:
        if path.stat().st_size > MOST:
            raise RegistryError(f"larger than {MOST} bytes", where=NAME)
        value = json.loads(path.read_text(encoding="utf-8"))
        files = {safe_name(name): (str(f["sha256"]), int(f["size"])) for name, f in value["files"].items()}
        if value["format"] != FORMAT or not all(re.fullmatch("[0-9a-f]{64}", sha) for sha, _ in files.values()):
            raise RegistryError(f"format {value['format']!r} is not supported, only {FORMAT}", where=NAME)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RegistryError(f"not a manifest: {error!r}", where=NAME) from error
    return value


def check(folder: Path, manifest: dict[str, Any], names: list[str]) -> None:
    """Checks that files are present and have the size and SHA-256 of the manifest.

    Raises RegistryError if one does not; it names the file.
    """
    for name in names:
        path, entry = folder / safe_name(name), manifest["files"].get(name)
        if entry is None:
            raise RegistryError("not in the manifest", where=name)
        if not path.is_file() or path.stat().st_size != entry["size"] or sha256_file(path) != entry["sha256"]:
            raise RegistryError("not the file that was published", where=name, hint="publish it again")


def fetch(client: MlflowClient, run_id: str, sha256: str, names: list[str] | None, folder: Path) -> dict[str, Any]:
    """Downloads a run's manifest of this hex digest and files into an empty folder, and returns the checked manifest.

    The files keep their names; None means all, and then the run must hold no others. Raises RegistryError if a name
    leaves the folder, or a file is missing, damaged or not in the manifest.
    """
    with tempfile.TemporaryDirectory(dir=folder) as temporary:

        def download(name: str) -> Path:
            # Files of different folders may have the same name, under which MLflow may write both of them.
            return artifacts.download(client, run_id, name, Path(tempfile.mkdtemp(dir=temporary)))

        path = download(f"{FOLDER}/{NAME}")
        if sha256_file(path) != sha256:
            raise RegistryError("not the manifest that was published", where=f"run {run_id}", hint="publish it again")
        manifest = parse(path)
        if names is None:
            names = list(manifest["files"])
            whole = download(FOLDER)
            files = {p.relative_to(whole).as_posix(): p for p in whole.rglob("*") if p.is_file()}
            if extra := files.keys() - {*names, NAME}:
                raise RegistryError(f"files that are not in the manifest: {sorted(extra)}", where=f"run {run_id}")
        else:
            files = {name: download(f"{FOLDER}/{name}") for name in names if safe_name(name) in manifest["files"]}
        for name, file in files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
    check(folder, manifest, names)
    return manifest


def fetch_version(client: MlflowClient, version: ModelVersion, names: list[str], folder: Path) -> dict[str, Any]:
    """Downloads files of a registered version as `fetch` does. The version must have been created by `publish`.

    Raises RegistryError if its files are not in its own run, or differ from what was published.
    """
    where = f"{version.name} version {version.version}"
    sha256 = version.tags.get("manifest_sha256", "")
    if not version.run_id or version.source != f"runs:/{version.run_id}/{FOLDER}" or not sha256:
        raise RegistryError("this version was not created by `sparsemm publish`", where=where)
    return fetch(client, version.run_id, sha256, names, folder)

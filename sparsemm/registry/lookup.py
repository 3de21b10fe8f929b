"""Looks up score tables by path or registry address. A cache serves them while the registry is down."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tempfile
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsemm.errors import RegistryError, RegistryUnreachable
from sparsemm.files import sha256_file, write_json
from sparsemm.registry import manifest
from sparsemm.registry.client import answering, connect, is_code, registry_uri
from sparsemm.registry.lease import cache_home
from sparsemm.scores import ScoreTable

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger(__name__)
SOURCE = re.compile(r"models:/(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(?:@(?P<alias>[A-Za-z0-9_-]+)|/(?P<version>[0-9]+))")
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Resolved:
    """The version that an address points at now.

    Attributes:
        name, version: registered model and its version number.
        digest: hex SHA-256 of the score table's file; equal digests mean equal tables.
    """

    name: str
    version: str
    digest: str


@dataclass(frozen=True, eq=False)
class VersionedTable:
    """A score table, the verified file it was read from, and its version (None for a path)."""

    table: ScoreTable
    path: Path
    resolved: Resolved | None


def is_address(source: str | Path) -> bool:
    """Tells whether a source is a registry address (models:/...) and not a path."""
    return isinstance(source, str) and source.startswith("models:")


def resolve(source: str, *, tracking_uri: str | None = None) -> Resolved:
    """Asks the registry which version an address points at. It downloads nothing, so a service can poll it.

    Args:
        source: `models:/visual-heads.<key>@champion` or `models:/visual-heads.<key>/3`.
        tracking_uri: see `sparsemm.registry.client.registry_uri`.

    Raises:
        RegistryError: if there is no such version, or `sparsemm publish` did not create it.
        RegistryUnreachable: if the registry is down.
    """
    _parts(source)
    return _resolved(_ask(source, registry_uri(tracking_uri))[1])


def load_scores(
    source: str | Path,
    model_config: Any = None,
    *,
    tracking_uri: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
) -> ScoreTable:
    """Loads a score table from a path or a registry address.

    Args:
        source: path of a table, `models:/visual-heads.<key>@champion`, or `models:/visual-heads.<key>/3`.
        model_config: config of the loaded model, or its fingerprint; a table of another model is refused.
        tracking_uri: address of the registry; by default MLFLOW_TRACKING_URI, else SQLite under artifacts/registry.
        cache_dir: folder of the cache; by default $XDG_CACHE_HOME/sparsemm/scores.
        offline: whether to use the cache alone, without asking the registry.

    Raises:
        RegistryError: if there is no such version, or its file is not the one that was published.
        RegistryUnreachable: if the registry is down and the address is not in the cache.
        ScoreTableError: if the table is damaged, or belongs to another model.
    """
    table = look_up(source, tracking_uri=tracking_uri, cache_dir=cache_dir, offline=offline).table
    if model_config is not None:
        table.check_model(model_config)
    return table


def look_up(
    source: str | Path,
    *,
    tracking_uri: str | None = None,
    cache_dir: str | Path | None = None,
    offline: bool = False,
) -> VersionedTable:
    """Loads a score table as `load_scores` does, and returns its version and file too.

    The cache keeps tables under their digest and verifies them at every use. It also keeps the version that each
    address pointed at last: when the registry does not answer, that version is served, with a warning in the log.
    When the registry answers "no such version", that is an error.

    Raises:
        RegistryError, RegistryUnreachable, ScoreTableError: as `load_scores`.
    """
    if not is_address(source):
        return VersionedTable(ScoreTable.load(source), Path(source), None)
    source = str(source)
    _parts(source)
    uri = registry_uri(tracking_uri)
    cache = Path(cache_dir) if cache_dir is not None else cache_home() / "scores"
    pointer = _pointer(cache, uri, source)
    if offline:
        return _from_cache(cache, pointer, source)
    try:
        client, version = _ask(source, uri)
        resolved = _resolved(version)
        path = _cached(cache, resolved.digest)
        if path is None:
            with answering(uri):
                path = _download(client, version, cache, resolved.digest)
    except RegistryUnreachable as error:
        if not pointer.is_file():
            raise
        log.warning("%s; serving %s from the cache", error, source)
        return _from_cache(cache, pointer, source)
    except OSError as error:
        raise _no_cache(cache, error) from error
    table = ScoreTable.load(path)
    if _read_pointer(pointer) != resolved:
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        try:
            write_json(pointer, {**asdict(resolved), "source": source, "written": now})
        except OSError as error:
            raise _no_cache(cache, error) from error
    return VersionedTable(table, path, resolved)


def _no_cache(cache: Path, error: OSError) -> RegistryError:
    return RegistryError(f"the cache cannot be used: {error}", where=str(cache), hint="set XDG_CACHE_HOME or cache_dir")


def describe(entry: VersionedTable) -> dict[str, Any]:
    """Returns a looked-up table as plain JSON for other languages; `scores` is a list of layers of query heads."""
    return {
        "name": None if entry.resolved is None else entry.resolved.name,
        "version": None if entry.resolved is None else entry.resolved.version,
        "path": str(entry.path.resolve()),
        "digest": sha256_file(entry.path),
        **{name: entry.table.header[name] for name in ("fingerprint", "model", "revision", "num_kv_heads")},
        "scores": entry.table.scores.tolist(),
    }


def _parts(source: str) -> tuple[str, str, str]:
    """Splits an address into name, alias and version; alias or version is empty."""
    match = SOURCE.fullmatch(source)
    if match is None:
        hint = "use models:/visual-heads.<key>@champion or models:/visual-heads.<key>/3"
        raise RegistryError("not a registry address", where=source[:80], hint=hint)
    return match["name"], match["alias"] or "", match["version"] or ""


def _ask(source: str, uri: str) -> tuple[Any, ModelVersion]:
    name, alias, number = _parts(source)
    client = connect(uri)
    with answering(uri):
        from mlflow.exceptions import MlflowException

        try:
            if alias:
                return client, client.get_model_version_by_alias(name, alias)
            return client, client.get_model_version(name, number)
        except MlflowException as error:
            if not is_code(error, "RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            hint = "`sparsemm promote <key> --to champion` makes a version the champion"
            raise RegistryError("no such version in the registry", where=source, hint=hint) from error


def _resolved(version: ModelVersion) -> Resolved:
    digest = version.tags.get("table_sha256", "")
    if not DIGEST.fullmatch(digest):
        where = f"{version.name} version {version.version}"
        raise RegistryError("this version was not created by `sparsemm publish`", where=where)
    return Resolved(str(version.name), str(version.version), digest)


def _file(cache: Path, digest: str) -> Path:
    return cache / "tables" / f"{digest}.safetensors"


def _cached(cache: Path, digest: str) -> Path | None:
    """Returns the cached file of a digest, or None if it is missing or damaged."""
    path = _file(cache, digest)
    if not path.is_file():
        return None
    if sha256_file(path) == digest:
        return path
    log.warning("%s is damaged", path)
    return None


def _download(client: Any, version: ModelVersion, cache: Path, digest: str) -> Path:
    """Downloads a version's table into the cache and checks it against the version's manifest and tag."""
    name = f"scores/{str(version.name).removeprefix('visual-heads.')}.safetensors"
    path = _file(cache, digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as temporary:
        listed = manifest.fetch_version(client, version, [name], Path(temporary))
        if listed["files"][name]["sha256"] != digest:
            raise RegistryError("manifest and tag name different tables", where=f"{version.name}/{version.version}")
        os.replace(Path(temporary) / name, path)
    return path


def _pointer(cache: Path, uri: str, source: str) -> Path:
    registry = hashlib.sha256(uri.rstrip("/").encode()).hexdigest()[:16]
    return cache / "pointers" / registry / f"{source.removeprefix('models:/').replace('/', '@')}.json"


def _read_pointer(path: Path) -> Resolved | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        resolved = Resolved(value["name"], value["version"], value["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return resolved if DIGEST.fullmatch(str(resolved.digest)) else None


def _from_cache(cache: Path, pointer: Path, source: str) -> VersionedTable:
    resolved = _read_pointer(pointer)
    path = None if resolved is None else _cached(cache, resolved.digest)
    if resolved is None or path is None:
        hint = "look it up once while the registry can be reached"
        raise RegistryUnreachable("missing from the cache, or damaged there", where=source, hint=hint)
    return VersionedTable(ScoreTable.load(path), path, resolved)

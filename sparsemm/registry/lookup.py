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
from sparsemm.registry.client import MISSING, answering, connect, ignoring, registry_uri
from sparsemm.registry.contents import recipe_name, table_name
from sparsemm.registry.lease import cache_home
from sparsemm.scores import ScoreTable

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger(__name__)
SOURCE = re.compile(r"models:/(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(?:@(?P<alias>[A-Za-z0-9_-]+)|/(?P<version>[0-9]+))")
DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Resolved:
    """The version that an address points at now."""

    name: str  # registered model
    version: str  # version number
    digest: str  # hex SHA-256 of the score table's file; equal digests mean equal tables
    recipe: str | None = None  # hex SHA-256 of the recipe's file; None if the version has no recipe


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

    Addresses are those of `load_scores`. Raises RegistryError if there is no such version, or `sparsemm publish` did
    not create it, and RegistryUnreachable if the registry is down.
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
    """Loads a score table from a path or a registry address, together with the recipe that was published with it.

    The recipe says which method `compressed_cache(model, "auto", scores=...)` is. A path brings none; add one with
    `ScoreTable.with_recipe`.

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
    source: str | Path, *, tracking_uri: str | None = None, cache_dir: str | Path | None = None, offline: bool = False
) -> VersionedTable:
    """Loads a score table as `load_scores` does, and returns its version and file too.

    The cache keeps tables under their digest and verifies them at every use. It also keeps the version that each
    address pointed at last: when the registry does not answer, that version is served, with a warning in the log. When
    the registry answers "no such version", that is an error. Raises RegistryError, RegistryUnreachable, ScoreTableError
    as `load_scores`.
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
        for file, name in _files(cache, resolved):
            if not _is_whole(file):
                with answering(uri):
                    _download(client, version, file, name)
    except RegistryUnreachable as error:
        if not pointer.is_file():
            raise
        log.warning("%s; serving %s from the cache", error, source)
        return _from_cache(cache, pointer, source)
    except OSError as error:
        raise _no_cache(cache, error) from error
    entry = _load(cache, resolved)
    if _read_pointer(pointer) != resolved:
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        try:
            write_json(pointer, {**asdict(resolved), "source": source, "written": now})
        except OSError as error:
            raise _no_cache(cache, error) from error
    return entry


def _no_cache(cache: Path, error: OSError) -> RegistryError:
    return RegistryError(f"the cache cannot be used: {error}", where=str(cache), hint="set XDG_CACHE_HOME or cache_dir")


def describe(entry: VersionedTable) -> dict[str, Any]:
    """Returns a looked-up table as plain JSON for other languages; `scores` is a list of layers of query heads."""
    resolved = entry.resolved
    return {
        "name": resolved and resolved.name,
        "version": resolved and resolved.version,
        "path": str(entry.path.resolve()),
        "digest": sha256_file(entry.path),
        **{name: entry.table.header[name] for name in ("fingerprint", "model", "revision", "num_kv_heads")},
        "recipe": entry.table.recipe and entry.table.recipe.model_dump(mode="json"),
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
    with answering(uri), ignoring(*MISSING):
        if alias:
            return client, client.get_model_version_by_alias(name, alias)
        return client, client.get_model_version(name, number)
    hint = "`sparsemm promote <key> --to champion` makes a version the champion"
    raise RegistryError("no such version in the registry", where=source, hint=hint)


def _resolved(version: ModelVersion) -> Resolved:
    digest, recipe = version.tags.get("table_sha256", ""), version.tags.get("recipe_sha256")
    if not all(DIGEST.fullmatch(one) for one in (digest, recipe) if one is not None):
        where = f"{version.name} version {version.version}"
        raise RegistryError("this version was not created by `sparsemm publish`", where=where)
    return Resolved(str(version.name), str(version.version), digest, recipe)


def _files(cache: Path, resolved: Resolved) -> list[tuple[Path, str]]:
    """Returns the cached files of a version, named by their digests, and what they are called in the version."""
    key = resolved.name.removeprefix("visual-heads.")
    files = [(cache / "tables" / f"{resolved.digest}.safetensors", table_name(key))]
    if resolved.recipe is not None:
        files.append((cache / "recipes" / f"{resolved.recipe}.json", recipe_name(key)))
    return files


def _is_whole(path: Path) -> bool:
    """Tells whether a cached file is there and has the digest that it is named after."""
    if not path.is_file():
        return False
    if sha256_file(path) == path.stem:
        return True
    log.warning("%s is damaged", path)
    return False


def _load(cache: Path, resolved: Resolved) -> VersionedTable:
    """Returns the cached table of a version with its recipe."""
    path, *recipes = (path for path, _ in _files(cache, resolved))
    table = ScoreTable.load(path)
    return VersionedTable(table.with_recipe(recipes[0]) if recipes else table, path, resolved)


def _download(client: Any, version: ModelVersion, path: Path, name: str) -> None:
    """Downloads a file of a version into the cache and checks it against the version's manifest and tags."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".download-") as temporary:
        listed = manifest.fetch_version(client, version, [name], Path(temporary))
        if listed["files"][name]["sha256"] != path.stem:
            raise RegistryError("manifest and tag name different files", where=f"{version.name}/{version.version}")
        os.replace(Path(temporary) / name, path)


def _pointer(cache: Path, uri: str, source: str) -> Path:
    registry = hashlib.sha256(uri.rstrip("/").encode()).hexdigest()[:16]
    return cache / "pointers" / registry / f"{source.removeprefix('models:/').replace('/', '@')}.json"


def _read_pointer(path: Path) -> Resolved | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        resolved = Resolved(value["name"], value["version"], value["digest"], value.get("recipe"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    digests = [resolved.digest] if resolved.recipe is None else [resolved.digest, resolved.recipe]
    return resolved if all(DIGEST.fullmatch(str(one)) for one in digests) else None


def _from_cache(cache: Path, pointer: Path, source: str) -> VersionedTable:
    hint = "start the registry (`sparsemm registry serve`) or set MLFLOW_TRACKING_URI; a file of scores needs neither"
    if not pointer.is_file():
        raise RegistryUnreachable("no earlier look-up is stored on this machine", where=source, hint=hint)
    resolved = _read_pointer(pointer)
    if resolved is None or not all(_is_whole(path) for path, _ in _files(cache, resolved)):
        raise RegistryUnreachable("what an earlier look-up stored here is damaged", where=source, hint=hint)
    return _load(cache, resolved)

"""Backs up what no stage can make again, and restores it: the registry, Prefect's database and DVC's cache."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from sparsemm.errors import PipelineError
from sparsemm.files import sha256_file, write_json
from sparsemm.pipeline.worktree import cache_folder
from sparsemm.registry.client import STORE

PARTS = ("registry", "prefect", "dvc")
MANIFEST = "backup.json"
FORMAT = 1
# Variables that name another database, of which a copy of local files would hold nothing.
ELSEWHERE = {"registry": "MLFLOW_BACKEND_STORE_URI", "prefect": "PREFECT_SERVER_DATABASE_CONNECTION_URL"}
TEMPORARY = ("-wal", "-shm", "-journal", ".lock", ".tmp")  # ends of names of files that SQLite and locks leave


def place(root: Path, part: str) -> Path:
    """Returns the folder of a part: artifacts/registry, $PREFECT_HOME (~/.prefect), or the folder of DVC's cache.

    Raises PipelineError if the part's database is not a file of this machine, or DVC cannot be asked.
    """
    if address := os.environ.get(ELSEWHERE.get(part, "")):
        hint = "use the database's own tool, such as pg_dump (docs/operations.md)"
        if not address.partition(":")[0].startswith("sqlite"):
            raise PipelineError("the database is not a SQLite file", where=ELSEWHERE[part], hint=hint)
    if part == "registry":
        return (root / STORE).resolve()
    if part == "prefect":
        return Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect")
    return cache_folder(root)


def create(root: Path, folder: Path, parts: tuple[str, ...] = PARTS) -> dict[str, int]:
    """Copies the parts into a new folder while the servers may run, and returns the number of files of each part.

    Databases are copied before files, and files of the registry are never changed, so every version in the copy of the
    database has its files. The folder appears when it is complete. Raises PipelineError if the folder exists, or a part
    has nothing to back up.
    """
    if folder.exists():
        raise PipelineError("exists already", where=str(folder), hint="name a new folder for each backup")
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        counts = {part: _copy_part(place(root, part), temporary / part, part) for part in parts}
        files = {name: sha256_file(temporary / name) for name in _names(temporary)}
        write_json(temporary / MANIFEST, {"format": FORMAT, "parts": list(parts), "files": files})
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return counts


def _copy_part(source: Path, target: Path, part: str) -> int:
    """Copies one part and returns the number of its files."""
    if not source.is_dir() or not any(source.iterdir()):
        hint = "leave it out (--part names the others)"
        raise PipelineError(f"nothing to back up for {part}", where=str(source), hint=hint)
    target.mkdir()
    databases = sorted(source.glob("*.db"))
    for path in databases:
        with closing(sqlite3.connect(path)) as original, closing(sqlite3.connect(target / path.name)) as copy:
            original.backup(copy)
    if part != "prefect":  # beside its database Prefect keeps logs and settings of this machine
        for name in _names(source):
            if name.endswith(TEMPORARY) or (source / name) in databases or name == "auth.ini":
                continue
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target / name)
    return len(list(_names(target)))


def restore(root: Path, folder: Path) -> dict[str, int]:
    """Puts the parts of a backup where the servers and DVC look for them, and returns the number of files of each.

    All files are checked first. A registry or a Prefect database that exists is never overwritten; DVC's cache is
    completed. Restore while the servers are stopped. Raises PipelineError if the backup is incomplete or damaged, or
    there is a database already.
    """
    parts = _check(folder)
    places = {part: place(root, part) for part in parts}
    for part in ("registry", "prefect"):
        if part in parts and (existing := sorted(places[part].glob("*.db"))):
            hint = "stop its server and move the file away"
            raise PipelineError("a database exists already", where=str(existing[0]), hint=hint)
    counts = {}
    for part, target in places.items():
        names = list(_names(folder / part))
        # Databases last: until they are there, nothing refers to the files, and the command can be run again.
        for name in sorted(names, key=lambda name: name.endswith(".db")):
            copy = target / name
            if part == "dvc" and copy.exists():
                continue
            copy.parent.mkdir(parents=True, exist_ok=True)
            temporary = copy.with_name(f".{copy.name}.partial")
            shutil.copyfile(folder / part / name, temporary)
            os.replace(temporary, copy)
        counts[part] = len(names)
    return counts


def _check(folder: Path) -> list[str]:
    """Returns the parts of a backup whose files are all as they were written.

    Raises PipelineError if it is no backup, or a file is missing or differs.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files: dict[str, str] = dict(manifest["files"])
        parts = [part for part in PARTS if part in manifest["parts"]]
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        hint = "`sparsemm backup create` makes one"
        raise PipelineError(f"not a backup: {error!r}", where=str(folder), hint=hint) from error
    if extra := set(_names(folder)) - files.keys() - {MANIFEST}:
        raise PipelineError(f"files that the backup did not write: {', '.join(sorted(extra)[:3])}", where=str(folder))
    for name, sha256 in files.items():
        path = folder / name
        if not path.is_file() or sha256_file(path) != sha256:
            what = "missing or damaged, so nothing was restored"
            raise PipelineError(what, where=str(path), hint="use another backup")
    return parts


def _names(folder: Path) -> Iterator[str]:
    """Yields the relative names of all files below a folder."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            yield path.relative_to(folder).as_posix()

"""Writes files and folders so that a crash never leaves half of one behind."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unicodedata import normalize

from sparsemm.errors import FetchError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which is renamed to `path` on success and removed on failure."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        yield temporary
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def room(where: str) -> Iterator[None]:
    """Reports a full disk as a `FetchError`.

    Raises FetchError if the body of the context fails because the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
            hint = "free some space and run the command again"
            raise FetchError("the disk is full", where=where, hint=hint) from error
        raise


def fill_folder(folder: Path, fill: Callable[[Path], None], is_whole: Callable[[Path], bool] = Path.is_dir) -> bool:
    """Fills a folder under a hidden name and gives it its own name when it is whole; a folder that is there stays.

    `fill` writes the files into the folder that it is called with. If `is_whole` rejects them, they are removed. Files
    that a failed attempt left under the hidden name stay for the next one; hidden folders of other names beside it are
    removed. Returns whether the folder is there.
    """
    if folder.is_dir():
        return True
    partial = folder.with_name(f".{folder.name}.partial")
    for other in folder.parent.glob(".*.partial"):
        if other != partial:
            shutil.rmtree(other, ignore_errors=True)
    partial.mkdir(parents=True, exist_ok=True)
    fill(partial)
    if not is_whole(partial):
        shutil.rmtree(partial, ignore_errors=True)
        return False
    partial.rename(folder)
    return True


def result_path(root: Path, folder: str, key: str, suffix: str, dataset: str | None = None) -> Path:
    """Returns a model's file in artifacts/: <key><suffix>, or also/<key>/<dataset><suffix> for data of robustness.

    The tables of one model are in one folder, so that DVC sees when one of them changes.
    """
    parent = root / "artifacts" / folder
    return parent / "also" / key / f"{dataset}{suffix}" if dataset else parent / f"{key}{suffix}"


def work_folder(root: Path, stage: str, key: str, dataset: str | None = None) -> Path:
    """Returns the folder of a stage's partial results for a model; the stage removes it when it has finished."""
    return root / "artifacts" / "work" / (f"{stage}@{dataset}" if dataset else stage) / key


def write_json(path: str | Path, value: Any) -> None:
    """Writes `value` as sorted, indented JSON (byte-identical for equal values), atomically; NaN is refused."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: str | Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows as CSV below a header, atomically; what a row lacks is left empty."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def plain_name(name: str) -> str:
    """Returns a file's name in the form that is compared and shown: Unicode NFC, with non-UTF-8 bytes as escapes."""
    return normalize("NFC", name.encode("utf-8", "backslashreplace").decode())


def as_on_disk(path: Path) -> Path:
    """Returns the path as the disk spells it, if a name there differs only in Unicode normal form; else the path."""
    if path.exists() or path.parent == path:
        return path
    folder, name = as_on_disk(path.parent), plain_name(path.name)
    try:
        return next((child for child in folder.iterdir() if plain_name(child.name) == name), folder / path.name)
    except OSError:
        return path


def sha256_file(path: str | Path) -> str:
    """Returns the hex SHA-256 of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()

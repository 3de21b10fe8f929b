"""Opens a local folder or file as a place."""

from __future__ import annotations

import hashlib
import shutil
from functools import partial
from pathlib import Path
from typing import BinaryIO

from sparsemm.errors import FetchError
from sparsemm.fetch.place import File, Place, by_name, check_revision
from sparsemm.files import as_on_disk, atomic_path, sha256_file


def open_local(path: str, root: Path, revision: str | None = None) -> Place:
    """Lists the files of a folder and its subfolders, without hidden ones, or a single file; `path` is below `root`.

    Raises FetchError if there is no such path, it cannot be read, or it holds another revision than the wanted one.
    """
    base = as_on_disk(root / path)
    if not base.exists():
        raise FetchError("no such file or folder", where=path, hint="in params.yaml a path counts from its folder")
    try:
        paths = [base] if base.is_file() else sorted(p for p in base.rglob("*") if p.is_file())
        names = {p.name if p == base else p.relative_to(base).as_posix(): p for p in paths}
        names = {name: p for name, p in names.items() if not any(part[0] == "." for part in name.split("/"))}
        listed = (File(name, p.stat().st_size, partial(_open, p), partial(_save, p), p) for name, p in names.items())
        files = by_name(listed, path)
        text = "".join(f"{name} {sha256_file(file.path)}\n" for name, file in files.items() if file.path)
    except OSError as error:
        raise FetchError(f"cannot be read: {error}", where=path) from error
    content = hashlib.sha256(text.encode()).hexdigest()[:16]
    check_revision(content, revision, path)
    return Place(path, content, None, files)


def _open(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise FetchError(f"cannot be read: {error}", where=str(path)) from error


def _save(path: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(path, temporary)

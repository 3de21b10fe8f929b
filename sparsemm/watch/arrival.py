"""A checkpoint that was found, and whether its files are all there."""

from __future__ import annotations

import hashlib
import json
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from sparsemm.files import plain_name, write_json
from sparsemm.models import content_revision, weight_files

MOST_HEADER = 100_000_000  # bytes; safetensors itself reads no longer one


@dataclass(frozen=True)
class Arrival:
    """A checkpoint for `sparsemm.models.new_entry`.

    Attributes:
        checkpoint: local folder, relative to the repository where it lies inside, or hub id.
        revision: what params.yaml will name: a hub commit, or the content hash of a local folder.
    """

    checkpoint: str
    revision: str


def is_complete(folder: Path, settle_seconds: float = 0.0) -> bool:
    """Whether a checkpoint folder is whole: config, every shard of its index, every shard as long as its header says.

    Args:
        folder: to look at.
        settle_seconds: no file may be younger than this; a copy in progress touches its files.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        shards = weight_files(folder)
        newest = max(path.stat().st_mtime for path in folder.iterdir())
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return False
    settled = time.time() - newest >= settle_seconds
    return settled and isinstance(config, dict) and bool(shards) and all(_whole(path) for path in shards)


def _whole(path: Path) -> bool:
    """Whether a safetensors file ends where its header says."""
    try:
        with open(path, "rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            size = path.stat().st_size
            if length > min(size, MOST_HEADER):
                return False
            header = json.loads(handle.read(length))
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        return bool(size == 8 + length + max(ends, default=0))
    except (OSError, ValueError, struct.error, LookupError, TypeError, AttributeError, RecursionError):
        return False


def stamp(folder: Path) -> str:
    """Cheap identity of a folder's files, from their names, sizes and times: changes when it may hold new content."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    lines = "".join(f"{plain_name(path.name)} {path.stat().st_size} {path.stat().st_mtime_ns}\n" for path in files)
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def found(folder: Path, key: str, root: Path) -> Arrival:
    """The checkpoint in a local folder.

    Contents are hashed once: while names, sizes and times stay, the hash is remembered in `root`.

    Raises:
        OSError: if the folder cannot be read.
    """
    memo = root / "artifacts" / "work" / "watch" / f"{key}.json"
    seen = {"folder": plain_name(str(folder)), "stamp": stamp(folder)}
    try:
        known = json.loads(memo.read_text(encoding="utf-8"))
        if {name: known[name] for name in seen} == seen:
            return Arrival(relative(folder, root), str(known["revision"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    revision = content_revision(folder)
    write_json(memo, seen | {"revision": revision})
    return Arrival(relative(folder, root), revision)


def relative(folder: Path, root: Path) -> str:
    """The folder as params.yaml names it: relative to the repository where it lies inside."""
    folder, root = folder.resolve(), root.resolve()
    return str(folder.relative_to(root)) if folder.is_relative_to(root) else str(folder)

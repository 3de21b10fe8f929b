"""A checkpoint that has arrived, and the check that all its files are complete."""

from __future__ import annotations

import hashlib
import json
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from sparsemm.files import plain_name, write_json
from sparsemm.models import content_revision, weight_files

MOST_HEADER = 100_000_000  # bytes; the limit of safetensors itself


@dataclass(frozen=True)
class Arrival:
    """A checkpoint for `sparsemm.models.new_entry`."""

    checkpoint: str  # hub id or local folder, relative to the repository if it lies inside
    revision: str  # revision for params.yaml: a hub commit, or the content hash of a local folder


def is_complete(folder: Path, settle_seconds: float = 0.0) -> bool:
    """Tells whether a checkpoint folder is complete: it has a config and every shard of its index, in full length.

    Every file must be `settle_seconds` old, because files that are still being copied are young.
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
    """Tells whether a safetensors file ends where its header says."""
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
    """Returns a hash of the names, sizes and times of a folder's files, which changes whenever their content may."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    lines = "".join(f"{plain_name(path.name)} {path.stat().st_size} {path.stat().st_mtime_ns}\n" for path in files)
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def local_arrival(folder: Path, key: str, root: Path) -> Arrival:
    """Returns the checkpoint in a local folder.

    The content hash is kept under `root` and computed again only when names, sizes or times of files change. Raises
    OSError if the folder cannot be read.
    """
    memo = root / "artifacts" / "work" / "watch" / f"{key}.json"
    identity = {"folder": plain_name(str(folder)), "stamp": stamp(folder)}
    try:
        stored = json.loads(memo.read_text(encoding="utf-8"))
        if {name: stored[name] for name in identity} == identity:
            return Arrival(relative(folder, root), str(stored["revision"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    revision = content_revision(folder)
    write_json(memo, identity | {"revision": revision})
    return Arrival(relative(folder, root), revision)


def relative(folder: Path, root: Path) -> str:
    """Returns a folder as params.yaml names it: relative to the repository if it lies inside, else absolute."""
    folder, root = folder.resolve(), root.resolve()
    return str(folder.relative_to(root)) if folder.is_relative_to(root) else str(folder)

"""Which decode backend was measured to be the fastest on a device, by shape: `sparsemm bench backends --keep`.

The measurement is a file in the user's cache folder. It is made once, by a command: backends round differently, and a
choice by timing while serving would let answers depend on how busy a device was.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import platform
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from sparsemm.files import write_json

FIELDS = {"dtype": str, "head_dim": int, "group": int, "segments": int, "rows": int, "backend": str}


def processor() -> str:
    """The CPU in words."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """A CUDA device or the CPU in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def path_of(name: str) -> Path:
    """The file of a device: a home folder may be shared by machines with different ones."""
    from sparsemm.ops.build import library_folder  # here, or `python -m sparsemm.ops.build` would import itself twice

    words = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
    return library_folder() / f"decode-{words}-{hashlib.sha256(name.encode()).hexdigest()[:8]}.json"


def keep(device: torch.device, fastest: list[dict[str, Any]]) -> Path:
    """Write what was measured on a device, beside what was at other shapes; it is used from now on.

    Args:
        fastest: a dict of `FIELDS` for every shape, others in it are left out: `rows` is the mean room of a segment.
    """
    name = device_name(device)
    path = path_of(name)
    known = {tuple(one[field] for field in FIELDS if field != "backend"): one for one in [*measured(device), *fastest]}
    fastest = [{field: one[field] for field in FIELDS} for one in known.values()]
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_json(path, {"device": name, "torch": torch.__version__, "fastest": fastest})
    measured.cache_clear()
    backend.cache_clear()
    return path


@lru_cache
def measured(device: torch.device) -> list[dict[str, Any]]:
    """What `keep` wrote for this device; nothing, and a line of the log, if it is damaged or of another torch."""
    path = path_of(device_name(device))
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        shapes = found["fastest"]
        if any(type(one[field]) is not kind for one in shapes for field, kind in FIELDS.items()):
            raise ValueError("a shape lacks a field")
        if min([1, *(one[field] for one in shapes for field in ("segments", "rows"))]) < 1:
            raise ValueError("a shape without rows")
        version = found["torch"]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        logging.getLogger(__name__).warning("sparsemm: %s is not used: %r; measure again", path, error)
        return []
    if version != torch.__version__:
        logging.getLogger(__name__).warning("sparsemm: %s was measured with torch %s; measure again", path, version)
        return []
    return list(shapes)


@lru_cache(maxsize=4096)
def backend(
    device: torch.device, dtype: torch.dtype, head_dim: int, group: int, segments: int, rows: int
) -> str | None:
    """The backend measured at the nearest shape of this dtype, head dimension and group; None if there is none.

    Args:
        segments: B * Hkv.
        rows: mean room of a segment, which the host knows; lengths may lie on the device.
    """
    kind = str(dtype).removeprefix("torch."), head_dim, group
    alike = [one for one in measured(device) if (one["dtype"], one["head_dim"], one["group"]) == kind]

    def distance(one: dict[str, Any]) -> float:
        return abs(math.log2(one["segments"] / max(segments, 1))) + abs(math.log2(one["rows"] / max(rows, 1)))

    return str(min(alike, key=distance)["backend"]) if alike else None

"""Reads and writes the fastest decode backend of a device by shape, as `sparsemm bench backends --keep` measures it.

The measurement is a file in the user's cache folder. Only that command writes it: backends round differently, and if
they were timed while serving, answers would depend on how busy a device was.
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
    """Returns the name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """Returns the name of a CUDA device or of the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def path_of(name: str) -> Path:
    """Returns the file for a device name: machines with different devices may share a home folder."""
    from sparsemm.ops.build import library_folder  # not above: `python -m sparsemm.ops.build` would import itself twice

    words = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
    return library_folder() / f"decode-{words}-{hashlib.sha256(name.encode()).hexdigest()[:8]}.json"


def keep(device: torch.device, fastest: list[dict[str, Any]]) -> Path:
    """Saves measurements of a device, keeps those of other shapes, and uses them from now on.

    Args:
        device: where they were measured.
        fastest: a dict with the `FIELDS` of every shape, where `rows` is the mean room of a segment; other keys are
            ignored.
    """
    name = device_name(device)
    path = path_of(name)
    shapes = [*measured(device), *fastest]
    latest = {tuple(shape[field] for field in FIELDS if field != "backend"): shape for shape in shapes}
    fastest = [{field: shape[field] for field in FIELDS} for shape in latest.values()]
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_json(path, {"device": name, "torch": torch.__version__, "fastest": fastest})
    measured.cache_clear()
    backend.cache_clear()
    return path


@lru_cache
def measured(device: torch.device) -> list[dict[str, Any]]:
    """Returns what `keep` saved for this device; nothing, and a warning, if it is damaged or of another torch."""
    path = path_of(device_name(device))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        shapes = content["fastest"]
        if any(type(shape[field]) is not kind for shape in shapes for field, kind in FIELDS.items()):
            raise ValueError("a shape lacks a field")
        if min([1, *(shape[field] for shape in shapes for field in ("segments", "rows"))]) < 1:
            raise ValueError("a shape without rows")
        version = content["torch"]
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
    """Returns the fastest backend at the nearest shape with this dtype, head dimension and group, or None.

    Args:
        segments: B * Hkv.
        rows: mean room of a segment, which is on the host, while lengths may be on the device.
    """
    kind = str(dtype).removeprefix("torch."), head_dim, group
    shapes = [shape for shape in measured(device) if (shape["dtype"], shape["head_dim"], shape["group"]) == kind]

    def distance(shape: dict[str, Any]) -> float:
        return abs(math.log2(shape["segments"] / max(segments, 1))) + abs(math.log2(shape["rows"] / max(rows, 1)))

    return str(min(shapes, key=distance)["backend"]) if shapes else None

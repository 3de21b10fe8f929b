"""The machine: GPUs, disk, compiler and compiled operations, torchvision's included."""

from __future__ import annotations

import os
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sparsemm.compat import define_missing_torchvision_operators
from sparsemm.doctor.finding import Finding
from sparsemm.errors import CacheError
from sparsemm.ops.build import build, build_cuda, compiler, cuda_compiler, library_folder

SCARCE = 20 * 2**30  # bytes; a 7B checkpoint in half precision is 15 GB


def size(count: int) -> str:
    """Bytes as GiB."""
    return f"{count / 2**30:.1f} GiB"


def gpus() -> list[Finding]:
    """Every CUDA device with its memory."""
    import torch

    if not torch.cuda.is_available():
        built = f"torch {torch.__version__} is built for CUDA {torch.version.cuda or '-'}"
        return [Finding("gpu", "absent", f"none; {built}", "the CPU serves; with a GPU, check driver and torch build")]
    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        major, minor = torch.cuda.get_device_capability(index)
        text = f"{torch.cuda.get_device_name(index)}, capability {major}.{minor}, {size(free)} of {size(total)} free"
        old = (major, minor) < (8, 0)
        hint = "the CUDA operations need capability 8.0; PyTorch serves instead" if old else ""
        found.append(Finding(f"gpu {index}", "absent" if old else "ok", text, hint))
    return found


def torchvision() -> Finding:
    """Whether torchvision is of torch's build: if not, `python -m lmms_eval` cannot even be imported."""
    try:
        text = f"{version('torchvision')} beside torch {version('torch')}"
    except PackageNotFoundError:
        return Finding("torchvision", "absent", "not installed", "pip install torchvision, which many processors need")
    if not define_missing_torchvision_operators():
        return Finding("torchvision", "ok", text)
    hint = (
        "SparseMM's own commands do without; for lmms-eval's install the torchvision from where this torch is, "
        "or run `python -m sparsemm.evaluate.lmms_eval` instead of `python -m lmms_eval`"
    )
    return Finding("torchvision", "absent", f"{text}: builds that do not fit, its operators do not load", hint)


def decode_backends() -> list[Finding]:
    """Whether the decode backends were timed on every kind of CUDA device."""
    import torch

    from sparsemm.ops import fastest

    hint = "`sparsemm bench backends --keep`, with the --shape and --dtype served, makes the fastest the default"
    found = {}
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.device("cuda", index)
        won = [one["backend"] for one in fastest.measured(device)]
        words = ", ".join(f"{name} at {won.count(name)}" for name in sorted(set(won)))
        text = f"{fastest.device_name(device)}: fastest of {len(won)} shapes: {words}" if won else "not timed"
        found[text] = Finding("decode backends", "ok" if won else "absent", text, "" if won else hint)
    return list(found.values())


def disk(root: Path) -> Finding:
    """Room where artifacts and downloaded checkpoints go."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    room = {}
    for folder in (root.resolve(), home):
        there = next(place for place in (folder, *folder.parents) if place.exists())
        room[folder] = shutil.disk_usage(there).free
    text = ", ".join(f"{size(free)} free for {folder}" for folder, free in room.items())
    if min(room.values()) < SCARCE:
        return Finding("disk", "broken", text, f"make room ({size(SCARCE)} hold a 7B checkpoint), or set HF_HOME")
    return Finding("disk", "ok", text)


def compiled() -> list[Finding]:
    """The compilers and the libraries of csrc/ (compiled now if that has not happened yet)."""
    if os.environ.get("SPARSEMM_KERNELS", "").lower() == "off":
        return [Finding("operations", "absent", "SPARSEMM_KERNELS=off: PyTorch serves", "unset it for the C++ library")]
    try:
        found = [Finding("operations (CPU)", "ok", f"{build()}, by {compiler()}")]
    except CacheError as error:
        found = [
            Finding("operations (CPU)", "broken", str(error), f"slower PyTorch serves; {library_folder()} is used")
        ]
    import torch

    try:
        nvcc = cuda_compiler()
    except CacheError as error:
        needed = torch.cuda.is_available()
        return [*found, Finding("operations (CUDA)", "broken" if needed else "absent", error.what, error.hint or "")]
    if not torch.cuda.is_available():
        return [*found, Finding("operations (CUDA)", "absent", f"{nvcc}, but no GPU", "needed on GPUs only")]
    try:
        return [*found, Finding("operations (CUDA)", "ok", f"{build_cuda()}, by {nvcc}")]
    except CacheError as error:
        return [*found, Finding("operations (CUDA)", "broken", str(error), "slower PyTorch serves")]

"""Checks the machine: GPUs, disk, compilers and compiled operations, torchvision's included."""

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
    """Returns a number of bytes as text in GiB."""
    return f"{count / 2**30:.1f} GiB"


def gpus() -> list[Finding]:
    """Reports every CUDA device with its memory."""
    import torch

    if not torch.cuda.is_available():
        built = f"torch {torch.__version__} is built for CUDA {torch.version.cuda or '-'}"
        hint = "the CPU is used; if this machine has a GPU, check the driver and torch's build"
        return [Finding("gpu", "absent", f"none; {built}", hint)]
    findings = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        major, minor = torch.cuda.get_device_capability(index)
        text = f"{torch.cuda.get_device_name(index)}, capability {major}.{minor}, {size(free)} of {size(total)} free"
        old = (major, minor) < (8, 0)
        hint = "the CUDA operations need capability 8.0; PyTorch is used instead" if old else ""
        findings.append(Finding(f"gpu {index}", "absent" if old else "ok", text, hint))
    return findings


def torchvision() -> Finding:
    """Reports whether torchvision and torch are builds that fit. If not, lmms_eval cannot be imported."""
    try:
        text = f"{version('torchvision')} beside torch {version('torch')}"
    except PackageNotFoundError:
        return Finding("torchvision", "absent", "not installed", "pip install torchvision, which many processors need")
    if not define_missing_torchvision_operators():
        return Finding("torchvision", "ok", text)
    hint = (
        "SparseMM's own commands do not need it; for lmms-eval install torchvision from the same index as torch, "
        "or run `python -m sparsemm.evaluate.lmms_eval` instead of `python -m lmms_eval`"
    )
    return Finding("torchvision", "absent", f"{text}: its operators do not load, as the builds do not match", hint)


def decode_backends() -> list[Finding]:
    """Reports for every kind of CUDA device whether the decode backends were timed on it."""
    import torch

    from sparsemm.ops import fastest

    hint = "`sparsemm bench backends --keep`, with the --shape and --dtype served, makes the fastest the default"
    findings = {}
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.device("cuda", index)
        winners = [row["backend"] for row in fastest.measured(device)]
        counts = ", ".join(f"{name} for {winners.count(name)}" for name in sorted(set(winners)))
        text = f"{fastest.device_name(device)}: fastest for {len(winners)} shapes: {counts}" if winners else "not timed"
        findings[text] = Finding("decode backends", "ok" if winners else "absent", text, "" if winners else hint)
    return list(findings.values())


def disk(root: Path) -> Finding:
    """Reports the free space for artifacts and for downloaded checkpoints."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    free = {}
    for folder in (root.resolve(), home):
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        free[folder] = shutil.disk_usage(existing).free
    text = ", ".join(f"{size(count)} free for {folder}" for folder, count in free.items())
    if min(free.values()) < SCARCE:
        hint = f"free some space ({size(SCARCE)} hold a 7B checkpoint), or set HF_HOME"
        return Finding("disk", "broken", text, hint)
    return Finding("disk", "ok", text)


def compiled() -> list[Finding]:
    """Reports the compilers and the libraries of csrc/, which are compiled now if necessary."""
    slower = "the slower PyTorch operations are used"
    if os.environ.get("SPARSEMM_KERNELS", "").lower() == "off":
        return [Finding("operations", "absent", f"SPARSEMM_KERNELS=off: {slower}", "unset it for the C++ library")]
    try:
        findings = [Finding("operations (CPU)", "ok", f"{build()}, by {compiler()}")]
    except CacheError as error:
        hint = f"{slower}; libraries are built in {library_folder()}"
        findings = [Finding("operations (CPU)", "broken", str(error), hint)]
    import torch

    try:
        nvcc = cuda_compiler()
    except CacheError as error:
        needed = torch.cuda.is_available()
        return [*findings, Finding("operations (CUDA)", "broken" if needed else "absent", error.what, error.hint or "")]
    if not torch.cuda.is_available():
        return [*findings, Finding("operations (CUDA)", "absent", f"{nvcc}, but no GPU", "needed on GPUs only")]
    try:
        return [*findings, Finding("operations (CUDA)", "ok", f"{build_cuda()}, by {nvcc}")]
    except CacheError as error:
        return [*findings, Finding("operations (CUDA)", "broken", str(error), slower)]

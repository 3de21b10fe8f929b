"""A CUDA device for machines without one: `python tests/cuda_stand_in -m pytest tests/chase`.

Runs python with these arguments where torch sees cuda:0; the processes that it starts see it too. Tensors of the device
lie in memory and the processor computes with them (device.cpp); csrc/*.cu is compiled for the processor and runs thread
by thread (kernels.h, nvcc); graphs record operations and replay them (graphs.py).

Shown by it: that no operation mixes tensors of two devices, that what is captured asks the host nothing, that tokens
and tables are those of a CPU. Not shown: speed, the rounding of a GPU's products, torch's own CUDA kernels.

Where there is a real device, python runs with that one.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import torch

from sparsemm.ops.build import compiler

HERE = Path(__file__).resolve().parent
BUILT = HERE.parents[1] / "build" / "cuda-stand-in"


def device_library() -> Path:
    """device.cpp, compiled for this torch."""
    source = HERE / "device.cpp"
    key = hashlib.sha256(source.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    target = BUILT / f"device-{key}.so"
    if target.is_file():
        return target
    BUILT.mkdir(parents=True, exist_ok=True)
    home, made = Path(torch.__file__).parent, target.with_suffix(f".{os.getpid()}")
    headers = [f"-isystem{home / 'include' / folder}" for folder in ("", "torch/csrc/api/include")]
    libraries = [f"-L{home / 'lib'}", f"-Wl,-rpath,{home / 'lib'}", "-ltorch_cpu", "-lc10"]
    flags = ["-std=c++20", "-O1", "-fPIC", "-shared", "-w"]
    subprocess.run([compiler(), *flags, *headers, str(source), *libraries, "-o", str(made)], check=True)
    made.replace(target)
    return target


def environment() -> dict[str, str]:
    """Variables with which every Python process finds the device."""
    folders = [str(HERE / "site"), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "CUDA_STAND_IN": str(device_library()),
        "NVCC": str(HERE / "nvcc"),
        "XDG_CACHE_HOME": str(BUILT),
        "PYTHONPATH": os.pathsep.join(filter(None, folders)),
    }


if __name__ == "__main__":
    with_device = dict(os.environ) if torch.cuda.is_available() else environment()
    os.execve(sys.executable, [sys.executable, *sys.argv[1:]], with_device)

"""Compiles csrc/ to shared libraries in the user's cache folder: `python -m sparsemm.ops.build [--cuda]`."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sparsemm.errors import CacheError

PACKAGE = Path(__file__).resolve().parents[1]
COMMON = ["-std=c++17", "-O3", "-fPIC", "-shared", "-fvisibility=hidden"]
CUDA = ["-std=c++17", "-O3", "-shared", "-Xcompiler", "-fPIC,-fvisibility=hidden", "--threads", "0"]
CUDA += ["-gencode", "arch=compute_80,code=sm_80", "-gencode", "arch=compute_90,code=[sm_90,compute_90]"]
SECONDS = 600  # a compiler that takes longer hangs


def source_folder() -> Path:
    """Returns the folder of the C++ files: inside an installed package, or beside it in a checkout.

    Raises:
        CacheError: if neither folder exists.
    """
    for folder in (PACKAGE / "csrc", PACKAGE.parent / "csrc"):
        if (folder / "common.h").is_file():
            return folder
    raise CacheError("no C++ sources", where=str(PACKAGE), hint="install SparseMM from its repository")


def library_folder() -> Path:
    """Returns the user's cache folder for compiled libraries: $XDG_CACHE_HOME/sparsemm, by default in ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sparsemm"


def compiler() -> str:
    """Returns the path of the C++ compiler: $CXX, else the first of c++, g++ and clang++.

    Raises:
        CacheError: if there is none.
    """
    name = os.environ.get("CXX")
    path = _first_program([name] if name else ["c++", "g++", "clang++"])
    if path is None:
        raise CacheError(f"{name or 'a C++ compiler'} was not found", hint="install g++ or clang++, or set CXX")
    return path


def cuda_compiler() -> str:
    """Returns the path of nvcc: $NVCC, else on the PATH, in $CUDA_HOME or in /usr/local/cuda.

    Raises:
        CacheError: if there is none.
    """
    name = os.environ.get("NVCC")
    path = _first_program([name] if name else ["nvcc", f"{os.environ.get('CUDA_HOME', '/usr/local/cuda')}/bin/nvcc"])
    if path is None:
        raise CacheError(f"{name or 'nvcc'} was not found", hint="install the CUDA toolkit, or set NVCC")
    return path


def _first_program(names: list[str]) -> str | None:
    return next((path for name in names if (path := shutil.which(name))), None)


def _processor() -> str:
    """Describes what -march=native depends on: different machines may share a home folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    return platform.machine() + "".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))


def flag_sets() -> Iterator[list[str]]:
    """Yields the flags to try, fastest first: a compiler may not know its processor, or have no OpenMP."""
    yield ["-march=native", "-fopenmp"]
    if platform.machine() in ("x86_64", "AMD64") and "avx2" in _processor():
        yield ["-march=x86-64-v3", "-fopenmp"]
    yield ["-fopenmp"]
    yield []


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CacheError(f"{command[0]} did not run: {error}") from error


def compile_library(command: str, flags: list[str], target: Path, pattern: str = "*.cpp") -> str:
    """Compiles the sources that match `pattern` to `target`, atomically, and returns the compiler's error, or "".

    Raises:
        CacheError: if the folder cannot be written or the compiler does not run.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            output = Path(folder) / target.name
            sources = sorted(str(path) for path in source_folder().glob(pattern))
            process = _run([command, *flags, *sources, "-o", str(output)])
            if process.returncode == 0:
                os.replace(output, target)  # another process may have been faster with the same content
                return ""
            return process.stderr.strip() or f"exit status {process.returncode}"
    except OSError as error:
        raise CacheError(f"the library cannot be written: {error}", where=str(target.parent)) from error


def _target(name: str, pattern: str, command: str, *rest: str) -> Path:
    """Returns the path of the library, whose name is a hash of the sources, the compiler and the rest."""
    folder = source_folder()
    key = hashlib.sha256()
    for path in sorted([*folder.glob(pattern), *folder.glob("*.h")]):
        key.update(path.name.encode() + path.read_bytes())
    key.update("\0".join([command, _run([command, "--version"]).stdout, *rest]).encode())
    return library_folder() / f"{name}-{key.hexdigest()[:16]}.so"


def build() -> Path:
    """Returns the library for these sources, this compiler and this processor, and compiles it if there is none.

    Raises:
        CacheError: without a compiler, without sources, or if nothing compiles.
    """
    command, error = compiler(), ""
    for flags in flag_sets():
        target = _target("kernels", "*.cpp", command, *COMMON, *flags, _processor())
        if target.is_file():
            return target
        error = compile_library(command, [*COMMON, *flags], target)
        if not error:
            return target
    raise CacheError(f"{command} fails: {error.splitlines()[-1]}", where=str(source_folder()))


def build_cuda() -> Path:
    """Returns the CUDA library for these sources and this nvcc, and compiles it if there is none.

    It holds machine code for compute capabilities 8.0 (which 8.6 and 8.9 run too) and 9.0, and PTX for later ones,
    which their driver compiles when the library is loaded.

    Raises:
        CacheError: without nvcc, without sources, or if they do not compile.
    """
    command = cuda_compiler()
    target = _target("cuda", "*.cu", command, *CUDA)
    if not target.is_file():
        error = compile_library(command, CUDA, target, "*.cu")
        if error:
            raise CacheError(f"{command} fails: {error.splitlines()[-1]}", where=str(source_folder()))
    return target


def wants_cuda() -> bool:
    """Returns whether there are nvcc and a CUDA device."""
    try:
        cuda_compiler()
    except CacheError:
        return False
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    try:
        print(build())
        if "--cuda" in sys.argv[1:] or wants_cuda():
            print(build_cuda())
    except CacheError as error:
        sys.exit(f"sparsemm: {error}")

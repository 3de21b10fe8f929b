"""Compile csrc/ to one shared object in a per-user folder: `python -m sparsemm.cache.build`."""

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
SECONDS = 300  # a compiler that takes longer hangs


def source_folder() -> Path:
    """Where the C++ files are: inside an installed package, or beside it in a checkout.

    Raises:
        CacheError: if neither folder exists.
    """
    for folder in (PACKAGE / "csrc", PACKAGE.parent / "csrc"):
        if (folder / "common.h").is_file():
            return folder
    raise CacheError("no C++ sources", where=str(PACKAGE), hint="install SparseMM from its repository")


def library_folder() -> Path:
    """The user's cache folder for compiled libraries: $XDG_CACHE_HOME/sparsemm, by default in ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sparsemm"


def compiler() -> str:
    """Path of the C++ compiler: $CXX, else the first of c++, g++ and clang++.

    Raises:
        CacheError: if there is none.
    """
    wanted = os.environ.get("CXX")
    for name in [wanted] if wanted else ["c++", "g++", "clang++"]:
        found = shutil.which(name)
        if found:
            return found
    raise CacheError(f"{wanted or 'a C++ compiler'} was not found", hint="install g++ or clang++, or set CXX")


def _processor() -> str:
    """What -march=native depends on: a home folder may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    return platform.machine() + "".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))


def flag_sets() -> Iterator[list[str]]:
    """Flags to try, fastest first: a compiler may not know its processor, or have no OpenMP."""
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


def compile_library(command: str, flags: list[str], target: Path) -> str:
    """Compile all sources to `target`, which appears whole or not at all; the compiler's complaint, or "".

    Raises:
        CacheError: if the folder cannot be written or the compiler does not run.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / target.name
            sources = sorted(str(path) for path in source_folder().glob("*.cpp"))
            done = _run([command, *COMMON, *flags, *sources, "-o", str(made)])
            if done.returncode == 0:
                os.replace(made, target)  # another process may have been faster with the same content
                return ""
            return done.stderr.strip() or f"exit status {done.returncode}"
    except OSError as error:
        raise CacheError(f"the library cannot be written: {error}", where=str(target.parent)) from error


def build() -> Path:
    """The compiled library for these sources, this compiler and this processor; compiled now if there is none.

    Raises:
        CacheError: without a compiler, without sources, or if nothing compiles.
    """
    command, folder = compiler(), source_folder()
    version = _run([command, "--version"]).stdout
    sources = b"".join(path.name.encode() + path.read_bytes() for path in sorted(folder.glob("*.*")))
    complaint = ""
    for flags in flag_sets():
        key = hashlib.sha256(sources)
        key.update("\0".join([command, version, *COMMON, *flags, _processor()]).encode())
        target = library_folder() / f"kernels-{key.hexdigest()[:16]}.so"
        if target.is_file():
            return target
        complaint = compile_library(command, flags, target)
        if not complaint:
            return target
    raise CacheError(f"{command} fails: {complaint.splitlines()[-1]}", where=str(folder))


if __name__ == "__main__":
    try:
        print(build())
    except CacheError as error:
        sys.exit(f"sparsemm: {error}")

"""csrc/ under the compiler's sanitizers: memory, undefined behaviour, and races between the threads of a GPU.

The tests that compare operations with their twins run again in a process where every access of the compiled code is
looked at; CUDA sources as in test_cuda.py (what orders two threads: cuda_stand_in/kernels.h).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sparsemm.ops import build
from tests.ops.test_cuda import EMULATED

CHECKS = {  # of what is compiled for the first, optimizing takes longer than it saves
    "memory": "-fsanitize=address,undefined -fno-sanitize-recover=undefined -O0",
    "races": "-fsanitize=thread",
}
LIBRARIES = {"memory": ["libasan.so", "libstdc++.so.6"], "races": ["libtsan.so"]}
FOUND = 66

pytestmark = pytest.mark.skipif("CUDA_STAND_IN" in os.environ, reason="runs once, without a device")


def environment(check: str, report: Path) -> dict[str, str]:
    """For a Python that loads code compiled with CHECKS[check]; what is found is in files named after `report`."""
    paths = [
        subprocess.run([build.compiler(), f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in LIBRARIES[check]
    ]
    if not all(Path(path).is_file() for path in paths):
        pytest.skip(f"the compiler has no {LIBRARIES[check][0]}")
    options = f"exitcode={FOUND}:log_path={report}:detect_leaks=0"
    return {name: value for name, value in os.environ.items() if name != "SPARSEMM_KERNELS"} | {
        "LD_PRELOAD": " ".join(paths),
        "ASAN_OPTIONS": options + ":detect_stack_use_after_return=0",  # fibers have stacks of their own
        "TSAN_OPTIONS": options,
        "UBSAN_OPTIONS": f"print_stacktrace=1:log_path={report}",
        "EMULATION_FLAGS": CHECKS[check] + " -g1",
        "EMULATION_ROUNDS": "0.05",
        "OMP_NUM_THREADS": "1",
    }


def run(arguments: list[str], given: dict[str, str], report: Path) -> str:
    """What the sanitizer found, or an empty string."""
    done = subprocess.run([sys.executable, *arguments], env=given, capture_output=True, text=True)
    found = "\n".join(path.read_text() for path in sorted(report.parent.glob(report.name + ".*")))
    assert done.returncode == 0 or "Sanitizer" in found or "runtime error" in found, done.stdout + done.stderr
    return found if "SUMMARY" in found else ""


def again(file: str, chosen: str) -> list[str]:
    return ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(Path(__file__).with_name(file)), "-k", chosen]


# A fault is reported by every thread that meets it, and the last one stays: the one race that is wanted. Both kinds of
# 16 bits take the same paths.
ON_THREADS = "not one_library and not leaves_the_slab and not torch.float16"


@pytest.mark.parametrize("check", CHECKS)
def test_the_kernels_of_a_gpu(check, tmp_path):
    report = tmp_path / "found"
    assert not run(again("test_cuda.py", ON_THREADS), environment(check, report), report)


def test_the_operations_of_the_processor(tmp_path):
    report, compiler = tmp_path / "found", tmp_path / "c++"
    given = environment("memory", report) | {"CXX": str(compiler), "XDG_CACHE_HOME": str(tmp_path)}
    compiler.write_text(f'#!/bin/sh\nexec {build.compiler()} "$@" {CHECKS["memory"]} -O1 -g1\n')
    compiler.chmod(0o755)
    assert not run(again("test_cpu.py", "equals_its_twin"), given, report)
    assert list(tmp_path.glob("sparsemm/kernels-*.so"))


# Two blocks add up what their threads have; the last one to come adds the parts.
KERNEL = """
__global__ void total(const float* from, float* out, float* parts, int* counter) {
    __shared__ float sums[64];
    __shared__ int last;
    sums[threadIdx.x] = from[64 * blockIdx.x + threadIdx.x];
    BARRIER;
    if (threadIdx.x < 32) parts[32 * blockIdx.x + threadIdx.x] = sums[threadIdx.x] + sums[threadIdx.x + 32];
    if (EARLY) __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        if (BEFORE) __threadfence();
        last = atomicAdd(counter, 1);
        if (BEHIND) __threadfence();
    }
    __syncthreads();
    if (!last || threadIdx.x) return;
    for (int n = 0; n < 64 + BEYOND; ++n) *out += parts[n];
}
extern "C" __attribute__((visibility("default"))) void run(const float* from, float* out, float* parts, int* counter) {
    sparsemm::launch(total, 2, 64, nullptr, from, out, parts, counter);
}
"""
RIGHT = {"BARRIER": "__syncthreads()", "EARLY": "false", "BEFORE": "true", "BEHIND": "true", "BEYOND": "0"}
CALL = """
import ctypes, sys
numbers = [(kind * count)(*range(count)) for kind, count in [(ctypes.c_float, 128), (ctypes.c_float, 1)]]
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
parts = ctypes.c_void_p(libc.malloc(ctypes.c_size_t(256)))
ctypes.CDLL(sys.argv[1]).run(*numbers, parts, (ctypes.c_int * 1)())
assert numbers[1][0] == sum(range(128)) or "BEYOND" in sys.argv
"""


@pytest.mark.parametrize(
    ("check", "fault", "said"),
    [
        ("races", {}, ""),
        ("memory", {}, ""),
        ("races", {"BARRIER": ""}, "data race"),
        ("races", {"BEFORE": "false"}, "data race"),
        ("races", {"BEHIND": "false"}, "data race"),
        # Every thread for itself is not enough: the one that counts publishes what it knew at its own fence.
        ("races", {"BEFORE": "false", "EARLY": "true"}, "data race"),
        ("memory", {"BEYOND": "1"}, "heap-buffer-overflow"),
    ],
    ids=str,
)
def test_a_kernel_with_a_fault_is_found(check, fault, said, tmp_path):
    report, source, library = tmp_path / "found", tmp_path / "kernel.cu", tmp_path / "kernel.so"
    given = environment(check, report)
    source.write_text(KERNEL)
    flags = [*given["EMULATION_FLAGS"].split(), *(f"-D{name}={value}" for name, value in (RIGHT | fault).items())]
    subprocess.run([build.compiler(), *EMULATED, *flags, str(source), "-o", str(library)], check=True)
    found = run(["-c", CALL, str(library), *fault], given, report)
    assert said in found if said else not found


def test_shared_memory_of_each_library_holds_anything_when_a_block_begins(tmp_path):
    source, library, another = (tmp_path / name for name in ("kernel.cu", "kernel.so", "another.so"))
    source.write_text("""
        __global__ void copy(float* out, bool write) {
            __shared__ float held;
            if (write) held = 1.0f;
            *out = held;
        }
        extern "C" __attribute__((visibility("default"))) void run(float* out, bool write) {
            sparsemm::launch(copy, 1, 1, nullptr, out, write);
        }
    """)
    subprocess.run([build.compiler(), *EMULATED, str(source), "-o", str(library)], check=True)
    shutil.copy(library, another)
    out = ctypes.c_float()
    for path in (library, another):
        for write, want in ((True, "1.0"), (False, "nan")):
            ctypes.CDLL(str(path)).run(ctypes.byref(out), write)
            assert str(out.value) == want

"""Torch's default dtype changes nothing: from_pretrained sets it in one thread for all others.

The whole suites run under another one with `SPARSEMM_TEST_DTYPE=bfloat16 pytest tests/ops tests/policies tests/cache`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DTYPES = ["bfloat16", "float16", "float64"]
CORE = ["ops/test_edges.py", "policies"]  # a small part


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error::UserWarning:sparsemm", *arguments]
    known = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(command, cwd=ROOT, env=known, capture_output=True, text=True, timeout=500)


@pytest.mark.parametrize("kernels", ["on", "off"])
def test_every_method_says_the_same_under_every_default_dtype(kernels):
    names = ["float32", *DTYPES, "loading"]
    done = run("tests/cache/decoding.py", *names, SPARSEMM_KERNELS=kernels)
    said = dict(json.loads(line) for line in done.stdout.splitlines())
    assert done.returncode == 0 and list(said) == names, done.stderr
    assert [name for name in names if said[name] != said["float32"]] == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])  # less and more than float32
def test_the_core_suites_pass_under_another_default_dtype(dtype):
    files = [f"tests/{name}" for name in CORE]
    done = run(
        "-m", "pytest", "-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider", *files, SPARSEMM_TEST_DTYPE=dtype
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

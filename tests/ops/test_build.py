"""Building the C++ library: once for its sources, with whatever flags the compiler knows, by one command."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys

import pytest
import torch

from sparsemm.ops import build, library, ragged_decode
from tests.ops.operations import DTYPES, TOLERANCE, needs_compiler, ragged


@needs_compiler
def test_built_once_and_again_when_a_source_changes(monkeypatch, tmp_path):
    sources = shutil.copytree(build.source_folder(), tmp_path / "csrc")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "source_folder", lambda: sources)
    monkeypatch.setattr(build, "COMMON", [flag for flag in build.COMMON if flag != "-O3"])
    first = build.build()
    made = first.stat().st_mtime_ns
    assert build.build() == first and first.stat().st_mtime_ns == made
    (sources / "append.cpp").write_text((sources / "append.cpp").read_text() + "// changed\n")
    assert build.build() != first
    assert sorted(p.suffix for p in (tmp_path / "sparsemm").iterdir()) == [".so", ".so"]  # nothing half-made


@needs_compiler
@pytest.mark.parametrize("flags", list(build.flag_sets())[1:], ids=" ".join)
def test_the_plainer_flags_compute_the_same(tmp_path, flags):
    """Narrower vectors, and at last no OpenMP: what an old compiler or another architecture gets."""
    assert build.compile_library(build.compiler(), [*build.COMMON, *flags, "-O1"], tmp_path / "plain.so") == ""
    plain = ctypes.CDLL(str(tmp_path / "plain.so")).sparsemm_ragged_decode
    types = library.ARGUMENTS["sparsemm_ragged_decode"]
    plain.argtypes = [library.P if isinstance(one, library.Pointer) else one for one in types]
    plain.restype = ctypes.c_int64
    for dtype in DTYPES:
        keys, values, starts, lengths = ragged([300, 0, 5], 24, dtype, [0] * 3, 0)
        values[:20] *= 1e-6  # subnormal halves
        query = torch.randn(1, 6, 24, dtype=torch.float32).to(dtype)
        out = torch.empty_like(query)
        tensors = [t.data_ptr() for t in (query, keys, values, starts, lengths, out)]
        assert plain(library.DTYPES[dtype], *tensors, 3, 2, 24, len(keys), 0.2, 4) == library.DONE
        want = ragged_decode.reference(query.double(), keys.double(), values.double(), starts, lengths, 0.2)
        torch.testing.assert_close(out.double(), want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@needs_compiler
def test_one_command_builds_the_library():
    done = subprocess.run(
        [sys.executable, "-m", "sparsemm.ops.build"], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert done.stdout.strip() == str(build.build())

"""Loading the C++ library: whether there is one, and what is said where there is none."""

from __future__ import annotations

import logging

import pytest
import torch

from sparsemm.ops import build, library, ragged_decode
from tests.ops.operations import needs_compiler, ragged

pytestmark = pytest.mark.usefixtures("fresh_library")


@needs_compiler
def test_there_is_a_library():
    assert library.available()


def test_without_a_compiler_one_line_says_so_and_the_twin_serves(monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with caplog.at_level(logging.WARNING):
        assert not library.available() and not library.available()
    assert [r.getMessage().count("\n") for r in caplog.records] == [0]
    assert "using PyTorch" in caplog.text and "no-such-compiler was not found" in caplog.text
    keys, values, starts, lengths = ragged([2], 8, torch.float32, [0], 0)
    assert not library.serves(keys)
    assert ragged_decode.ragged_decode(
        torch.randn(1, 1, 8, dtype=torch.float32), keys, values, starts, lengths, 1.0
    ).any()


def test_switched_off_it_says_nothing(monkeypatch, caplog):
    monkeypatch.setenv("SPARSEMM_KERNELS", "off")
    assert not library.available() and not caplog.records


def test_a_compiler_that_fails_and_a_damaged_library_are_reported(monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "false")
    assert not library.available() and "fails" in caplog.text
    assert not list(tmp_path.rglob("*.so"))
    library.library.cache_clear()
    (tmp_path / "damaged.so").write_bytes(b"nothing")
    monkeypatch.setattr(build, "build", lambda: tmp_path / "damaged.so")
    assert not library.available() and "damaged.so" in caplog.text


def test_a_folder_that_cannot_be_written_is_reported(monkeypatch, caplog, tmp_path):
    (tmp_path / "sparsemm").write_text("a file in its place")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not library.available()
    assert len(caplog.records) == 1

"""Thousands of random ragged inputs in a command; here some of each operation, and that a wrong one is found."""

from __future__ import annotations

import pytest
import torch

from benchmarks.operations import check
from sparsemm.ops import OPERATIONS, append


@pytest.mark.parametrize("op", [*OPERATIONS, "decode/twin"])
def test_operations_agree_with_their_twins(op):
    found = check(op, torch.device("cpu"), seconds=60, rounds=8)
    assert found["rounds"] == 8 and not found["failed"], found["failures"]


def test_what_is_wrong_is_named(monkeypatch):
    monkeypatch.setattr(append, "append", lambda *_: None)
    found = check("append", torch.device("cpu"), seconds=60, rounds=4)
    assert found["failed"] == 4 and "seed 0" in found["failures"][0] and "times the tolerance" in found["failures"][0]
    monkeypatch.setattr(append, "append", lambda *_: 1 / 0)
    assert "ZeroDivisionError" in check("append", torch.device("cpu"), seconds=60, rounds=1)["failures"][0]

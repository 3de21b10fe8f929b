"""The bench runs and its figures have stable names."""

from __future__ import annotations

import json

import pytest
import torch

from sparsemm.cache import bench


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_json_object_with_named_ratios(monkeypatch, capsys, dtype):
    monkeypatch.setattr(bench, "COPIED", 1 << 16)
    monkeypatch.setattr(bench, "SHAPES", [(2, 3, 2, 16, 40, 8), (1, 2, 1, 8, 9, 9)])
    monkeypatch.setattr("sys.argv", ["bench", "--repeats", "2", "--dtype", dtype])
    bench.main()
    printed = json.loads(capsys.readouterr().out)
    assert printed["bench"] == "cache" and printed["versions"]["torch"] == torch.__version__
    evicted, whole = printed["rows"]
    assert evicted["bytes"] < evicted["bytes_full"] and whole["bytes"] == whole["bytes_full"]
    for row in printed["rows"]:
        assert {"twin_over_ragged_decode", "full_over_ragged_decode", "decode_bandwidth_share"} <= set(row["ratios"])
        assert all(median > 0 for _, median, _ in row["seconds"].values())

"""Tables of measurements of vLLM; needs no vLLM."""

from __future__ import annotations

from benchmarks.vllm import table


def test_a_table_has_medians_and_their_ratio():
    runs = {"stock": [{"steps": 4}, {"steps": 2}, {"steps": 8}], "sparsemm": [{"steps": 1}, {"steps": 2}, {"steps": 2}]}
    assert table({"results": runs})[2:] == ["| steps | 4 | 2 | 0.50 |"]

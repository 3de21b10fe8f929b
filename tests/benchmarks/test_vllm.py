"""The tables of docs/vllm.md are those of the stored measurements; needs no vLLM."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.vllm import KINDS, STORED, table

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("place", "what"), [("benchmark", "measure"), ("scheduler", "measure_scheduler")])
def test_the_tables_of_the_docs_are_what_was_measured(place, what):
    stored = json.loads((ROOT / STORED).read_text(encoding="utf-8"))[what]
    assert all(len(stored["results"][kind]) >= 3 for kind in KINDS)
    document = (ROOT / "docs" / "vllm.md").read_text(encoding="utf-8")
    assert "\n".join([f"<!-- {place} -->", *table(stored), "<!-- end -->"]) in document


def test_a_table_has_medians_and_their_ratio():
    runs = {"stock": [{"steps": 4}, {"steps": 2}, {"steps": 8}], "sparsemm": [{"steps": 1}, {"steps": 2}, {"steps": 2}]}
    assert table({"results": runs})[2:] == ["| steps | 4 | 2 | 0.50 |"]

"""A trained small model, six pages, and a score table of its shape: what tuning begins from."""

from __future__ import annotations

import pytest

from sparsemm.datasets.records import write_records
from sparsemm.datasets.synthetic import PageStyle, draw_record
from sparsemm.params.tune import TuneParams
from tests.studies.crafted import begin

SMALL = {"samples": 6, "first": 2, "tasks": ("qa",), "budgets": (12,), "methods": ("snapkv", "sparsemm")}
SMALL |= {
    "selectors": ("snapkv", "peak"),
    "rhos": (0.1,),
    "against": ("full", "sparsemm", "snapkv", "snapkv+random-visual"),
}


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """(params, root): nothing has been tuned."""
    params, root = begin(tmp_path_factory.mktemp("tune"))
    records = [draw_record("evaluation", 0, index, PageStyle(1, 6, (3, 6))) for index in range(6)]
    write_records(root / "artifacts" / "datasets" / "evaluation.parquet", records)
    return params.model_copy(update={"tune": TuneParams.model_validate(SMALL)}), root

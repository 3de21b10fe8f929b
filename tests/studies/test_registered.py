"""The registered method: compared with every other one, on its own pages alone."""

from __future__ import annotations

import pytest
import yaml

from sparsemm.errors import ParamsError
from sparsemm.params import parse_params
from sparsemm.studies import read_study
from sparsemm.studies.common.stage import run
from sparsemm.studies.registered import conclusion
from tests.studies.crafted import KEY, ROOT


def test_it_is_compared_with_all_others_on_its_own_pages(made):
    params, root = made
    run(params, "registered", KEY, root)
    rows = read_study(root / f"artifacts/studies/registered/{KEY}.csv", "registered", KEY)
    assert {row.n for row in rows} == {2}
    assert {(row.setting, row.against) for row in rows if row.against} == {
        ("sparsemm+peak", "full"),
        ("sparsemm+peak", "random"),
    }
    assert {(row.setting, row.budget, row.seeds) for row in rows if not row.against} == {
        ("full", None, 1),
        ("random", 12, 3),
    }
    assert "random" in conclusion(rows) and conclusion([]) == ""


def test_one_page_is_too_few():
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    raw["studies"]["measured"]["registered"] |= {"first": 9, "samples": 10}
    with pytest.raises(ParamsError, match="fewer than two"):
        parse_params(yaml.safe_dump(raw))

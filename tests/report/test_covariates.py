"""Hit rates by what is on the page, as the chase stage wrote them."""

from __future__ import annotations

import pytest

from sparsemm.chase.covariates import Rates
from sparsemm.errors import DataError
from sparsemm.report import covariates

ROWS = [
    Rates("script", "latin", 4, 12, 0.75, 0.5, 0.875, 0.25),
    Rates("script", "digits", 1, 3, 0.5, 0.5, 0.5, 0.125),
]


def save(root, rows, folder=""):
    path = root / "artifacts" / "scores" / folder / "m.covariates.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(",".join(map(str, row)) for row in [Rates._fields, *rows]) + "\n")
    return path


def test_the_picture_depends_on_the_numbers_alone():
    assert covariates.bars({"a": ROWS}) == covariates.bars({"a": ROWS})
    assert covariates.bars({"a": ROWS}) != covariates.bars({"a": ROWS[:1]})


@pytest.mark.parametrize("content", ["", "rank,share\n1,2\n", "{header}\nscript,latin,4\n", "{header}\n{bad}\n"])
def test_another_file_is_refused(tmp_path, content):
    path = save(tmp_path, [])
    path.write_text(content.format(header=",".join(Rates._fields), bad="script,latin,4,12,high,0.5,0.9,0.2"))
    with pytest.raises(DataError, match="not what the chase stage writes"):
        covariates.read_covariates(path)

"""Hit rates by what is on the page, as the chase stage wrote them."""

from __future__ import annotations

import pytest

from sparsemm.chase.covariates import Rates
from sparsemm.errors import DataError
from sparsemm.params import load_params
from sparsemm.params.stages import RobustnessParams
from sparsemm.report import covariates
from tests.report.conftest import checked, results

ROWS = [
    Rates("script", "latin", 4, 12, 0.75, 0.5, 0.875, 0.25),
    Rates("script", "digits", 1, 3, 0.5, 0.5, 0.5, 0.125),
]


@pytest.fixture
def params():
    return load_params("params.yaml").model_copy(update={"robustness": {"signs": RobustnessParams()}})


def save(root, rows, folder=""):
    path = root / "artifacts" / "scores" / folder / "m.covariates.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(",".join(map(str, row)) for row in [Rates._fields, *rows]) + "\n")
    return path


def test_every_data_set_is_shown_with_its_samples_and_intervals(params, tmp_path):
    save(tmp_path, ROWS)
    save(tmp_path, [Rates("kind", "object", 2, 5, 0.0, 0.0, 0.0, 0.0)], "also/signs")
    images = {}
    page = checked(covariates.covariates(params, [results()], tmp_path, images))
    assert images["covariates-m"].startswith(b"\x89PNG")
    for shown in ("script latin", "75.0%", "50.0% to 87.5%", "kind object", "Table: signs", "calibration: 50% to 75%"):
        assert shown in page.text or shown in str(page.all("img"))
    assert "50.0% to 50.0%" not in page.text  # one sample has no interval


def test_nothing_chased_is_no_section(params, tmp_path):
    images = {}
    assert covariates.covariates(params, [results()], tmp_path, images) == "" and not images
    save(tmp_path, [])  # no token of any answer was scored
    assert covariates.covariates(params, [results()], tmp_path, images) == ""


def test_the_picture_depends_on_the_numbers_alone():
    assert covariates.bars({"a": ROWS}) == covariates.bars({"a": ROWS})
    assert covariates.bars({"a": ROWS}) != covariates.bars({"a": ROWS[:1]})


@pytest.mark.parametrize("content", ["", "rank,share\n1,2\n", "{header}\nscript,latin,4\n", "{header}\n{bad}\n"])
def test_another_file_is_refused(tmp_path, content):
    path = save(tmp_path, [])
    path.write_text(content.format(header=",".join(Rates._fields), bad="script,latin,4,12,high,0.5,0.9,0.2"))
    with pytest.raises(DataError, match="not what the chase stage writes"):
        covariates.read_covariates(path)

"""The studies' tables are read, and claims follow from their intervals."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sparsemm.errors import DataError
from sparsemm.report.studies import area_differences, claims, compared, read_studies
from sparsemm.studies.stage import write
from tests.report.studied import rows

MADE = {"curve": None, "length": None, "rho": None}
PARAMS = SimpleNamespace(models={"m": None, "n": None}, studies=SimpleNamespace(made=lambda: MADE))


@pytest.mark.parametrize(("gain", "word"), [(0.2, "better"), (-0.2, "worse"), (0.0, "no difference shown")])
def test_a_claim_says_what_the_interval_says(gain, word):
    (said,) = claims(rows(gain=gain))
    assert said.startswith(f"read: sparsemm against snapkv: {word} at B = 12 ({gain:+.3f} [")
    assert "no difference shown" in said and said.endswith("].") is False


def test_what_was_made_is_read(tmp_path):
    assert read_studies(PARAMS, tmp_path) == {}
    write(rows("length", "n"), "length", "n", tmp_path)
    write(rows(), "curve", "m", tmp_path)
    write(rows("parts"), "parts", "m", tmp_path)  # of params that are gone
    found = read_studies(PARAMS, tmp_path)
    assert {name: list(models) for name, models in found.items()} == {"curve": ["m"], "length": ["n"]}
    assert found["curve"]["m"][0]["setting"] == rows()[0]["setting"]


def test_one_page_gives_no_claim_whatever_its_file_says(tmp_path):
    few = [row | {"n": "1", "pages": "1"} for row in rows("curve", "m")]
    assert claims(few)  # of a file from before this was so
    write(few, "curve", "m", tmp_path)
    found = read_studies(PARAMS, tmp_path)["curve"]["m"]
    assert claims(found) == [] and compared(found) == {} and area_differences({"curve": {"m": found}}, ["m"]) == {}
    assert not any(row["ci_low"] or row["diff_ci_low"] or row["verdict"] for row in found)


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "artifacts" / "studies" / "rho" / "m.csv"
    path.parent.mkdir(parents=True)
    path.write_text("half")
    with pytest.raises(DataError, match="columns"):
        read_studies(PARAMS, tmp_path)

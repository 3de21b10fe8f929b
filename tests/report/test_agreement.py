"""Tables of several data sets beside each other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sparsemm.chase.covariates import Rates
from sparsemm.errors import DataError, ScoreTableError
from sparsemm.params import load_params
from sparsemm.params.stages import RobustnessParams
from sparsemm.report import agreement
from sparsemm.report.results import Results
from tests.report.conftest import HEADER, table


@pytest.fixture
def result():
    return Results("m", "", {}, {}, table(), [], [], {})


@pytest.fixture
def params():
    base = load_params("params.yaml")
    return base.model_copy(update={"robustness": {"large": RobustnessParams(), "later": RobustnessParams()}})


def save(root, one, name="large"):
    one.save(root / "artifacts" / "scores" / "also" / "m" / f"{name}.safetensors")


def test_tables_that_are_there_are_read(params, result, tmp_path):
    assert agreement.read_agreement(params, result, tmp_path) == agreement.Agreement({}, {}, {})
    save(tmp_path, table(0.3))
    assert list(agreement.read_agreement(params, result, tmp_path).tables) == ["large"]  # "later" is not chased yet


def test_another_models_table_is_refused(params, result, tmp_path):
    save(tmp_path, replace(result.table, header=HEADER | {"fingerprint": "g"}))
    with pytest.raises(ScoreTableError, match="another config"):
        agreement.read_agreement(params, result, tmp_path)


def test_words_read_are_those_of_that_data_set(params, result, tmp_path):
    save(tmp_path, result.table)
    assert agreement.read_agreement(params, result, tmp_path).words == {"large": None}
    path = tmp_path / "artifacts" / "align" / "also" / "m" / "large.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"share_found": 0.625}')
    assert agreement.read_agreement(params, result, tmp_path).words == {"large": 0.625}
    for content in ("{}", "[", '{"share_found": "most"}'):
        path.write_text(content)
        with pytest.raises(DataError, match="not what the align stage writes"):
            agreement.read_agreement(params, result, tmp_path)


def test_hit_rates_of_every_data_set_are_read(params, result, tmp_path):
    row = Rates("script", "latin", 4, 12, 0.75, 0.5, 0.875, 0.25)
    for name in ("m", "also/m/large"):
        path = tmp_path / "artifacts" / "scores" / f"{name}.covariates.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(",".join(map(str, one)) for one in (Rates._fields, row)) + "\n")
    found = agreement.read_agreement(params, result, tmp_path).rates
    assert found == {params.chase.dataset: [row], "large": [row]}


def test_one_scale_ends_at_the_largest_share_of_all():
    assert agreement.most_share({"a": table(0.3), "b": table(0.6)}) == pytest.approx(60)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_any_number_of_maps_is_drawn(count):
    assert agreement.heat_maps({str(i): table() for i in range(count)}).startswith(b"\x89PNG")

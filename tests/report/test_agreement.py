"""Tables of several data sets beside each other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sparsemm.errors import DataError, ScoreTableError
from sparsemm.params import load_params
from sparsemm.params.stages import RobustnessParams
from sparsemm.report import agreement
from sparsemm.report.results import Results
from sparsemm.scores import ScoreTable
from tests.report.conftest import HEADER, table


@pytest.fixture
def result():
    return Results("m", "", {}, {}, table(), [], [], {})


@pytest.fixture
def params():
    base = load_params("params.yaml")
    return base.model_copy(update={"robustness": {"large": RobustnessParams(), "later": RobustnessParams()}})


def save(root, one, name="large"):
    one.save(root / "artifacts" / "scores" / "also" / name / "m.safetensors")


def test_numbers_are_those_of_the_tables(params, result, tmp_path):
    moved = np.roll(result.table.per_sample, 1, axis=2)  # another head is the best
    save(tmp_path, ScoreTable.from_samples(moved, np.roll(result.table.hits, 1, axis=1), HEADER))
    images: dict[str, bytes] = {}
    page = agreement.agreement(params, [result], tmp_path, images)
    assert list(images) == ["agreement-m"] and images["agreement-m"].startswith(b"\x89PNG")
    assert ">large<" in page and ">later<" not in page  # not chased yet
    assert ">0%<" in page and f">{-1 / 19:.3f}<" in page
    assert images["agreement-m"] == agreement.heat_maps(
        {params.chase.dataset: result.table, "large": agreement.other_tables(params, "m", tmp_path)["large"]}
    )


def test_nothing_to_compare_is_no_section(params, result, tmp_path):
    assert agreement.agreement(params, [result], tmp_path, {}) == ""


def test_words_read_are_those_of_that_data_set(params, result, tmp_path):
    save(tmp_path, result.table)
    assert ">-<" in agreement.agreement(params, [result], tmp_path, {})
    path = tmp_path / "artifacts" / "align" / "also" / "large" / "m.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"share_found": 0.625}')
    assert ">62.5%<" in agreement.agreement(params, [result], tmp_path, {})
    for content in ("{}", "[", '{"share_found": "most"}'):
        path.write_text(content)
        with pytest.raises(DataError, match="not what the align stage writes"):
            agreement.agreement(params, [result], tmp_path, {})


def test_another_models_table_is_refused(params, result, tmp_path):
    save(tmp_path, replace(result.table, header=HEADER | {"fingerprint": "g"}))
    with pytest.raises(ScoreTableError, match="another config"):
        agreement.agreement(params, [result], tmp_path, {})


@pytest.mark.parametrize("count", [2, 3, 4])
def test_any_number_of_maps_is_drawn(count):
    assert agreement.heat_maps({str(i): table() for i in range(count)}).startswith(b"\x89PNG")

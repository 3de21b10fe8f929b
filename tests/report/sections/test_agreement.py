"""Tables of several data sets beside each other, in the page."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sparsemm.chase.covariates import Rates
from sparsemm.params import load_params
from sparsemm.report.agreement import Agreement
from sparsemm.report.sections import Material, agreement
from sparsemm.scores import ScoreTable
from tests.report.conftest import HEADER


@pytest.fixture
def section(crafted):
    """The section's parts for one model, checked."""

    def make(tables, rates=()):
        agreed = Agreement(tables, dict.fromkeys(tables), dict(rates))
        material = Material(load_params("params.yaml"), [crafted.results()], {}, {"m": agreed})
        return crafted.checked("".join(agreement.parts(material)))

    return make


def test_numbers_are_those_of_the_tables(crafted, section):
    mine = crafted.table()
    moved = np.roll(mine.per_sample, 1, axis=2)  # another head is the best
    found = section({"large": ScoreTable.from_samples(moved, np.roll(mine.hits, 1, axis=1), HEADER)})
    assert "0%" in found.text and f"{-1 / 19:.3f}" in found.text
    maps = [json.loads(text)["data"][0] for text in found.scripts]
    assert [np.argmax(one["z"]) for one in maps] == [0, 1] and maps[0]["zmax"] == maps[1]["zmax"]


def test_hit_rates_are_shown_by_kind_of_text(section):
    rows = [
        Rates("script", "latin", 4, 12, 0.75, 0.5, 0.875, 0.25),
        Rates("box_area_px", "8-16", 1, 3, 0.5, 0.5, 0.5, 0.125),
    ]
    found = section({}, {"large": rows})
    assert "50% to 75%" in found.text and "box area px 8-16" in found.text and "75.0%" in found.text
    assert "50.0% to 87.5%" in found.text and "50.0% to 50.0%" not in found.text  # one sample has no interval


def test_nothing_to_compare_is_no_section(crafted):
    assert agreement.parts(Material(load_params("params.yaml"), [crafted.results()], {})) == []

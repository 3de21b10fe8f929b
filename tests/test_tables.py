"""Typed rows: what fits comes back, what does not is refused with file, line and column."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from sparsemm.errors import DataError
from sparsemm.statistics import Estimate
from sparsemm.tables import Row, read_json, read_rows


class Fruit(Row):
    name: str
    weight: float
    count: int | None
    colour: str | None = None


def written(folder, text):
    path = folder / "fruit.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_cells_become_numbers_and_empty_ones_nothing(tmp_path):
    rows = read_rows(written(tmp_path, "name,weight,count,other\npear,1.5,3,x\n,2,,\n"), Fruit)
    assert rows == [Fruit(name="pear", weight=1.5, count=3), Fruit(name="", weight=2.0, count=None)]


@pytest.mark.parametrize("cells", ["pear,,3", "pear,nan,3", "pear,inf,3", "pear,much,3", "pear,1,3.5", "pear"])
def test_a_wrong_cell_is_named_with_its_line(tmp_path, cells):
    with pytest.raises(DataError, match=r"fruit.csv, line 3: (weight|count): .*run its stage again"):
        read_rows(written(tmp_path, f"name,weight,count\nfig,1,1\n{cells}\n"), Fruit)


@pytest.mark.parametrize("text", ["", "name\nfig\n", b"\xff\xfe\x00", b"\x00"])
def test_files_that_are_no_such_table_are_refused(tmp_path, text):
    with pytest.raises(DataError, match="fruit.csv"):
        read_rows(written(tmp_path, text), Fruit)
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(tmp_path / "nothing.csv", Fruit)


def test_rows_of_something_else_are_refused(tmp_path):
    path = written(tmp_path, "name,weight,count\nfig,1,1\npear,1,1\n")
    with pytest.raises(DataError, match="line 3: a row of 'pear'"):
        read_rows(path, Fruit, {"name": "fig"})


class Basket(BaseModel):
    fruit: int


@pytest.mark.parametrize("text", ["{", "[]", '{"fruit": "many"}', "{}"])
def test_json_that_does_not_fit_is_refused(tmp_path, text):
    path = tmp_path / "basket.json"
    path.write_text(text)
    with pytest.raises(DataError, match="basket.json"):
        read_json(path, Basket)
    path.write_text('{"fruit": 3}')
    assert read_json(path, Basket).fruit == 3


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (-0.2, -0.1, "worse"),
        (0.1, 0.2, "better"),
        (-0.1, 0.1, "no difference shown"),
        (-0.1, 0.0, "no difference shown"),
        (0.0, 0.1, "no difference shown"),
        (None, None, None),
    ],
)
def test_verdicts_follow_the_interval_and_turn_with_its_sign(low, high, word):
    estimate = Estimate(0.0, low, high)
    assert estimate.verdict == word
    opposite = {"better": "worse", "worse": "better"}.get(word, word)
    assert estimate.reversed().verdict == opposite and estimate.reversed().reversed() == estimate


def test_an_estimate_in_words():
    assert Estimate(0.5, 0.4, 0.6).text() == "0.500 [0.400, 0.600]"
    assert Estimate(0.0, -0.1, 0.1).reversed().text("+") == "+0.000 [-0.100, +0.100]"
    assert Estimate(-0.5).text("+") == "-0.500"

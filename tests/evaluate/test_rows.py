"""Arms become rows: means, paired differences, verdicts; and rows are read back checked."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from sparsemm.errors import DataError
from sparsemm.evaluate.rows import (
    COLUMNS,
    Arm,
    Outcome,
    by_method,
    name,
    over_seeds,
    refused_rows,
    tabulate,
    write_table,
)
from sparsemm.statistics import estimate
from sparsemm.studies import read_study

RNG = np.random.default_rng(3)
A, B = Arm("read", "", "a", None, 8), Arm("read", "", "b", None, 8)


def table(outcomes, against):
    head = {"model": "m", "study": "s"}
    return tabulate(head, outcomes, against, resamples=300, seed=1, precision=0.1)


def test_a_row_holds_the_mean_the_paired_difference_and_a_verdict():
    base = RNG.random(40)
    made = {A: Outcome(base + 0.1, "accuracy", 7.5, 512.4), B: Outcome(base, "accuracy")}
    first, second = table(made, lambda arm: [B, Arm("read", "", "nobody")])
    assert set(first) == set(COLUMNS) and first["against"] == "b" and second["against"] == ""
    assert first["value"] == pytest.approx(base.mean() + 0.1, abs=1e-6) and first["bytes"] == 512
    assert first["diff"] == pytest.approx(0.1) and 0 < first["diff_ci_low"] < 0.1 < first["diff_ci_high"] < 0.2
    assert first["verdict"] == "better" and (first["n"], first["pages"]) == (40, 40)
    mean = estimate(base, 300, 1)
    assert second["needed"] == mean.needed(0.1) and second["verdict"] == "" and second["kept_slots"] == ""
    assert second["ci_low"] == pytest.approx(mean.low, abs=1e-6)


def test_an_arm_compared_with_two_has_two_rows_and_one_page_shows_nothing():
    made = {A: Outcome(np.ones(1), "x"), B: Outcome(np.zeros(1), "x"), A._replace(budget=4): Outcome(np.ones(1), "x")}
    rows = table(made, lambda arm: made)
    assert [row["against"] for row in rows] == ["b", "a (B=4)", "a", "a (B=4)", "a (B=8)", "b (B=8)"]
    assert {row["verdict"] for row in rows} == {"no difference shown"}


def test_what_was_refused_is_a_row_with_its_reason_and_no_value(tmp_path):
    measured = table({A: Outcome(np.ones(2), "x")}, lambda arm: [])
    refused = refused_rows({"model": "m", "study": "s"}, {B: "too long"})
    for rows, key in ((measured, "without"), (measured + refused, "with")):
        write_table(tmp_path, key, COLUMNS, rows, ("task", "setting"))
    with open(tmp_path / "with.csv", newline="", encoding="utf-8") as handle:
        *_, last = csv.DictReader(handle)
    assert (last["setting"], last["budget"], last["refused"], last["value"]) == ("b", "8", "too long", "")
    assert "refused" not in (tmp_path / "without.csv").read_text()
    assert (tmp_path / "with.json").read_text() == (tmp_path / "without.json").read_text()
    assert read_study(tmp_path / "with.csv", "s", "m") == read_study(tmp_path / "without.csv", "s", "m")


def test_only_what_differs_is_named():
    mine = Arm("qa", "late", "x", 0.1, 8)
    assert name(Arm("qa", "late", "full"), mine) == "full"
    assert name(Arm("qa", "early", "x", 0.1, 8), mine) == "x (early)"
    assert name(Arm("qa", "", "none", 0.0), mine) == "none (0)"


def test_draws_are_averaged_page_by_page():
    draws = [Outcome(RNG.random(5), "x", 3.0, 9.0) for _ in range(3)]
    result = over_seeds(iter(draws))
    means = [one.values.mean() for one in draws]
    assert np.allclose(result.values, sum(one.values for one in draws) / 3)
    assert result.seeds == 3 and result.spread == pytest.approx(max(means) - min(means)) and result.kept == 3.0
    with pytest.raises(DataError, match="no draw"):
        over_seeds([])


def written(folder, **change):
    rows = table({A: Outcome(RNG.random(4), "x"), B: Outcome(RNG.random(4), "x")}, lambda arm: [B])
    rows = [row | {c: v for c, v in change.items() if c in row} for row in rows]
    write_table(folder, "m", COLUMNS, rows, ("task", "condition", "setting"))
    return folder / "m.csv"


def test_rows_come_back(tmp_path):
    path = written(tmp_path)
    assert [row.setting for row in read_study(path, "s", "m")] == ["a", "b"]
    assert not list(path.parent.glob(".*"))


@pytest.mark.parametrize("change", [{"value": ""}, {"value": "nan"}, {"ci_low": "x"}, {"model": "n"}, {"diff": ""}])
def test_rows_of_nobody_are_refused(tmp_path, change):
    with pytest.raises(DataError, match="line 2"):
        read_study(written(tmp_path, **change), "s", "m")


def test_files_that_are_no_study_are_refused(tmp_path):
    path = written(tmp_path)
    lines = path.read_text().splitlines(keepends=True)
    for text in ("", lines[0], "a,b\n1,2\n", "\ufffd", "".join(lines)[:-20]):
        path.write_text(text)
        with pytest.raises((DataError, csv.Error)):
            read_study(path, "s", "m")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        read_study(path, "s", "m")
    with pytest.raises(DataError, match="cannot be read"):
        read_study(tmp_path / "nothing", "s", "m")


def test_what_a_method_is_compared_with():
    def others(method):
        return [other.setting for other in by_method(Arm("read", "", method, None, 12))]

    assert others("full") == [] and others("snapkv") == ["full"]
    assert others("sparsemm")[:2] == ["full", "snapkv"] and not any("+" in name for name in others("sparsemm"))
    assert {"full", "sparsemm", "snapkv", "adakv", "snapkv+peak"} <= set(others("sparsemm+peak"))
    assert "snapkv+peak" not in others("snapkv+peak")

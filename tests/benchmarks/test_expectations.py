"""Expectations that were registered are judged by the verdicts of the study alone, and say so where it has not run."""

from __future__ import annotations

import csv

import pytest

from benchmarks import front_page
from benchmarks.expectations import (
    EXPECTATIONS,
    NOT_MEASURED,
    OURS,
    PRETRAINED,
    SMALL,
    Measured,
    Refusal,
    no_uniform_better,
    nowhere_better,
    ours_largest,
    points,
    read,
    refusals,
    steady,
    table,
)
from sparsemm.evaluate.rows import OVERALL
from sparsemm.statistics import Estimate
from sparsemm.studies import StudyRow
from tests.recipes import DIFFERENCES

COLUMNS = [*StudyRow.model_fields, "refused"]


def cells(setting, share=0.1, value=0.5, verdict="no difference shown", against="snapkv", model="m", **more):
    """Cells of a row of performance over all tasks."""
    diff, low, high = DIFFERENCES[verdict]
    row = dict.fromkeys(COLUMNS, "") | {"model": model, "study": "protocol", "task": OVERALL, "setting": setting}
    row |= {"level": share, "metric": "m", "value": value, "n": 16, "ci_low": value, "ci_high": value}
    ends = {"diff_ci_low": low, "diff_ci_high": high}
    return row | ends | {"against": against, "diff": diff, "verdict": verdict, "steady": 1.0} | more


def measured(*rows, refused=()):
    return Measured([StudyRow.model_validate(row) for row in rows], [Refusal(*one) for one in refused])


def best_at(*values):
    """Rows in which ours and SnapKV have these values at 10 and at 20 %."""
    return [
        cells(name, share, value, verdict)
        for share, (ours, other, verdict) in zip((0.1, 0.2), values, strict=True)
        for name, value in ((OURS[1], ours), ("adakv", other))
    ]


def test_one_method_that_is_better_anywhere_is_enough_to_fail():
    names = ("vl-cache", "meda")
    rows = [cells("vl-cache"), cells("meda", verdict="worse"), cells("adakv", verdict="better")]
    holds, figures = nowhere_better(measured(*rows), names)
    assert holds and figures == "the largest difference is that of `vl-cache` at 10 %: +0 [-10, +10]"
    holds, figures = nowhere_better(measured(*rows, cells("meda", 0.2, verdict="better")), names)
    assert not holds and figures == "`meda` at 20 %: +10 [+5, +15]"
    elsewhere = [
        cells("meda", "", verdict="better", budget=24),
        cells("meda", 0.2, verdict="better", against="sparsemm"),
    ]
    assert nowhere_better(measured(*rows, *elsewhere), names).holds  # neither a share, nor against SnapKV
    assert "without `meda`" in nowhere_better(measured(cells("vl-cache")), names).figures
    assert nowhere_better(measured(cells("adakv", verdict="better")), names).holds is None


def test_uniform_methods_are_those_whose_policy_is():
    rows = [cells(name, verdict="worse", against="sparsemm") for name in ("snapkv", "snapkv+kvzip", "h2o")]
    rows += [cells(name, verdict="better", against="sparsemm") for name in ("sparsemm+peak", "adakv", "downsampled")]
    assert no_uniform_better(measured(*rows)).holds
    more = cells("snapkv+kvzip", 0.2, verdict="better", against="sparsemm")
    assert no_uniform_better(measured(*rows, more)) == (False, "`snapkv+kvzip` at 20 %: +10 [+5, +15]")


@pytest.mark.parametrize(
    ("values", "holds"),
    [
        ([(0.8, 0.5, "better"), (0.9, 0.5, "better")], True),
        ([(0.8, 0.5, "better"), (0.9, 0.5, "no difference shown")], False),  # the largest, not shown to be better
        ([(0.8, 0.85, "better"), (0.9, 0.5, "better")], False),  # another one is larger at 10 %
    ],
)
def test_ours_has_to_be_the_largest_and_better_at_both_shares(values, holds):
    verdict = ours_largest(measured(*best_at(*values)))
    assert verdict.holds is holds and verdict.figures.count("the largest other is `adakv`") == 2
    assert ours_largest(measured(*best_at(*values)[:2])).holds is None


def test_refusals_and_steadiness_are_counted():
    shares = [cells("snapkv", share) for share in (0.05, 0.1, 0.4)]
    refused = [("duo", "5 %"), ("fastv", "5 %"), ("fastv", "10 %")]
    assert refusals(measured(*shares, refused=refused)) == (True, "`duo` refuses 5 %; `fastv` refuses 5 %, 10 %")
    assert refusals(measured(*shares, refused=refused[:2])).holds is False
    assert refusals(measured(*shares, refused=refused[1:])) == (
        False,
        "`duo` refuses nothing; `fastv` refuses 5 %, 10 %",
    )
    assert refusals(measured(*shares[1:])).holds is None
    assert steady(measured(*[cells("a")] * 9, cells("a", steady=0.5))) == (True, "9 of 10")
    assert steady(measured(*[cells("a")] * 8, *[cells("a", steady=0.5)] * 2)) == (False, "8 of 10")
    assert steady(measured()).holds is None
    assert points(Estimate(-0.004, -0.1, 0.099)) == "+0 [-10, +10]" and points(None) == points(Estimate(0.1))


def test_what_has_not_run_is_not_measured_and_a_run_fills_the_tables(tmp_path):
    assert read("m", tmp_path) is None and front_page.protocol("m", tmp_path) == f"{NOT_MEASURED}\n"
    lines = table(tmp_path).splitlines()
    assert sum(NOT_MEASURED in line for line in lines) == sum(len(models) for _, models, _ in EXPECTATIONS)
    rows = [row | {"model": PRETRAINED} for row in best_at((0.8, 0.5, "better"), (0.9, 0.5, "better"))]
    refused = dict.fromkeys(COLUMNS, "") | {"model": PRETRAINED, "study": "protocol", "task": "read"}
    rows += [refused | {"setting": "downsampled", "level": share, "refused": "too long"} for share in (0.1, 0.2)]
    with open(tmp_path / f"{PRETRAINED}.csv", "w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    text = table(tmp_path)
    assert f"| `{PRETRAINED}` | holds | at 10 % `{OURS[1]}` has 80, minus `snapkv` +10 [+5, +15]" in text
    assert f"| `{SMALL[0]}` | open | {NOT_MEASURED} |" in text
    shown = front_page.protocol(PRETRAINED, tmp_path).splitlines()
    assert shown[0] == "| method | 10 % | 20 % |" and "| downsampled | refused | refused |" in shown
    assert f"| {OURS[1]} | 80 + · | 90 + · |" in shown


def test_a_table_of_accuracy_says_what_was_refused(tmp_path):
    columns = ("model", "task", "method", "budget", "kept_slots", "value", "pages", "ci_low", "ci_high", "refused")
    rows = [("m", "read", "full", "", 40, 0.9, 9, 0.8, 1, ""), ("m", "read", "snapkv", 8, 8, 0.5, 9, 0.4, 0.6, "")]
    rows += [("m", "read", "fastv", 8, "", "", "", "", "", "2 whole layers do not fit")]
    with open(tmp_path / "m.csv", "w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([columns, *rows])
    text = front_page.table(tmp_path / "m.csv", "read")
    assert "| `snapkv` | 50 [40, 60] |" in text and "| `fastv` | refused |" in text

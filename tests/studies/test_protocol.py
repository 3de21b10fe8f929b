"""One protocol for all methods: budgets that are shares of each prompt, and measures relative to the full cache."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from sparsemm.evaluate.rows import FULL, OVERALL, Arm, Outcome
from sparsemm.evaluate.tasks import Scored
from sparsemm.policies import METHODS, is_method
from sparsemm.report.results import StudyResults
from sparsemm.report.sections.all_studies import shown
from sparsemm.studies import read_study
from sparsemm.studies.common.experiment import Experiment
from sparsemm.studies.common.stage import run
from sparsemm.studies.protocol import (
    EVERY,
    GENERALISATION,
    LOYALTY,
    STUDY,
    _generalisation,
    conclusion,
    drawn,
    over_tasks,
    slots,
    tables,
)
from tests.studies.crafted import KEY


@pytest.fixture(scope="module")
def result(made):
    """The experiment, and the rows that the study wrote."""
    params, root = made
    run(params, "protocol", KEY, root)
    path = root / f"artifacts/studies/protocol/{KEY}.csv"
    return Experiment(params, "protocol", KEY, root), read_study(path, "protocol", KEY)


def test_a_share_is_a_budget_for_each_prompt(result):
    experiment, rows = result
    for row in rows:
        if row.task == "qa" and not row.condition and row.setting == "snapkv" and row.level is not None:
            full = next(one.kept_slots for one in rows if (one.task, one.setting) == ("qa", FULL))
            assert row.kept_slots == pytest.approx(row.level * full, abs=0.5)
            assert row.bytes == pytest.approx(row.level * next(r.bytes for r in rows if r.setting == FULL), rel=0.05)
    assert [slots(88, share, None, 4) for share in (0.01, 0.1, 0.4)] == [4, 9, 35] and slots(88, None, 24, 4) == 24


def test_a_method_that_refuses_a_prompt_is_a_row_with_the_reason(result, rows):
    experiment, measured = result
    refused = {(row["setting"], row["level"]): row["refused"] for row in rows(experiment.root, "protocol")}
    assert "does not fit into a budget" in refused["duo", "0.1"]
    assert "longer at any size of the image" in refused["downsampled", "0.1"]
    assert not any((row.setting, row.level) == ("duo", 0.1) for row in measured)


def test_verdicts_are_looked_at_under_other_seeds(result):
    _, rows = result
    compared = [row for row in rows if row.against]
    assert compared and all(row.steady in (0.0, 0.5, 1.0) for row in compared)
    assert all(row.steady is None for row in rows if not row.against)
    assert {row.against for row in compared if row.setting == "random"} == {"snapkv", "sparsemm"}
    assert {row.seeds for row in rows if row.setting == "random" and row.task == "qa"} == {2}


def outcome(values, texts, size):
    samples = [Scored(str(i), "", text, "", value) for i, (text, value) in enumerate(zip(texts, values, strict=True))]
    return Outcome(np.array(values, dtype=float), "m", size, 8.0 * size, samples=[samples])


def test_performance_loyalty_and_generalisation_by_hand(made):
    params, root = made
    draws = {
        Arm("read", "", FULL): [outcome([1.0, 0.6], ["a b", "c d"], 90)],
        Arm("qa", "", FULL): [outcome([1.0, 0.0], ["x", "wrong"], 90)],
        Arm("read", "", "snapkv", 0.1): [outcome([0.4, 0.4], ["a z", "c d"], 9)],
        Arm("qa", "", "snapkv", 0.1): [outcome([0.0, 0.5], ["y", "wrong"], 9)],
        Arm("read", "", "duo", 0.1): [outcome([0.4, 0.4], ["", ""], 9)],
    }
    result, ratios = over_tasks(draws, ["read", "qa"])
    arm = Arm(OVERALL, "", "snapkv", 0.1)
    assert result[arm][0].values == pytest.approx([(0.5 + 0.0) / 2, (0.5 + 1.0) / 2])
    assert result[arm._replace(setting=FULL, level=None)][0].values.mean() == pytest.approx(1.0)
    assert result[arm._replace(condition=LOYALTY)][0].values == pytest.approx([(0.5 + 0.0) / 2, 1.0])
    assert not any(one.setting == "duo" for one in result)  # it has no answers to one of the tasks
    experiment = Experiment(params, "protocol", KEY, root)
    row = _generalisation(experiment, arm, result[arm][0], ratios[arm])
    assert (row["condition"], row["value"]) == (GENERALISATION, pytest.approx(0.0))
    unlike = _generalisation(experiment, arm, result[arm][0], np.array([[1.0, 1.0], [0.5, 0.5]]))
    assert unlike["value"] == unlike["ci_low"] == unlike["ci_high"] == 0.25


def test_a_task_that_the_full_cache_fails_has_no_ratio():
    nothing = {Arm("qa", "", name): [outcome([0.0, 0.0], ["", ""], 9)] for name in (FULL, "snapkv")}
    assert over_tasks(nothing, ["qa"]) == ({}, {})


def test_the_report_has_a_row_per_method_and_says_what_was_refused(result):
    _, rows = result
    first, second = tables(rows, ["duo", "fastv", "fastv"])
    assert first.header == ["method", "10 %", "50 %", "B = 12"]
    assert {row[0] for row in first.rows} >= {"snapkv", "sparsemm", "random"} and all(map(len, first.rows))
    assert next(row for row in first.rows if row[0] == "duo")[1] == "refused"
    assert first.rows[-1] == ["fastv", *["refused"] * 3], "refused everywhere: the last row, once"
    assert len({len(row) for row in second.rows} | {len(second.header)}) == 1
    assert {row.setting for row in drawn(rows)} >= {"snapkv", "sparsemm"}
    assert "against snapkv" in conclusion(rows) and conclusion([]) == ""
    model = SimpleNamespace(key=KEY, label="small", number=0)
    html = shown(StudyResults("protocol", STUDY, {KEY: rows}), [model], "protocol")
    assert all(text in html for text in (first.caption.split(";")[0].replace("'", "&#x27;"), second.caption, "refused"))


def test_every_method_is_measured_unless_params_say_otherwise():
    assert set(METHODS) - set(EVERY) == {FULL} and len(set(EVERY)) == len(EVERY) and all(map(is_method, EVERY))
    assert STUDY.params(samples=2, budgets=(8,), shares=(0.1,)).methods == EVERY

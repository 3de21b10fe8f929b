"""What the studies conclude follows from the verdicts of their rows, in both directions."""

from __future__ import annotations

import pytest

from sparsemm.evaluate.rows import AREA
from sparsemm.studies import STUDIES, Study, StudyRow, compared, load, masking, spread


def row(**cells):
    """A row with these cells; `verdict` decides the interval of its difference."""
    given = dict.fromkeys(StudyRow.model_fields, "")
    given |= {
        "model": "a",
        "study": "s",
        "task": "read",
        "metric": "accuracy",
        "value": 0.5,
        "n": 32,
        "setting": "sparsemm",
    }
    if "verdict" in cells:
        diff = {"better": 0.1, "worse": -0.1}.get(cells["verdict"], 0.0)
        given |= {"diff": diff, "diff_ci_low": diff, "diff_ci_high": diff, "against": "snapkv"}
    return StudyRow.model_validate(given | cells)


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_declares_its_words_and_concludes_nothing_from_nothing(name):
    declared = load(name)
    assert isinstance(declared, Study) and declared.title and declared.question.endswith(".")
    assert declared.conclusion([]) == ""


def test_titles_tell_studies_apart():
    assert len({load(name).title for name in STUDIES}) == len(STUDIES)


# A comparison that each study draws its conclusion from.
COMPARED = {
    "curve": {"condition": AREA},
    "cost": {"against": "full"},
    "masking": {"condition": "output zeroed", "setting": masking.TOP, "against": masking.RANDOM, "level": 0.1},
    "rho": {"setting": "rho", "level": 0.5, "against": "rho (0.1)"},
    "parts": {"setting": "window + uniform + score", "against": "window + uniform"},
    "later": {"task": "qa", "condition": "compressed after the page"},
    "holding": {"condition": "answer evicted too", "against": "sparsemm (answer kept)"},
    "storage": {"condition": "int8, equal slots", "against": "sparsemm (model dtype)"},
    "oracle": {"setting": "oracle", "against": "kvzip"},
    "sources": {"setting": "small-type", "against": "own"},
}


@pytest.mark.parametrize("name", COMPARED)
def test_conclusions_count_the_verdicts(name):
    declared = load(name)
    verdicts = ["worse"] * 3 + ["better"] + ["no difference shown"]
    rows = [row(**COMPARED[name], verdict=verdict) for verdict in verdicts]
    said = declared.conclusion(rows)
    assert all(declared.headline(one) for one in rows)
    if name == "masking":
        assert "in 3 of 5 comparisons" in said and "the visual heads carry" in said
        few = declared.conclusion([row(**COMPARED[name], verdict="better")])
        assert "in 0 of 1" in few and "no such loss" in few
    else:
        assert "better in 1, worse in 3, no difference shown in 1 of 5 (-0.10 to +0.10)" in said
        assert "better in 2 of 2 (+0.10)" in declared.conclusion([row(**COMPARED[name], verdict="better")] * 2)


def test_long_answers_lose_more_only_where_they_do():
    def groups(short, long):
        cells = {"against": "full", "verdict": "worse"}
        pairs = (("3 characters", short), ("28-49 characters", -0.5), ("83-127 characters", long))
        return [row(condition=c, **cells | {"diff": d, "diff_ci_low": d, "diff_ci_high": d}) for c, d in pairs]

    declared = load("length")
    assert "lower on the longest in 1 of 1" in declared.conclusion(groups(-0.1, -0.6))
    assert "lower on the longest in 0 of 1" in declared.conclusion(groups(-0.6, -0.1))


def test_attention_of_the_groups_is_given_with_its_range():
    rows = [row(condition="on the word", setting="best heads", value=v, model=m) for v, m in ((0.4, "a"), (0.8, "b"))]
    assert "best heads 0.40 to 0.80" in load("looking").conclusion(rows)


def test_comparisons_without_a_verdict_are_not_counted():
    assert compared([row()]) == "" and spread([0.1, 0.1]) == "0.10" and spread([-0.001, 0.2], "+") == "-0.00 to +0.20"


def test_one_page_has_no_interval_and_no_verdict():
    one = row(verdict="better", n=1, ci_low=0.4, ci_high=0.6)
    assert one.verdict is None and one.estimate.low is None and one.difference.low is None
    assert row(verdict="better", n=5, pages=1).verdict is None and row(verdict="better", n=5, pages=2).verdict

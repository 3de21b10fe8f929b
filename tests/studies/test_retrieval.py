"""Budgets from text beside those from pages, and models that copy no text."""

from __future__ import annotations

import numpy as np
import pytest

from sparsemm.assemble import stage
from sparsemm.chase import text
from sparsemm.errors import ScoreTableError
from sparsemm.scores import ScoreTable
from sparsemm.studies import read_study
from sparsemm.studies.common.stage import run
from sparsemm.studies.retrieval import BEFORE, EVEN, RANDOM, RETRIEVAL, VISUAL, conclusion
from tests.studies.crafted import KEY


def study(made, monkeypatch, chase_text):
    params, root = made
    monkeypatch.setattr(text, "chase_text", chase_text)
    run(params, "retrieval", KEY, root)
    return read_study(root / f"artifacts/studies/retrieval/{KEY}.csv", "retrieval", KEY)


def table(made, copied):
    _, root = made
    own = ScoreTable.load(root / "artifacts" / "scores" / f"{KEY}.safetensors")
    header = own.header | {"tokens": 10, "tokens_copied": copied}
    return ScoreTable.from_samples(own.per_sample[:, :, ::-1].copy(), np.zeros_like(own.hits), header)


def test_budgets_from_text_are_compared_with_all_others(made, monkeypatch):
    rows = study(made, monkeypatch, lambda *_, **__: table(made, 11))
    assert {row.condition for row in rows if row.task == "scores"} == {"rank correlation", "top 5 % overlap"}
    pairs = {(row.setting, row.against) for row in rows if row.against}
    assert pairs == {(RETRIEVAL, VISUAL), (RETRIEVAL, RANDOM), (RETRIEVAL, EVEN), (VISUAL, RANDOM), (VISUAL, EVEN)}
    assert len({row.kept_slots for row in rows if row.task != "scores"}) == 1
    words = conclusion(rows)
    assert "visual scores" in words and "random scores" in words and conclusion([]) == ""


def test_scores_from_before_the_tuning_are_compared_in_the_same_way(made, monkeypatch, tiny):
    before = tiny(KEY)[0]
    monkeypatch.setattr(stage, "language_model_before", lambda *_: before)
    own = table(made, 11)

    def chase_text(model, processor, *, header, **_):
        assert header["fingerprint"] == own.header["fingerprint"]  # a table of another model is refused
        return own if model is before else table(made, 30)

    rows = study(made, monkeypatch, chase_text)
    pairs = {(row.setting, row.against) for row in rows if row.against}
    assert pairs == {(BEFORE, VISUAL), (BEFORE, RANDOM), (BEFORE, EVEN), (VISUAL, RANDOM), (VISUAL, EVEN)}
    assert {row.setting for row in rows if row.task == "scores"} == {BEFORE} and BEFORE in conclusion(rows)


@pytest.mark.parametrize("copied", [30, None], ids=["copies little", "copies nothing"])
def test_a_model_that_does_not_copy_has_no_retrieval_scores(made, monkeypatch, copied):
    def chase_text(*_, **__):
        if copied is None:
            raise ScoreTableError("the model copies no token")
        return table(made, copied)

    rows = study(made, monkeypatch, chase_text)
    assert {row.setting for row in rows} == {VISUAL, RANDOM, EVEN} and "scores" not in {row.task for row in rows}

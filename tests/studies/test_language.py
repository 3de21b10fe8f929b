"""Texts, their probability, and what switching heads off does to it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsemm.assemble import stage
from sparsemm.errors import DataError
from sparsemm.studies import read_study
from sparsemm.studies.common.heads import LAYERS, NONE, RANDOM, TOP
from sparsemm.studies.common.stage import run
from sparsemm.studies.language import BEFORE, COPY, PROSE, conclusion, probability, prose, repeated
from tests.studies.crafted import KEY


def test_the_study_compares_the_best_heads_with_both_controls(made):
    params, root = made
    run(params, "language", KEY, root)
    rows = read_study(root / f"artifacts/studies/language/{KEY}.csv", "language", KEY)
    pairs = {(row.task, row.setting, row.against) for row in rows if row.setting == TOP}
    assert pairs == {(task, TOP, other) for task in (PROSE, COPY) for other in (RANDOM, LAYERS, f"{NONE} (0)")}
    assert all(0 < row.value < 1 for row in rows) and {row.n for row in rows} == {2, 3}
    assert "same layers" in conclusion(rows) and conclusion([]) == ""


def test_an_assembled_checkpoint_is_compared_with_what_it_was_before(made, monkeypatch, tiny):
    params, root = made
    before = tiny("tiny-qwen2-vl")[0]
    monkeypatch.setattr(stage, "language_model_before", lambda *_: before)
    run(params, "language", KEY, root)
    rows = read_study(root / f"artifacts/studies/language/{KEY}.csv", "language", KEY)
    compared = [row for row in rows if row.against == BEFORE]
    assert [(row.setting, row.task, row.diff) for row in compared] == [(NONE, PROSE, 0.0), (NONE, COPY, 0.0)]
    assert "before tuning" in conclusion(rows)


def test_probability_is_that_of_a_step_by_step_computation(tiny):
    model, _ = tiny(KEY)
    ids, first = [5, 9, 7, 12, 9], 2
    product = 1.0
    for at in range(first, len(ids)):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids[:at]])).logits[0, -1]
        product *= float(logits.softmax(-1)[ids[at]])
    assert probability(model, (ids, first), None) == pytest.approx(product ** (1 / (len(ids) - first)), rel=1e-4)


def test_all_heads_off_is_worse_than_none(tiny):
    model, processor = tiny(KEY)
    config = model.config.get_text_config()
    off = np.ones((config.num_hidden_layers, config.num_attention_heads), dtype=bool)
    texts = repeated(processor.tokenizer, 2, 5)
    values = [[probability(model, text, heads) for heads in (None, off)] for text in texts]
    assert all(with_heads != without for with_heads, without in values)


def test_texts_are_the_same_every_time_and_as_long_as_wanted(tiny):
    _, processor = tiny(KEY)
    passages = prose(processor.tokenizer, 3, 20)
    assert [len(ids) for ids, _ in passages] == [20] * 3 and len({tuple(ids) for ids, _ in passages}) == 3
    assert passages == prose(processor.tokenizer, 3, 20)
    for ids, first in repeated(processor.tokenizer, 2, 5):
        assert ids[:first] == ids[first:]


def test_more_prose_than_there_is_is_refused(tiny):
    with pytest.raises(DataError, match="passages"):
        prose(tiny(KEY)[1].tokenizer, 10_000, 1000)

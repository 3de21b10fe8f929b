"""Methods compared in one call: what the stage measures, and clear refusals."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import sparsemm
from sparsemm import prompts
from sparsemm.allocate import run as allocate
from sparsemm.datasets.records import write_records
from sparsemm.datasets.synthetic import PageStyle, draw_record
from sparsemm.errors import BudgetError, DataError, ScoreTableError
from sparsemm.evaluate.stage import run as evaluate
from sparsemm.models import load_model, new_entry
from sparsemm.params import load_params

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "data" / "checkpoints" / "tiny-qwen2-vl"
RECORDS = [draw_record("evaluation", 0, i, PageStyle(1, 6, (2, 3))) for i in range(4)]
WAYS = {"methods": ["full", "sparsemm", "sparsemm+peak", "snapkv", "fastv"], "budgets": [12, 24]}


@pytest.fixture(scope="module")
def reader():
    return load_model(new_entry(str(CHECKPOINT)))


@pytest.fixture(scope="module")
def scores(reader):
    pages = [draw_record("calibration", 0, i, PageStyle(1, 6, (2, 3))) for i in range(4)]
    return sparsemm.score_heads(*reader, pages, max_new_tokens=40)


def test_the_function_measures_what_the_stage_does(reader, scores, tmp_path):
    options = {"tasks": ["read", "qa"], "max_new_tokens": 40, "window": 4, "rho": 0.1}
    compared = sparsemm.evaluate_methods(*reader, RECORDS, scores=scores, batch_size=3, **options, **WAYS)
    write_records(tmp_path / "artifacts" / "datasets" / "evaluation.parquet", RECORDS)
    scores.save(tmp_path / "artifacts" / "scores" / "m.safetensors")
    params = load_params(ROOT / "params.yaml")
    own = {"samples": len(RECORDS), "batch_size": 3, "tasks": ("read", "qa"), "max_new_tokens": 40}
    params = params.model_copy(
        update={
            "models": {"m": new_entry(str(CHECKPOINT))},
            "allocate": params.allocate.model_copy(update={"budgets": (12, 24), "window": 4, "rho": 0.1}),
            "evaluate": params.evaluate.model_copy(update=own | {"methods": tuple(WAYS["methods"])}),
        }
    )
    for stage in (allocate, evaluate):
        stage(params, "m", tmp_path)
    with open(tmp_path / "artifacts" / "evaluate" / "m.csv", newline="", encoding="utf-8") as handle:
        stored = list(csv.DictReader(handle))
    text = repr(compared).splitlines()
    assert len(text) == 1 + len(compared.rows) == 1 + len(stored) == 1 + 2 * 9 and "sparsemm+peak" in text[4]
    refused = [(row["method"], row["budget"]) for row in compared.rows if "refused" in row]
    assert ("fastv", 12) in refused and {method for method, _ in refused} == {"fastv"}
    assert "refused: 2 whole layers" in text[-1]
    stored.sort(key=lambda row: (row["task"] == "qa", bool(row["refused"])))
    for row, other in zip(compared.rows, stored, strict=True):
        # The stage draws pages in the order of their hashes, so that its intervals are those of other resamples.
        ends = {name: row.pop(name) for name in [*row] if name.endswith(("_low", "_high"))}
        assert {name: str(value) for name, value in row.items()} == {name: other[name] for name in row}
        assert ends == pytest.approx({name: float(other[name]) for name in ends}, abs=0.05)


def test_what_cannot_be_compared_is_refused(reader, scores):
    with pytest.raises(DataError, match="no record"):
        sparsemm.evaluate_methods(*reader, [], scores=scores, budgets=[24])
    with pytest.raises(BudgetError, match=r"option windw.*pooling_kernel, power, rho.*window"):
        sparsemm.evaluate_methods(*reader, RECORDS, scores=scores, budgets=[24], windw=4)
    with pytest.raises(BudgetError, match="snapkv"):
        sparsemm.evaluate_methods(*reader, RECORDS, scores=scores, budgets=[24], methods=["snapvk"])
    with pytest.raises(DataError, match="no text on the page"):
        sparsemm.evaluate_methods(
            *reader, [replace(RECORDS[0], entries=())], budgets=[24], methods=["snapkv"], window=4
        )
    other = replace(scores, header={**scores.header, "fingerprint": "0" * 64})
    with pytest.raises(ScoreTableError, match="another config"):
        sparsemm.evaluate_methods(*reader, RECORDS, scores=other, budgets=[24], window=4)


def test_budgets_are_those_that_the_cache_keeps(reader, scores):
    slots = sparsemm.allocate_budgets(scores, 24, window=4)
    assert slots.dtype == np.int64 and slots.sum() == 24 * slots.size
    inputs = prompts.build_inputs(reader[1], [[RECORDS[0].image]], ["Read the page."]).to(reader[0].device)
    cache = sparsemm.compressed_cache(reader[0], "sparsemm", budget=24, window=4, scores=scores)
    reader[0](**inputs, past_key_values=cache)
    length = inputs["input_ids"].shape[1]
    expected = sparsemm.allocate_budgets(scores, 24, window=4, prompt_length=length)
    np.testing.assert_array_equal(np.stack([kept[0].cpu().numpy() for kept in cache.budgets()]), expected)
    paper = sparsemm.allocate_budgets(scores.to_kv(4), 24, window=4, mode="paper")
    assert paper.shape == slots.shape
    with pytest.raises(BudgetError, match="mode"):
        sparsemm.allocate_budgets(scores, 24, mode="fair")

"""The chase as one function: the same table as the stages, and clear refusals."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import sparsemm
from sparsemm.align.stage import run as align
from sparsemm.chase.score_heads import _sources
from sparsemm.chase.stage import run as chase
from sparsemm.datasets.records import write_records
from sparsemm.datasets.synthetic import PageStyle, draw_record
from sparsemm.errors import AlignError, DataError
from sparsemm.models import load_model, new_entry
from sparsemm.params import load_params
from sparsemm.params.stages import ChaseParams
from sparsemm.scores import ScoreTable

ROOT = Path(__file__).parents[2]
CHECKPOINT = ROOT / "data" / "checkpoints" / "tiny-qwen2-vl"
RECORDS = [draw_record("calibration", 0, i, PageStyle(1, 6, (2, 3))) for i in range(5)]


@pytest.fixture(scope="module")
def reader():
    return load_model(new_entry(str(CHECKPOINT)))


@pytest.mark.parametrize("answer", ["greedy", "ground_truth"])
def test_the_function_scores_as_the_stages_do(reader, tmp_path, answer):
    table = sparsemm.score_heads(*reader, RECORDS, answer=answer, batch_size=3, max_new_tokens=40)
    write_records(tmp_path / "artifacts" / "datasets" / "calibration.parquet", RECORDS)
    settings = ChaseParams(dataset="calibration", answer=answer, batch_size=3, max_new_tokens=40)
    params = load_params(ROOT / "params.yaml")
    params = params.model_copy(update={"models": {"m": new_entry(str(CHECKPOINT))}, "chase": settings})
    for stage in (align, chase):
        stage(params, "m", tmp_path)
    stored = ScoreTable.load(tmp_path / "artifacts" / "scores" / "m.safetensors")
    np.testing.assert_array_equal(table.scores, stored.scores)
    np.testing.assert_array_equal(table.per_sample, stored.per_sample)
    assert table.header["dataset"] == "synthetic" and stored.header["dataset"] == "calibration"
    assert "scored on: synthetic, " in repr(table)
    shared = table.header.keys() & stored.header.keys() - {"model", "revision", "dataset"}
    assert {name: table.header[name] for name in shared} == {name: stored.header[name] for name in shared}
    cache = sparsemm.compressed_cache(reader[0], "sparsemm", budget=12, window=4, scores=table)
    assert cache.get_seq_length() == 0


def test_what_cannot_be_scored_is_refused(reader):
    with pytest.raises(AlignError, match="no record"):
        sparsemm.score_heads(*reader, [])
    with pytest.raises(AlignError, match="no answer token belongs to any word"):
        sparsemm.score_heads(*reader, [replace(RECORDS[0], entries=())], max_new_tokens=4)
    outside = replace(RECORDS[0].entries[0], box=(0, 0, 10_000, 10))
    with pytest.raises(DataError, match=RECORDS[0].id):
        sparsemm.score_heads(*reader, [replace(RECORDS[0], entries=(outside,))])


def test_the_example_of_the_readme_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(code.splitlines()) <= 15
    for there, here in {
        'new_entry("Qwen/Qwen2-VL-7B-Instruct", dtype="bfloat16")': f"new_entry({str(CHECKPOINT)!r})",
        'read_pdfs("my_documents", limit=64)': "RECORDS",
        "budget=256, window=32": "budget=24, window=4",
    }.items():
        assert there in code
        code = code.replace(there, here)
    monkeypatch.chdir(tmp_path)
    names = {"RECORDS": RECORDS}
    exec(code, names)  # noqa: S102
    assert (tmp_path / "heads.safetensors").is_file()
    assert names["answer"].shape[1] > names["inputs"]["input_ids"].shape[1]
    assert len(names["scores"].per_sample) == len(RECORDS)


def test_a_table_names_three_sources_of_its_records():
    records = [replace(RECORDS[0], source=source) for source in ("b", "a", "b")]
    assert _sources(records) == "b, a"
    assert _sources([replace(RECORDS[0], source=str(i)) for i in range(5)]) == "0, 1, 2 and 2 more"

"""The stage writes one page of bounded size and exactly the figures of its models."""

from __future__ import annotations

import pytest

from sparsemm.errors import DataError, ScoreTableError
from sparsemm.params import parse_params
from sparsemm.report import stage
from sparsemm.studies.stage import write
from tests.report.studied import rows

PARAMS = """
models: {%s}
datasets:
  c: {source: synthetic, split: calibration, samples: 4}
  e: {source: synthetic, split: evaluation, samples: 4}
chase: {dataset: c}
allocate: {budgets: [8], window: 4}
evaluate: {dataset: e, samples: 4, methods: [full, sparsemm]}
profile: {methods: [full], budget: 8, lengths: [128]}
"""
AWAY = "m: {checkpoint: nowhere/to-be-found, family: qwen2_vl}"


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def test_scores_alone_make_a_page(crafted, tmp_path, no_gpu):
    crafted.table().save(tmp_path / "artifacts/scores/m.safetensors")
    stale = tmp_path / "artifacts/report/figures/heads-gone.png"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"old")
    stage.run(parse_params(PARAMS % AWAY), tmp_path)
    assert sorted(path.name for path in stale.parent.iterdir()) == ["heads-m.png", "score-curve.png"]
    text = (tmp_path / "artifacts/report/index.html").read_text(encoding="utf-8")
    found = crafted.checked(text)
    assert "m is not in the explorer: without a GPU" in found.text and "Not evaluated yet." in found.text
    assert len(text) < 10_000_000


def test_pages_make_the_explorer_and_a_figure(crafted, tmp_path, monkeypatch):
    crafted.table().save(tmp_path / "artifacts/scores/m.safetensors")
    monkeypatch.setattr(stage, "looking", lambda params, key, table, root: [crafted.looking()])
    stage.run(parse_params(PARAMS % AWAY), tmp_path)
    assert (tmp_path / "artifacts/report/figures/looking-m.png").stat().st_size > 1000
    assert 'id="explorer-data"' in (tmp_path / "artifacts/report/index.html").read_text(encoding="utf-8")


def test_studies_other_data_sets_and_shapes_are_in_the_page_and_drawn(crafted, tmp_path, no_gpu):
    crafted.table().save(tmp_path / "artifacts/scores/m.safetensors")
    crafted.table(0.3).save(tmp_path / "artifacts/scores/also/m/e.safetensors")
    write(rows(), "curve", "m", tmp_path)
    path = tmp_path / "artifacts/profile/shapes/vicuna-7b.csv"
    path.parent.mkdir(parents=True)
    timed = crafted.timing("transformers", 2048) | {"model": "vicuna-7b"}
    path.write_text(",".join(timed) + "\n" + ",".join(timed.values()) + "\n", encoding="utf-8")
    asked = (
        PARAMS.replace("[128]}", "[128], shapes: [vicuna-7b]}") + "robustness: {e: {}}\nstudies: {derived: {curve: {}}}"
    )
    stage.run(parse_params(asked % AWAY), tmp_path)
    folder = tmp_path / "artifacts/report"
    assert {"agreement-m.png", "latency-vicuna-7b.png", "study-curve-m.png"} < {p.name for p in folder.glob("*/*")}
    found = crafted.checked((folder / "index.html").read_text(encoding="utf-8"))
    assert {"cost", "agreement", "studies"} < {one["id"] for one in found.all("section")}
    assert "vicuna-7b with random weights" in found.text and "Accuracy against budget, as one number" in found.text


def test_what_is_missing_is_said_and_nothing_is_written(tmp_path, no_gpu):
    with pytest.raises(DataError, match="no model"):
        stage.run(parse_params(PARAMS % ""), tmp_path)
    with pytest.raises(ScoreTableError, match="chase"):
        stage.run(parse_params(PARAMS % AWAY), tmp_path)
    assert not (tmp_path / "artifacts").exists()

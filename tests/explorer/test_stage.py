"""The explore stage writes one file per model: its pages, or why there are none."""

from __future__ import annotations

import json

import pytest

from sparsemm.errors import ScoreTableError
from sparsemm.explorer import stage
from sparsemm.params import parse_params
from tests.explorer import pages as crafted
from tests.report.crafted import MODELS, PARAMS


def read(root):
    return json.loads((root / "artifacts/explorer/m.json").read_text(encoding="utf-8"))


def test_a_model_that_is_not_loaded_says_why(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    crafted.table().save(tmp_path / "artifacts/scores/m.safetensors")
    stage.run(parse_params(PARAMS % MODELS), "m", tmp_path)
    result = read(tmp_path)
    assert result["reason"].startswith("without a GPU") and result["pages"] == [] == result["method"]
    assert result["hits"][0][0] == 9 and result["tokens"] == 10 and result["kvHeads"] == 4


def test_pages_are_packed_with_their_pictures_and_the_same_every_time(tmp_path, monkeypatch):
    crafted.table().save(tmp_path / "artifacts/scores/m.safetensors")
    monkeypatch.setattr(stage, "too_much_to_load", lambda entry: None)
    monkeypatch.setattr(stage, "read_pages", lambda *_: [crafted.reading(), crafted.reading("page-2", seed=1)])
    stage.run(parse_params(PARAMS % MODELS), "m", tmp_path)
    result = read(tmp_path)
    assert result["reason"] is None and [page["id"] for page in result["pages"]] == ["page-1", "page-2"]
    assert len(result["method"]) == 3 and set(result["views"]) == {"word", "visual", "others"}
    stage.run(parse_params(PARAMS % MODELS), "m", tmp_path)
    assert read(tmp_path) == result


def test_an_empty_evaluation_set_is_said():
    assert stage.contents([], crafted.table())["reason"] == "the evaluation set has no page"


def test_without_scores_nothing_is_written(tmp_path):
    with pytest.raises(ScoreTableError, match="chase"):
        stage.run(parse_params(PARAMS % MODELS), "m", tmp_path)
    assert not (tmp_path / "artifacts").exists()

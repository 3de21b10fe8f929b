"""The align stage: what it writes for records that a model takes, and for records that it cannot take."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from sparsemm.align.stage import greedy_answers, run
from sparsemm.chase.stage import run as chase
from sparsemm.datasets.records import Entry, Record, write_records
from sparsemm.datasets.synthetic import PageStyle, draw_record
from sparsemm.errors import AlignError
from sparsemm.params import ModelParams, load_params
from sparsemm.scores import ScoreTable


def test_answers_are_cut_at_their_end(tiny, monkeypatch):
    model, processor = tiny("tiny-qwen2-vl")
    end, pad = processor.tokenizer.eos_token_id, processor.tokenizer.pad_token_id
    answers = torch.tensor([[5, 6, end, 7], [end, 5, 6, 7], [5, 6, pad, pad], [5, 6, 7, 8]])

    def generate(input_ids, **_):
        return torch.cat([input_ids, answers], dim=1)

    monkeypatch.setattr(model, "generate", generate)
    pages = [draw_record("calibration", 0, i, PageStyle(1, 4, (2, 4))) for i in range(4)]
    assert greedy_answers(model, processor, pages, "Read", 4) == [[5, 6], [], [5, 6], [5, 6, 7, 8]]


def odd(name, width, height):
    """A record no processor was made for."""
    entry = Entry("x", (0.0, 0.0, float(width), float(height)), "word")
    return Record(name, Image.new("RGB", (width, height)), (entry,), "test", "none")


def stage(tiny, root, name, records, **chase_params):
    """The params of a stage over these records."""
    checkpoint = root / "checkpoint"
    for part in tiny(name):
        part.save_pretrained(checkpoint)
    write_records(root / "artifacts" / "datasets" / "calibration.parquet", records)
    base = load_params(Path(__file__).parents[2] / "params.yaml")
    family = json.loads((checkpoint / "config.json").read_text())["model_type"]
    entry = ModelParams(checkpoint=str(checkpoint), family=family)
    given = base.chase.model_copy(update={"max_new_tokens": 24, "batch_size": 3} | chase_params)
    return base.model_copy(update={"models": {"m": entry}, "chase": given})


@pytest.mark.parametrize("answer", ["greedy", "ground_truth"])
@pytest.mark.parametrize("name", ["tiny-qwen2-vl", "tiny-llava-next-vicuna"])
def test_an_image_the_model_cannot_take_sinks_nothing_else(tiny, tmp_path, capsys, name, answer):
    pages = [draw_record("calibration", 0, i, PageStyle(1, 4, (2, 4))) for i in range(3)]
    records = [pages[0], odd("dot", 1, 1), odd("wire", 20_000, 10), *pages[1:]]
    given = stage(tiny, tmp_path, name, records, answer=answer, max_bad=0.4)
    run(given, "m", tmp_path)
    table = pq.read_table(tmp_path / "artifacts" / "align" / "m.parquet").to_pylist()
    refused = [row["sample_id"] for row in table if row["refused"]]
    assert [row["sample_id"] for row in table] == [record.id for record in records]
    assert set(refused) <= {"dot", "wire"} and all(not row["answer_ids"] for row in table if row["refused"])
    assert json.loads((tmp_path / "artifacts" / "align" / "m.json").read_text())["refused"] == len(refused)
    assert capsys.readouterr().out.count("left out record") == len(refused)
    if name == "tiny-qwen2-vl":
        assert "wire" in refused  # 2000 times as wide as high
    chase(given, "m", tmp_path)
    assert ScoreTable.load(tmp_path / "artifacts" / "scores" / "m.safetensors").header["samples"] == 5


def test_too_many_such_images_are_an_error_that_leaves_nothing(tiny, tmp_path):
    records = [draw_record("calibration", 0, 0, PageStyle(1, 4, (2, 4))), odd("wire", 20_000, 10)]
    given = stage(tiny, tmp_path, "tiny-qwen2-vl", records, answer="ground_truth")
    with pytest.raises(AlignError, match="cannot process 1 of 2 records, the first: record 'wire'.*max_bad, 0.05"):
        run(given, "m", tmp_path)
    assert not (tmp_path / "artifacts" / "align").exists()

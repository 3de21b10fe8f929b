"""What heads look at: in small local checkpoints, or in any with a GPU; the others say why not."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from sparsemm import allocate
from sparsemm.datasets import download
from sparsemm.datasets.records import Entry, Record
from sparsemm.errors import BudgetError, DataError, ScoreTableError
from sparsemm.explorer import reading
from sparsemm.layouts.tokens import ImageTokens, even_edges, tile
from sparsemm.models import fingerprint
from sparsemm.params import ModelParams, parse_params
from sparsemm.scores import ScoreTable

CHECKPOINT = Path(__file__).parents[2] / "data" / "checkpoints" / "tiny-qwen2-vl"
PARAMS = f"""
models: {{m: {{checkpoint: "{CHECKPOINT}", family: qwen2_vl}}}}
datasets:
  c: {{source: synthetic, split: calibration, samples: 2}}
  e: {{source: synthetic, split: evaluation, samples: 3}}
chase: {{dataset: c, max_new_tokens: 12}}
allocate: {{budgets: [8, 16], window: 4}}
evaluate: {{dataset: e, samples: 2, methods: [full, sparsemm, h2o]}}
profile: {{methods: [full], budget: 8, lengths: [128]}}
"""


def entry(checkpoint):
    return ModelParams(checkpoint=str(checkpoint), family="qwen2_vl")


def test_without_a_gpu_what_is_not_small_and_local_is_not_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "not a local folder" in reading.too_much_to_load(entry("Some/Model-7B"))
    with open(tmp_path / "model.safetensors", "wb") as handle:
        handle.truncate(reading.MOST_BYTES)  # sparse: takes no space
    assert reading.too_much_to_load(entry(tmp_path)) is None
    (tmp_path / "more.safetensors").write_bytes(b"x")
    assert "up to 512 MiB" in reading.too_much_to_load(entry(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert reading.too_much_to_load(entry("Some/Model-7B")) is None


def test_pages_of_different_shapes_come_first():
    def record(name, size):
        return Record(name, Image.new("RGB", size), (), "s", "l")

    first, second, wide = record("a", (8, 8)), record("b", (8, 8)), record("c", (9, 8))
    assert reading.pages([first, second, wide]) == [first, wide]
    assert reading.pages([first, second]) == [first, second]
    assert reading.pages([first]) == [first] and reading.pages([]) == []


def test_levels_keep_weak_attention():
    attention = np.array([0.0, 0.0001, 0.01, 0.25, 1.0], dtype=np.float32)
    levels = reading.to_levels(attention)
    assert levels.dtype == np.uint8 and levels[0] == 0 < levels[1] < levels[2] and levels[-1] == 255
    assert np.allclose((levels / 255) ** 2, attention, atol=0.004)


def test_tokens_know_their_word_and_where_it_is():
    tokenizer = SimpleNamespace(decode=lambda ids, **_: "".join("?zip far"[i] for i in ids))
    record = Record("r", Image.new("RGB", (40, 20)), (Entry("zip", (1, 1, 19, 9), "word"),), "s", "l")
    image = ImageTokens(np.arange(5, 13), tile(even_edges(20, 2), even_edges(40, 4)), (2, 4), (40, 20))
    tokens = reading.answer_tokens(record, [1, 2, 3, 4, 5], tokenizer, "qwen2_vl", image)
    assert [token.text for token in tokens] == ["z", "i", "p", " ", "f"]
    assert [token.entry for token in tokens] == [0, 0, 0, None, None]
    assert tokens[0].cells == [0, 1] and tokens[4].cells == []


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny):
    """A folder with pages, scores and budgets of a trained checkpoint, and its table."""
    root = tmp_path_factory.mktemp("reading")
    model, _ = tiny("tiny-qwen2-vl")
    config = model.config.get_text_config()
    shape = (3, config.num_hidden_layers, config.num_attention_heads)
    header = {"model": "m", "revision": None, "fingerprint": fingerprint(model.config)}
    header["num_kv_heads"] = config.num_key_value_heads
    scores = np.random.default_rng(0).random(shape)
    table = ScoreTable.from_samples(scores, np.zeros(shape[1:], np.int64), header)
    table.save(root / "artifacts/scores/m.safetensors")
    params = parse_params(PARAMS)
    download.run(params, "e", root)
    allocate.run(params, "m", root)
    return params, root, table


def test_a_model_looks_at_pages(place):
    params, root, table = place
    first, second = reading.read_pages(params, "m", table, root)
    assert first.record.image.size != second.record.image.size
    layers, heads = table.scores.shape
    for page in (first, second):
        tokens, cells = len(page.tokens), len(page.rectangles)
        assert page.levels.shape == (layers, heads, tokens, cells) and 0 < tokens <= 12
        assert page.peak.shape == (layers, heads, tokens) and page.peak.max() < cells
        # What the levels hold is the attention whose sum was taken before they were rounded.
        rounded = ((page.levels / 255.0) ** 2).sum(-1)
        assert np.abs(rounded - page.sums.sum(-1)).max() < 0.05 and page.sums.max() <= 1.001
        on_page = page.peak >= 0
        strongest = np.take_along_axis(page.levels, page.peak.clip(0)[..., None], -1)[..., 0]
        assert on_page.any() and (strongest == page.levels.max(-1))[on_page].all()
        assert set(page.kept) == {(method, budget) for method in ("sparsemm", "h2o") for budget in (8, 16)}
        for (_, budget), kept in page.kept.items():
            assert kept.shape[2] == page.prompt and kept.sum() == budget * kept.shape[0] * kept.shape[1]
            assert kept[:, :, -4:].all()  # the window
        # It is trained to read: some head looks at the word about to be said.
        assert any(np.isin(page.peak[:, :, i], token.cells).any() for i, token in enumerate(page.tokens) if token.cells)
    again = reading.read_pages(params, "m", table, root)[0]
    assert np.array_equal(again.levels, first.levels) and again.answer == first.answer


def test_what_is_missing_or_foreign_is_refused(place, tmp_path):
    params, root, table = place
    shutil.copytree(root, tmp_path / "copy")
    (tmp_path / "copy/artifacts/budgets/m.json").unlink()
    with pytest.raises(BudgetError, match="allocate"):
        reading.read_pages(params, "m", table, tmp_path / "copy")
    (tmp_path / "copy/artifacts/datasets/e.parquet").unlink()
    with pytest.raises(DataError, match="download"):
        reading.read_pages(params, "m", table, tmp_path / "copy")
    foreign = ScoreTable(table.scores, table.hits, table.per_sample, table.header | {"fingerprint": "f"})
    with pytest.raises(ScoreTableError, match="another config"):
        reading.read_pages(params, "m", foreign, root)

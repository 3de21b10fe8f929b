"""A shape is profiled like a model, and one that does not fit is refused before anything is allocated."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from sparsemm.errors import ModelError
from sparsemm.params import load_params
from sparsemm.profiling import clock, held_bytes, shapes, stage
from sparsemm.profiling.shapes import Shape, random_model

TINY = Shape(2, 32, 32, 4, 2, 50, 8)
CPU = torch.device("cpu")


@pytest.fixture
def params():
    given = load_params(Path(__file__).parents[2] / "params.yaml")
    update = {"lengths": (24, 40), "new_tokens": 3, "repetitions": 1, "budget": 8, "methods": ("full", "sparsemm")}
    return given.model_copy(update={"profile": given.profile.model_copy(update=update)})


def test_a_shape_gets_the_table_of_a_model(params, tmp_path, monkeypatch):
    monkeypatch.setattr(clock, "COPIED", dict.fromkeys(clock.COPIED, 1 << 16))
    monkeypatch.setitem(shapes.SHAPES, "small", TINY)
    stage.run_shape(params, "small", tmp_path)
    with open(tmp_path / "artifacts/profile/shapes/small.csv", newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    assert [(row["prompt_length"], row["method"]) for row in rows] == [
        (length, method) for length in ("24", "40") for method in ("transformers", "full", "sparsemm")
    ]
    row_bytes = TINY.cache() * 2  # bf16
    for row in rows:
        held = 8 if row["method"] == "sparsemm" else int(row["prompt_length"])
        assert int(row["kept_bytes"]) == (held + 2) * row_bytes
        assert int(row["peak_bytes"]) > int(row["slab_bytes"]) + 2 * TINY.parameters()
        assert float(row["tokens_per_second"]) == pytest.approx(1e3 / float(row["decode_ms_per_token"]), rel=0.01)
        assert (float(row["compression_ms"]) == 0) == (row["method"] == "transformers")
        assert 0 <= float(row["compression_share"]) < 1 and float(row["roofline_ms"]) > 0


def test_a_shape_that_does_not_fit_is_refused_with_what_it_wants(params, tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "free_bytes", lambda device: 8 * 2**30)
    monkeypatch.setattr(stage.torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match=r"need 1\d\.\d GiB, 8\.0 GiB") as error:
        stage.run_shape(params, "vicuna-7b", tmp_path)
    assert "shape vicuna-7b" in str(error.value) and not list(tmp_path.iterdir())


def test_parameters_are_counted_like_those_of_the_model():
    model = random_model(TINY, torch.float32, CPU, 16)
    assert TINY.parameters() == sum(p.numel() for p in model.parameters())
    looked_up = TINY.vocab_size * TINY.hidden_size * 4
    assert held_bytes.weight_bytes(model) == 4 * TINY.parameters() - looked_up


def test_the_peak_counts_what_was_freed_again():
    model = random_model(TINY, torch.float32, CPU, 16)
    weights = held_bytes.tensor_bytes(*model.parameters(), *model.buffers())

    def call() -> None:
        first = torch.empty(1000, dtype=torch.uint8)
        del first
        second, third = torch.empty(700, dtype=torch.uint8), torch.empty(800, dtype=torch.uint8)
        del second, third

    assert held_bytes.peak_bytes_of_model(model, call) == weights + 1500

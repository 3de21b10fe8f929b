"""Pictures are drawn of small local checkpoints only; the others say why not."""

from __future__ import annotations

from sparsemm.params import ModelParams
from sparsemm.report import looking


def entry(checkpoint):
    return ModelParams(checkpoint=str(checkpoint), family="qwen2_vl")


def test_what_is_not_small_and_local_is_not_loaded(tmp_path):
    assert "not a local folder" in looking.too_much_to_load(entry("Some/Model-7B"))
    with open(tmp_path / "model.safetensors", "wb") as handle:
        handle.truncate(looking.MOST_BYTES)  # sparse: takes no space
    assert looking.too_much_to_load(entry(tmp_path)) is None
    (tmp_path / "more.safetensors").write_bytes(b"x")
    assert "256 MiB" in looking.too_much_to_load(entry(tmp_path))

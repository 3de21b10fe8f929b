"""8-bit storage: its arithmetic, its bytes, and what it costs on trained checkpoints."""

from __future__ import annotations

import pytest
import torch

import sparsemm
from sparsemm.cache.quantized import STORAGES, QuantizedSlab, quantize
from sparsemm.cache.slab import Slab
from sparsemm.datasets.synthetic import PageStyle, draw_record
from sparsemm.errors import CacheError
from sparsemm.prompts import build_inputs
from tests.cache.reading import read_padded


@pytest.mark.parametrize(("storage", "bound"), [("int8", 0.5 / 127), ("fp8", 2.0**-4)])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e4])
def test_a_row_comes_back_within_half_a_step(storage, bound, size):
    rows = torch.randn(50, 16, dtype=torch.float32) * size
    rows[3] = 0
    numbers, scales = quantize(rows, storage)
    assert numbers.dtype == STORAGES[storage][0] and scales.dtype == torch.float32
    error = (numbers.float() * scales[:, None] - rows).abs().amax(-1)
    assert (error <= bound * rows.abs().amax(-1) * 1.001).all()


def slab_of(storage, seed=0):
    torch.manual_seed(seed)
    keys, values = torch.randn(3, 2, 9, 16, dtype=torch.float32), torch.randn(3, 2, 9, 16, dtype=torch.float32)
    return QuantizedSlab(keys, values, torch.rand(3, 2, 9, dtype=torch.float32) < 0.6, storage=storage)


@pytest.mark.parametrize("storage", STORAGES)
def test_moving_rows_about_does_not_change_them(storage):
    slab = slab_of(storage)
    for _ in range(40):  # grows twice
        slab.append(torch.randn(3, 2, 1, 16, dtype=torch.float32), torch.randn(3, 2, 1, 16, dtype=torch.float32))
    keys, values, valid = read_padded(slab)
    slab.select_rows(torch.tensor([2, 0, 0]))
    again, values_again, valid_again = read_padded(slab)
    for new, old in enumerate([2, 0, 0]):
        for a, b, mask in ((again, keys, valid), (values_again, values, valid)):
            assert torch.equal(a[new][valid_again[new]], b[old][mask[old]])


def test_a_row_costs_one_byte_a_number_and_a_scale(lab):
    held = {storage: lab.cache(storage=storage) for storage in ("model", *STORAGES)}
    for cache in held.values():
        lab.run(cache, lab.ids())
    rows = 2 * lab.heads * 9
    assert held["model"].kept_bytes() == rows * 2 * 8 * 4
    assert held["int8"].kept_bytes() == held["fp8"].kept_bytes() == rows * 2 * (8 + 4)
    slack = held["int8"].slab_bytes() - held["int8"].kept_bytes()
    assert slack == 2 * lab.heads * 16 * 2 * (8 + 4)


def test_twice_the_slots_fit_into_the_bytes_of_a_real_head():
    keys = torch.randn(1, 1, 300, 128, dtype=torch.bfloat16)
    whole = torch.ones(1, 1, 300, dtype=torch.bool)
    small = QuantizedSlab(keys, keys, whole, storage="int8").row_bytes()
    assert small == 2 * (128 + 4)
    assert 2 * 128 * 2 / small > 1.9


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("options", [{}, {"recompress": True}, {"hold_budget": True}, {"max_new_tokens": 30}])
def test_it_computes_with_the_rounded_rows_whatever_the_option(lab, monkeypatch, storage, options):
    def rounded(rows):
        numbers, scales = quantize(rows, storage)
        return numbers.float() * scales[..., None]

    class Rounded(Slab):
        def __init__(self, keys, values, *args):
            super().__init__(rounded(keys), rounded(values), *args)

        def append(self, keys, values, valid=None):
            super().append(rounded(keys), rounded(values), valid)

    got, want = lab.cache(budget=12, storage=storage, **options), lab.cache(budget=12, **options)
    monkeypatch.setattr("sparsemm.cache.layer.Slab", Rounded)
    tokens = lab.ids(length=50)
    for start, stop in ((0, 30), (30, 31), (31, 36), (36, 37), (37, 38)):
        one, other = (lab.run(cache, tokens[:, start:stop]) for cache in (got, want))
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert torch.equal(got.kept_slots(), want.kept_slots())


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("name", ["tiny-llava-next-vicuna", "tiny-qwen2-vl"])
def test_trained_checkpoints_say_nearly_the_same(tiny, storage, name):
    model, processor = tiny(name)
    records = [draw_record("evaluation", 1, i, PageStyle(1, 6)) for i in range(8)]
    inputs = build_inputs(processor, [[r.image] for r in records], ["Read the page."] * 8)
    options = dict(max_new_tokens=24, min_new_tokens=24, do_sample=False)
    said = {}
    for kind in ("model", storage):
        cache = sparsemm.compressed_cache(model, "snapkv", 48, window=4, storage=kind)
        with torch.no_grad():
            said[kind] = model.generate(
                **inputs, past_key_values=cache, output_logits=True, return_dict_in_generate=True, **options
            )
    new = [out.sequences[:, inputs["input_ids"].shape[1] :] for out in said.values()]
    assert (new[0] == new[1]).float().mean() > 0.9
    # The second token's logits are the first that read the stored rows.
    exact, rounded = (out.logits[1] for out in said.values())
    error = ((exact - rounded).abs().max() / exact.std()).item()
    assert 0 < error < (0.1 if storage == "int8" else 0.3)


def test_an_unknown_storage_is_refused(lab):
    with pytest.raises(CacheError, match="int4"):
        lab.cache(storage="int4")

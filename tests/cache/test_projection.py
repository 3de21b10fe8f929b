"""What a selector may look at beside queries and keys: output projections, values and what earlier layers left."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sparsemm.cache.projection import Projection, projections
from sparsemm.cache.served import shape_of
from sparsemm.errors import CacheError
from sparsemm.policies.bacon import Bacon
from sparsemm.policies.critical import Critical


@pytest.mark.parametrize("name", ["tiny-qwen2-vl", "tiny-llava-next-mistral"])
def test_the_heads_parts_add_up_to_the_output_projection(tiny, name):
    model, _ = tiny(name)
    shape = shape_of(model)
    found = projections(model, shape.layers, shape.num_heads, shape.num_kv_heads)
    decoder = model.model.language_model
    assert len(found) == len(decoder.layers)
    for projection, layer in zip(found, decoder.layers, strict=True):
        by_head = projection.by_head()
        output = torch.randn(by_head.shape[:3], dtype=torch.float32)  # of one token, per query head
        parts = torch.einsum("hgd,hgdm->m", output, by_head)
        torch.testing.assert_close(parts, layer.self_attn.o_proj(output.flatten()), rtol=1e-4, atol=1e-5)
        assert by_head.untyped_storage().data_ptr() == layer.self_attn.o_proj.weight.untyped_storage().data_ptr()


class Attention(nn.Module):
    """An attention layer that has only an output projection, or not even that."""

    def __init__(self, weight=None, head_dim=4):
        super().__init__()
        self.head_dim = head_dim
        if weight is not None:
            self.o_proj = nn.Module()
            self.o_proj.weight = nn.Parameter(weight, requires_grad=False)


@pytest.mark.parametrize(
    "module",
    [
        Attention(),
        Attention(torch.zeros(6, 8, dtype=torch.int8)),
        Attention(torch.zeros(48, 1, dtype=torch.uint8)),
        Attention(torch.zeros(6, 10)),
        Attention(torch.zeros(6, 8), head_dim=3),
    ],
)
def test_a_projection_that_cannot_be_read_is_refused(module):
    with pytest.raises(CacheError, match=r"Attention: the output projection .*choose a selector that needs none"):
        Projection(module, 2, 2)
    assert Projection(Attention(torch.zeros(6, 8)), 2, 2).heads == 2


def test_an_offloaded_projection_is_refused():
    module = Attention(torch.zeros(6, 8, device="meta"))
    with pytest.raises(CacheError, match="offloaded"):
        Projection(module, 2, 2).by_head()


def test_packed_weights_are_refused_when_the_cache_is_made(lab, monkeypatch):
    model = copy.deepcopy(lab.model)
    linear = model.model.layers[2].self_attn.o_proj
    linear.weight = nn.Parameter(linear.weight.char(), requires_grad=False)
    other = type(lab)(model)
    with pytest.raises(CacheError, match="LlamaAttention: the output projection"):
        other.cache("sparsemm+critical")
    other.cache("sparsemm+mixkv")


def test_a_copy_of_a_cache_has_the_models_own_weights(lab):
    cache = copy.deepcopy(lab.cache("sparsemm+critical"))
    for layer, own in zip(cache.ragged, lab.model.model.layers, strict=True):
        assert layer.projection.module() is own.self_attn
    assert lab.cache("sparsemm+mixkv").ragged[0].projection is None


def test_a_later_turn_shows_every_head_its_own_values_and_projection(lab, monkeypatch):
    shown = []
    refine = Critical.refine
    monkeypatch.setattr(Critical, "refine", lambda self, *a: shown.append(a[2]) or refine(self, *a))
    cache = lab.cache("sparsemm+critical", 9, recompress=True)
    lab.run(cache, lab.ids(batch=1))
    assert [prompt.layer for prompt in shown] == [0, 1, 2, 3] and all(p.key.shape[0] == 1 for p in shown)
    shown.clear()
    rows = [layer.slots[0] + 6 for layer in cache.ragged]
    held = [layer.slab.values.clone() for layer in cache.ragged]
    lab.run(cache, lab.ids(batch=1, length=6, seed=3))
    for layer in range(4):
        by_head = cache.ragged[layer].projection.by_head()
        seen = []
        for prompt in (one for one in shown if one.layer == layer):
            assert prompt.value.shape == prompt.key.shape and prompt.scratch == {}
            for at in range(len(prompt.key)):
                (head,) = (h for h in range(3) if torch.equal(prompt.projection[at, 0], by_head[h]))
                assert int(prompt.valid[at].sum()) == int(rows[layer][head])
                first = prompt.value[at, 0, prompt.valid[at]][0]
                assert (held[layer] == first).all(-1).any()
                seen.append(head)
        assert sorted(seen) == [0, 1, 2]


def test_layers_leave_nothing_behind_for_another_prompt(lab, monkeypatch):
    seen = []
    rate = Bacon.rate
    monkeypatch.setattr(Bacon, "rate", lambda self, prompt: seen.append(sorted(prompt.scratch)) or rate(self, prompt))
    cache = lab.cache("adakv+bacon")
    lab.run(cache, lab.ids())
    assert seen == [[], [0], [0, 1], [0, 1, 2]]
    assert all(layer.scratch == {} for layer in cache.ragged)
    cache.reset()
    cache.ragged[0].scratch[1] = torch.zeros(1)  # what a forward that broke off left
    lab.run(cache, lab.ids(batch=1, length=25))
    assert seen[4:] == seen[:4]
    assert copy.deepcopy(cache).ragged[0].scratch is not cache.ragged[0].scratch

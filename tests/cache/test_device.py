"""On a CUDA device, or the stand-in for one (`make test-cuda`): the same tokens as on the CPU, with every option."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache

import sparsemm
from benchmarks.operations import check
from sparsemm.cache.graphs import greedy
from sparsemm.datasets.synthetic import PageStyle, draw_record
from sparsemm.ops import OPERATIONS, decode_backends, fastest
from sparsemm.prompts import build_inputs
from tests.policies.making import UNTOLD

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
NAMES = ("tiny-llava-next-mistral", "tiny-qwen2-vl")
OPTIONS: list[dict[str, Any]] = [
    {"method": "sparsemm", "hold_budget": True},
    {"method": "snapkv", "storage": "int8"},
    {"method": "snapkv", "storage": "fp8"},
    {"method": "full", "storage": "int8"},
    {"method": "sparsemm", "max_new_tokens": 12},
]
NEW = 8


@pytest.fixture(scope="module")
def there(tiny):
    """`there(name) -> the model of tiny(name) on the device`."""
    held: dict[str, Any] = {}

    def model(name):
        if name not in held:
            held[name] = copy.deepcopy(tiny(name)[0]).cuda()
        return held[name]

    return model


def prompt(processor):
    """Two pages of different sizes: one row is padded."""
    styles = PageStyle(1, 6), PageStyle(2, 6)
    pages = [[draw_record("evaluation", 1, i, style).image] for i, style in enumerate(styles)]
    return dict(build_inputs(processor, pages, ["Read the page."] * 2))


def cache_of(model, method="sparsemm", **options):
    text = model.config.get_text_config()
    scores = np.random.default_rng(3).random((text.num_hidden_layers, text.num_key_value_heads))
    return sparsemm.compressed_cache(model, method, 24, scores, **({"window": 4} | options))


def said(model, inputs, cache, **options):
    given = {name: value.to(model.device) for name, value in inputs.items()}
    with torch.no_grad():
        out = model.generate(
            **given, past_key_values=cache, **({"do_sample": False, "max_new_tokens": NEW} | options)
        ).cpu()
    return out


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [*({"method": method} for method in UNTOLD), *OPTIONS], ids=str)
def test_tokens_are_those_of_the_cpu(tiny, there, name, options):
    model, processor = tiny(name)
    inputs = prompt(processor)
    want = said(model, inputs, cache_of(model, **options))
    cache = cache_of(there(name), **options)
    assert torch.equal(said(there(name), inputs, cache), want)
    assert cache.ragged[0].slab.keys.is_cuda


@pytest.mark.parametrize("asked", [{"num_beams": 3}, {"prefill_chunk_size": 50}])
def test_beams_and_chunks(tiny, there, asked):
    model, processor = tiny("tiny-qwen2-vl")
    inputs = prompt(processor)
    options = {"prompt_length": inputs["input_ids"].shape[1]} if "prefill_chunk_size" in asked else {}
    if options:
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}  # chunks are of text
    want = said(model, inputs, cache_of(model, "snapkv", **options), **asked)
    assert torch.equal(
        said(there("tiny-qwen2-vl"), inputs, cache_of(there("tiny-qwen2-vl"), "snapkv", **options), **asked), want
    )


def test_two_turns(tiny, there):
    model, processor = tiny("tiny-llava-next-mistral")
    first = prompt(processor)
    answers = []
    for one in (model, there("tiny-llava-next-mistral")):
        cache = cache_of(one, "snapkv", recompress=True)
        out = said(one, first, cache)
        later = torch.cat([out, first["input_ids"][:, -6:]], dim=1)
        mask = torch.cat(
            [
                first["attention_mask"],
                first["attention_mask"].new_ones(2, later.shape[1] - first["attention_mask"].shape[1]),
            ],
            1,
        )
        answers.append(said(one, {"input_ids": later, "attention_mask": mask}, cache))
    assert torch.equal(*answers)


class Launches(TorchDispatchMode):
    """Counts the operations that are more than a view, and those that wait for the device."""

    VIEWS = {"view", "_unsafe_view", "expand", "slice", "select", "unsqueeze", "transpose", "t", "detach", "alias"}

    def __init__(self):
        super().__init__()
        self.count = self.waits = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        name = op.overloadpacket.__name__
        self.count += name not in self.VIEWS
        self.waits += name in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal")
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["sparsemm", "snapkv"])
def test_a_step_of_a_padded_batch_launches_little_more_than_with_transformers_cache(tiny, there, method):
    model, processor = there("tiny-llava-next-mistral"), tiny("tiny-llava-next-mistral")[1]
    inputs = {name: value.cuda() for name, value in prompt(processor).items()}
    assert not inputs["attention_mask"].all()
    mask = torch.cat([inputs["attention_mask"], inputs["attention_mask"].new_ones(2, 1)], dim=1)
    seen = []
    for cache in (DynamicCache(), cache_of(model, method)):
        if isinstance(cache, DynamicCache):
            model.set_attn_implementation({"text_config": "sdpa"})
        with torch.no_grad(), Launches() as launches:
            newest = model(**inputs, past_key_values=cache, logits_to_keep=1).logits.argmax(-1)
            launches.count = launches.waits = 0
            model(input_ids=newest, attention_mask=mask, past_key_values=cache, logits_to_keep=1)
        seen.append(launches)
        cache_of(model)  # the attention of ours again
    theirs, ours = seen
    assert ours.waits == theirs.waits
    assert ours.count <= theirs.count + 3 * model.config.get_text_config().num_hidden_layers


@pytest.mark.parametrize("storage", ["int8", "fp8"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_in_8_bits_of_a_model_in_16(tiny, dtype, storage):
    model, processor = tiny("tiny-llava-next-mistral")
    half = copy.deepcopy(model).to("cuda", dtype)
    inputs = prompt(processor)
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    plain = said(half, inputs, cache_of(half, "full"))
    stored = said(half, inputs, cache_of(half, "full", storage=storage))
    assert (plain == stored).float().mean() > 0.95


@pytest.mark.parametrize("name", NAMES)
def test_a_captured_step_says_the_same(tiny, there, name):
    processor = tiny(name)[1]
    inputs = {key: value.cuda() for key, value in prompt(processor).items()}
    want = said(there(name), inputs, cache_of(there(name)), max_new_tokens=12)
    assert torch.equal(greedy(there(name), inputs, cache_of(there(name), max_new_tokens=12), 12).cpu(), want)


@pytest.mark.parametrize("op", [*OPERATIONS, "decode/varlen"])
def test_operations_agree_with_their_twins(op):
    if op == "decode/varlen" and decode_backends._varlen() is None:
        pytest.skip("this torch has no varlen_attn")
    found = check(op, torch.device("cuda"), seconds=8, rounds=25)
    assert found["rounds"] and not found["failed"], found["failures"]


def test_every_backend_can_be_the_fastest(tiny, there, monkeypatch):
    model, processor = tiny("tiny-llava-next-mistral")
    half = copy.deepcopy(model).to("cuda", torch.bfloat16)
    inputs = prompt(processor)
    inputs["pixel_values"] = inputs["pixel_values"].to(torch.bfloat16)
    answers = []
    for name in ("ours", "varlen", "twin"):
        monkeypatch.setattr(fastest, "backend", lambda *_, name=name: name)
        answers.append(said(half, inputs, cache_of(half)))
    assert all((one == answers[0]).float().mean() > 0.95 for one in answers)

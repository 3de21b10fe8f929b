"""The static path without capture: the same tokens, buffers that stay, nothing read on the host."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

import sparsemm
from sparsemm.cache import tiles
from sparsemm.cache.graphs import DecodeStep, greedy
from sparsemm.datasets.synthetic import PageStyle, draw_record
from sparsemm.errors import CacheError
from sparsemm.ops import append, register
from sparsemm.prompts import build_inputs
from tests.cache.reading import NoHostReads
from tests.policies.making import ANY_LENGTH

NAMES = ("tiny-llava-next-vicuna", "tiny-llava-next-mistral", "tiny-qwen2-vl")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["full", "sparsemm"])
def test_tokens_are_those_of_the_dynamic_path(tiny, name, method):
    model, processor = tiny(name)
    styles = (PageStyle(1, 6), PageStyle(2, 6), PageStyle(1, 6))
    images = [[draw_record("evaluation", 1, i, style).image] for i, style in enumerate(styles)]
    inputs = dict(build_inputs(processor, images, ["Read the page."] * 3))
    config = model.config.get_text_config()
    scores = np.random.default_rng(3).random((config.num_hidden_layers, config.num_key_value_heads))

    def cache(**options):
        return sparsemm.compressed_cache(model, method, 24, scores, window=4, **options)

    with torch.no_grad():
        want = model.generate(**inputs, past_key_values=cache(), max_new_tokens=20, do_sample=False)
    assert torch.equal(greedy(model, inputs, cache(max_new_tokens=20), 20), want)


@pytest.mark.parametrize("method", ANY_LENGTH)
def test_a_padded_batch_of_a_text_model(lab, method):
    tokens = lab.ids()
    tokens[0, :9] = 0
    want = lab.generate(tokens, lab.cache(method), new=25)
    inputs = {"input_ids": tokens, "attention_mask": (tokens > 0).long()}
    assert torch.equal(greedy(lab.model, inputs, lab.cache(method, max_new_tokens=24), 25), want)


@pytest.mark.parametrize("ends", [(3, 9), (0, 20), (17, 17), (24, 1)])
def test_rows_end_as_in_generate(lab, ends):
    free = lab.generate(lab.ids(), lab.cache(), new=25)
    stop = sorted({int(free[row, 30 + at]) for row, at in enumerate(ends)})
    lab.model.generation_config.eos_token_id = stop
    try:
        want = lab.generate(lab.ids(), lab.cache(), new=25)
        inputs = {"input_ids": lab.ids()}
        assert torch.equal(greedy(lab.model, inputs, lab.cache(max_new_tokens=30), 25), want)
    finally:
        lab.model.generation_config.eos_token_id = None


def test_the_watch_sees_what_it_should():
    with NoHostReads(), pytest.raises(AssertionError):
        torch.ones(3, dtype=torch.float32)[torch.ones(3, dtype=torch.bool)]
    with NoHostReads(), pytest.raises(AssertionError):
        int(torch.ones(3, dtype=torch.float32).sum())


@pytest.mark.parametrize("served", [True, False])
@pytest.mark.parametrize("storage", ["model", "int8"])
@pytest.mark.parametrize("method", ["sparsemm", "full"])
def test_a_step_moves_no_buffer_and_reads_nothing_on_the_host(lab, monkeypatch, method, storage, served):
    if not served:  # the path of a device that the library does not serve
        for module in (append, register):
            monkeypatch.setattr(module, "serves", lambda *_: False)
        monkeypatch.setattr(tiles, "decodes", lambda *_: False)
    cache, tokens = lab.cache(method, max_new_tokens=20, storage=storage), lab.ids()
    lab.run(cache, tokens)
    step = DecodeStep(lab.model, cache, tokens[:, :1], torch.full((2, 1), 30))
    names = ("starts", "lengths", *cache.ragged[0].slab.BUFFERS)
    places = [[getattr(layer.slab, name).data_ptr() for name in names] for layer in cache.ragged]
    longest = cache.ragged[0].slab.longest
    shapes = set()

    class Shapes(NoHostReads):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            out = super().__torch_dispatch__(op, types, args, kwargs)
            seen.append((str(op), tuple(out.shape) if isinstance(out, torch.Tensor) else None))
            return out

    for _ in range(20):
        seen = []
        with Shapes():
            step()
        shapes.add(tuple(seen))
    assert len(shapes) == 1  # every step is the same program, as a captured one has to be
    assert [[getattr(layer.slab, name).data_ptr() for name in names] for layer in cache.ragged] == places
    assert cache.ragged[0].slab.longest == longest
    with pytest.raises(CacheError, match="room for 20"):
        step()


class StandIn:
    """A CUDA graph on the CPU: a capture changes nothing on the device, a replay nothing on the host."""

    def __init__(self, step):
        self.step = step

    def on_device(self):
        slabs = [layer.slab for layer in self.step.cache.ragged]
        return [self.step.tokens, self.step.positions, *(t for s in slabs for t in (s.lengths, s.keys, s.values))]

    def on_host(self):
        return [[layer.seen, layer.slab.slack, layer.slab.longest] for layer in self.step.cache.ragged]

    def __enter__(self):
        self.before = [t.clone() for t in self.on_device()]

    def __exit__(self, *_):
        for tensor, old in zip(self.on_device(), self.before, strict=True):
            tensor.copy_(old)

    def replay(self):
        before = self.on_host()
        # The captured program does not ask the host how much room there is.
        self.step.cache.advance(-1)
        self.step._run()
        assert self.on_host() == before


@pytest.mark.parametrize("method", ["full", "sparsemm"])
@pytest.mark.parametrize("room", [1, 2, 20])
def test_a_capture_and_its_replays_count_right(lab, monkeypatch, method, room):
    tokens = lab.ids()
    dynamic, static = lab.cache(method), lab.cache(method, max_new_tokens=room)
    for cache in (dynamic, static):
        first = lab.run(cache, tokens)[:, -1:].argmax(-1)
    step = DecodeStep(lab.model, static, first, torch.full((2, 1), 30))
    step.captures = True
    graph = StandIn(step)
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda one: one)
    want = first
    for count in range(room):
        want = lab.run(dynamic, want).argmax(-1)
        assert torch.equal(step(), want)
        assert torch.equal(static.kept_slots(), dynamic.kept_slots())
        assert static.get_seq_length() == 31 + count
    with pytest.raises(CacheError, match=f"room for {room}"):
        step()
    assert torch.equal(static.kept_slots(), dynamic.kept_slots())


def test_the_room_counts_as_slack(lab):
    cache = lab.cache(max_new_tokens=7)
    lab.run(cache, lab.ids())
    assert cache.slack_share() == pytest.approx(7 / 16)


def test_counting_on_the_host_alone(lab):
    cache = lab.cache(max_new_tokens=3)
    lab.run(cache, lab.ids())
    cache.advance(2)
    assert cache.get_seq_length() == 32
    cache.advance(-1)
    cache.advance(2)
    with pytest.raises(CacheError, match="room for 3"):
        cache.advance(1)


def test_growing_and_empty_caches_are_refused(lab):
    grows = lab.cache()
    lab.run(grows, lab.ids())
    for cache in (grows, lab.cache(max_new_tokens=4)):
        with pytest.raises(CacheError, match="grow"):
            DecodeStep(lab.model, cache, lab.ids()[:, :1], torch.full((2, 1), 30))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", ["full", "sparsemm"])
def test_a_captured_step_says_the_same(lab, method):
    there = type(lab)(copy.deepcopy(lab.model).cuda())
    tokens = lab.ids().cuda()
    want = there.generate(tokens, there.cache(method), new=25)
    assert torch.equal(greedy(there.model, {"input_ids": tokens}, there.cache(method, max_new_tokens=24), 25), want)

"""Strongest keys of one forward pass against generate's decode loop with output_attentions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sparsemm.chase import strongest_keys as module
from sparsemm.chase.shards import find_hits, shard_of_sample
from sparsemm.chase.strongest_keys import NO_KEY, strongest_keys
from sparsemm.errors import AlignError
from sparsemm.prompts import append_answers, build_inputs
from tests.families import MODELS, made

NAMES = ["tiny-llava-next-vicuna", "tiny-llava-next-mistral", "tiny-qwen2-vl"]
ANSWERS = [[20, 31, 42, 25, 33, 60, 21], [50, 22], [24, 26, 28, 33, 35]]


def attending(model: Any) -> list[int]:
    """The layers that have attention heads."""
    text = model.config.text_config
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
    return [i for i, kind in enumerate(kinds) if kind != "linear_attention"]


@contextmanager
def sharpened(model: Any, factor: float = 6.0) -> Iterator[None]:
    """Scale the queries: an untrained model attends almost evenly, and rounding would decide the argmax."""
    weights = [m.weight for n, m in model.get_decoder().named_modules() if n.endswith("q_proj")]
    assert len(weights) == len(attending(model))
    untrained = [weight for weight in weights if weight.std() < 0.03]
    before = [weight.detach().clone() for weight in untrained]
    with torch.no_grad():
        for weight in untrained:
            weight.mul_(factor)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, old in zip(untrained, before, strict=True):
                weight.copy_(old)


def batch(processor: Any, count: int = 3) -> Any:
    generator = np.random.default_rng(3)
    sizes = [(84, 84), (168, 84), (70, 126)][:count]
    images = [Image.fromarray(generator.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in sizes]
    texts = ["Read the page.", "What is name? Read the page.", "Read"][:count]
    return build_inputs(processor, [[image] for image in images], texts), images, texts


def oracle(model: Any, processor: Any, image: Any, text: str, answer: list[int]) -> tuple[torch.Tensor, list[int]]:
    """(L, Hq, T) argmax positions in the unpadded prompt + answer and the T predictions: one token at a time.

    L are the layers that have heads.
    """

    inputs = build_inputs(processor, [[image]], [text])
    length = inputs["input_ids"].shape[1]

    def force(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(logits, -torch.inf)
        forced[:, answer[ids.shape[1] - length]] = 0.0
        return forced

    before = model.config.text_config._attn_implementation
    model.set_attn_implementation({"text_config": "eager"})
    try:
        out = model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=len(answer),
            eos_token_id=None,
            logits_processor=[force],
            output_attentions=True,
            output_logits=True,
            return_dict_in_generate=True,
        )
    finally:
        model.set_attn_implementation({"text_config": before})
    assert out.sequences[0, length:].tolist() == answer
    assert out.attentions[-1][0].shape[-1] == length + len(answer) - 1
    found = [torch.stack([layer[0, :, -1].argmax(dim=-1) for layer in step]) for step in out.attentions]
    return torch.stack(found, dim=-1), [int(logits[0].argmax()) for logits in out.logits]


# Gemma 3's sliding layers attend to a window, whose columns are no positions: tests/chase/test_mixed.py has it.
@pytest.mark.parametrize(
    "name", [*NAMES, *(name for name in MODELS if f"tiny-{name}" not in NAMES and name != "gemma3")]
)
def test_hits_are_those_of_the_decode_loop_cell_by_cell(tiny: Any, name: str) -> None:
    """A padded batch in one pass, against each sample alone, token by token."""
    model, processor = tiny(name) if name in NAMES else made(name)
    inputs, images, texts = batch(processor)
    lengths = inputs["attention_mask"].sum(dim=1).tolist()
    assert len(set(lengths)) > 1
    forced = append_answers(inputs, ANSWERS, processor.tokenizer.pad_token_id)
    rows = [[first + i for i in range(len(a))] for first, a in zip(forced.first_rows, ANSWERS, strict=True)]
    with sharpened(model):
        looked = strongest_keys(model, forced.inputs, rows)
        for b, answer in enumerate(ANSWERS):
            wanted, said = oracle(model, processor, images[b], texts[b], answer)
            pads = forced.inputs["input_ids"].shape[1] - lengths[b] - len(answer)
            assert torch.equal(looked[b].positions[attending(model)] - pads, wanted)
            assert int((looked[b].positions == NO_KEY).sum(dim=0).unique()) == len(looked[b].positions) - len(wanted)
            assert looked[b].predicted.tolist() == said
            assert len(wanted.unique()) > 5  # not one sink for all: the test can fail
            seen = np.flatnonzero((forced.inputs["input_ids"][b] == model.config.image_token_id).numpy())
            targets = [seen[t : t + 9] for t in range(len(answer))]
            shard = shard_of_sample(find_hits(looked[b].positions, targets), targets, [0] * len(answer), [0] * 3)
            slow_hits, slow_weighted = np.zeros_like(shard.hits[0]), np.zeros_like(shard.weighted[0])
            for (layer, head, t), position in np.ndenumerate(wanted.numpy()):
                if position + pads in targets[t].tolist():
                    slow_hits[attending(model)[layer], head] += 1
                    slow_weighted[attending(model)[layer], head] += 1 / len(targets[t])
            assert np.array_equal(shard.hits[0], slow_hits)
            np.testing.assert_allclose(shard.weighted[0], slow_weighted, rtol=1e-12)


def test_looking_leaves_the_model_as_it_was(tiny: Any) -> None:
    model, processor = tiny("tiny-qwen2-vl")
    inputs, _, _ = batch(processor)
    deltas = torch.tensor([[-7]])
    model.model.rope_deltas = deltas
    before = model.config.text_config._attn_implementation
    try:
        forced = append_answers(inputs, ANSWERS, 0)
        strongest_keys(model, forced.inputs, [[row] for row in forced.first_rows])
        assert model.model.rope_deltas is deltas
        assert model.config.text_config._attn_implementation == before
    finally:
        model.model.rope_deltas = None


@pytest.mark.parametrize("name", NAMES)
def test_pads_do_not_shift_positions(tiny: Any, name: str) -> None:
    model, processor = tiny(name)
    inputs, _, _ = batch(processor)
    forced = append_answers(inputs, ANSWERS, processor.tokenizer.pad_token_id)
    seen: list[torch.Tensor] = []

    def keep(module: Any, args: Any, given: dict[str, Any]) -> None:
        seen.append(given["position_ids"])

    hook = model.model.language_model.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        strongest_keys(model, forced.inputs, [[], [], []])
    finally:
        hook.remove()
    (positions,) = seen
    for b, mask in enumerate(forced.inputs["attention_mask"].bool()):
        assert (positions[..., b, mask][..., 0] == 0).all()
        if not name.startswith("tiny-qwen"):
            assert positions[b, mask].tolist() == list(range(int(mask.sum())))


def test_bad_rows_are_refused(tiny: Any) -> None:
    model, processor = tiny("tiny-llava-next-mistral")
    inputs, _, _ = batch(processor, 2)
    assert inputs["attention_mask"][0, 0] == 0
    for rows, reason in [
        ([[0], [5]], "on padding"),
        ([[-1], []], "outside"),
        ([[10**6], []], "outside"),
        ([[]], "1 lists"),
    ]:
        with pytest.raises(AlignError, match=reason):
            strongest_keys(model, inputs, rows)
    assert [x.positions.shape[2] for x in strongest_keys(model, inputs, [[], []])] == [0, 0]


def test_padding_between_tokens_is_refused(tiny: Any) -> None:
    model, processor = tiny("tiny-qwen2-vl")
    inputs, _, _ = batch(processor, 1)
    inputs["attention_mask"][0, 3] = 0
    with pytest.raises(AlignError, match="sample 0: there is padding between tokens"):
        strongest_keys(model, inputs, [[]])


@pytest.mark.parametrize("pads", [0, 300])
def test_long_prompts_need_no_more_memory_than_keys_and_values(pads: int) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    from sparsemm.profiling.shapes import Shape, random_model

    length, rows = 4096, 64
    model = random_model(Shape(2, 32, 32, 4, 2, 50, 8), torch.float32, torch.device("cpu"), length)
    inputs = {"input_ids": torch.ones(2, length, dtype=torch.int64), "attention_mask": torch.ones(2, length)}
    inputs["attention_mask"][1, :pads] = 0
    largest: dict[str, int] = {}

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = function(*args, **(kwargs or {}))
            for one in out if isinstance(out, tuple) else (out,):
                if isinstance(one, torch.Tensor):
                    largest[str(function)] = max(largest.get(str(function), 0), one.untyped_storage().nbytes())
            return out

    with Largest():
        looked = strongest_keys(model, inputs, [list(range(length - rows, length))] * 2)
    assert [one.positions.shape for one in looked] == [(2, 4, rows)] * 2
    keys_and_values = 2 * 2 * 2 * length * 8 * 4  # of a layer: samples, KV heads, positions, head size, bytes
    assert max(largest.values()) <= keys_and_values < length * length / 8  # nothing of positions x positions
    assert sum("argmax_rows" in name for name in largest) == 1


def test_the_head_runs_over_pieces_of_the_rows(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny("tiny-qwen2-vl")
    inputs, _, _ = batch(processor)
    forced = append_answers(inputs, ANSWERS, 0)
    rows = [[first + i for i in range(len(a))] for first, a in zip(forced.first_rows, ANSWERS, strict=True)]
    whole = strongest_keys(model, forced.inputs, rows)
    sizes: list[int] = []
    hook = model.get_output_embeddings().register_forward_hook(lambda _, args, out: sizes.append(len(out)))
    monkeypatch.setattr(module, "MOST_LOGITS", 3 * model.get_output_embeddings().weight.shape[0])
    try:
        pieces = strongest_keys(model, forced.inputs, rows)
    finally:
        hook.remove()
    assert sizes == [3, 3, 1, 2, 3, 2]
    assert [one.predicted.tolist() for one in pieces] == [one.predicted.tolist() for one in whole]

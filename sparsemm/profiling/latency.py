"""Time one prompt and the tokens after it under one cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from sparsemm.cache.layer import RaggedLayer
from sparsemm.errors import DataError
from sparsemm.profiling.clock import now
from sparsemm.prompts import TOKEN_TYPES, build_inputs


@dataclass(frozen=True)
class Timing:
    """Seconds of the prompt, of each new token after the first, and of compressing the prompt (a part of it)."""

    prefill: float
    decode: tuple[float, ...]
    compression: float


def prompt_of_length(processor: Any, image: Image.Image, length: int, batch_size: int) -> dict[str, Any]:
    """Inputs of `batch_size` equal prompts of exactly `length` tokens: an image, and text that fills the rest.

    Raises:
        DataError: if the image alone needs more tokens.
    """
    bare = build_inputs(processor, [[image]], [""])["input_ids"].shape[1]
    if bare > length:
        raise DataError(f"the image alone makes a prompt of {bare} tokens, {length} wanted", where="profile.lengths")
    low, high = 0, length
    while low < high:  # the longest text that still fits; a word is at least one token
        middle = (low + high + 1) // 2
        tokens = build_inputs(processor, [[image]], [" the" * middle])["input_ids"].shape[1]
        low, high = (middle, high) if tokens <= length else (low, middle - 1)
    inputs = build_inputs(processor, [[image]] * batch_size, [" the" * low] * batch_size)
    missing = length - inputs["input_ids"].shape[1]
    if missing:  # a word may be several tokens: fill up with its last one, just before the end of the turn
        ids = inputs["input_ids"]
        last = processor.tokenizer(" the", add_special_tokens=False).input_ids[-1]
        at = (ids[0] == last).nonzero().max()
        filler = torch.full((batch_size, missing), last, dtype=torch.int64, device="cpu")
        inputs["input_ids"] = torch.cat([ids[:, :at], filler, ids[:, at:]], dim=1)
        for name in ("attention_mask", *TOKEN_TYPES):
            if name in inputs:
                fill = inputs[name][:, at : at + 1].expand(-1, missing)
                inputs[name] = torch.cat([inputs[name][:, :at], fill, inputs[name][:, at:]], dim=1)
    return dict(inputs)


@contextmanager
def timing_compression(device: torch.device) -> Iterator[Callable[[], float]]:
    """Yields what tells the seconds spent in every `RaggedLayer.compress` until then; only the telling waits."""
    before, marks = RaggedLayer.compress, []

    def mark() -> Any:
        if device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def timed(*given: Any, **named: Any) -> None:
        began = mark()
        before(*given, **named)
        marks.append((began, mark()))

    def seconds() -> float:
        if device.type != "cuda":
            return sum(ended - began for began, ended in marks)
        torch.cuda.synchronize(device)
        return sum(began.elapsed_time(ended) for began, ended in marks) / 1e3

    RaggedLayer.compress = timed  # type: ignore[method-assign]
    try:
        yield seconds
    finally:
        RaggedLayer.compress = before  # type: ignore[method-assign]


@torch.inference_mode()
def time_once(model: Any, inputs: dict[str, Any], cache: Any, new_tokens: int) -> Timing:
    """Run the prompt and `new_tokens` - 1 greedy steps after its first token, each timed on its own.

    Args:
        inputs: on the model's device.
        cache: fresh `past_key_values`.
        new_tokens: at least 2.
    """
    started: list[float] = []
    marks: list[float] = []
    hooks = [
        model.register_forward_pre_hook(lambda *_: started.append(now(model.device))),
        model.register_forward_hook(lambda *_: marks.append(now(model.device) - started[-1])),
    ]
    try:
        with timing_compression(model.device) as compression:
            model.generate(
                **inputs,
                past_key_values=cache,
                do_sample=False,
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                disable_compile=True,  # on a GPU a static cache's steps would be compiled with the first call's hooks
            )
            spent = compression()
    finally:
        for hook in hooks:
            hook.remove()
    return Timing(marks[0], tuple(marks[1:]), spent)

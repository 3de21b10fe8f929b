"""Times one prompt and the tokens after it with one cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from sparsemm.cache.layer import RaggedLayer
from sparsemm.compat import cache_argument
from sparsemm.errors import DataError
from sparsemm.profiling.clock import now
from sparsemm.prompts import TOKEN_TYPES, build_inputs


@dataclass(frozen=True)
class Timing:
    """Seconds of the prompt, of each new token after the first, and of compressing the prompt (included in it)."""

    prefill: float
    decode: tuple[float, ...]
    compression: float


def prompt_of_length(processor: Any, image: Image.Image, length: int, batch_size: int) -> dict[str, Any]:
    """Builds `batch_size` equal prompts of exactly `length` tokens: an image, and text that fills the rest.

    Raises DataError if an image without text needs more tokens.
    """
    bare = build_inputs(processor, [[image]], [""])["input_ids"].shape[1]
    if bare > length:
        raise DataError(f"the image alone makes a prompt of {bare} tokens, {length} wanted", where="profile.lengths")
    low, high = 0, length
    while low < high:  # finds the longest text that fits; a word has at least one token
        middle = (low + high + 1) // 2
        tokens = build_inputs(processor, [[image]], [" the" * middle])["input_ids"].shape[1]
        low, high = (middle, high) if tokens <= length else (low, middle - 1)
    inputs = build_inputs(processor, [[image]] * batch_size, [" the" * low] * batch_size)
    missing = length - inputs["input_ids"].shape[1]
    if missing:  # a word may have several tokens: fill up with its last one, before the end of the turn
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
    """Yields a function that returns the seconds spent so far in `RaggedLayer.compress`; only this function waits."""
    before, marks = RaggedLayer.compress, []

    def mark() -> Any:
        if device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def timed(*arguments: Any, **options: Any) -> None:
        began = mark()
        before(*arguments, **options)
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
    """Times the prompt and `new_tokens` - 1 greedy steps after its first token.

    Args:
        model: the model.
        inputs: inputs on the model's device.
        cache: empty `past_key_values`.
        new_tokens: at least 2.
    """
    starts: list[float] = []
    seconds: list[float] = []
    hooks = [
        model.register_forward_pre_hook(lambda *_: starts.append(now(model.device))),
        model.register_forward_hook(lambda *_: seconds.append(now(model.device) - starts[-1])),
    ]
    try:
        with timing_compression(model.device) as compression:
            model.generate(
                **inputs,
                **cache_argument(cache),
                do_sample=False,
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                disable_compile=True,  # else a GPU compiles a static cache's steps with these hooks
            )
            compression_seconds = compression()
    finally:
        for hook in hooks:
            hook.remove()
    return Timing(seconds[0], tuple(seconds[1:]), compression_seconds)

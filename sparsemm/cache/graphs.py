"""Greedy decoding whose steps never wait for the host, captured in a CUDA graph. Not measured on a GPU yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sparsemm.cache.compressed import CompressedCache
from sparsemm.compat import cache_argument
from sparsemm.errors import CacheError

WARM_UP = 2  # steps before the capture, which are undone afterwards
CHECK = 16  # steps between two checks whether every row has ended: each check waits for the device


def warm_up(call: Callable[[], Any], steps: int) -> None:
    """Calls a function on a side stream, as a CUDA graph capture requires beforehand; later work waits for it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(steps):
            call()
    torch.cuda.current_stream().wait_stream(stream)


class DecodeStep:
    """One greedy step, from every row's newest token to its next one, in tensors whose addresses do not change.

    The cache must be made with `max_new_tokens`: then a step neither moves nor resizes a buffer and reads nothing on
    the host, so that on a CUDA device it is captured once and replayed. On other devices the same step runs eagerly.

    Args:
        model: the model of the cache.
        cache: a cache that holds a prompt.
        tokens: (B, 1) int64 newest token of each row, which the model has not seen yet.
        positions: (B, 1) int64 position of that token, M-RoPE's offset included.

    Raises:
        CacheError: if the cache can grow, or has layers that are not compressed.
    """

    def __init__(self, model: Any, cache: CompressedCache, tokens: torch.Tensor, positions: torch.Tensor) -> None:
        if len(cache.ragged) != len(cache.layers):
            raise CacheError(
                "the model has sliding or linear-attention layers beside full ones", hint="use model.generate"
            )
        if any(layer.max_new_tokens is None or layer.slab is None for layer in cache.ragged):
            raise CacheError("the cache can grow", hint="make it with max_new_tokens, and run a prompt first")
        self.model, self.cache = model, cache
        self.tokens, self.positions = tokens.clone(), positions.clone()
        self.axes = 3 if getattr(model.config.get_text_config(), "rope_parameters", {}).get("mrope_section") else 0
        self.captures = tokens.is_cuda
        self.graph: torch.cuda.CUDAGraph | None = None

    def _run(self) -> None:
        positions = self.positions.expand(self.axes, -1, -1) if self.axes else self.positions
        output = self.model(
            input_ids=self.tokens,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **cache_argument(self.cache),
        )
        self.tokens.copy_(output.logits[:, -1:].argmax(-1))
        self.positions += 1

    def _capture(self) -> None:
        tokens, positions = self.tokens.clone(), self.positions.clone()
        slabs = [layer.slab for layer in self.cache.ragged if layer.slab is not None]
        steps = min(WARM_UP, slabs[0].slack)
        warm_up(self._run, steps)
        self.cache.advance(-steps)
        for slab in slabs:
            slab.lengths -= steps
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self._run()
        # A capture runs nothing on the device, but the host has counted its token.
        self.cache.advance(-1)
        self.tokens.copy_(tokens)
        self.positions.copy_(positions)

    @torch.no_grad()
    def __call__(self) -> torch.Tensor:
        """Returns the next token of every row: (B, 1) int64, overwritten by the next call.

        Raises:
            CacheError: if the room of `max_new_tokens` is used up.
        """
        if not self.captures:
            self._run()
            return self.tokens
        if self.graph is None:
            self._capture()
        assert self.graph is not None
        self.cache.advance(1)
        self.graph.replay()
        return self.tokens


@torch.no_grad()
def greedy(model: Any, inputs: dict[str, torch.Tensor], cache: CompressedCache, max_new_tokens: int) -> torch.Tensor:
    """Generates as `model.generate(**inputs, **cache_argument(cache), do_sample=False)`, with `DecodeStep` per token.

    Args:
        inputs: input_ids, attention_mask and the other inputs of `generate`.
        cache: a fresh cache, made with a `max_new_tokens` of at least this `max_new_tokens` - 1.
        max_new_tokens: length of the answer, the end token included.

    Returns:
        (B, at most S + max_new_tokens) int64, the prompt included; a row that has ended is filled up with padding.

    Raises:
        CacheError: for the reasons of `DecodeStep`.
    """
    out = model.generate(**inputs, **cache_argument(cache), do_sample=False, max_new_tokens=1)
    mask = inputs.get("attention_mask")
    mask = torch.ones_like(inputs["input_ids"]) if mask is None else mask
    positions = mask.sum(-1, keepdim=True)
    offset = None if cache.rope is None else cache.rope.deltas
    step = DecodeStep(model, cache, out[:, -1:], positions if offset is None else positions + offset.to(positions))
    ends = model.generation_config.eos_token_id
    ends = torch.tensor([] if ends is None else ends, dtype=torch.int64, device=out.device).flatten()
    pad = model.generation_config.pad_token_id
    answer = [out[:, -1:]]
    ended = torch.isin(answer[0], ends)
    for count in range(1, max_new_tokens):
        if count % CHECK == 1 and bool(ended.all()):
            break
        answer.append(torch.where(ended, pad if pad is not None else 0, step()))
        ended = ended | torch.isin(answer[-1], ends)
    new = torch.cat(answer, dim=1)
    # The steps between the last end and the check that noticed it added only padding.
    used = int((~torch.isin(new, ends)).long().cumprod(-1).sum(-1).max()) + 1
    return torch.cat([out[:, :-1], new[:, :used]], dim=1)

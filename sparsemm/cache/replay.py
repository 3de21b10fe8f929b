"""Replays: what a prompt's keys are worth to an answer over the full cache, for the selector `kvzip`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

import torch

from sparsemm.attention_probe import AttentionCall, observe_attention
from sparsemm.cache.compressed import compressed_cache
from sparsemm.cache.generation import stops
from sparsemm.cache.prefill import prefill
from sparsemm.cache.served import image_token, shape_of
from sparsemm.errors import CacheError
from sparsemm.policies.behind_image import attention_of_rows
from sparsemm.policies.row_attention import grown
from sparsemm.policies.selector import Prompt
from sparsemm.prompts import append_answers, move_inputs


@torch.inference_mode()
def replay_attention(
    model: Any,
    reading: Mapping[str, torch.Tensor],
    max_new_tokens: int,
    prompt: Mapping[str, torch.Tensor] | None = None,
) -> list[torch.Tensor]:
    """Lets the model read a page over the full cache, and returns what its reading attends to.

    The model answers greedily, then reads prompt and answer again in one forward pass: together a whole answer and two
    prefills. Positions of `prompt` in front of which `reading` has the same tokens are worth what they were worth to
    the reading; those behind, such as those of another question, come before all others, as in KVzip.

    Args:
        model: a generating model of transformers.
        reading: inputs of `model.generate` that ask for all of the page: "Read the page."; padded on the left.
        max_new_tokens: most tokens of the answer.
        prompt: inputs of the prompts that will be compressed, about the same images; None means `reading` itself.

    Returns:
        `replay` of `sparsemm.compressed_cache`: for each full-attention layer (B, Hkv, S) fp32, S being the tokens of
        `prompt`; 0 for padding.

    Raises:
        CacheError: as in `sparsemm.compressed_cache`, and if a prompt shares no image, or without images no token,
            with what is read.
    """
    reading = move_inputs(reading, model)
    cache = compressed_cache(model, "full")
    start = prefill(model, reading, cache=cache)
    ends, pad = stops(model)
    tokens = start.generate(cache, max_new_tokens)[:, start.length :].tolist()
    answers = [[*takewhile(lambda token: token not in ends, row)] for row in tokens]
    worth = answer_attention(model, reading, answers, pad)
    return worth if prompt is None else _carried(worth, reading, move_inputs(prompt, model), image_token(model.config))


@torch.inference_mode()
def answer_attention(
    model: Any, inputs: Mapping[str, torch.Tensor], answers: Sequence[Sequence[int]], pad_id: int, rows: int = 1
) -> list[torch.Tensor]:
    """Returns how much the rows that predict given answers attend to their prompts, in one forward over the full cache.

    Args:
        model: a generating model of transformers.
        inputs: B prompts of S tokens, padded on the left.
        answers: token ids of each row's answer; may be empty.
        pad_id: the token to pad with.
        rows: newest rows of the prompt that count too; the last one predicts the first token of the answer.

    Returns:
        for each full-attention layer (B, Hkv, S) fp32: the maximum over the rows and the query group of
        A = softmax(q k^T * scaling), causal over prompt and answer, in fp32; 0 for padding.
    """
    forced = append_answers(inputs, answers, pad_id)
    first = torch.tensor(forced.first_rows, dtype=torch.int64, device="cpu")[:, None]  # the last token of each prompt
    mask, length = inputs["attention_mask"].bool().cpu(), inputs["input_ids"].shape[1]
    place = torch.arange(length, dtype=torch.int64, device="cpu") - (length - 1) + first
    valid = forced.inputs["attention_mask"].bool().cpu()
    observing = torch.arange(valid.shape[1], dtype=torch.int64, device="cpu") > first - rows
    layers = shape_of(model).layers
    worth: dict[int, torch.Tensor] = {}

    def watch(call: AttentionCall) -> None:
        if call.layer not in layers:
            return
        device, heads = call.key.device, call.key.shape[1]
        prompt = Prompt(call.query, call.key, valid.to(device), 1, call.scaling)
        most = grown(None, prompt)
        for weights, _, _ in attention_of_rows(prompt, observing.to(device)):
            seen = most[..., : weights.shape[-1]]
            torch.maximum(seen, weights.amax(dim=(2, 3)), out=seen)
        index = place.clamp(min=0).to(device)[:, None].expand(-1, heads, -1)
        worth[call.layer] = most.gather(-1, index).masked_fill(~mask.to(device)[:, None], 0.0)

    with observe_attention(model, watch):
        # As the prefill of a generation, which knows the positions of every family.
        model.generate(**move_inputs(forced.inputs, model), do_sample=False, max_new_tokens=1)
    return [worth[layer] for layer in layers]


def _carried(
    worth: list[torch.Tensor], source: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor], image: int | None
) -> list[torch.Tensor]:
    """Returns what `worth` of one prompt says of another one, as far as both begin with the same tokens."""
    ids, real = target["input_ids"], target["attention_mask"].bool()
    tokens, width = source["attention_mask"].sum(-1, keepdim=True), source["input_ids"].shape[1]
    number = real.cumsum(-1) - 1  # of each token, padding left out
    index = (number + width - tokens).clamp(0, width - 1)
    same = (source["input_ids"].gather(-1, index) == ids) & (number < tokens)
    shared = (same | ~real).cumprod(-1).bool() & real
    needed = real if image is None else real & (ids == image)
    strangers = (needed.any(-1) & ~(needed & shared).any(-1)).nonzero().flatten().tolist()
    if strangers:
        what = f"the prompt of row {strangers[0]} does not begin as what was read"
        raise CacheError(what, where="replay_attention", hint="read the same images, with the same chat template")
    result = []
    for layer in worth:
        values = layer.gather(-1, index.to(layer.device)[:, None].expand(-1, layer.shape[1], -1))
        values = values.masked_fill(~shared.to(layer.device)[:, None], torch.finfo(torch.float32).max)
        result.append(values.masked_fill(~real.to(layer.device)[:, None], 0.0))
    return result

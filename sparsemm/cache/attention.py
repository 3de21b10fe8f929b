"""The attention function that transformers calls: the model's own for a prompt, ragged attention afterwards."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from sparsemm.attention_probe import UNSUPPORTED, own_attention, plain_attention
from sparsemm.cache import tiles
from sparsemm.cache.masks import Mask, newest_rows
from sparsemm.cache.pending import Pending
from sparsemm.cache.slab import Slab, bucket_by_length
from sparsemm.cache.turns import compress_again
from sparsemm.errors import CacheError
from sparsemm.ops.causal_attention import causal_attention

if TYPE_CHECKING:
    from sparsemm.cache.layer import RaggedLayer

MOST_LOGITS = 1 << 24  # at most so many logits are in memory at once


def ragged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: Any,
    value: Any,
    attention_mask: Mask,
    scaling: float | None = None,
    *,
    implementation: str,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Computes the attention of one layer; under autocast in autocast's dtype, as sdpa does.

    Plain tensors (of a call without a cache or with one of transformers' caches, maybe in another thread) go to the
    model's own attention. With a `RaggedLayer`, the prompt goes to the model's own attention and is compressed as soon
    as it is complete; later tokens attend to the kept rows, and causally to themselves.

    Args:
        query: (B, Hq, T, D) post-RoPE.
        key, value: (B, Hkv, S, D), or `Pending`.
        attention_mask: the mask of the model's own implementation, for T queries and (tokens seen + T) keys.
        scaling: factor of the logits; None means 1 / sqrt(D).
        implementation: transformers' name of the model's own implementation.

    Returns:
        (B, T, Hq, D), and the weights where the model's own attention returns them, else None.

    Raises:
        CacheError: if a prompt is padded on the right, a later turn has another batch size, or the attention uses an
            option that ragged attention does not support.
    """
    if type(key) is not Pending:
        return plain_attention(
            module, query, key, value, attention_mask, scaling, implementation=implementation, **options
        )
    layer, switch, key, value = key.layer, key.switch, key.key, key.value
    if switch is not None:
        switch.end()
    if UNSUPPORTED & options.keys() and any(options.get(name) is not None for name in UNSUPPORTED):
        names = sorted(name for name in UNSUPPORTED if options.get(name) is not None)
        raise CacheError(f"attention with {', '.join(names)} is not supported", where=type(module).__name__)
    device = query.device.type
    slab = layer.slab
    # The fast path, for decode steps on a CPU without padding: it runs for every token in every layer.
    if slab is not None and attention_mask is None and layer.eviction is None and not torch.is_autocast_enabled(device):
        output = slab.append_and_attend(query, key, value, scaling)
        if output is not None:
            return output, None
    attention = own_attention(module, implementation)
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    attend_tokens = partial(
        attend_and_keep, attention, layer, module, mask=attention_mask, scaling=factor, options=options
    )
    if not torch.is_autocast_enabled(device):
        return attend_tokens(query, key, value)
    # sdpa would cast all three; ratings of positions stay in fp32.
    query, key, value = (t.to(torch.get_autocast_dtype(device)) for t in (query, key, value))
    with torch.autocast(device, enabled=False):
        return attend_tokens(query, key, value)


def attend_and_keep(
    attention: Callable[..., Any],
    layer: RaggedLayer,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: Mask,
    scaling: float,
    options: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Computes the attention of new tokens, and lets the layer collect, compress or append them.

    Args:
        attention: the model's own attention function.
        query: (B, Hq, T, D).
        key, value: (B, Hkv, T, D).
        mask, scaling, options: arguments of that function.

    Returns:
        The same as `ragged_attention`.
    """
    if layer.slab is not None:
        return attend_later_tokens(layer, query, key, value, mask, scaling), None
    queries, key, value = layer.hold(query, key, value, mask, scaling)
    output, weights = prompt_attention(attention, module, query, key, value, mask, scaling, options)
    extra = layer.after_prompt()
    if extra >= 0:
        end, rows = key.shape[2] - extra, queries.shape[2] - extra
        real = None if mask is None else newest_rows(mask, 1)[:, None, :, :end].expand(len(query), -1, -1, -1)
        layer.compress(queries[:, :, :rows], key[:, :, :end], value[:, :, :end], real, scaling)
    if extra > 0:  # candidate tokens after the prompt attend to the compressed rows, as all later tokens do
        tail = (query[:, :, -extra:], key[:, :, end:], value[:, :, end:])
        output = torch.cat([output[:, :-extra], attend_later_tokens(layer, *tail, mask, scaling)], dim=1)
    return output, weights


def prompt_attention(
    attention: Callable[..., Any],
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: Mask,
    scaling: float,
    options: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Computes the attention of a prompt or a chunk of one: (B, T, Hq, D), and its weights if the model returns them.

    This is the model's own attention, except where that is sdpa on a CPU in fp32 without padding: there
    `causal_attention` is faster. (In 16 bits the two round so differently that an answer may differ from the one with
    transformers' cache.)
    """
    length = query.shape[2]
    plain = mask is None and length == key.shape[2] > 1 and getattr(module, "is_causal", True)
    if attention is sdpa_attention_forward and plain and query.is_cpu and query.dtype == torch.float32:
        firsts = torch.zeros(len(query), dtype=torch.int64, device="cpu")
        return causal_attention(query, key, value, firsts, torch.full_like(firsts, length), scaling), None
    return attention(module, query, key, value, mask, scaling=scaling, **options)  # type: ignore[no-any-return]


def attend_later_tokens(
    layer: RaggedLayer,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: Mask,
    scaling: float,
) -> torch.Tensor:
    """Appends tokens after the prompt, returns their attention (B, T, Hq, D), and compresses again where asked to."""
    new = query.shape[2]
    if layer.recompress and new > 1 and not layer.policy.selector.rates_turns:
        what = f"a later turn with the selector {type(layer.policy.selector).__name__}, which rates no later turns"
        raise CacheError(what, where=f"layer {layer.index}", hint="make the cache without hold_budget")
    valid = None if mask is None else layer.real_tokens(mask, new)
    seen = None  # causal
    if mask is not None and new > 1:  # the tokens of an image may attend to each other
        seen = newest_rows(mask, new)[:, :, -new:].expand(len(query), -1, -1)
    slab = layer.append(key, value, valid)
    if layer.eviction is not None and new == 1:
        return layer.eviction.attend(query, slab, scaling, valid).transpose(1, 2)
    output = attend(query, slab, scaling, valid, seen)
    if layer.recompress and new > 1:
        compress_again(layer, query, valid, scaling)
    return output.transpose(1, 2)


def attend(
    query: torch.Tensor,
    slab: Slab,
    scaling: float,
    valid: torch.Tensor | None = None,
    seen: torch.Tensor | None = None,
) -> torch.Tensor:
    """Computes the attention of the newest T tokens, already appended, over each head's own rows.

    Several tokens go to torch's sdpa. Heads of similar length share a call, so that padding at most doubles the rows.

    Args:
        query: (B, Hq, T, D).
        slab: holds these tokens as the last T rows of every segment (fewer where `valid` is false).
        scaling: factor of the logits.
        valid: (B, T) bool, which new tokens are not padding; None means all.
        seen: (B, T, T) bool, whether a new token (second axis) attends to another one (last axis); None means causal.

    Returns:
        (B, Hq, T, D); zeros for padding.
    """
    batch, num_heads, new, dim = query.shape
    if new == 1:
        output = tiles.decode(query, slab, scaling)
        return output if valid is None else torch.where(valid[:, None, :, None], output, 0.0)
    if seen is None:
        seen = torch.ones(new, new, dtype=torch.bool, device=query.device).tril().expand(batch, -1, -1)
    if valid is not None:
        # Only real tokens have rows, the newest ones of a segment; all rows before them are older tokens.
        order = valid.long().argsort(dim=-1, stable=True)[:, None].expand_as(seen)
        seen = (seen | ~valid[:, None]).gather(-1, order)
    group = num_heads // slab.num_kv_heads
    grouped = query.reshape(len(slab.starts), group, new, dim)
    output = torch.zeros_like(grouped)
    for numbers, longest in bucket_by_length(slab.lengths.tolist()):
        segments = slab.lengths.new_tensor(numbers)
        rows, real = slab.rows_in(segments, longest)
        keys, values = slab.read_keys(rows)[None], slab.read_values(rows)[None]
        at = torch.arange(longest, dtype=torch.int64, device=rows.device) - (slab.lengths[segments, None] - new)
        step = max(1, MOST_LOGITS // (len(segments) * group * longest))
        for start in range(0, new, step):
            part = slice(start, start + step)
            mask = real[:, None] & visible_new_tokens(at, seen[segments // slab.num_kv_heads, part])
            # The heads of a query group become rows of their KV head, so that keys are never repeated.
            queries = grouped[segments, :, part].flatten(1, 2)[None]
            result = F.scaled_dot_product_attention(
                queries, keys, values, attn_mask=mask.repeat(1, group, 1)[None], scale=scaling
            )
            output[segments, :, part] = result.view(len(segments), group, -1, dim)
    output = output.view(query.shape)
    return output if valid is None else torch.where(valid[:, None, :, None], output, 0.0)


def visible_new_tokens(at: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Returns the mask (n, t, longest) bool of n segments: false where a query does not attend to a new token.

    Args:
        at: (n, longest) int64 number of the new token in each row; negative for older tokens.
        seen: (n, t, T) bool, whether each of t new tokens attends to each new token.
    """
    numbers = at.clamp(min=0, max=seen.shape[-1] - 1)[:, None].expand(-1, seen.shape[1], -1)
    return seen.gather(-1, numbers) | (at < 0)[:, None]

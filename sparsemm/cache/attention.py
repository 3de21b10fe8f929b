"""The attention function transformers calls: the model's own on a prompt, ragged attention afterwards."""

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
from sparsemm.cache.slab import Slab, alike
from sparsemm.cache.turns import compress_again
from sparsemm.errors import CacheError
from sparsemm.ops.causal_attention import causal_attention

if TYPE_CHECKING:
    from sparsemm.cache.layer import RaggedLayer

MOST_LOGITS = 1 << 24  # logits held at once


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
    """Attention of one layer, under autocast in its dtype, as sdpa has it.

    With plain tensors (another thread's, without a cache or with one of transformers' own) it is the model's own. With
    a `RaggedLayer` the prompt gets the model's own attention and is compressed as soon as it is whole; later tokens
    attend to what is kept and causally to themselves.

    Args:
        query: (B, Hq, T, D) post-RoPE.
        key, value: (B, Hkv, S, D), or `Pending`.
        attention_mask: what the model's own implementation takes, of T and tokens seen + T tokens.
        scaling: factor of the logits; None means 1 / sqrt(D).
        implementation: the model's own, as transformers calls it.

    Returns:
        (B, T, Hq, D), and the weights where the model's own attention returns them, else None.

    Raises:
        CacheError: if a prompt is padded on the right, a later batch is not the prompt's, or the attention has what
            the ragged attention does not compute.
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
    # Decoding without padding, on a processor: the one path that is taken for every token of every layer.
    if slab is not None and attention_mask is None and layer.eviction is None and not torch.is_autocast_enabled(device):
        output = slab.append_and_attend(query, key, value, scaling)
        if output is not None:
            return output, None
    own = own_attention(module, implementation)
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    work = partial(attend_and_keep, own, layer, module, mask=attention_mask, scaling=factor, options=options)
    if not torch.is_autocast_enabled(device):
        return work(query, key, value)
    # sdpa would cast all three; what rates positions stays in fp32.
    query, key, value = (t.to(torch.get_autocast_dtype(device)) for t in (query, key, value))
    with torch.autocast(device, enabled=False):
        return work(query, key, value)


def attend_and_keep(
    own: Callable[..., Any],
    layer: RaggedLayer,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: Mask,
    scaling: float,
    options: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention of new tokens, which the layer then holds, compresses or appends.

    Args:
        own: the model's own attention function.
        query: (B, Hq, T, D).
        key, value: (B, Hkv, T, D).
        mask, scaling, options: of that function.

    Returns:
        as `ragged_attention`.
    """
    if layer.slab is not None:
        return later(layer, query, key, value, mask, scaling), None
    queries, key, value = layer.hold(query, key, value)
    output, weights = prompt_attention(own, module, query, key, value, mask, scaling, options)
    over = layer.after_prompt()
    if over >= 0:
        end, rows = key.shape[2] - over, queries.shape[2] - over
        real = None if mask is None else newest_rows(mask, 1)[:, None, :, :end].expand(len(query), -1, -1, -1)
        layer.compress(queries[:, :, :rows], key[:, :, :end], value[:, :, :end], real, scaling)
    if over > 0:  # candidate tokens behind the prompt see what later tokens will see
        tail = (query[:, :, -over:], key[:, :, end:], value[:, :, end:])
        output = torch.cat([output[:, :-over], later(layer, *tail, mask, scaling)], dim=1)
    return output, weights


def prompt_attention(
    own: Callable[..., Any],
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: Mask,
    scaling: float,
    options: dict[str, Any],
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The model's own attention of a prompt or a piece of one: (B, T, Hq, D), and its weights if it returns them.

    In place of sdpa on a CPU, in fp32 and without padding, it is our own sdpa, which is faster. (In 16 bits the two
    round so differently that a token may be another one than with transformers' cache.)
    """
    length = query.shape[2]
    plain = mask is None and length == key.shape[2] > 1 and getattr(module, "is_causal", True)
    if own is sdpa_attention_forward and plain and query.is_cpu and query.dtype == torch.float32:
        firsts = torch.zeros(len(query), dtype=torch.int64, device="cpu")
        return causal_attention(query, key, value, firsts, torch.full_like(firsts, length), scaling), None
    return own(module, query, key, value, mask, scaling=scaling, **options)  # type: ignore[no-any-return]


def later(
    layer: RaggedLayer,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: Mask,
    scaling: float,
) -> torch.Tensor:
    """Attention of tokens after the prompt, which are kept or, if the layer says so, compressed: (B, T, Hq, D)."""
    new = query.shape[2]
    valid = None if mask is None else layer.real_tokens(mask, new)
    seen = None  # causal
    if mask is not None and new > 1:  # the tokens of an image may see each other
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
    """Attention of the newest T tokens, already appended, over each head's own rows.

    Several tokens go to torch's sdpa, heads of similar length together, so that padding at most doubles the rows.

    Args:
        query: (B, Hq, T, D).
        slab: storage whose last T rows of every stretch are these tokens (fewer where `valid` is false).
        scaling: factor of the logits.
        valid: (B, T) bool, which of the new tokens are real; None means all.
        seen: (B, T, T) bool, which new tokens (last) a new token (second) sees; None means those up to itself.

    Returns:
        (B, Hq, T, D); zeros for new tokens that are not real.
    """
    batch, num_heads, new, dim = query.shape
    if new == 1:
        output = tiles.decode(query, slab, scaling)
        return output if valid is None else torch.where(valid[:, None, :, None], output, 0.0)
    if seen is None:
        seen = torch.ones(new, new, dtype=torch.bool, device=query.device).tril().expand(batch, -1, -1)
    if valid is not None:
        # Only real tokens have rows: they are the newest ones, and what lies before them is old.
        order = valid.long().argsort(dim=-1, stable=True)[:, None].expand_as(seen)
        seen = (seen | ~valid[:, None]).gather(-1, order)
    group = num_heads // slab.num_kv_heads
    grouped = query.reshape(len(slab.starts), group, new, dim)
    output = torch.zeros_like(grouped)
    for numbers, longest in alike(slab.lengths.tolist()):
        stretches = slab.lengths.new_tensor(numbers)
        rows, real = slab.rows_in(stretches, longest)
        keys, values = slab.read_keys(rows)[None], slab.read_values(rows)[None]
        at = torch.arange(longest, dtype=torch.int64, device=rows.device) - (slab.lengths[stretches, None] - new)
        step = max(1, MOST_LOGITS // (len(stretches) * group * longest))
        for start in range(0, new, step):
            part = slice(start, start + step)
            mask = real[:, None] & among_new(at, seen[stretches // slab.num_kv_heads, part])
            # The query group becomes rows of its KV head, so that keys are never repeated.
            mine = grouped[stretches, :, part].flatten(1, 2)[None]
            got = F.scaled_dot_product_attention(
                mine, keys, values, attn_mask=mask.repeat(1, group, 1)[None], scale=scaling
            )
            output[stretches, :, part] = got.view(len(stretches), group, -1, dim)
    output = output.view(query.shape)
    return output if valid is None else torch.where(valid[:, None, :, None], output, 0.0)


def among_new(at: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """(n, t, longest) bool: true but where a row is a new token that a new token does not see.

    Args:
        at: (n, longest) int64 which new token a row is; negative for old ones.
        seen: (n, t, T) bool, which new tokens (last) each of t new tokens sees.
    """
    numbers = at.clamp(min=0, max=seen.shape[-1] - 1)[:, None].expand(-1, seen.shape[1], -1)
    return seen.gather(-1, numbers) | (at < 0)[:, None]

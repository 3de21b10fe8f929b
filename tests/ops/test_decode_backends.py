"""Which backend decodes, and that the calls of the others say what is meant, held against plain attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sparsemm.errors import CacheError
from sparsemm.ops import decode_backends, ragged_decode


def slab() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    keys, values = torch.randn(30, 8, dtype=torch.float32).half(), torch.randn(30, 8, dtype=torch.float32).half()
    starts, lengths = torch.tensor([2, 9, 14, 14]), torch.tensor([5, 3, 0, 12])
    return torch.randn(2, 6, 8, dtype=torch.float32).half(), keys, values, starts, lengths


def by_sequences(q: Any, k: Any, v: Any, queries: Any, keys: Any, used: Any, scale: float) -> torch.Tensor:
    """Attention of packed sequences (tokens, heads, D); keys of one head serve all query heads."""
    assert queries.dtype == keys.dtype == torch.int32 and len(queries) == len(keys)
    out = torch.full_like(q, 7.0)
    for i in range(len(queries) - 1):
        first, end = int(keys[i]), int(keys[i + 1])
        end = end if used is None else first + int(used[i])
        weights = torch.einsum("qhd,kd->qhk", q[queries[i] : queries[i + 1]].double(), k[first:end, 0].double()) * scale
        mean = torch.einsum("qhk,kd->qhd", weights.softmax(-1), v[first:end, 0].double())
        out[queries[i] : queries[i + 1]] = mean.to(q.dtype)
    assert int(queries[-1]) == len(q)
    return out


def new_varlen(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, enable_gqa=False, seqused_k=None):  # type: ignore[no-untyped-def]
    assert max_q == 1 and max_k == len(k) and enable_gqa
    return by_sequences(q, k, v, cu_seq_q, cu_seq_k, seqused_k, scale)


def old_varlen(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k):  # type: ignore[no-untyped-def]
    assert max_q == 3 and q.shape[1] == 1
    return by_sequences(q, k, v, cu_seq_q, cu_seq_k, None, q.shape[-1] ** -0.5)


def flash(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=None):  # type: ignore[no-untyped-def]
    assert max_seqlen_q == 1
    return by_sequences(q, k, v, cu_seqlens_q, cu_seqlens_k, None, softmax_scale)


@pytest.mark.parametrize("varlen", [new_varlen, old_varlen])
def test_varlen_equals_the_twin(monkeypatch, varlen):
    found = varlen, frozenset(decode_backends.inspect.signature(varlen).parameters)
    monkeypatch.setattr(decode_backends, "_varlen", lambda: found)
    given = slab()
    torch.testing.assert_close(
        decode_backends.varlen(*given, 0.7), ragged_decode.reference(*given, 0.7), rtol=2e-2, atol=2e-3
    )


def test_flash_equals_the_twin(monkeypatch):
    monkeypatch.setattr(decode_backends, "_flash", lambda: flash)
    given = slab()
    torch.testing.assert_close(
        decode_backends.flash(*given, 0.7), ragged_decode.reference(*given, 0.7), rtol=2e-3, atol=1e-3
    )


def test_torchs_own_signature_is_understood():
    found = decode_backends._varlen()
    if found is None:
        pytest.skip("this torch has no varlen_attn")
    assert {"cu_seq_q", "cu_seq_k", "max_q", "max_k"} <= found[1]


def test_ours_comes_first_and_the_twin_serves_what_nobody_else_does(monkeypatch):
    query, keys, values, *_ = slab()
    monkeypatch.setattr(decode_backends, "_varlen", lambda: (old_varlen, frozenset()))
    monkeypatch.setattr(decode_backends, "_flash", lambda: flash)
    monkeypatch.setattr(ragged_decode, "serves", lambda *_: True)
    assert ragged_decode.usable(query, keys, values) == ["ours", "twin"]
    monkeypatch.setattr(torch.Tensor, "is_cpu", False)  # as on a CUDA device
    assert ragged_decode.usable(query, keys, values) == ["ours", "varlen", "flash", "twin"]
    monkeypatch.setattr(ragged_decode, "serves", lambda *_: False)
    assert ragged_decode.usable(query, keys, values) == ["varlen", "flash", "twin"]
    assert ragged_decode.usable(query.float(), keys.float(), values.float()) == ["twin"]
    assert ragged_decode.usable(query, keys.to(torch.int8), values.to(torch.int8)) == ["twin"]  # stored in 8 bits
    assert ragged_decode.usable(query.requires_grad_(), keys, values) == ["twin"]


def test_what_was_measured_to_be_the_fastest_serves_where_it_can(both, monkeypatch):
    given = slab()
    served: list[str] = []

    def spy(name, call):
        return lambda *arguments: (served.append(name), call(*arguments))[1]

    for name, call in ragged_decode.BACKENDS["cpu"].items():
        monkeypatch.setitem(ragged_decode.BACKENDS["cpu"], name, spy(name, call))
    for name in ("twin", "ours", "varlen"):
        monkeypatch.setattr(ragged_decode.fastest, "backend", lambda *_, name=name: name)
        got = ragged_decode.ragged_decode(*given, 0.7)
        torch.testing.assert_close(got, ragged_decode.reference(*given, 0.7), rtol=2e-3, atol=1e-3)
    # There is no varlen here, and without a library no kernel of ours: the first usable one serves.
    assert served == (["twin", "ours", "ours"] if both == "library" else ["twin"] * 3)


def test_the_environment_names_one(monkeypatch):
    given = slab()
    monkeypatch.setattr(ragged_decode, "serves", lambda *_: False)
    monkeypatch.setenv("SPARSEMM_DECODE", "twin")
    assert torch.equal(ragged_decode.decode(*given, 0.7), ragged_decode.reference(*given, 0.7))
    monkeypatch.setenv("SPARSEMM_DECODE", "ours")
    with pytest.raises(CacheError, match="SPARSEMM_DECODE=ours does not support"):
        ragged_decode.decode(*given, 0.7)

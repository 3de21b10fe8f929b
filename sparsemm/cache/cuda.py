"""Calls of the CUDA library: the current stream, no wait for the device, nothing that a CUDA graph cannot capture.

An index out of range is known on the device alone. A kernel then touches nothing outside the slab, gives NaN where it
has a result to give, and writes the operation and the stretch to host memory, which the next call of any operation
raises as a CacheError.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch

from sparsemm.cache import arguments
from sparsemm.cache.arguments import dense_rows
from sparsemm.cache.library import DONE, LAUNCH, cuda_library
from sparsemm.errors import CacheError

FAULTS = {
    1: "ragged_decode: a start or length left the slab",
    2: "append: there was no room for another row before the next stretch",
    3: "compact: what was kept did not fit before the next stretch",
    4: "argmax_rows: a row sees beyond the keys",
}
KIND = "cuda"  # of the devices whose memory the kernels can reach
_COUNTERS: dict[tuple[int, int], torch.Tensor] = {}


@lru_cache
def _fault() -> tuple[torch.Tensor, ctypes.Array[ctypes.c_int64]]:
    word = torch.zeros(2, dtype=torch.int64, pin_memory=True, device="cpu")
    return word, (ctypes.c_int64 * 2).from_address(word.data_ptr())


def raise_faults() -> None:
    """Raise what an earlier kernel, finished by now, found out of range.

    Raises:
        CacheError: of the earlier operation.
    """
    seen = _fault()[1]
    if seen[0]:
        op, index = seen[0], seen[1]
        seen[0] = 0
        raise CacheError(FAULTS[op], where=f"an earlier call, index {index}", hint="its result is not to be used")


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, copied if a row is not in one piece or does not start at a multiple of 16 bytes."""
    tensor = dense_rows(tensor)
    if tensor.data_ptr() % 16 or any(s * tensor.element_size() % 16 for s in tensor.stride()[:-1]):
        return tensor.clone(memory_format=torch.contiguous_format)
    return tensor


def _call(name: str, device: torch.device, *given: object) -> None:
    raise_faults()
    loaded = cuda_library()
    assert loaded is not None
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream().cuda_stream
        code = getattr(loaded, f"sparsemm_cuda_{name}")(*given, _fault()[0].data_ptr(), stream)
    if code != DONE:
        raise CacheError(f"CUDA error {LAUNCH - code}", where=name)


def _counters(device: torch.device, count: int) -> torch.Tensor:
    """(count,) int32 zeros on the device; kernels leave them zero, so that one set serves all calls of a stream."""
    if torch.cuda.is_current_stream_capturing():
        return torch.zeros(count, dtype=torch.int32, device=device)  # the graph's own: it may be replayed elsewhere
    key = device.index, torch.cuda.current_stream(device).cuda_stream
    held = _COUNTERS.get(key)
    if held is None or len(held) < count:
        held = _COUNTERS[key] = torch.zeros(max(count, 4096), dtype=torch.int32, device=device)
    return held[:count]


def ragged_decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """`ops.ragged_decode` of checked tensors."""
    query, keys, values = _aligned(query), _aligned(keys), _aligned(values)
    output = torch.empty_like(query)
    stretches = starts.shape[0]
    if stretches == 0:
        return output
    group, dim = query.shape[0] * query.shape[1] // stretches, query.shape[2]
    loaded = cuda_library()
    assert loaded is not None
    with torch.cuda.device(query.device):
        room = loaded.sparsemm_cuda_ragged_decode_room(group, dim)
    count = stretches * -(-group // 8)
    partial = torch.empty(room, dtype=torch.float32, device=query.device)
    counters = _counters(query.device, count)
    given = arguments.ragged_decode(query, keys, values, starts, lengths, output, scaling, KIND)
    scratch = (
        arguments.address("ragged_decode", "partial", partial, torch.float32, (room,), query.device),
        arguments.address("ragged_decode", "counters", counters, torch.int32, (count,), query.device),
    )
    _call("ragged_decode", query.device, *given, *scratch)
    return output


def append(
    keys: torch.Tensor,
    values: torch.Tensor,
    new_keys: torch.Tensor,
    new_values: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
) -> None:
    """`ops.append` of checked tensors."""
    _call("append", keys.device, *arguments.append(keys, values, new_keys, new_values, starts, lengths, KIND))


def compact(
    keys: torch.Tensor,
    values: torch.Tensor,
    full_keys: torch.Tensor,
    full_values: torch.Tensor,
    keep: torch.Tensor,
    starts: torch.Tensor,
) -> None:
    """`ops.compact` of checked tensors."""
    _call("compact", keys.device, *arguments.compact(keys, values, full_keys, full_values, keep, starts, KIND))


def observe(query: torch.Tensor, keys: torch.Tensor, valid: torch.Tensor, pooling: int, scaling: float) -> torch.Tensor:
    """`ops.observe` of checked tensors."""
    query, keys, valid = _aligned(query), _aligned(keys), valid.contiguous()
    output = torch.empty(keys.shape[:3], dtype=torch.float32, device=keys.device)
    given = arguments.observe(query, keys, valid, output, pooling, scaling, KIND)
    batch, heads, length = keys.shape[:3]
    num_heads, window = query.shape[1:3]
    loaded = cuda_library()
    assert loaded is not None
    room = loaded.sparsemm_cuda_observe_room(batch, heads, num_heads // heads, window, length)
    partial = torch.empty(room, dtype=torch.float32, device=keys.device)
    scratch = arguments.address("observe", "partial", partial, torch.float32, (room,), keys.device)
    _call("observe", keys.device, *given, scratch)
    return output


def argmax_rows(query: torch.Tensor, keys: torch.Tensor, begins: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """`ops.argmax_rows` of checked tensors."""
    query, keys, begins, ends = _aligned(query), _aligned(keys), begins.contiguous(), ends.contiguous()
    output = torch.empty(query.shape[:2], dtype=torch.int64, device=keys.device)
    _call("argmax_rows", keys.device, *arguments.argmax_rows(query, keys, begins, ends, output, KIND))
    return output

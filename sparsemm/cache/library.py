"""The compiled libraries: loaded once, and what they serve."""

from __future__ import annotations

import ctypes
import logging
import os
from functools import lru_cache
from typing import Any

import torch

from sparsemm.errors import CacheError

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # the library's numbers
FLOATS = (*DTYPES, torch.float64)
HEAD_DIMS = range(8, 257)
DONE, NO_MEMORY = -1, -2
LAUNCH = -1000  # and below: LAUNCH - code of the CUDA runtime
P, N, C, F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
ARGUMENTS: dict[str, list[Any]] = {
    "sparsemm_ragged_decode": [C, P, P, P, P, P, P, N, N, N, N, F, C],
    "sparsemm_append": [P, P, P, P, P, P, N, N, N],
    "sparsemm_compact": [P, P, P, P, P, P, N, N, N, N, N, P, P, C],
    "sparsemm_observe": [C, P, P, P, P, N, N, N, N, N, N, P, P, N, F, C],
    "sparsemm_argmax_rows": [C, P, P, P, P, P, N, N, N, N, N, P, P, C],
    "sparsemm_causal_attention_room": [N, N],
    "sparsemm_causal_attention": [C, P, P, P, P, P, P, N, N, N, N, N, P, P, P, F, P, C],
}
CUDA_ARGUMENTS: dict[str, list[Any]] = {
    "sparsemm_cuda_ragged_decode_room": [N, N],
    "sparsemm_cuda_ragged_decode": [C, P, P, P, P, P, P, N, N, N, N, F, P, P, P, P],
    "sparsemm_cuda_append": [P, P, P, P, P, P, N, N, N, P, P],
    "sparsemm_cuda_compact": [P, P, P, P, P, P, N, N, N, N, N, P, P, P, P],
    "sparsemm_cuda_observe_room": [N, N, N, N, N],
    "sparsemm_cuda_observe": [C, P, P, P, P, N, N, N, N, N, N, P, P, N, F, P, P, P],
    "sparsemm_cuda_argmax_rows": [C, P, P, P, P, P, N, N, N, N, N, P, P, P, P],
}


def _load(path: str, arguments: dict[str, list[Any]]) -> ctypes.CDLL:
    loaded = ctypes.CDLL(path)
    for name, types in arguments.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = types, ctypes.c_int64
    return loaded


def _off() -> bool:
    return os.environ.get("SPARSEMM_KERNELS", "").lower() == "off"


@lru_cache
def library() -> ctypes.CDLL | None:
    """The compiled CPU library, built when first needed; None without one, which one line of the log explains.

    SPARSEMM_KERNELS=off in the environment means None too.
    """
    if _off():
        return None
    from sparsemm.cache.build import build  # here, or `python -m sparsemm.cache.build` would import itself twice

    try:
        return _load(str(build()), ARGUMENTS)
    except (CacheError, OSError, AttributeError) as error:
        logging.getLogger(__name__).warning("sparsemm: PyTorch serves the cache, not the C++ library: %s", error)
        return None


@lru_cache
def cuda_library() -> ctypes.CDLL | None:
    """The compiled CUDA library, as `library`; None too where torch sees no CUDA device of compute capability 8.0."""
    if _off() or not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        return None
    from sparsemm.cache.build import build_cuda

    try:
        return _load(str(build_cuda()), CUDA_ARGUMENTS)
    except (CacheError, OSError, AttributeError) as error:
        logging.getLogger(__name__).warning("sparsemm: PyTorch serves the cache, not the CUDA library: %s", error)
        return None


@torch.compiler.assume_constant_result
def available() -> bool:
    """Whether the compiled CPU library is there."""
    return library() is not None


@torch.compiler.assume_constant_result
def cuda_available() -> bool:
    """Whether the compiled CUDA library is there."""
    return cuda_library() is not None


def serves(*tensors: torch.Tensor) -> bool:
    """Whether a library computes with such keys, values and queries (..., D); the twin also has gradients."""
    on_cpu = tensors[0].is_cpu
    gradients = torch.is_grad_enabled()
    for t in tensors:
        if t.dtype not in DTYPES or t.shape[-1] not in HEAD_DIMS or (gradients and t.requires_grad):
            return False
        if not on_cpu and not (t.is_cuda and t.shape[-1] % 8 == 0):
            return False
    return available() if on_cpu else cuda_available()

"""Loads the compiled libraries, reports which tensors they support, and calls them.

Every tensor is passed as a pointer, outputs and scratch memory included, which C++ cannot check. So its dtype, device
and strides are compared with the C signature below first.
"""

from __future__ import annotations

import ctypes
import logging
import os
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from sparsemm.errors import CacheError

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # dtype codes of the libraries
FLOATS = (*DTYPES, torch.float64)
HEAD_DIMS = range(8, 257)
DONE, NO_MEMORY = -1, -2
CUDA = "cuda"  # type of the devices whose memory the kernels can access
LAUNCH = -1000  # return codes from here down are LAUNCH - error code of the CUDA runtime


class Pointer(NamedTuple):
    """A C argument that points to a tensor's first number.

    Attributes:
        dtype: dtype of the tensor; None for a key of `DTYPES`, the same one in a whole call.
        dense: whether the tensor must be contiguous; else its strides are passed too, and only its rows must be.
    """

    dtype: torch.dtype | None = None
    dense: bool = True


X, XS = Pointer(), Pointer(dense=False)  # tensors of the model's dtype; XS with strides
I64, F32, I32 = Pointer(torch.int64), Pointer(torch.float32), Pointer(torch.int32)
BOOL = Pointer(torch.bool)
P, N, C, F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
ARGUMENTS: dict[str, list[Any]] = {
    "sparsemm_ragged_decode": [C, X, X, X, I64, I64, X, N, N, N, N, F, C],
    "sparsemm_append": [X, X, X, X, I64, I64, N, N, N],
    "sparsemm_decode_step": [C, X, X, X, X, X, I64, I64, X, N, N, N, N, N, F, C],
    "sparsemm_compact": [X, X, XS, XS, BOOL, I64, N, N, N, N, N, P, P, C],
    "sparsemm_observe": [C, XS, XS, BOOL, F32, N, N, N, N, N, N, P, P, N, F, C],
    "sparsemm_argmax_rows": [C, XS, XS, I64, I64, I64, N, N, N, N, N, P, P, C],
    "sparsemm_causal_attention_room": [N, N],
    "sparsemm_causal_attention": [C, XS, XS, XS, X, I64, I64, N, N, N, N, N, P, P, P, F, F32, C],
}
CUDA_ARGUMENTS: dict[str, list[Any]] = {
    "sparsemm_cuda_ragged_decode_room": [N, N],
    "sparsemm_cuda_ragged_decode": [C, X, X, X, I64, I64, X, N, N, N, N, F, F32, I32, P, P],
    "sparsemm_cuda_append": [X, X, X, X, I64, I64, N, N, N, P, P],
    "sparsemm_cuda_compact": [X, X, XS, XS, BOOL, I64, N, N, N, N, N, P, P, P, P],
    "sparsemm_cuda_observe_room": [N, N, N, N, N],
    "sparsemm_cuda_observe": [C, XS, XS, BOOL, F32, N, N, N, N, N, N, P, P, N, F, F32, P, P],
    "sparsemm_cuda_argmax_rows": [C, XS, XS, I64, I64, I64, N, N, N, N, N, P, P, P, P],
}


def load(path: str, arguments: dict[str, list[Any]]) -> ctypes.CDLL:
    """Loads a library and declares the signatures of its functions, which all return int64."""
    loaded = ctypes.CDLL(path)
    for name, types in arguments.items():
        function = getattr(loaded, name)
        function.argtypes = [P if isinstance(kind, Pointer) else kind for kind in types]
        function.restype = ctypes.c_int64
    return loaded


def _off() -> bool:
    return os.environ.get("SPARSEMM_KERNELS", "").lower() == "off"


@lru_cache
def library() -> ctypes.CDLL | None:
    """Returns the compiled CPU library, built when first needed; None, and a warning, if it cannot be built.

    SPARSEMM_KERNELS=off in the environment means None without a warning.
    """
    if _off():
        return None
    from sparsemm.ops.build import build  # not above: `python -m sparsemm.ops.build` would import itself twice

    try:
        return load(str(build()), ARGUMENTS)
    except (CacheError, OSError, AttributeError) as error:
        logging.getLogger(__name__).warning("sparsemm: using PyTorch instead of the C++ library: %s", error)
        return None


@lru_cache
def cuda_library() -> ctypes.CDLL | None:
    """Returns the compiled CUDA library, as `library`; None without a CUDA device of compute capability 8.0 or more."""
    if _off() or not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        return None
    from sparsemm.ops.build import build_cuda

    try:
        return load(str(build_cuda()), CUDA_ARGUMENTS)
    except (CacheError, OSError, AttributeError) as error:
        logging.getLogger(__name__).warning("sparsemm: using PyTorch instead of the CUDA library: %s", error)
        return None


@torch.compiler.assume_constant_result
def available() -> bool:
    """Returns whether the compiled CPU library is available."""
    return library() is not None


@torch.compiler.assume_constant_result
def cuda_available() -> bool:
    """Returns whether the compiled CUDA library is available."""
    return cuda_library() is not None


def serves(*tensors: torch.Tensor) -> bool:
    """Returns whether a library supports these keys, values and queries (..., D); it computes no gradients."""
    on_cpu = tensors[0].is_cpu
    gradients = torch.is_grad_enabled()
    for t in tensors:
        if t.dtype not in DTYPES or t.shape[-1] not in HEAD_DIMS or (gradients and t.requires_grad):
            return False
        if not on_cpu and not (t.is_cuda and t.shape[-1] % 8 == 0):
            return False
    return available() if on_cpu else cuda_available()


def wants_gradient(*tensors: torch.Tensor) -> bool:
    """Returns whether autograd records operations on any of the tensors."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def strides(tensor: torch.Tensor) -> ctypes.Array[ctypes.c_int64]:
    """Returns the strides in bytes of all dimensions but the last."""
    size = tensor.element_size()
    return (ctypes.c_int64 * (tensor.dim() - 1))(*(size * s for s in tensor.stride()[:-1]))


def dense_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the tensor, copied if its rows (..., D) are not contiguous."""
    return tensor.contiguous() if tensor.numel() and tensor.stride(-1) != 1 else tensor


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """Returns the tensor, copied if its rows are not contiguous or do not start at a multiple of 16 bytes."""
    tensor = dense_rows(tensor)
    if tensor.data_ptr() % 16 or any(s * tensor.element_size() % 16 for s in tensor.stride()[:-1]):
        return tensor.clone(memory_format=torch.contiguous_format)
    return tensor


def checked(
    op: str, name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device
) -> torch.Tensor:
    """Returns an output or scratch tensor for compiled code after checking it.

    Raises:
        CacheError: if it is not contiguous, of this dtype and shape, and on this device.
    """
    if tensor.dtype != dtype or tensor.shape != shape or tensor.device != device or not tensor.is_contiguous():
        what = (
            f"{name} is {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}, not {dtype} {tuple(shape)} on {device}"
        )
        raise CacheError(what, where=op, hint="it must be contiguous, too")
    return tensor


def _pointers(name: str, types: list[Any], arguments: tuple[Any, ...], device: torch.device) -> list[Any]:
    """Returns the arguments with addresses in place of tensors.

    Raises:
        CacheError: if a tensor does not match the C signature.
    """
    floating = next((a.dtype for a, kind in zip(arguments, types, strict=False) if kind in (X, XS)), None)
    result = []
    for argument, kind in zip(arguments, types, strict=True):
        if isinstance(kind, Pointer):
            dtype = kind.dtype or floating
            rows = argument.is_contiguous() if kind.dense else argument.numel() == 0 or argument.stride(-1) == 1
            if argument.dtype != dtype or argument.device != device or not rows:
                what = f"{argument.dtype} on {argument.device}, strides {argument.stride()}, where C++ takes {dtype}"
                hint = "this is a bug of SparseMM, please report it"
                raise CacheError(f"{what} on {device}, contiguous", where=name, hint=hint)
            argument = argument.data_ptr()
        result.append(argument)
    return result


def call_cpu(name: str, *arguments: Any) -> int:
    """Calls an operation of the C++ library; returns `DONE`, or the index of a segment, row or sample out of range.

    Raises:
        CacheError: if a tensor does not match the C signature.
        MemoryError: if there is no memory for partial results.
    """
    loaded, name = library(), f"sparsemm_{name}"
    assert loaded is not None
    code = getattr(loaded, name)(*_pointers(name, ARGUMENTS[name], arguments, torch.device("cpu")))
    if code == NO_MEMORY:
        raise MemoryError(f"{name}: no memory for partial results")
    return int(code)


# On a CUDA device, only the kernel itself can see an index out of range. It then touches nothing outside the slab,
# returns NaN, and writes the operation and the index to host memory. The next call of any operation raises CacheError.
FAULTS = {
    1: "ragged_decode: a start or length left the slab",
    2: "append: there was no room for another row before the next segment",
    3: "compact: the selected rows did not fit before the next segment",
    4: "argmax_rows: the range of a row exceeds the keys",
}


@lru_cache
def fault_word() -> tuple[torch.Tensor, ctypes.Array[ctypes.c_int64]]:
    """Returns two int64 numbers in host memory, where kernels report the operation and index of a fault."""
    word = torch.zeros(2, dtype=torch.int64, device="cpu", pin_memory=True)
    return word, (ctypes.c_int64 * 2).from_address(word.data_ptr())


def raise_faults() -> None:
    """Raises CacheError if an earlier kernel, which has finished by now, found an index out of range."""
    word = fault_word()[1]
    if word[0]:
        operation, index = word[0], word[1]
        word[0] = 0
        raise CacheError(
            FAULTS[operation], where=f"an earlier call, index {index}", hint="discard the result of that call"
        )


def call_cuda(name: str, device: torch.device, *arguments: Any) -> None:
    """Launches an operation of the CUDA library on the current stream, without a sync; a CUDA graph can capture it.

    Raises:
        CacheError: if a tensor does not match the C signature, the launch fails, or an earlier kernel found a fault.
    """
    if device.type != CUDA:
        raise CacheError(f"memory of {device} is not for compiled code of {CUDA}", where=name)
    raise_faults()
    loaded, name = cuda_library(), f"sparsemm_cuda_{name}"
    assert loaded is not None
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream().cuda_stream
        arguments += fault_word()[0].data_ptr(), stream
        code = getattr(loaded, name)(*_pointers(name, CUDA_ARGUMENTS[name], arguments, device))
    if code != DONE:
        raise CacheError(f"CUDA error {LAUNCH - code}", where=name)

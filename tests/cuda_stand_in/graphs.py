"""CUDA graphs on the stand-in: what is captured is recorded, operation by operation, and a replay runs no Python of it.

As on a device, a capture changes nothing there, an operation that would wait for the device is refused, and a replay
reads and writes the memory of the tensors that were captured.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_dim"}
COPIES = {"copy_", "_to_copy"}
_open: list[CUDAGraph] = []


def capturing(*_: Any) -> bool:
    """torch.cuda.is_current_stream_capturing."""
    return bool(_open)


class CUDAGraph:
    """Operations with the tensors they were captured with."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.calls: list[tuple[Any, Any, Any, list[Any]]] = []

    @torch.no_grad()
    def replay(self) -> None:
        """Run the operations again, into the same memory."""
        for operation, args, kwargs, outputs in self.calls:
            for old, new in zip(outputs, tree_leaves(operation(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and _place(old) != _place(new):
                    old.copy_(new)

    def pool(self) -> tuple[int, int]:
        """All graphs share the memory there is."""
        return 0, 0


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(*trees: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(trees) if isinstance(leaf, torch.Tensor)]


class _Recording(TorchDispatchMode):
    """Appends every operation to a graph; `before` holds what it overwrote."""

    def __init__(self, to: CUDAGraph) -> None:
        super().__init__()
        self.to = to
        self.before: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = _tensors(args, kwargs)
        _refuse_waiting(func, args, kwargs, given)
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._keep(_tensors(value))
        out = func(*args, **kwargs)
        self.made |= {_place(t) for t in _tensors(out)} - {_place(t) for t in given}
        self.to.calls.append((func, args, kwargs, tree_leaves(out)))
        return out

    def _keep(self, tensors: list[torch.Tensor]) -> None:
        for tensor in tensors:
            place = _place(tensor)
            if place not in self.made and place not in self.before:
                size = tensor.untyped_storage().nbytes() // tensor.element_size()
                whole = tensor.detach().as_strided((size,), (1,), 0)
                self.before[place] = whole, whole.clone()


def _refuse_waiting(func: Any, args: Any, kwargs: dict[str, Any], given: list[torch.Tensor]) -> None:
    name = func.overloadpacket.__name__
    waits = name in WAITS
    if name in COPIES:
        target = torch.device(kwargs.get("device") or args[0].device)
        from_host = any(not t.is_cuda and not t.is_pinned() for t in given)
        waits = target.type == "cpu" and any(t.is_cuda for t in given) or target.type == "cuda" and from_host
    if name.startswith("index") and given[0].is_cuda:
        indices = _tensors(args[1])
        waits = waits or any(not t.is_cuda or t.dtype in (torch.bool, torch.uint8) for t in indices)
    if waits:
        raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing ({name})")


@contextmanager
def graph(cuda_graph: CUDAGraph, *_: Any, **__: Any) -> Iterator[None]:
    """torch.cuda.graph."""
    recording = _Recording(cuda_graph)
    _open.append(cuda_graph)
    try:
        with recording:
            yield
    finally:
        _open.remove(cuda_graph)
        with torch.no_grad():
            for whole, old in recording.before.values():
                whole.copy_(old)

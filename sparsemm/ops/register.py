"""Chooses an operation's implementation, and registers it with torch.library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sparsemm.ops.library import serves

_LIBRARY = torch.library.Library("sparsemm", "FRAGMENT")


def dispatch(
    check: Callable[..., None],
    reference: Callable[..., Any],
    compiled: Callable[..., Any] | None = None,
    served: int = 2,
    inspect: Callable[..., None] | None = None,
) -> Callable[..., Any]:
    """Returns a function that checks its arguments and calls compiled code, or else the reference implementation.

    Args:
        check: raises CacheError for wrong arguments.
        reference: computes the result with PyTorch.
        compiled: computes it where the library of the device supports the tensors; None if there is no such code.
        served: how many arguments, from the first, the library has to support.
        inspect: raises CacheError for indices out of range, which compiled code finds itself.
    """

    def call(*arguments: Any) -> Any:
        check(*arguments)
        if compiled is not None and serves(*arguments[:served]):
            return compiled(*arguments)
        if inspect is not None:
            inspect(*arguments)
        return reference(*arguments)

    return call


def register(
    schema: str,
    on_cpu: Callable[..., Any],
    on_cuda: Callable[..., Any],
    check: Callable[..., None],
    fake: Callable[..., Any],
) -> Any:
    """Defines `torch.ops.sparsemm.<name>` by its schema, and returns the overload, as looking it up takes time.

    Args:
        schema: name, arguments and result, as torch.library takes them.
        on_cpu, on_cuda: check the arguments and compute the result, on their device, as `dispatch` does.
        check: raises CacheError for wrong arguments.
        fake: returns results of the right shape and dtype, for torch.compile.
    """

    def checked_fake(*arguments: Any) -> Any:
        check(*arguments)
        return fake(*arguments)

    name = _LIBRARY.define(schema)
    _LIBRARY.impl(name, on_cpu, "CPU")
    _LIBRARY.impl(name, on_cuda, "CUDA")
    torch.library.register_fake(f"sparsemm::{name}", checked_fake, lib=_LIBRARY)
    return getattr(torch.ops.sparsemm, name).default

"""Registers operations with torch.library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("sparsemm", "FRAGMENT")


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
        on_cpu, on_cuda: check the arguments and compute the result, on their device.
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

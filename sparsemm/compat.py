"""What differs between versions and builds of torchvision and transformers."""

from __future__ import annotations

import importlib.util
from functools import cache
from importlib.metadata import version
from typing import Any

import torch

_DEFINED: list[torch.library.Library] = []  # a Library undefines its operators when it is collected


def define_missing_torchvision_operators() -> bool:
    """Declares torchvision's nms operators when its binary cannot load.

    At import, torchvision registers fake versions of them and fails if they do not exist; then transformers cannot
    import any processor. The operators are declared, not implemented: calling one still raises.

    Returns:
        whether they were missing, now or at an earlier call.
    """
    if _DEFINED or importlib.util.find_spec("torchvision") is None:
        return bool(_DEFINED)
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _DEFINED.append(library)
    return bool(_DEFINED)


@cache
def _cache_name() -> str:
    major, minor = version("transformers").split(".")[:2]
    return "cache" if (int(major), int(minor)) >= (5, 24) else "past_key_values"


def cache_argument(kv_cache: Any) -> dict[str, Any]:
    """Returns a cache as the keyword argument of `generate` and `forward`.

    From transformers 5.24 on it is `cache`, and `past_key_values` warns; before, there is only `past_key_values`.
    """
    return {_cache_name(): kv_cache}

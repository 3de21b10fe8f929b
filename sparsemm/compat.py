"""Makes a torchvision whose compiled operators cannot load importable, for example beside a CPU build of torch."""

from __future__ import annotations

import importlib.util

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

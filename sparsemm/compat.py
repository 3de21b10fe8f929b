"""Make a torchvision without its compiled operators importable beside a CPU build of torch."""

from __future__ import annotations

import importlib.util

import torch

_DEFINED: list[torch.library.Library] = []  # a Library undefines its operators when it is collected


def define_missing_torchvision_operators() -> bool:
    """Declare torchvision's nms operators when its binary cannot load.

    torchvision registers fake versions of them at import and fails when they do not exist; transformers then
    cannot import any processor. Declared, not implemented: calling one still raises.

    Returns:
        Whether they were missing, now or at an earlier call.
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

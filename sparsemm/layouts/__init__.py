"""One file per model family: where does image box (x0, y0, x1, y1) sit in the token sequence?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sparsemm.errors import LayoutError
from sparsemm.layouts import gemma3, idefics3, internvl, llava_next, pixtral, qwen2_vl
from sparsemm.layouts.tokens import ImageTokens, box_positions

__all__ = ["ImageTokens", "Layout", "box_positions", "families", "family_of", "get_layout"]


@dataclass(frozen=True)
class Layout:
    """The geometry of one family: its name, the `model_type`s it serves, and `image_tokens`."""

    family: str
    model_types: tuple[str, ...]
    image_tokens: Callable[[Any, Any, int, list[tuple[int, int]]], list[ImageTokens]]


_LAYOUTS = {
    name: Layout(name, module.MODEL_TYPES, module.image_tokens)
    for name, module in (
        ("llava_next", llava_next),
        ("qwen2_vl", qwen2_vl),
        ("internvl", internvl),
        ("gemma3", gemma3),
        ("idefics3", idefics3),
        ("pixtral", pixtral),
    )
}


def families() -> tuple[str, ...]:
    """Names of the supported families."""
    return tuple(_LAYOUTS)


def get_layout(family: str) -> Layout:
    """The layout of a family.

    Raises:
        LayoutError: if there is none.
    """
    if family not in _LAYOUTS:
        raise LayoutError(f"family {family!r} is not supported", hint=f"supported: {', '.join(_LAYOUTS)}")
    return _LAYOUTS[family]


def family_of(config: dict[str, Any]) -> str:
    """The family of a config.json, by its `model_type`.

    Raises:
        LayoutError: if no layout supports it.
    """
    model_type = config.get("model_type")
    for layout in _LAYOUTS.values():
        if model_type in layout.model_types:
            return layout.family
    known = ", ".join(t for layout in _LAYOUTS.values() for t in layout.model_types)
    raise LayoutError(f"no layout supports model_type {model_type!r}", hint=f"supported: {known}")

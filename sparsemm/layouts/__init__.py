"""One file per model family: where does image box (x0, y0, x1, y1) sit in the token sequence?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from sparsemm.errors import LayoutError
from sparsemm.layouts.tokens import ImageTokens, box_positions

__all__ = ["ImageTokens", "Layout", "box_positions", "families", "family_of", "get_layout"]

# A family is a module of this package and its line here; docs/families.md says what the module holds.
FAMILIES = (
    "llava_next",
    "llava_onevision",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "internvl",
    "gemma3",
    "idefics3",
    "pixtral",
)


@dataclass(frozen=True)
class Layout:
    """The geometry of one family: its name, the `model_type`s it serves, and `image_tokens`."""

    family: str
    model_types: tuple[str, ...]
    image_tokens: Callable[[Any, Any, int, list[tuple[int, int]]], list[ImageTokens]]


def families() -> tuple[str, ...]:
    """Names of the supported families."""
    return FAMILIES


def get_layout(family: str) -> Layout:
    """The layout of a family.

    Raises:
        LayoutError: if there is none.
    """
    if family not in FAMILIES:
        raise LayoutError(f"family {family!r} is not supported", hint=f"supported: {', '.join(FAMILIES)}")
    module = import_module(f"sparsemm.layouts.{family}")
    return Layout(family, module.MODEL_TYPES, module.image_tokens)


def family_of(config: dict[str, Any]) -> str:
    """The family of a config.json, by its `model_type`.

    Raises:
        LayoutError: if no layout supports it; it says what kind of model it is.
    """
    model_type = config.get("model_type")
    layouts = [get_layout(family) for family in FAMILIES]
    for layout in layouts:
        if model_type in layout.model_types:
            return layout.family
    from sparsemm.layouts.unsupported import kind

    known = ", ".join(name for layout in layouts for name in layout.model_types)
    raise LayoutError(
        f"model_type {model_type!r} is not supported: {kind(config)}",
        hint=f"supported: {known}; docs/families.md says how to add one",
    )

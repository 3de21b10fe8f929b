"""Maps boxes of an image to positions in the token sequence, with one file per model family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from sparsemm.errors import LayoutError
from sparsemm.layouts.tokens import ImageTokens, box_positions

__all__ = ["FAMILIES", "ImageTokens", "Layout", "box_positions", "family_of", "get_layout"]

# A family is a module of this package and its line here; docs/families.md describes the module.
FAMILIES = (
    "llava_next",
    "llava_onevision",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_5",
    "internvl",
    "gemma3",
    "idefics3",
    "pixtral",
)


@dataclass(frozen=True)
class Layout:
    """The geometry of one family."""

    family: str  # its name
    model_types: tuple[str, ...]  # the `model_type`s of config.json that it supports
    # function (config, inputs, row, image_sizes) -> the visual tokens of every image of one row, in order. `config` is
    # the model's, `inputs` the processor's output for a batch padded on either side, `row` the batch row, and
    # `image_sizes` the (width, height) in pixels of that row's images. It raises a LayoutError if they do not match the
    # number of visual tokens
    image_tokens: Callable[[Any, Any, int, list[tuple[int, int]]], list[ImageTokens]]
    vision_types: tuple[str, ...] = ()  # if not empty, the vision tower must have one of these `model_type`s

    def serves(self, config: dict[str, Any]) -> bool:
        """Returns whether this layout supports the model of a config.json."""
        tower = (config.get("vision_config") or {}).get("model_type")
        return config.get("model_type") in self.model_types and (not self.vision_types or tower in self.vision_types)

    def names(self) -> list[str]:
        """Returns the supported `model_type`s, for messages."""
        towers = f" (vision tower {', '.join(self.vision_types)})" if self.vision_types else ""
        return [name + towers for name in self.model_types]


def get_layout(family: str) -> Layout:
    """Returns the layout of a family. Raises LayoutError if there is none."""
    if family not in FAMILIES:
        raise LayoutError(f"family {family!r} is not supported", hint=f"supported: {', '.join(FAMILIES)}")
    module = import_module(f"sparsemm.layouts.{family}")
    return Layout(family, module.MODEL_TYPES, module.image_tokens, getattr(module, "VISION_TYPES", ()))


def family_of(config: dict[str, Any]) -> str:
    """Returns the family of a config.json, by its `model_type`.

    Raises LayoutError if no layout supports it; the message says what kind of model it is.
    """
    model_type = config.get("model_type")
    layouts = [get_layout(family) for family in FAMILIES]
    for layout in layouts:
        if layout.serves(config):
            return layout.family
    from sparsemm.layouts.unsupported import kind

    supported = ", ".join(name for layout in layouts for name in layout.names())
    raise LayoutError(
        f"model_type {model_type!r} is not supported: {kind(config)}",
        hint=f"supported: {supported}; docs/families.md says how to add one",
    )

"""Describes a model that no layout supports, for the error message."""

from __future__ import annotations

from typing import Any

VISION = ("IMAGE_CLASSIFICATION", "ZERO_SHOT_IMAGE_CLASSIFICATION", "IMAGE", "OBJECT_DETECTION", "MASK_GENERATION")


def kind(config: dict[str, Any]) -> str:
    """Describes a config: encoder-decoder, text-only, vision-only, without a layout, or unknown to transformers."""
    from sparsemm.compat import define_missing_torchvision_operators

    define_missing_torchvision_operators()
    from transformers import CONFIG_MAPPING
    from transformers.models.auto import modeling_auto

    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        return "config.json names no model_type"

    def supports(task: str) -> bool:
        return model_type in getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES")

    known = model_type in CONFIG_MAPPING
    if config.get("is_encoder_decoder") or (known and getattr(CONFIG_MAPPING[model_type], "is_encoder_decoder", False)):
        return "an encoder-decoder; only decoders that read the image as tokens of their own sequence are supported"
    if supports("IMAGE_TEXT_TO_TEXT"):
        return "it reads images, but no layout knows their positions in its prompt"
    if supports("CAUSAL_LM"):
        return "a text-only model, it has no visual heads"
    if any(supports(task) for task in VISION) or model_type.endswith("_vision_model"):
        return "a vision-only model, it generates no text"
    return "its task is not image and text to text" if known else "transformers does not know it"

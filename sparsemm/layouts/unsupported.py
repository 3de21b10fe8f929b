"""What kind of model a config describes that no layout supports."""

from __future__ import annotations

from typing import Any

VISION = ("IMAGE_CLASSIFICATION", "ZERO_SHOT_IMAGE_CLASSIFICATION", "IMAGE", "OBJECT_DETECTION", "MASK_GENERATION")


def kind(config: dict[str, Any]) -> str:
    """In words: encoder-decoder, text-only, vision-only, of a family without a layout, or unknown to transformers."""
    from sparsemm.compat import define_missing_torchvision_operators

    define_missing_torchvision_operators()
    from transformers import CONFIG_MAPPING
    from transformers.models.auto import modeling_auto

    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        return "config.json names no model_type"

    def serves(task: str) -> bool:
        return model_type in getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES")

    known = model_type in CONFIG_MAPPING
    if config.get("is_encoder_decoder") or (known and getattr(CONFIG_MAPPING[model_type], "is_encoder_decoder", False)):
        return "an encoder-decoder; only decoders that read the image as tokens of their own sequence are served"
    if serves("IMAGE_TEXT_TO_TEXT"):
        return "it reads images, but no layout knows where they sit in its prompt"
    if serves("CAUSAL_LM"):
        return "a text-only model, it has no visual heads"
    if any(serves(task) for task in VISION) or model_type.endswith("_vision_model"):
        return "a vision-only model, it generates no text"
    return "its task is not one of image and text to text" if known else "transformers does not know it"

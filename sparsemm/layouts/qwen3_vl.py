"""Qwen3-VL: Qwen2-VL's geometry with larger patches; deepstack adds features to these tokens, but no tokens."""

from __future__ import annotations

from sparsemm.layouts.qwen2_vl import image_tokens

__all__ = ["MODEL_TYPES", "image_tokens"]

MODEL_TYPES = ("qwen3_vl",)

"""Qwen3.5: Qwen3-VL's geometry, dense or with experts; most of its layers have linear attention and are no concern here."""

from __future__ import annotations

from sparsemm.layouts.qwen2_vl import image_tokens

__all__ = ["MODEL_TYPES", "image_tokens"]

MODEL_TYPES = ("qwen3_5", "qwen3_5_moe")

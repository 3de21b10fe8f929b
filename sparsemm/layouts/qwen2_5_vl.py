"""Qwen2.5-VL: Qwen2-VL's geometry; the windowed attention of the vision tower moves no token."""

from __future__ import annotations

from sparsemm.layouts.qwen2_vl import image_tokens

__all__ = ["MODEL_TYPES", "image_tokens"]

MODEL_TYPES = ("qwen2_5_vl",)

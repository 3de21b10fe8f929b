"""Qwen2.5-VL: Qwen2-VL's geometry; that the vision tower attends in windows changes nothing about where tokens sit."""

from __future__ import annotations

from sparsemm.layouts.qwen2_vl import image_tokens

__all__ = ["MODEL_TYPES", "image_tokens"]

MODEL_TYPES = ("qwen2_5_vl",)

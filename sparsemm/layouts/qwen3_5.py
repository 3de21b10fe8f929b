"""Qwen3.5, dense or with experts: Qwen3-VL's geometry; the linear attention of most layers moves no token."""

from __future__ import annotations

from sparsemm.layouts.qwen2_vl import image_tokens

__all__ = ["MODEL_TYPES", "image_tokens"]

MODEL_TYPES = ("qwen3_5", "qwen3_5_moe")

"""The entry point that registers the model with lmms-eval. It is called while lmms-eval is being imported."""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """Returns lmms-eval's ModelManifest of `--model sparsemm`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("sparsemm", simple_class_path="sparsemm.evaluate.plugin.SparseMM")

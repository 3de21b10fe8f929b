"""SparseMM: which attention heads of a multimodal LLM look at the image, and how small the KV cache can be."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["compressed_cache", "load_scores"]


def __getattr__(name: str) -> Any:
    """Import torch and transformers only when something of them is used."""
    if name == "compressed_cache":
        from sparsemm.cache import compressed_cache

        return compressed_cache
    if name == "load_scores":
        from sparsemm.registry.lookup import load_scores

        return load_scores
    raise AttributeError(f"module 'sparsemm' has no attribute {name!r}")

"""A ragged KV cache for transformers: a budget per head that really is that small."""

from sparsemm.compat import define_missing_torchvision_operators

define_missing_torchvision_operators()

from sparsemm.cache.compressed import CompressedCache, compressed_cache  # noqa: E402

__all__ = ["CompressedCache", "compressed_cache"]

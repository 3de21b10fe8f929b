"""SparseMM: which attention heads look at the image, and how small the KV cache can be when you know."""

from sparsemm.compat import define_missing_torchvision_operators

define_missing_torchvision_operators()

__version__ = "0.1.0"

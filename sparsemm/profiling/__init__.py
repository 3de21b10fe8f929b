"""Measures latency and bytes of every method, and of transformers' own cache in the same run."""

from sparsemm.compat import define_missing_torchvision_operators

define_missing_torchvision_operators()

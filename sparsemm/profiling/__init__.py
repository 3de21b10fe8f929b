"""Latency and bytes of every method, beside transformers' own cache in the same run."""

from sparsemm.compat import define_missing_torchvision_operators

define_missing_torchvision_operators()

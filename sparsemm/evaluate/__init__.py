"""Accuracy against budget: local tasks run by lmms-eval through the compressed cache."""

from sparsemm.compat import define_missing_torchvision_operators

define_missing_torchvision_operators()

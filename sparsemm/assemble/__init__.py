"""Assembles checkpoints from a pretrained language model in a pinned package and the weights trained on top of it."""

from sparsemm.compat import define_missing_torchvision_operators

define_missing_torchvision_operators()

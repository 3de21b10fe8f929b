"""Checkpoints that are assembled: a pretrained language model from a pinned package and what was trained on top."""

from sparsemm.compat import define_missing_torchvision_operators

define_missing_torchvision_operators()

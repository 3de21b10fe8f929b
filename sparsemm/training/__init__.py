"""Trains the small checkpoints from scratch, and tunes a pretrained language model to see."""

from sparsemm.compat import define_missing_torchvision_operators

define_missing_torchvision_operators()

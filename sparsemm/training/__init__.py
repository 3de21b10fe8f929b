"""Train the small checkpoints from scratch."""

from sparsemm.compat import define_missing_torchvision_operators

define_missing_torchvision_operators()

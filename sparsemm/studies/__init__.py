"""Studies: one file each, with what is measured or read, and rows with intervals."""

from sparsemm.compat import define_missing_torchvision_operators

define_missing_torchvision_operators()

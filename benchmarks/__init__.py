"""What only this repository runs: long measurements that print tables."""

from sparsemm.compat import define_missing_torchvision_operators

define_missing_torchvision_operators()

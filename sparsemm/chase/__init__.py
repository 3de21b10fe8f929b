"""The chase: finds visual heads by the key with the largest q.k in one forward pass."""

from sparsemm.compat import define_missing_torchvision_operators

define_missing_torchvision_operators()

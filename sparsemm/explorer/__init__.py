"""The explorer's data: what single heads look at on a page, and what every method keeps of it."""

from sparsemm.compat import define_missing_torchvision_operators

define_missing_torchvision_operators()

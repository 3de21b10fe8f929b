"""Makes the data of the report's explorer: what single heads attend to on a page, and what methods keep of it."""

from sparsemm.compat import define_missing_torchvision_operators

define_missing_torchvision_operators()

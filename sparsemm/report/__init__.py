"""One self-contained page that says what was found and how sure it is, and its figures."""

from sparsemm.compat import define_missing_torchvision_operators

define_missing_torchvision_operators()

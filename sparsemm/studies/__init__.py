"""Studies: one file each, with what is measured or read, and rows with intervals."""

from sparsemm.compat import define_missing_torchvision_operators

define_missing_torchvision_operators()

MEASURED = ("masking", "rho", "parts", "later", "holding", "storage", "sources", "looking")
DERIVED = ("curve", "length", "cost")
STUDIES = (*DERIVED, *MEASURED)

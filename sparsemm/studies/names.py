"""The names of the studies: a module here and an entry under `studies` in params.yaml each."""

from __future__ import annotations

# These ask the model.
MEASURED = ("masking", "rho", "parts", "later", "holding", "storage", "sources", "looking", "search", "confirm")
DERIVED = ("curve", "length", "cost")  # these read what other stages wrote
STUDIES = (*DERIVED, *MEASURED)

# What the rows of `search` and `confirm` are called, for who reads them.
PAPER = "sparsemm"  # the allocation that the others are held against
OVERALL = "all tasks"
CHOICE = "choice"

"""The names of the studies: a module here each, and an entry in a group of `studies` in params.yaml."""

from __future__ import annotations

# A group is a stage of dvc.yaml, which takes the names from params.yaml.
GROUPS = {
    "derived": ("curve", "length", "cost"),  # these read what other stages wrote
    "measured": ("masking", "rho", "parts", "later", "holding", "storage"),  # these and all others ask the model
    "compared": ("sources",),
    "watched": ("looking",),
    "searched": ("search",),
    "confirmed": ("confirm",),
}
DERIVED = GROUPS["derived"]
STUDIES = tuple(name for names in GROUPS.values() for name in names)

# What the rows of `search` and `confirm` are called, for who reads them.
PAPER = "sparsemm"  # the allocation that the others are held against
OVERALL = "all tasks"

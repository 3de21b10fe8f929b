"""The names of the studies: a module here each, and an entry in a group of `studies` in params.yaml."""

from __future__ import annotations

from sparsemm.params.studies import StudiesParams

# A group is a stage of dvc.yaml, which takes the names from params.yaml. `derived` reads what other stages wrote; all
# others ask the model.
GROUPS = {name: tuple(field.default.__class__.model_fields) for name, field in StudiesParams.model_fields.items()}
DERIVED = GROUPS["derived"]
STUDIES = tuple(name for names in GROUPS.values() for name in names)

# What rows are called, for who reads them.
PAPER = "sparsemm"  # the allocation that the others are held against
FULL = "full"  # the cache that all methods are held against
OVERALL = "all tasks"

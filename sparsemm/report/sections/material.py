"""What every section of the report is made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sparsemm.params import Params
from sparsemm.report.agreement import Agreement
from sparsemm.report.efficiency import Timed
from sparsemm.report.explorer import Seen
from sparsemm.report.results import Results
from sparsemm.report.studies import Studies


@dataclass(frozen=True)
class Material:
    """Everything that is known when the page is written.

    Attributes:
        params: of the run.
        results: of every model, in the order of params.yaml.
        seen: of every model key, what its heads look at on some pages, or why that is not shown.
        agreements: of model keys, their score tables over other data sets.
        shapes: 7B configurations that were timed.
        studies: of every study that was made, the rows of every model key.
    """

    params: Params
    results: list[Results]
    seen: Seen
    agreements: Mapping[str, Agreement] = field(default_factory=dict)
    shapes: list[Timed] = field(default_factory=list)
    studies: Studies = field(default_factory=dict)

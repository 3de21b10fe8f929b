"""What every section of the report is made from."""

from __future__ import annotations

from dataclasses import dataclass

from sparsemm.params import Params
from sparsemm.report.explorer import Seen
from sparsemm.report.results import Results


@dataclass(frozen=True)
class Material:
    """Everything that is known when the page is written.

    Attributes:
        params: of the run.
        results: of every model, in the order of params.yaml.
        seen: of every model key, what its heads look at on some pages, or why that is not shown.
    """

    params: Params
    results: list[Results]
    seen: Seen

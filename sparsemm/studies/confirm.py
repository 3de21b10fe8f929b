"""What the search chose, on the pages it never asked about: against the paper's allocation and other methods."""

from __future__ import annotations

from pathlib import Path

from sparsemm.errors import DataError
from sparsemm.params import Params
from sparsemm.params.studies import ConfirmParams
from sparsemm.studies.answers import Kept
from sparsemm.studies.bench import Bench
from sparsemm.studies.candidates import CANDIDATES
from sparsemm.studies.curve import AREA
from sparsemm.studies.names import CHOICE, OVERALL, PAPER
from sparsemm.studies.rows import COLUMNS, Row, read_rows
from sparsemm.studies.search import Way, candidate, measure, split


def searched(params: Params) -> list[str]:
    """Models the choice is made over: all that are no declared test models.

    Raises:
        DataError: if there is none.
    """
    models = [key for key, entry in params.models.items() if not entry.note]
    if not models:
        raise DataError("every model is a declared test model", where="params.yaml: models")
    return models


def mean_areas(params: Params, root: Path) -> dict[str, float]:
    """Candidates that keep exactly B slots a head -> area under accuracy in the search, mean over models and tasks.

    Raises:
        DataError: if a search is missing, malformed or of other candidates.
    """
    found: dict[str, list[float]] = {}
    models = searched(params)
    for key in models:
        path = root / "artifacts" / "studies" / "search" / f"{key}.csv"
        rows = [row for row in read_rows(path, "search", key) if (row["task"], row["condition"]) == (OVERALL, AREA)]
        areas = {row["setting"]: float(row["value"]) for row in rows}
        if list(areas) != list(CANDIDATES) or len(rows) != len(areas):
            raise DataError("not a search over today's candidates", where=str(path), hint="run its stage again")
        for name, value in areas.items():
            found.setdefault(name, []).append(value)
    return {name: sum(found[name]) / len(models) for name, one in CANDIDATES.items() if one.mode == "exact"}


def best(areas: dict[str, float]) -> str:
    """The largest area; of equal ones the first."""
    return max(areas, key=lambda name: areas[name])


def _choice(bench: Bench, areas: dict[str, float], name: str) -> Row:
    row: Row = dict.fromkeys(COLUMNS, "") | {"model": bench.key, "study": bench.study, "task": CHOICE}
    row |= {"condition": f"searched on {', '.join(searched(bench.params))}", "setting": name, "metric": AREA}
    return row | {"value": round(areas[name], 6)}


def run(bench: Bench, given: ConfirmParams) -> list[Row]:
    """Rows of the choice, then one per task, setting and budget and per area; what was chosen is held against all.

    Raises:
        DataError: if a search is missing, malformed or of other candidates.
    """
    areas = mean_areas(bench.params, bench.root)
    chosen = best(areas)
    ours = dict.fromkeys((chosen, PAPER))
    ways: dict[Way, Kept] = {
        (name, budget): candidate(bench, name, budget) for name in ours for budget in given.budgets
    }
    for method in given.methods:
        budgets: tuple[int | None, ...] = (None,) if method == "full" else given.budgets
        ways |= {(method, budget): bench.kept(method, budget) for budget in budgets}
    outcomes = measure(bench, given, f"-{chosen}", split(given)[1], ways)
    others = [PAPER, *given.methods]
    rows = bench.rows(
        outcomes,
        lambda arm: (
            [arm._replace(setting=o, budget=None if o == "full" else arm.budget) for o in others]
            if arm.setting == chosen
            else []
        ),
    )
    return [_choice(bench, areas, name) for name in ours] + rows

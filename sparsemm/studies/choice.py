"""One candidate for all models: the best of their searches."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from sparsemm.errors import DataError
from sparsemm.files import write_json
from sparsemm.params import Params
from sparsemm.studies.candidates import CANDIDATES
from sparsemm.studies.curve import AREA
from sparsemm.studies.names import OVERALL
from sparsemm.studies.rows import read_rows

FILE = Path("artifacts") / "studies" / "choice.json"


@dataclass(frozen=True)
class Choice:
    """What was chosen, over which models, and the mean area of every candidate there."""

    chosen: str
    models: list[str]
    areas: dict[str, float]


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


def run(params: Params, root: Path = Path(".")) -> None:
    """Write artifacts/studies/choice.json.

    Raises:
        DataError: if a search is missing, malformed or of other candidates.
    """
    areas = mean_areas(params, root)
    write_json(root / FILE, asdict(Choice(best(areas), searched(params), areas)))


def read_choice(root: Path) -> Choice:
    """What `run` wrote.

    Raises:
        DataError: if it is missing, malformed or over other candidates.
    """
    hint = "run `sparsemm choose` after the searches"
    try:
        made = Choice(**json.loads((root / FILE).read_text(encoding="utf-8")))
        known = made.chosen in made.areas and set(made.areas) <= set(CANDIDATES)
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"cannot be read: {error}", where=str(root / FILE), hint=hint) from error
    if not known:
        raise DataError("not a choice among today's candidates", where=str(root / FILE), hint=hint)
    return made

"""What the search chose, on the pages it never asked about: against the paper's allocation and other methods."""

from __future__ import annotations

from sparsemm.params.studies import ConfirmParams
from sparsemm.studies.answers import Kept
from sparsemm.studies.bench import Bench
from sparsemm.studies.choice import Choice, read_choice
from sparsemm.studies.curve import AREA
from sparsemm.studies.names import CHOICE, PAPER
from sparsemm.studies.rows import COLUMNS, Row
from sparsemm.studies.search import Way, candidate, measure, split


def _choice(bench: Bench, made: Choice, name: str) -> Row:
    row: Row = dict.fromkeys(COLUMNS, "") | {"model": bench.key, "study": bench.study, "task": CHOICE}
    row |= {"condition": f"searched on {', '.join(made.models)}", "setting": name, "metric": AREA}
    return row | {"value": round(made.areas[name], 6)}


def run(bench: Bench, given: ConfirmParams) -> list[Row]:
    """Rows of the choice, then one per task, setting and budget and per area; what was chosen is held against all.

    Raises:
        DataError: if there is no choice, or it is not over today's candidates.
    """
    made = read_choice(bench.root)
    chosen = made.chosen
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
    return [_choice(bench, made, name) for name in ours] + rows

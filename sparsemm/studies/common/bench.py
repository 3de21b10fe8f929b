"""What a study of a model works with: the first evaluation pages as questions, the model's evaluator, and its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from sparsemm.datasets.records import Record, read_records
from sparsemm.errors import DataError
from sparsemm.evaluate.answers import Batch, answer
from sparsemm.evaluate.evaluator import Ask, Evaluator
from sparsemm.evaluate.rows import Arm, Outcome, Row, tabulate
from sparsemm.evaluate.tasks.local import PageTask
from sparsemm.params import Params


class Bench(Evaluator):
    """One study of one model, with the settings of the allocate and evaluate stages.

    Attributes:
        study: its name.
        given: its entry in params.yaml.
        records: the pages it asks about.

    Raises:
        DataError: if the evaluation pages are missing, or fewer than the study wants.
        ScoreTableError: if the model has no score table.
    """

    def __init__(self, params: Params, study: str, key: str, root: Path) -> None:
        self.study, self.given = study, params.studies.made()[study]
        pages = root / "artifacts" / "datasets" / f"{params.evaluate.dataset}.parquet"
        wanted = getattr(self.given, "samples", 0)  # a study of text alone has none
        self.records: list[Record] = read_records(pages, limit=wanted) if wanted else []
        if len(self.records) < wanted:
            raise DataError(f"{len(self.records)} records, {wanted} wanted", where=str(pages))
        allocate = params.allocate
        settings = {"window": allocate.window, "rho": allocate.rho, "mode": allocate.mode}
        known = [one.model_dump() for one in (self.given, params.evaluate, allocate)]
        name = f"studies/{study}"
        super().__init__(params, key, root, name, settings, [pages], known, __name__, f"sparsemm.studies.{study}")

    def task(self, name: str, pages: slice = slice(None)) -> PageTask:
        """The evaluate stage's questions about some of the pages."""
        return PageTask(name, self.records[pages], self.params.chase.prompt, self.params.evaluate.seed)

    def measure(
        self,
        ways: Mapping[Arm, Any],
        ask: Ask = answer,
        made: Callable[[], Iterable[Batch]] | None = None,
        pages: slice = slice(None),
    ) -> dict[Arm, Outcome]:
        """`outcomes` of questions about some of the pages."""
        tasks = {name: self.task(name, pages) for name in dict.fromkeys(arm.task for arm in ways)}
        return self.outcomes(tasks, ways, ask, made)

    def rows(self, outcomes: Mapping[Arm, Outcome], against: Callable[[Arm], Iterable[Arm]]) -> list[Row]:
        """`tabulate`, with this study's settings."""
        asked = self.params.evaluate
        options = {"resamples": asked.bootstrap, "seed": asked.seed, "precision": self.given.precision}
        return tabulate({"model": self.key, "study": self.study}, outcomes, against, **options)

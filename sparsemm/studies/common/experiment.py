"""What a study that runs a model works with: evaluation pages as questions, the evaluator, and the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from sparsemm.datasets.records import Record, read_records
from sparsemm.errors import DataError
from sparsemm.evaluate.answers import Batch, answer
from sparsemm.evaluate.evaluator import Ask, Evaluator
from sparsemm.evaluate.rows import Arm, Outcome, Row, refused_rows
from sparsemm.evaluate.tasks.pages import PageTask
from sparsemm.params import Params
from sparsemm.studies.common.evaluated import study_rows


class Experiment(Evaluator):
    """One study of one model, with the settings of the allocate and evaluate stages.

    Attributes:
        study: name of the study.
        options: the study's entry in params.yaml.
        records: the evaluation pages that it uses.

    Raises:
        DataError: if the evaluation pages are missing, or fewer than the study needs.
        ScoreTableError: if the model has no score table.
    """

    def __init__(self, params: Params, study: str, key: str, root: Path) -> None:
        self.study, self.options = study, params.studies.enabled()[study]
        pages = root / "artifacts" / "datasets" / f"{params.evaluate.dataset}.parquet"
        samples = getattr(self.options, "samples", 0)  # a study of text alone has no pages
        self.records: list[Record] = read_records(pages, limit=samples) if samples else []
        if len(self.records) < samples:
            raise DataError(f"{len(self.records)} records, {samples} needed", where=str(pages))
        allocate = params.allocate
        settings = {"window": allocate.window, "rho": allocate.rho, "mode": allocate.mode}
        known = [one.model_dump() for one in (self.options, params.evaluate, allocate)]
        name = f"studies/{study}"
        super().__init__(params, key, root, name, settings, [pages], known, __name__, f"sparsemm.studies.{study}")

    def task(self, name: str, pages: slice = slice(None)) -> PageTask:
        """Returns the evaluate stage's questions about some of the pages."""
        return PageTask(name, self.records[pages], self.params.chase.prompt, self.params.evaluate.seed)

    def measure(
        self,
        variants: Mapping[Arm, Any],
        ask: Ask = answer,
        make_batches: Callable[[], Iterable[Batch]] | None = None,
        pages: slice = slice(None),
    ) -> dict[Arm, Outcome]:
        """Returns the `outcomes` of questions about some of the pages."""
        tasks = {name: self.task(name, pages) for name in dict.fromkeys(arm.task for arm in variants)}
        return self.outcomes(tasks, variants, ask, make_batches)

    def rows(
        self, outcomes: Mapping[Arm, Outcome], against: Callable[[Arm], Iterable[Arm]], shift: int = 0
    ) -> list[Row]:
        """Returns the rows of `tabulate` with this study's settings, and a row for every arm that was refused.

        `shift` is added to the seed of the bootstrap.
        """
        rows = study_rows(self.params, self.study, self.key, self.options, outcomes, against, shift)
        return rows + refused_rows({"model": self.key, "study": self.study}, self.refused)

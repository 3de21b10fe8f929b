"""Study: the question comes after the cache was compressed, so a method cannot know what will be asked."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field

from sparsemm.evaluate.rows import Arm, Outcome, Row, by_method
from sparsemm.params.studies import Budgets, Methods, PagesParams, no_questions
from sparsemm.policies import METHODS, budgets_of
from sparsemm.studies import Rows, Study, against_each, sentence
from sparsemm.studies.common.cut_prompts import IMAGE, KNOWN, NEUTRAL, TURN, question_batches

if TYPE_CHECKING:
    from sparsemm.params import Params
    from sparsemm.studies.common.experiment import Experiment


class LaterParams(PagesParams):
    """The methods and budgets that are compared; the questions need synthetic pages."""

    methods: Methods
    budgets: Budgets
    neutral: str = Field("Read the page.", min_length=1, description="what the cache is compressed after")

    def problem(self, params: Params) -> str | None:
        """Returns what does not fit the other parts of params.yaml, or None."""
        return no_questions(params) or super().problem(params)


def conclusion(rows: Rows) -> str:
    """Compares sparsemm with other methods if the cache is compressed before the question is known."""
    own = [row for row in rows if row.of_sparsemm and row.condition in (IMAGE, NEUTRAL, TURN)]
    others = dict.fromkeys(row.against for row in own if row.against in METHODS)
    return sentence("Compressed before the question is known, sparsemm is, against ", against_each(own, others))


def run(experiment: Experiment, options: LaterParams) -> list[Row]:
    """Returns one row per condition, method, budget and comparison: with the full cache, with sparsemm, with `KNOWN`.

    The full cache shows what a condition's wording alone costs.
    """
    variants = {
        (method, budget): experiment.variant(method, budget)
        for method in options.methods
        for budget in budgets_of(method, options.budgets)
    }
    outcomes: dict[Arm, Outcome] = {}
    for condition in (KNOWN, IMAGE, NEUTRAL, TURN):
        arms = {Arm("qa", condition, method, None, budget): one for (method, budget), one in variants.items()}
        outcomes |= experiment.measure(
            arms, make_batches=partial(question_batches, experiment, condition, options.neutral)
        )

    def against(arm: Arm) -> list[Arm]:
        return by_method(arm) + ([arm._replace(condition=KNOWN)] if arm.condition == IMAGE else [])

    return experiment.rows(outcomes, against)


STUDY = Study(
    params=LaterParams,
    run=run,
    title="When the question comes later",
    question="A method that watches the question keeps what it needs. Here the cache is compressed before the question"
    " is there: after the page, after a neutral prompt, or after another question about the page (a second "
    "turn). The full cache shows what the wording alone costs.",
    conclusion=conclusion,
    headline=lambda row: row.of_sparsemm and row.condition == IMAGE and row.against in METHODS,
)

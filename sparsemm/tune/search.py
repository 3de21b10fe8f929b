"""Successive halving: the search for the best candidate of one scenario."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sparsemm.errors import BudgetError, SparseMMError
from sparsemm.evaluate.rows import AREA, COLUMNS, OVERALL, Arm, Row, tabulate
from sparsemm.policies import policy_class, selector_of
from sparsemm.tune.candidates import Candidate, make_candidate, make_candidates, plan_rounds
from sparsemm.tune.measure import Outcomes, Tuner, joined, with_means

# Columns of artifacts/recipes/<key>.csv.
TRIED = (*COLUMNS[:2], "scenario", "split", "rounds", "outcome", *COLUMNS[2:])


@dataclass
class Search:
    """Successive halving for one scenario, on the pages of the search alone.

    Attributes:
        tuner: measures candidates.
        scenario: of `sparsemm.recipes.SCENARIOS`.
        candidates: everything that is tried, in the order of params.
        failures: name of a candidate -> why it cannot serve this model.
        parts: name of a candidate -> its outcomes, round by round.
    """

    tuner: Tuner
    scenario: str
    candidates: list[Candidate] = field(init=False)
    failures: dict[str, str] = field(init=False)
    parts: dict[str, list[Outcomes]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.candidates = make_candidates(self.tuner.options, self.tuner.usual)
        reason = "its selector rates no tokens of an answer, so none of them can be evicted"
        self.failures = {one.name: reason for one in self.candidates if not self._serves(one.method)}

    @property
    def against(self) -> list[Candidate]:
        """The methods that the winner is compared with, as published: with the options of `allocate`."""
        methods = [method for method in self.tuner.options.against if self._serves(method)]
        return [make_candidate(method, self.tuner.usual, self.tuner.usual) for method in methods]

    def _serves(self, method: str) -> bool:
        """Tells whether the scenario suits a method: where the budget holds for the answer, its tokens are rated."""
        return self.scenario != "long" or not policy_class(method).compresses or selector_of(method).rates_answers

    def generations(self) -> int:
        """Returns how many answers the search and the confirmation need, if no candidate fails."""
        tuner, able = self.tuner, [one for one in self.candidates if one.name not in self.failures]
        plan = plan_rounds(len(able), tuner.searched, tuner.options.first)
        asked = sum(tuner.generations(self.scenario, able[: one.candidates], one.stop - one.start) for one in plan)
        proven = [*self.against, *able[-1:]]
        return asked + tuner.generations(self.scenario, proven, tuner.options.samples - tuner.searched)

    def winner(self) -> Candidate:
        """Runs the rounds and returns the candidate with the largest mean accuracy; of equal ones the first.

        Raises:
            SparseMMError: if every candidate fails, or none suits the scenario.
        """
        left = [one for one in self.candidates if one.name not in self.failures]
        if not left:
            raise BudgetError("no candidate can hold its budget while it answers", hint="add others to tune.selectors")
        for one in plan_rounds(len(left), self.tuner.searched, self.tuner.options.first):
            left = self._ask(left[: one.candidates], one.start, one.stop)
            left.sort(key=lambda candidate: (-self.accuracy(candidate), self.candidates.index(candidate)))
        return left[0]

    def measure(self, candidates: list[Candidate], start: int, stop: int) -> Outcomes:
        """Returns the outcomes of candidates on some pages, but of those that fail, which `failures` then has.

        Raises:
            SparseMMError: if every candidate fails.
        """
        try:
            return self.tuner.measure(self.scenario, candidates, start, stop)
        except SparseMMError as error:  # of at least one of them: each is asked alone
            outcomes: Outcomes = {}
            for one in candidates:
                try:
                    outcomes |= self.tuner.measure(self.scenario, [one], start, stop)
                except SparseMMError as failure:
                    self.failures[one.name] = str(failure)
            if not outcomes:
                raise error
            return outcomes

    def _ask(self, candidates: list[Candidate], start: int, stop: int) -> list[Candidate]:
        """Asks candidates about new pages, and returns those that answered."""
        outcomes = self.measure(candidates, start, stop)
        answered = [one for one in candidates if one.name not in self.failures]
        for one in answered:
            own = {arm: outcome for arm, outcome in outcomes.items() if arm.setting == one.name}
            self.parts.setdefault(one.name, []).append(own)
        return answered

    def accuracy(self, candidate: Candidate) -> float:
        """Returns the mean accuracy of a candidate over the tasks, budgets and pages it was asked about."""
        means = with_means(joined(self.parts[candidate.name]))
        return round(float(means[Arm(OVERALL, AREA, candidate.name)].values.mean()), 9)

    def rows(self) -> list[Row]:
        """Returns the rows of everything that was tried, failures included."""
        most = max(map(len, self.parts.values()))
        tried: list[Row] = []
        for one in self.candidates:
            head = {"model": self.tuner.key, "study": "tune", "scenario": self.scenario, "split": "search"}
            if one.name in self.failures:
                tried.append(self.failed(one.name, "search"))
                continue
            parts = self.parts[one.name]
            head |= {"outcome": "reached the last round" if len(parts) == most else f"left after round {len(parts)}"}
            rounds = {"rounds": len(parts)}
            tried += [row | head | rounds for row in tabulated(self.tuner, with_means(joined(parts)), lambda arm: [])]
        return tried

    def failed(self, name: str, split: str) -> Row:
        """Returns the row of a candidate that cannot serve this model."""
        head = {"model": self.tuner.key, "study": "tune", "scenario": self.scenario, "split": split}
        return dict.fromkeys(TRIED, "") | head | {"setting": name, "outcome": f"failed: {self.failures[name]}"}


def tabulated(tuner: Tuner, outcomes: Outcomes, against: Callable[[Arm], Iterable[Arm]]) -> list[Row]:
    """Returns the rows of outcomes, with the bootstrap of the evaluate stage."""
    asked = tuner.params.evaluate
    options: Mapping[str, Any] = {"resamples": asked.bootstrap, "seed": asked.seed, "precision": 0.05}
    return tabulate({"model": tuner.key, "study": "tune"}, outcomes, against, **options)

"""Successive halving: the search for the best candidate of one scenario."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sparsemm.errors import BudgetError, SparseMMError
from sparsemm.evaluate.rows import AREA, COLUMNS, OVERALL, Arm, Row, tabulate
from sparsemm.policies import policy_class, selector_of
from sparsemm.statistics import BETTER, Estimate, Values, difference
from sparsemm.tune.candidates import Candidate, make_candidate, make_candidates, plan_rounds
from sparsemm.tune.measure import Outcomes, Tuner, joined, reads_again, with_means

# Columns of artifacts/recipes/<key>.csv.
TRIED = (*COLUMNS[:2], "scenario", "split", "rounds", "outcome", *COLUMNS[2:])
WORK = "prefill_work"  # one more column at the end where a method reads pages again


@dataclass
class Search:
    """Successive halving for one scenario, on the pages of the search alone.

    Attributes:
        tuner: measures candidates.
        scenario: of `sparsemm.recipes.SCENARIOS`.
        candidates: everything that is tried, in the order of params.
        failures: name of a candidate -> why it cannot serve this model.
        parts: name of a candidate -> its outcomes, round by round.
        passed_over: why a candidate with a larger mean accuracy is not the winner; empty if it is.
    """

    tuner: Tuner
    scenario: str
    candidates: list[Candidate] = field(init=False)
    failures: dict[str, str] = field(init=False)
    parts: dict[str, list[Outcomes]] = field(init=False, default_factory=dict)
    passed_over: str = field(init=False, default="")

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
        """Returns how many answers the search and the confirmation need, or need at most where pages are read again."""
        tuner, able = self.tuner, [one for one in self.candidates if one.name not in self.failures]
        plan = plan_rounds(len(able), tuner.searched, tuner.options.first)
        asked = sum(tuner.generations(self.scenario, able[: one.candidates], one.stop - one.start) for one in plan)
        if len({reads_again(one.method) for one in able}) == 2:  # one of each kind may be asked about the other pages
            asked += tuner.generations(self.scenario, able[:2], tuner.searched - plan[-1].stop)
        proven = [*self.against, *able[-1:]]
        return asked + tuner.generations(self.scenario, proven, tuner.options.samples - tuner.searched)

    def rereadings(self) -> int:
        """Returns how many pages are read again at most, if a candidate that needs it stays in every round."""
        tuner, able = self.tuner, [one for one in self.candidates if one.name not in self.failures]
        others = [one for one in self.against if one.name not in self.failures]
        proven = tuner.rereadings(self.scenario, [*able, *others], tuner.options.samples - tuner.searched)
        return proven + tuner.rereadings(self.scenario, able, tuner.searched)

    def work(self, method: str) -> float:
        """Returns the tokens that a method runs before the first token of an answer, over those of the prompt."""
        return self.tuner.rereading(self.scenario).work if reads_again(method) else 1.0

    def winner(self) -> Candidate:
        """Runs the rounds and returns the candidate with the largest mean accuracy; of equal ones the first.

        A candidate that reads pages again wins only if it is better than the best other one beyond the 95 % interval on
        all pages of the search. Therefore the best other one stays in every round, and where the rounds end before the
        pages do, these two are asked about the rest.

        Raises:
            SparseMMError: if every candidate fails, or none suits the scenario.
        """
        left = [one for one in self.candidates if one.name not in self.failures]
        if not left:
            raise BudgetError("no candidate can hold its budget while it answers", hint="add others to tune.selectors")
        plan = plan_rounds(len(left), self.tuner.searched, self.tuner.options.first)
        for one in plan:
            left = self._ranked(self._ask(_best(left, one.candidates), one.start, one.stop))
        once = [one for one in left if not reads_again(one.method)]
        if not once or once[0] == left[0]:
            return left[0]
        pair = [left[0], once[0]]
        if plan[-1].stop < self.tuner.searched:
            pair = self._ranked(self._ask(pair, plan[-1].stop, self.tuner.searched))
        return self._cheaper(pair)

    def _ranked(self, candidates: list[Candidate]) -> list[Candidate]:
        """Returns candidates by their mean accuracy; equal ones in the order of params."""
        return sorted(candidates, key=lambda one: (-self.accuracy(one), self.candidates.index(one)))

    def _cheaper(self, ranked: list[Candidate]) -> Candidate:
        """Returns the first of two candidates, or the one that reads pages once if the other is not shown better."""
        best, once = ranked[0], ranked[-1]
        if best == once or not reads_again(best.method):
            return best
        asked = self.tuner.params.evaluate
        gain = difference(self._overall(best), self._overall(once), asked.bootstrap, asked.seed)
        shown = Estimate(round(gain.value, 6), round(gain.low, 6), round(gain.high, 6))
        if shown.verdict == BETTER:
            return best
        self.passed_over = (
            f"{best.name} was ahead of {once.name} in the search by {shown.text('+')}, which does not show that it is "
            f"better, and it runs {self.work(best.method):.1f} times the prompt's tokens before an answer begins."
        )
        return once

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
        return round(float(self._overall(candidate).mean()), 9)

    def _overall(self, candidate: Candidate) -> Values:
        """Returns (n,) accuracies of a candidate on the pages so far, averaged over tasks and budgets."""
        return with_means(joined(self.parts[candidate.name]))[Arm(OVERALL, AREA, candidate.name)].values

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

    def with_work(self, rows: list[Row]) -> list[Row]:
        """Returns rows with the work of each method, if any of this search reads pages again; otherwise as they are."""
        methods = {one.name: one.method for one in (*self.candidates, *self.against)}
        if not any(reads_again(method) for name, method in methods.items() if name not in self.failures):
            return rows
        work = {name: self.work(method) for name, method in methods.items() if name not in self.failures}
        return [row | {WORK: work.get(row["setting"], "")} for row in rows]

    def failed(self, name: str, split: str) -> Row:
        """Returns the row of a candidate that cannot serve this model."""
        head = {"model": self.tuner.key, "study": "tune", "scenario": self.scenario, "split": split}
        return dict.fromkeys(TRIED, "") | head | {"setting": name, "outcome": f"failed: {self.failures[name]}"}


def _best(ranked: list[Candidate], count: int) -> list[Candidate]:
    """Returns the first `count` candidates; if all of them read pages again, the best other one has the last place."""
    first = ranked[:count]
    once = next((one for one in ranked if not reads_again(one.method)), first[-1])
    return first if once in first else [*first[:-1], once]


def tabulated(tuner: Tuner, outcomes: Outcomes, against: Callable[[Arm], Iterable[Arm]]) -> list[Row]:
    """Returns the rows of outcomes, with the bootstrap of the evaluate stage."""
    asked = tuner.params.evaluate
    options: Mapping[str, Any] = {"resamples": asked.bootstrap, "seed": asked.seed, "precision": 0.05}
    return tabulate({"model": tuner.key, "study": "tune"}, outcomes, against, **options)

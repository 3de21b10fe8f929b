"""The gate: whether a candidate may become champion, with a reason for every threshold."""

from __future__ import annotations

from dataclasses import dataclass

from sparsemm.params.registry import GateParams
from sparsemm.scores import ScoreTable

METHOD, WHOLE = "sparsemm", "full"
TOP = 0.05


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of a version.

    Attributes:
        version: its number, for the reasons.
        revision: checkpoint revision the scores are of.
        table: its score table.
        accuracy: task -> method -> budget ("all" for the full cache) -> value, as artifacts/evaluate/<key>.json.
    """

    version: str
    revision: str | None
    table: ScoreTable
    accuracy: dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True)
class Verdict:
    """Whether every threshold was reached, and one line for each."""

    passed: bool
    reasons: tuple[str, ...]


def judge(candidate: Evidence, champion: Evidence | None, gate: GateParams) -> Verdict:
    """Hold a candidate against the thresholds of params; NaN and what is missing fail.

    Split-half reliability and accuracy at the reference budget, relative to the candidate's own full cache, are
    always judged. Agreement (rank correlation and overlap of the best 5 % heads) and lost accuracy are judged against
    the champion; the first champion has none. They apply across checkpoint revisions too: a service that follows the
    champion should not be moved to other heads unseen. A line says so when the revision is another.
    """
    lines: list[tuple[bool, str]] = []

    def at_least(what: str, value: float, wanted: float) -> None:
        lines.append((value >= wanted, f"{what} {value:.4f}, at least {wanted:g} wanted"))

    at_least("split-half correlation", candidate.table.split_half(), gate.min_split_half)
    _accuracy(candidate, gate, lines)
    if champion is None:
        lines.append((True, "no champion yet: agreement and lost accuracy are not judged"))
    else:
        _against(candidate, champion, gate, lines)
    return Verdict(
        all(good for good, _ in lines), tuple(f"{'pass' if good else 'FAIL'}: {line}" for good, line in lines)
    )


def reference_budget(evidence: Evidence, gate: GateParams) -> str:
    """The budget accuracy is read at: the gate's, else the largest the method was evaluated at; "" if there is none."""
    budgets = {b for methods in evidence.accuracy.values() for b in methods.get(METHOD, {}) if b.isdecimal()}
    return str(gate.reference_budget or max(budgets, key=int, default=""))


def _value(evidence: Evidence, task: str, method: str, budget: str) -> float:
    return evidence.accuracy.get(task, {}).get(method, {}).get(budget, float("nan"))


def _accuracy(candidate: Evidence, gate: GateParams, lines: list[tuple[bool, str]]) -> None:
    budget = reference_budget(candidate, gate)
    if not candidate.accuracy:
        lines.append((False, "no accuracy was measured"))
    for task in sorted(candidate.accuracy):
        mine, full = _value(candidate, task, METHOD, budget), _value(candidate, task, WHOLE, "all")
        text = f"{task}: {METHOD} {mine:.4f} at budget {budget or 'none'}"
        wanted = gate.min_accuracy_ratio
        lines.append((mine >= wanted * full, f"{text}, {wanted:g} x full {full:.4f} wanted"))


def _against(candidate: Evidence, champion: Evidence, gate: GateParams, lines: list[tuple[bool, str]]) -> None:
    name = f"champion (version {champion.version})"
    if candidate.revision != champion.revision:
        text = f"checkpoint revision {candidate.revision}, of the {name} {champion.revision}; the same thresholds apply"
        lines.append((True, text))
    mine, theirs = candidate.table.scores.shape, champion.table.scores.shape
    if mine != theirs:
        lines.append((False, f"{mine} heads cannot be compared with the {theirs} of the {name}"))
    else:
        rank = candidate.table.rank_correlation(champion.table)
        overlap = candidate.table.top_overlap(champion.table, TOP)
        for what, value, wanted in (
            ("rank correlation", rank, gate.min_rank_correlation),
            (f"overlap of the top {TOP:.0%}", overlap, gate.min_top_overlap),
        ):
            lines.append((value >= wanted, f"{what} with the {name} {value:.4f}, at least {wanted:g} wanted"))
    budget = reference_budget(candidate, gate)
    for task in sorted(champion.accuracy):
        before, now = _value(champion, task, METHOD, budget), _value(candidate, task, METHOD, budget)
        if before != before:
            lines.append((True, f"{task}: the {name} was not evaluated at budget {budget}"))
            continue
        text = f"{task}: {METHOD} {now:.4f} at budget {budget}, {before:.4f} of the {name}"
        # Rounded as the tables are, so that a drop of exactly the threshold passes.
        good = round(before - now, 6) <= gate.max_accuracy_drop
        lines.append((good, f"{text}, a drop of at most {gate.max_accuracy_drop:g} allowed"))

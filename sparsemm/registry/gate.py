"""The gate: decides whether a candidate may become champion, and gives a reason for every threshold."""

from __future__ import annotations

from dataclasses import dataclass

from sparsemm.params.registry import GateParams
from sparsemm.recipes import BASELINE, Recipe
from sparsemm.scores import ScoreTable

METHOD, WHOLE = "sparsemm", "full"
TOP = 0.05


@dataclass(frozen=True, eq=False)
class Evidence:
    """The results of a version that the gate judges."""

    version: str  # version number, named in the reasons
    revision: str | None  # revision of the checkpoint that was scored
    table: ScoreTable
    # task -> method -> budget ("all" for the full cache) -> value, as in artifacts/evaluate/<key>.json
    accuracy: dict[str, dict[str, dict[str, float]]]
    recipe: Recipe | None = None  # the version's recipe, if it has one


@dataclass(frozen=True)
class Verdict:
    """Whether every threshold was reached, with one line for each."""

    passed: bool
    reasons: tuple[str, ...]


def judge(candidate: Evidence, champion: Evidence | None, gate: GateParams) -> Verdict:
    """Compares a candidate with the thresholds of params.yaml. NaN and missing values fail.

    Split-half reliability is always judged, and so are accuracy at the reference budget relative to the candidate's
    own full cache, and the recipe, which must not be worse than uniform SnapKV at equal slots. Agreement (rank
    correlation and overlap of the best 5 % heads) and lost accuracy are judged against the champion, if there is one.
    They apply across checkpoint revisions too, because a service that follows the champion should not switch to other
    heads unnoticed. A line reports a changed revision.
    """
    lines = [_at_least("split-half correlation", candidate.table.split_half(), gate.min_split_half)]
    _accuracy(candidate, gate, lines)
    _recipe(candidate, gate, lines)
    if champion is None:
        lines.append((True, "no champion yet: agreement and lost accuracy are not judged"))
    else:
        _against(candidate, champion, gate, lines)
    reasons = tuple(f"{'pass' if good else 'FAIL'}: {line}" for good, line in lines)
    return Verdict(all(good for good, _ in lines), reasons)


def reference_budget(evidence: Evidence, gate: GateParams) -> str:
    """Returns the budget at which accuracy is judged: the gate's, else the largest that was evaluated ("" if none)."""
    budgets = {b for methods in evidence.accuracy.values() for b in methods.get(METHOD, {}) if b.isdecimal()}
    return str(gate.reference_budget or max(budgets, key=int, default=""))


def _at_least(what: str, value: float, threshold: float) -> tuple[bool, str]:
    return value >= threshold, f"{what} {value:.4f}, must be at least {threshold:g}"


def _value(evidence: Evidence, task: str, method: str, budget: str) -> float:
    return evidence.accuracy.get(task, {}).get(method, {}).get(budget, float("nan"))


def _accuracy(candidate: Evidence, gate: GateParams, lines: list[tuple[bool, str]]) -> None:
    budget = reference_budget(candidate, gate)
    if not candidate.accuracy:
        lines.append((False, "no accuracy was measured"))
    for task in sorted(candidate.accuracy):
        compressed, full = _value(candidate, task, METHOD, budget), _value(candidate, task, WHOLE, "all")
        text = f"{task}: {METHOD} {compressed:.4f} at budget {budget or 'none'}"
        ratio = gate.min_accuracy_ratio
        lines.append((compressed >= ratio * full, f"{text}, must be at least {ratio:g} x full {full:.4f}"))


def _recipe(candidate: Evidence, gate: GateParams, lines: list[tuple[bool, str]]) -> None:
    """Judges that no scenario of the recipe is worse than uniform SnapKV at equal slots beyond the 95 % interval."""
    if candidate.recipe is None:
        what = "no recipe" if gate.require_recipe else "no recipe, so `auto` is the paper's method (a warning)"
        lines.append((not gate.require_recipe, f"{what}; `sparsemm tune` finds one"))
        return
    for scenario, choice in candidate.recipe.scenarios.items():
        worse = choice.worse()
        text = f"recipe, scenario {scenario}: {choice.name}"
        if choice.name == BASELINE:
            lines.append((True, f"{text}, because nothing was shown to be better"))
        elif not worse:
            lines.append((True, f"{text} is not shown to be worse than {BASELINE}"))
        lines += [(False, f"{text} in {row.task} {row.difference.text('+')} against {BASELINE}") for row in worse]


def _against(candidate: Evidence, champion: Evidence, gate: GateParams, lines: list[tuple[bool, str]]) -> None:
    name = f"champion (version {champion.version})"
    if candidate.revision != champion.revision:
        text = f"checkpoint revision {candidate.revision}, the {name} has {champion.revision}"
        lines.append((True, f"{text}; the same thresholds apply"))
    shape, champion_shape = candidate.table.scores.shape, champion.table.scores.shape
    if shape != champion_shape:
        lines.append((False, f"heads of shape {shape} cannot be compared with {champion_shape} of the {name}"))
    else:
        rank = candidate.table.rank_correlation(champion.table)
        lines.append(_at_least(f"rank correlation with the {name}", rank, gate.min_rank_correlation))
        overlap = candidate.table.top_overlap(champion.table, TOP)
        lines.append(_at_least(f"overlap of the top {TOP:.0%} with the {name}", overlap, gate.min_top_overlap))
    budget = reference_budget(candidate, gate)
    for task in sorted(champion.accuracy):
        before, now = _value(champion, task, METHOD, budget), _value(candidate, task, METHOD, budget)
        if before != before:
            lines.append((True, f"{task}: the {name} was not evaluated at budget {budget}"))
            continue
        text = f"{task}: {METHOD} {now:.4f} at budget {budget}, the {name} {before:.4f}"
        # Rounded like the tables, so that a drop of exactly the threshold passes.
        good = round(before - now, 6) <= gate.max_accuracy_drop
        lines.append((good, f"{text}, may drop by at most {gate.max_accuracy_drop:g}"))

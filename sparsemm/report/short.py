"""What was found over all models, in a few sentences that follow from the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sparsemm.report.findings import VERDICTS, at_least, lossless_from, smallest_lossless, verdicts
from sparsemm.report.results import Results, Row
from sparsemm.report.studies import tally

NOTHING = "No model that counts as evidence has been evaluated yet."
TOO_FEW = "Models were evaluated, but nothing has an interval that a verdict could come from."


def in_short(results: Sequence[Results], areas: Mapping[str, Sequence[Row]], ranks: Sequence[float] = ()) -> list[str]:
    """Heads, accuracy and bytes over all models that are evidence: those without a note.

    Args:
        results: of every model.
        areas: as `sparsemm.report.studies.area_differences`; where empty, verdicts are counted budget by budget.
        ranks: as `sparsemm.report.studies.half_ranks`.
    """
    evidence = [result for result in results if not result.note]
    compared = over_budgets(areas) or counted(evidence)
    nothing = TOO_FEW if any(result.evaluation for result in evidence) else NOTHING
    said = [*heads(evidence, ranks), *(against_full(evidence) + compared or [nothing]), *held(evidence)]
    left = [result.key for result in results if result.note]
    return [*said, *([f"Not counted, because they are declared test models: {', '.join(left)}."] if left else [])]


def heads(evidence: Sequence[Results], ranks: Sequence[float] = ()) -> list[str]:
    """How few heads hold the score, and how stable that is: Pearson's r, and where it is known the rank correlation."""
    if not evidence:
        return []
    shares = [result.table.top_share(0.05) for result in evidence]
    known = [r for result in evidence if not np.isnan(r := result.table.split_half())]
    stable = ""
    if known:
        stable = (
            f"; scores from two halves of the samples agree at Pearson's r = {at_least(min(known))} or better, which "
            "the heads of large score decide"
        )
        if ranks:
            of = "" if len(ranks) == len(evidence) else f" in {len(ranks)} of them"
            stable += f"; the ranks of all heads at {at_least(min(ranks))} or better{of} (Spearman)"
    return [
        f"The top 5 % of heads hold {_range(shares)} of the visual score in {_models(evidence)}, against 5 % if all "
        f"heads looked alike{stable}."
    ]


def against_full(evidence: Sequence[Results]) -> list[str]:
    """In how many cases some budget is enough."""
    cases = [(r, task) for r in evidence for task in r.tasks() if smallest_lossless(r, task) is not None]
    if not cases:
        return []
    enough = [budget for case in cases if (budget := lossless_from(*case)) is not None]
    said = f"sparsemm against the full cache, {len(cases)} cases (model, task): "
    if enough:
        found = ", ".join(sorted(set(enough), key=int))
        said += f"in {len(enough)} it is not shown worse from some budget on (B = {found}); "
    return [said + f"in {len(cases) - len(enough)} even the largest budget tried is worse."]


def over_budgets(areas: Mapping[str, Sequence[Row]]) -> list[str]:
    """Verdicts on the area under accuracy over log2 B against every other way of keeping as many slots."""
    rows = [row for mine in areas.values() for row in mine if row["against"] != "full"]
    said, beaten = [], []
    for method in dict.fromkeys(row["against"] for row in rows):
        mine = [row for row in rows if row["against"] == method]
        counts = tally(mine)
        if counts["better"] == len(mine):
            beaten.append(method)
        numbers = ", ".join(f"{word} in {count}" for word, count in counts.items())
        differences = [float(row["diff"]) for row in mine]
        said.append(f"Against {method}: {numbers} (by {min(differences):+.2f} to {max(differences):+.2f}).")
    if not said:
        return []
    head = f"sparsemm against other ways of keeping as many slots, all budgets as one number, {len(areas)} cases: " + (
        f"better in every case than {', '.join(beaten)}." if beaten else "none of them is beaten in every case."
    )
    return [head, *said, _chance(len(rows))]


def _chance(intervals: int) -> str:
    return (
        f"Were there no difference anywhere, about {0.05 * intervals:.2g} of the {intervals} intervals would still "
        "exclude zero by chance; single verdicts near zero are weak."
    )


def counted(evidence: Sequence[Results]) -> list[str]:
    """Verdicts against every other method, and how many of them chance alone would give."""
    said = []
    total = 0
    for method in dict.fromkeys(m for result in evidence for m in result.methods()):
        counts = dict.fromkeys(VERDICTS, 0)
        for result in evidence:
            for task in result.tasks():
                for word, rows in verdicts(result, task, method).items():
                    counts[word] += len(rows)
        if compared := sum(counts.values()):
            total += compared
            numbers = ", ".join(f"{word} in {count}" for word, count in counts.items())
            said.append(f"sparsemm against {method}, {compared} comparisons (model, task, budget): {numbers}.")
    if total:
        said.append(_chance(total))
    return said


def held(evidence: Sequence[Results]) -> list[str]:
    """How small the cache is at the longest prompt that was timed, and at which lengths accuracy was measured."""
    shares, budgets = [], set()
    for result in evidence:
        rows = [row for row in result.profile if row["method"] == "sparsemm"]
        if rows:
            longest = max(rows, key=lambda row: int(row["prompt_length"]))
            shares.append(int(longest["kept_bytes"]) / int(longest["full_bytes"]))
            budgets.add(longest["budget"])
    if not shares:
        return []
    at = ", ".join(sorted(budgets, key=int))
    said = f"At the longest prompt timed sparsemm holds {_range(shares)} of the full cache's bytes (B = {at})"
    full = [float(row["kept_slots"]) for r in evidence for row in r.evaluation if row["method"] == "full"]
    if not full:
        return [f"{said}; accuracy was not measured."]
    least, most = f"{min(full):.0f}", f"{max(full):.0f}"
    lengths = least if least == most else f"{least} to {most}"
    return [f"{said}; that says nothing about accuracy, which was measured on prompts of {lengths} tokens on average."]


def _range(shares: Sequence[float]) -> str:
    least, most = (f"{100 * share:.3g} %" for share in (min(shares), max(shares)))
    return least if least == most else f"{least} to {most}"


def _models(evidence: Sequence[Results]) -> str:
    return "one model" if len(evidence) == 1 else f"{len(evidence)} models"

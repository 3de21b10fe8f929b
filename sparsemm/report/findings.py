"""Verdicts and numbers that several sections of the report speak of. Every word follows from an interval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from sparsemm.report.results import Accuracy, Model, Timing
from sparsemm.tables import VERDICTS, Estimate

DISTURBED = 2.0  # where equal work differs by more than this factor, the clock measured something else


def at_least(r: float | None) -> str:
    """A correlation to three decimals, rounded down: only 1 is "1.000"; "-" if there is none."""
    if r is None or math.isnan(r):
        return "-"
    return f"{math.floor(1000 * r + 1e-6) / 1000:.3f}"  # a sum that should be 1 may miss it by a rounding error


def percent_range(shares: Sequence[float]) -> str:
    """The least and the largest share: "29 % to 42 %"."""
    least, most = (f"{100 * share:.3g} %" for share in (min(shares), max(shares)))
    return least if least == most else f"{least} to {most}"


def count_range(counts: Iterable[int], what: str) -> str:
    """How many there are: "96 pages", "3 to 9 questions"."""
    least, most = min(counts), max(counts)
    return f"{least if least == most else f'{least} to {most}'} {what}{'s' if most != 1 else ''}"


def rivals(model: Model) -> list[str]:
    """Methods that sparsemm is compared with at equal slots."""
    return [method for method in model.methods if method not in ("full", "sparsemm")]


def verdicts(model: Model, task: str, method: str) -> dict[str, list[Accuracy]]:
    """A method's rows, rising budgets, under what each says about sparsemm; empty if the two were not both run."""
    rows = model.rows(task, method)
    found = {word: [row for row in rows if row.gain and row.gain.verdict == word] for word in VERDICTS}
    return {word: mine for word, mine in found.items() if mine}


def comparison(model: Model, task: str, method: str) -> str:
    """Where sparsemm is better or worse than a method on a task, and by how much; empty if not both were run."""
    parts = []
    for word, rows in verdicts(model, task, method).items():
        gains = [row.gain.value for row in rows if row.gain]
        least, most = f"{min(gains):+.3f}", f"{max(gains):+.3f}"
        by = least if least == most else f"{least} to {most}"
        parts.append(f"{word} at {budget_list(row.budget for row in rows)} ({by})")
    return f"sparsemm minus {method}: {'; '.join(parts)}." if parts else ""


def budget_list(budgets: Iterable[int | None]) -> str:
    """Budgets in words: "B = 8, 16"."""
    return "B = " + ", ".join(map(str, budgets))


def compared_with_full(model: Model, task: str) -> list[Accuracy]:
    """sparsemm's rows that have an interval against the full cache, rising budgets."""
    return [row for row in model.rows(task, "sparsemm") if row.against_full and row.against_full.verdict]


def enough_from(model: Model, task: str) -> Accuracy | None:
    """sparsemm's row of the smallest budget from which on no budget is shown worse than the full cache, or None."""
    found = None
    for row in reversed(compared_with_full(model, task)):
        if _worse(row):
            break
        found = row
    return found


def against_full(model: Model, task: str) -> str:
    """What `enough_from` found, in words; empty if sparsemm and the full cache were not both run."""
    full, rows = model.row(task, "full"), compared_with_full(model, task)
    if full is None or not rows:
        return ""
    row = enough_from(model, task)
    if row is None:
        worse = [one for one in rows if _worse(one)]
        if len(worse) == len(rows):
            closest = max(rows, key=lambda one: one.value)
            return (
                f"At every budget tried sparsemm is worse than the full cache ({full.value:.3f}). It comes closest at "
                f"B = {closest.budget} with {closest.value:.3f} (difference {signed(closest.against_full)})."
            )
        return (
            f"sparsemm is worse than the full cache ({full.value:.3f}) at {budget_list(one.budget for one in worse)}, "
            "the "
            f"largest budget tried among them. It is not shown worse at "
            f"{budget_list(one.budget for one in rows if not _worse(one))}, but no budget can be called enough."
        )
    low = row.against_full.low if row.against_full and row.against_full.low is not None else 0.0
    allowed = f"a loss of up to {-low:.3f} is not ruled out" if low < 0 else "the interval rules out a loss"
    return (
        f"From B = {row.budget} on ({row.kept_slots / full.kept_slots:.0%} of the full cache's {full.kept_slots:.0f} "
        f"slots a head) sparsemm is not shown worse than the full cache: {row.value:.3f} against {full.value:.3f}, "
        f"difference {signed(row.against_full)}; {allowed}."
    )


def _worse(row: Accuracy) -> bool:
    return row.against_full is not None and row.against_full.verdict == "worse"


def signed(estimate: Estimate | None) -> str:
    """A difference with its interval, "-" where there is none."""
    return "-" if estimate is None else estimate.text("+")


def own_timings(model: Model) -> list[Timing]:
    """sparsemm's timings by rising prompt length."""
    return sorted((row for row in model.timings if row.method == "sparsemm"), key=lambda row: row.prompt_length)


def timing_noise(timings: Iterable[Timing]) -> float | None:
    """Largest ratio of two decode times of our compressed methods that hold the same bytes, at any prompt lengths.

    They do nearly the same work, so this ratio says how far the clock can be trusted. None if no two do.
    """
    groups: dict[int, list[float]] = {}
    for row in timings:
        if row.method not in ("transformers", "full"):
            groups.setdefault(row.kept_bytes, []).append(row.decode_ms_per_token)
    ratios = [max(times) / min(times) for times in groups.values() if len(times) > 1]
    return max(ratios) if ratios else None


def speed(model: Model) -> list[str]:
    """What sparsemm holds, and what a token costs against transformers' own full cache, at every length."""
    rows = own_timings(model)
    if not rows:
        return []
    longest, noise = rows[-1], timing_noise(model.timings)
    ratios = ", ".join(f"{row.decode_ratio_to_full:.2f} at {row.prompt_length} tokens" for row in rows)
    said = f"Time a token on {model.machine.device}, as a multiple of transformers' full cache: {ratios}. "
    if noise is None:
        said += "No two measurements hold the same bytes, so nothing says how noisy this is and no claim is made."
    elif noise > DISTURBED:
        said += (
            f"Measurements that hold the same bytes differ by up to a factor of {noise:.1f}: something else kept the "
            "machine busy, so no claim about time is made."
        )
    else:
        margin = max(noise, 1.05)
        faster = [str(row.prompt_length) for row in rows if row.decode_ratio_to_full < 1 / margin]
        slower = [str(row.prompt_length) for row in rows if row.decode_ratio_to_full > margin]
        claims = [f"{word} at {', '.join(at)} tokens" for word, at in (("faster", faster), ("slower", slower)) if at]
        said += (
            f"Measurements that hold the same bytes differ by up to a factor of {noise:.2f}; beyond that noise, "
            f"sparsemm is {' and '.join(claims) if claims else 'neither faster nor slower at any length'}."
        )
    share = longest.kept_bytes / longest.full_bytes
    return [
        f"With a prompt of {longest.prompt_length} tokens sparsemm holds {share:.1%} of the full cache's bytes.",
        said,
    ]

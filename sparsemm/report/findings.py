"""Computes verdicts and numbers that several sections of the report use. Every verdict follows from an interval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from sparsemm.report.results import Accuracy, Model, Refusal, Timing
from sparsemm.report.style import method_label
from sparsemm.statistics import VERDICTS, Estimate

DISTURBED = 2.0  # if times of equal work differ by more than this factor, they measure something else


def at_least(r: float | None) -> str:
    """Formats a correlation with three decimals, rounded down so that only 1 is "1.000"; "-" if there is none."""
    if r is None or math.isnan(r):
        return "-"
    return f"{math.floor(1000 * r + 1e-6) / 1000:.3f}"  # 1e-6 allows for rounding errors


def percent_range(shares: Sequence[float]) -> str:
    """Formats the smallest and the largest share: "29 % to 42 %"."""
    least, most = (f"{100 * share:.3g} %" for share in (min(shares), max(shares)))
    return least if least == most else f"{least} to {most}"


def count_range(counts: Iterable[int], noun: str) -> str:
    """Formats the smallest and the largest count: "96 pages", "3 to 9 questions"."""
    least, most = min(counts), max(counts)
    return f"{least if least == most else f'{least} to {most}'} {noun}{'s' if most != 1 else ''}"


def rivals(model: Model) -> list[str]:
    """Returns the methods that sparsemm is compared with at equal slots."""
    return [method for method in model.methods if method not in ("full", "sparsemm")]


def verdicts(model: Model, task: str, method: str) -> dict[str, list[Accuracy]]:
    """Groups a method's rows by their verdict on sparsemm, budgets increasing; empty if they were not compared."""
    rows = model.rows(task, method)
    groups = {word: [row for row in rows if row.gain and row.gain.verdict == word] for word in VERDICTS}
    return {word: group for word, group in groups.items() if group}


def comparison(model: Model, task: str, method: str) -> str:
    """Describes at which budgets sparsemm is better or worse than a method; empty if they were not compared."""
    parts = []
    for word, rows in verdicts(model, task, method).items():
        gains = [row.gain.value for row in rows if row.gain]
        least, most = f"{min(gains):+.3f}", f"{max(gains):+.3f}"
        by = least if least == most else f"{least} to {most}"
        parts.append(f"{word} at {budget_list(row.budget for row in rows)} ({by})")
    return f"sparsemm minus {method_label(method)}: {'; '.join(parts)}." if parts else ""


def budget_list(budgets: Iterable[int | None]) -> str:
    """Formats budgets: "B = 8, 16"."""
    return "B = " + ", ".join(map(str, budgets))


def refusals(rows: Iterable[Refusal]) -> list[str]:
    """Describes in a sentence for each method where it was refused, and why; of several reasons the first."""
    methods: dict[str, list[Refusal]] = {}
    for row in rows:
        methods.setdefault(row.method, []).append(row)
    return [
        f"refused: {method_label(method)} at {', '.join(dict.fromkeys(row.place for row in own))}: {own[0].reason}"
        for method, own in methods.items()
    ]


def compared_with_full(model: Model, task: str) -> list[Accuracy]:
    """Returns sparsemm's rows with an interval against the full cache, budgets increasing."""
    return [row for row in model.rows(task, "sparsemm") if row.against_full and row.against_full.verdict]


def enough_from(model: Model, task: str) -> Accuracy | None:
    """Returns sparsemm's row at the smallest budget from which on no budget is worse than the full cache, or None."""
    smallest = None
    for row in reversed(compared_with_full(model, task)):
        if _worse(row):
            break
        smallest = row
    return smallest


def against_full(model: Model, task: str) -> str:
    """Describes sparsemm against the full cache (see `enough_from`); empty if they were not compared."""
    full, rows = model.row(task, "full"), compared_with_full(model, task)
    if full is None or not rows:
        return ""
    row = enough_from(model, task)
    if row is None:
        worse = [row for row in rows if _worse(row)]
        if len(worse) == len(rows):
            closest = max(rows, key=lambda row: row.value)
            return (
                f"sparsemm is worse than the full cache ({full.value:.3f}) at every budget. It comes closest at "
                f"B = {closest.budget} with {closest.value:.3f} (difference {signed(closest.against_full)})."
            )
        return (
            f"sparsemm is worse than the full cache ({full.value:.3f}) at {budget_list(row.budget for row in worse)}, "
            "which includes the largest budget. No difference is shown at "
            f"{budget_list(row.budget for row in rows if not _worse(row))}, but no budget can be called sufficient."
        )
    low = row.against_full.low if row.against_full and row.against_full.low is not None else 0.0
    allowed = f"a loss of up to {-low:.3f} is not ruled out" if low < 0 else "the interval rules out a loss"
    return (
        f"From B = {row.budget} on ({row.kept_slots / full.kept_slots:.0%} of the full cache's {full.kept_slots:.0f} "
        f"slots per head) sparsemm is not shown to be worse than the full cache: {row.value:.3f} against "
        f"{full.value:.3f}, difference {signed(row.against_full)}; {allowed}."
    )


def _worse(row: Accuracy) -> bool:
    return row.against_full is not None and row.against_full.verdict == "worse"


def signed(estimate: Estimate | None) -> str:
    """Formats a difference with its interval; "-" if there is none."""
    return "-" if estimate is None else estimate.text("+")


def own_timings(model: Model) -> list[Timing]:
    """Returns sparsemm's timings by increasing prompt length."""
    return sorted((row for row in model.timings if row.method == "sparsemm"), key=lambda row: row.prompt_length)


def timing_noise(timings: Iterable[Timing]) -> float | None:
    """Returns the largest ratio of two decode times with the same bytes, transformers' cache and ours in full included.

    They do nearly the same work, so most of this ratio is the noise of the clock, and no claim is made within it. It is
    None if no two hold the same bytes.
    """
    groups: dict[int, list[float]] = {}
    for row in timings:
        groups.setdefault(row.kept_bytes, []).append(row.decode_ms_per_token)
    ratios = [max(times) / min(times) for times in groups.values() if len(times) > 1]
    return max(ratios) if ratios else None


def speed(model: Model) -> list[str]:
    """Describes sparsemm's bytes and its time per token against transformers' full cache, at every length."""
    rows = own_timings(model)
    if not rows:
        return []
    longest, noise = rows[-1], timing_noise(model.timings)
    ratios = ", ".join(f"{row.decode_ratio_to_full:.2f} at {row.prompt_length} tokens" for row in rows)
    text = f"Time per token on {model.machine.device}, as a multiple of transformers' full cache: {ratios}. "
    if noise is None:
        text += "No two measurements hold the same bytes, so the noise is unknown and no claim is made."
    elif noise > DISTURBED:
        text += (
            f"Measurements that hold the same bytes differ by up to a factor of {noise:.1f}, because the machine was "
            "busy with something else, so no claim about time is made."
        )
    else:
        margin = max(noise, 1.05)
        faster = [str(row.prompt_length) for row in rows if row.decode_ratio_to_full < 1 / margin]
        slower = [str(row.prompt_length) for row in rows if row.decode_ratio_to_full > margin]
        claims = [f"{word} at {', '.join(at)} tokens" for word, at in (("faster", faster), ("slower", slower)) if at]
        text += (
            f"Measurements that hold the same bytes differ by up to a factor of {noise:.2f}; beyond this noise, "
            f"sparsemm is {' and '.join(claims) if claims else 'neither faster nor slower at any length'}."
        )
    share = longest.kept_bytes / longest.full_bytes
    return [
        f"With a prompt of {longest.prompt_length} tokens sparsemm holds {share:.1%} of the full cache's bytes.",
        text,
    ]

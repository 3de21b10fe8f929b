"""Sentences that follow from the tables, each with how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sparsemm.report.results import Results, Row
from sparsemm.scores import top_count

VERDICTS = ("better", "worse", "no difference shown")
DISTURBED = 2.0  # where equal work differs by more than this factor, the clock measured something else


def verdict(row: Row, prefix: str = "diff") -> str:
    """One of `VERDICTS`: what a row's paired 95 % interval says.

    With prefix "diff" the row's difference is method minus sparsemm, and the verdict is about sparsemm. With prefix
    "diff_full" it is method minus the full cache, and the verdict is about the row's method.
    """
    low, high = float(row[f"{prefix}_ci_low"]), float(row[f"{prefix}_ci_high"])
    if prefix == "diff":
        low, high = -high, -low
    return "better" if low > 0 else "worse" if high < 0 else "no difference shown"


def verdicts(result: Results, task: str, method: str) -> dict[str, list[Row]]:
    """Rows of a method, rising budgets, under what they say of sparsemm; empty if the two were not both run."""
    found: dict[str, list[Row]] = {}
    for budget in result.budgets():
        row = result.row(task, method, budget)
        if row is not None and row["diff_ci_low"]:
            found.setdefault(verdict(row), []).append(row)
    return {word: found[word] for word in VERDICTS if word in found}


def comparisons(result: Results) -> list[str]:
    """Methods that sparsemm is compared with."""
    return [method for method in result.methods() if method not in ("full", "sparsemm")]


def at_least(r: float) -> str:
    """A correlation to three decimals, rounded down: 0.9997 is "0.999", and only 1 is "1.000"; "-" if there is none."""
    if math.isnan(r):
        return "-"
    return f"{math.floor(1000 * r + 1e-6) / 1000:.3f}"  # a sum that should be 1 may miss it by a rounding error


def concentration(result: Results) -> str:
    """How few heads hold the score, and how stable the ranking is."""
    table = result.table
    heads = table.scores.size
    count = top_count(heads, 0.05)
    layer, head, share = table.top_heads(1)[0]
    tokens = table.header.get("tokens")
    looked = f" and looks at the right word for {table.hits[layer, head] / tokens:.0%} of tokens" if tokens else ""
    return (
        f"The top 5 % of heads ({count} of {heads}) hold {table.top_share(0.05):.0%} of the visual score; "
        f"an even spread would give them {count / heads:.0%}. The best head (layer {layer}, head {head}) alone holds "
        f"{share:.0%}{looked}. {_reliability(table.split_half())}"
    )


def _reliability(r: float) -> str:
    if np.isnan(r):
        return "How stable these scores are cannot be said: one half of the samples gives no scores to compare."
    return f"Scores from one half of the samples agree with the other half at Pearson's r = {at_least(r)}."


def comparison(result: Results, task: str, method: str) -> str | None:
    """Where sparsemm is better or worse than a method on a task, and by how much; None if not both were run."""
    parts = []
    for word, rows in verdicts(result, task, method).items():
        # Printed as sparsemm minus the method; adding 0 turns -0 into 0.
        gains = [-float(row["diff_vs_sparsemm"]) + 0.0 for row in rows]
        least, most = f"{min(gains):+.3f}", f"{max(gains):+.3f}"
        by = least if least == most else f"{least} to {most}"
        parts.append(f"{word} at {_listed([row['budget'] for row in rows])} ({by})")
    return f"sparsemm against {method}: {'; '.join(parts)}." if parts else None


def lossless_from(result: Results, task: str) -> str | None:
    """The smallest budget from which on no evaluated budget of sparsemm is shown worse than the full cache, or None."""
    best = None
    for budget in reversed(_against_full(result, task)):
        if verdict(_sparsemm(result, task, budget), "diff_full") == "worse":
            break
        best = budget
    return best


def smallest_lossless(result: Results, task: str) -> str | None:
    """What `lossless_from` found, in words; None if sparsemm and the full cache were not both run."""
    full, budgets = result.row(task, "full", ""), _against_full(result, task)
    if full is None or not budgets:
        return None
    best, value = lossless_from(result, task), float(full["value"])
    if best is None:
        worse = [b for b in budgets if verdict(_sparsemm(result, task, b), "diff_full") == "worse"]
        if len(worse) == len(budgets):
            closest = max((_sparsemm(result, task, b) for b in budgets), key=lambda row: float(row["value"]))
            return (
                f"At every budget tried sparsemm is worse than the full cache ({value:.3f}); it comes closest at "
                f"B = {closest['budget']} with {float(closest['value']):.3f} ({difference(closest, 'diff_vs_full')})."
            )
        shown = [b for b in budgets if b not in worse]
        return (
            f"sparsemm is worse than the full cache ({value:.3f}) at {_listed(worse)}, the largest budget tried among "
            f"them. It is not shown worse at {_listed(shown)}, but no budget can be called enough."
        )
    row, kept = _sparsemm(result, task, best), float(full["kept_slots"])
    loss = max(0.0, -float(row["diff_full_ci_low"]))
    allowed = f"a loss of up to {loss:.3f} is not ruled out" if loss else "the interval rules out a loss"
    return (
        f"From B = {best} on ({float(row['kept_slots']) / kept:.0%} of the full cache's {kept:.0f} slots a head) "
        f"sparsemm is not shown worse than the full cache: {float(row['value']):.3f} against {value:.3f}, difference "
        f"{difference(row, 'diff_vs_full')}; {allowed}."
    )


def difference(row: Row, column: str) -> str:
    """A paired difference and, where it has one, its 95 % interval; "-" where the row has no difference."""
    if not row.get(column):
        return "-"
    prefix = "diff_full" if column == "diff_vs_full" else "diff"
    if not row[f"{prefix}_ci_low"]:
        return f"{float(row[column]):+.3f}"
    low, high = float(row[f"{prefix}_ci_low"]), float(row[f"{prefix}_ci_high"])
    return f"{float(row[column]):+.3f} [{low:+.3f}, {high:+.3f}]"


def _against_full(result: Results, task: str) -> list[str]:
    rows = ((budget, result.row(task, "sparsemm", budget)) for budget in result.budgets())
    return [budget for budget, row in rows if row is not None and row["diff_full_ci_low"]]


def _sparsemm(result: Results, task: str, budget: str) -> Row:
    row = result.row(task, "sparsemm", budget)
    assert row is not None
    return row


def timing_noise(result: Results) -> float | None:
    """Largest ratio of two decode times of our compressed methods that hold the same bytes, at any prompt lengths.

    They do nearly the same work, so what they differ by says how far the clock can be trusted. None if no two do.
    """
    groups: dict[str, list[float]] = {}
    for row in result.profile:
        if row["method"] not in ("transformers", "full"):
            groups.setdefault(row["kept_bytes"], []).append(float(row["decode_ms_per_token"]))
    ratios = [max(times) / min(times) for times in groups.values() if len(times) > 1]
    return max(ratios) if ratios else None


def speed(result: Results) -> list[str]:
    """What sparsemm holds, and what a token costs against transformers' own full cache, at every length."""
    rows = sorted((r for r in result.profile if r["method"] == "sparsemm"), key=lambda r: int(r["prompt_length"]))
    if not rows:
        return []
    longest = rows[-1]
    share = int(longest["kept_bytes"]) / int(longest["full_bytes"])
    ratios = ", ".join(f"{float(r['decode_ratio_to_full']):.2f} at {r['prompt_length']} tokens" for r in rows)
    device = result.machine.get("device", "an unknown device")
    said = f"Time a token on {device}, as a multiple of transformers' full cache: {ratios}. "
    noise = timing_noise(result)
    if noise is None:
        said += "No two measurements hold the same bytes, so nothing says how noisy this is and no claim is made."
    elif noise > DISTURBED:
        said += (
            f"Measurements that hold the same bytes differ by up to a factor of {noise:.1f}: something else kept the "
            "machine busy, so no claim about time is made."
        )
    else:
        margin = max(noise, 1.05)
        faster = [r["prompt_length"] for r in rows if float(r["decode_ratio_to_full"]) < 1 / margin]
        slower = [r["prompt_length"] for r in rows if float(r["decode_ratio_to_full"]) > margin]
        claims = [f"{w} at {', '.join(at)} tokens" for w, at in (("faster", faster), ("slower", slower)) if at]
        said += (
            f"Measurements that hold the same bytes differ by up to a factor of {noise:.2f}; beyond that noise, "
            f"sparsemm is {' and '.join(claims) if claims else 'neither faster nor slower at any length'}."
        )
    return [
        f"With a prompt of {longest['prompt_length']} tokens sparsemm holds {share:.1%} of the full cache's bytes.",
        said,
    ]


def equal_slots(results: Sequence[Results]) -> str | None:
    """Whether the compared methods really held the same; None if nothing was evaluated."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for result in results:
        for row in result.evaluation:
            if row["budget"]:
                groups.setdefault((result.key, row["task"], row["budget"]), []).append(float(row["kept_slots"]))
    if not groups:
        return None
    spread = max(max(kept) - min(kept) for kept in groups.values())
    if spread < 0.005:
        return "At every budget, all methods held the same number of slots, measured. Bytes count keys and values."
    return (
        f"At one budget, methods held up to {spread:.2f} slots per KV head more than others, measured: compare them by "
        "the slots kept, not by B. Bytes count keys and values."
    )


def _listed(budgets: list[str]) -> str:
    return "B = " + ", ".join(budgets)

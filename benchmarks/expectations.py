"""What became of the expectations about the study `protocol`, which docs/results.md registered before it ran.

Every outcome is computed from the verdicts about performance over all tasks in artifacts/studies/protocol, and stands
beside the numbers that decide it, so that a run of the study fills this table without a word being written by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from sparsemm.evaluate.rows import PAPER
from sparsemm.policies import is_method, policy_class
from sparsemm.policies.snapkv import SnapKV
from sparsemm.report.results import read_refusals
from sparsemm.statistics import BETTER, Estimate
from sparsemm.studies import StudyRow, read_study
from sparsemm.studies.protocol import BASELINE, overall, place

STUDY = "protocol"
FOLDER = Path(__file__).parents[1] / "artifacts" / "studies" / STUDY
PRETRAINED, SMALL = "smollm2-llava-next", ("tiny-qwen2-vl", "tiny-llava-next-vicuna")
NOT_MEASURED = "Not measured yet."
OURS = tuple(f"{PAPER}+{selector}" for selector in ("kvzip", "blend-echo", "peak"))
SHARES = (0.1, 0.2)  # at which the pretrained model is judged


class Refusal(NamedTuple):
    """A method that cannot serve one of the prompts at a share or budget."""

    setting: str
    place: str  # as `sparsemm.studies.protocol.place`


class Measured(NamedTuple):
    """What the study has of one model: rows of performance over all tasks, and what was refused."""

    rows: list[StudyRow]
    refused: list[Refusal]


class Verdict(NamedTuple):
    """Whether an expectation holds, or None where what decides it was not measured; and the numbers that decide it."""

    holds: bool | None
    figures: str


def read(model: str, folder: Path = FOLDER) -> Measured | None:
    """Returns what the study has of a model, or None if it has not run. Raises DataError if a file is malformed."""
    path = folder / f"{model}.csv"
    if not path.is_file():
        return None
    refused = [
        Refusal(row.method, f"{100 * float(row.level):g} %" if row.level else f"B = {row.budget}")
        for row in read_refusals(path)
    ]
    return Measured(overall(read_study(path, STUDY, model)), list(dict.fromkeys(refused)))


def points(one: Estimate | None) -> str:
    """Formats a difference and its interval in points of per cent."""
    if one is None or one.low is None or one.high is None:
        return "no interval"
    value, low, high = (round(100 * end) for end in (one.value, one.low, one.high))
    return f"{value:+d} [{low:+d}, {high:+d}]"


def _named(row: StudyRow) -> str:
    return f"`{row.setting}` at {place(row)}: {points(row.difference)}"


def nowhere_better(measured: Measured, names: Iterable[str], against: str = BASELINE) -> Verdict:
    """Judges that none of the methods is better than another one at any share; one exception is enough to fail."""
    names = list(names)
    rows = [row for row in measured.rows if row.setting in names and row.against == against and row.level is not None]
    if not any(row.verdict for row in rows):
        return Verdict(None, "none of them was measured")
    better = [row for row in rows if row.verdict == BETTER]
    nearest = max(rows, key=lambda row: row.diff or 0.0)
    figures = "; ".join(map(_named, better)) or f"the largest difference is that of {_named(nearest)}"
    absent = [name for name in names if name not in {row.setting for row in rows}]
    figures += f"; without {', '.join(f'`{name}`' for name in absent)}" if absent else ""
    return Verdict(not better, figures)


def no_uniform_better(measured: Measured) -> Verdict:
    """Judges that no method that gives every head the same is better than `sparsemm` as published."""
    names = dict.fromkeys(row.setting for row in measured.rows)
    uniform = [name for name in names if is_method(name) and issubclass(policy_class(name), SnapKV)]
    return nowhere_better(measured, uniform, PAPER)


def ours_largest(measured: Measured) -> Verdict:
    """Judges that one of `OURS` has the largest performance at each of `SHARES`, and is better than uniform SnapKV."""
    holds, figures = True, []
    for share in SHARES:
        rows = {row.setting: row for row in measured.rows if row.level == share and row.against == BASELINE}
        if not set(OURS) & set(rows):
            return Verdict(None, f"{100 * share:g} % was not measured")
        best = max(rows.values(), key=lambda row: row.value)
        others = [row for row in rows.values() if row.setting not in OURS]
        holds = holds and best.setting in OURS and best.verdict == BETTER
        following = max(others, key=lambda row: row.value)
        figures.append(
            f"at {place(best)} `{best.setting}` has {100 * best.value:.0f}, minus `{BASELINE}` "
            f"{points(best.difference)}; the largest other is `{following.setting}` with {100 * following.value:.0f}"
        )
    return Verdict(holds, "; ".join(figures))


def refusals(measured: Measured) -> Verdict:
    """Judges that `duo` refuses 5 % of a prompt, and `fastv` every share below 40 %."""
    shares = dict.fromkeys(place(row) for row in measured.rows if row.level is not None)
    refused = {
        name: [at for at in shares if any((one.setting, one.place) == (name, at) for one in measured.refused)]
        for name in ("duo", "fastv")
    }
    below = [at for at in shares if float(at.removesuffix(" %")) < 40]
    if "5 %" not in shares:
        return Verdict(None, "5 % was not measured")
    figures = (f"`{name}` refuses {', '.join(at) or 'nothing'}" for name, at in refused.items())
    return Verdict("5 %" in refused["duo"] and set(below) <= set(refused["fastv"]), "; ".join(figures))


def steady(measured: Measured) -> Verdict:
    """Judges that at least nine of ten verdicts are the same under every other seed."""
    rows = [row for row in measured.rows if row.verdict and row.steady is not None]
    same = sum(row.steady == 1.0 for row in rows)
    return Verdict(10 * same >= 9 * len(rows) if rows else None, f"{same} of {len(rows)}")


EXPECTATIONS: tuple[tuple[str, Sequence[str], Callable[[Measured], Verdict]], ...] = (
    (f"the largest has `{PAPER}` with another selector, better than `{BASELINE}`", (PRETRAINED,), ours_largest),
    (f"none with uniform budgets is better than `{PAPER}`", (PRETRAINED,), no_uniform_better),
    (
        f"`vl-cache`, `meda`: nowhere better than `{BASELINE}`",
        (PRETRAINED, *SMALL),
        partial(nowhere_better, names=("vl-cache", "meda")),
    ),
    ("`duo` refuses 5 %, `fastv` all below 40 %", SMALL, refusals),
    (
        f"blind to the question: nowhere better than `{BASELINE}`",
        (PRETRAINED, *SMALL),
        partial(
            nowhere_better,
            names=(*(f"{BASELINE}+{one}" for one in ("keydiff", "knorm", "expected")), "streaming", "h2o"),
        ),
    ),
    ("nine of ten verdicts are steady", (PRETRAINED, *SMALL), steady),
)


def table(folder: Path = FOLDER) -> str:
    """Returns a row per expectation and model that it is about: whether it holds, and the numbers that decide it."""
    lines = ["| expected | model | | decided by |", "|---|---|---|---|"]
    for text, models, judge in EXPECTATIONS:
        for model in models:
            measured = read(model, folder)
            one = Verdict(None, NOT_MEASURED) if measured is None else judge(measured)
            word = {True: "holds", False: "**fails**", None: "open"}[one.holds]
            lines.append(f"| {text} | `{model}` | {word} | {one.figures} |")
    return "\n".join(lines) + "\n\nPer cent of the full cache's accuracy; paired differences with 95 % intervals.\n"

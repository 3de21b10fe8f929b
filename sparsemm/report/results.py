"""What the stages wrote about one model, and the sentences that follow from it."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsemm.errors import DataError
from sparsemm.params import Params
from sparsemm.scores import ScoreTable, top_count

Row = dict[str, str]
SHARES = (0.01, 0.02, 0.05, 0.10, 0.20)


@dataclass(frozen=True)
class Results:
    """Everything the report knows of a model.

    Attributes:
        key, note: from params.yaml; a note declares a test model.
        card: of a small checkpoint, or empty.
        align: metrics of the align stage.
        table: head scores.
        evaluation: rows of artifacts/evaluate/<key>.csv, empty if not evaluated yet.
        profile: rows of artifacts/profile/<key>.csv, empty if not profiled yet.
        machine: device and versions behind the profile.
    """

    key: str
    note: str
    card: dict[str, Any]
    align: dict[str, Any]
    table: ScoreTable
    evaluation: list[Row]
    profile: list[Row]
    machine: dict[str, Any]

    @property
    def name(self) -> str:
        """The key, marked if the model is a declared test model."""
        return f"{self.key} *" if self.note else self.key

    def tasks(self) -> list[str]:
        """Tasks in the order they were run."""
        return list(dict.fromkeys(row["task"] for row in self.evaluation))

    def methods(self) -> list[str]:
        """Methods in the order they were run."""
        return list(dict.fromkeys(row["method"] for row in self.evaluation))

    def row(self, task: str, method: str, budget: str) -> Row | None:
        """One row of the evaluation, or None."""
        wanted = (task, method, budget)
        return next((r for r in self.evaluation if (r["task"], r["method"], r["budget"]) == wanted), None)

    def budgets(self) -> list[str]:
        """Budgets that were evaluated, rising."""
        return sorted({row["budget"] for row in self.evaluation if row["budget"]}, key=int)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise DataError(f"not JSON: {error}", where=str(path), hint="run its stage again") from error
    return value if isinstance(value, dict) else {}


def _rows(path: Path, needed: tuple[str, ...]) -> list[Row]:
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as handle:
        reader = csv.DictReader(handle)
        missing = set(needed) - set(reader.fieldnames or ())
        if missing:
            raise DataError(f"columns {sorted(missing)} are missing", where=str(path), hint="run its stage again")
        return list(reader)


def read_results(params: Params, key: str, root: Path) -> Results:
    """Read what the stages wrote; evaluation and profile may be missing.

    Raises:
        ScoreTableError: if there is no score table.
        DataError: if a file is not what its stage writes.
    """
    folder = root / "artifacts"
    evaluation = folder / "evaluate" / f"{key}.csv"
    profile = folder / "profile" / f"{key}.csv"
    return Results(
        key=key,
        note=params.models[key].note,
        card=_json(root / params.models[key].checkpoint / "card.json"),
        align=_json(folder / "align" / f"{key}.json"),
        table=ScoreTable.load(folder / "scores" / f"{key}.safetensors"),
        evaluation=_rows(evaluation, ("task", "method", "budget", "value", "ci_low", "ci_high", "diff_ci_low")),
        profile=_rows(profile, ("method", "prompt_length", "decode_ms_per_token", "decode_ratio_to_full")),
        machine=_json(folder / "profile" / f"{key}.json"),
    )


def verdict(row: Row) -> str:
    """Whether sparsemm is "better", "worse" or "no difference shown" against the method of a row, same budget.

    The row's paired difference is method minus sparsemm; its 95 % interval decides.
    """
    if float(row["diff_ci_high"]) < 0:
        return "better"
    if float(row["diff_ci_low"]) > 0:
        return "worse"
    return "no difference shown"


def concentration(result: Results) -> str:
    """How few heads hold the score, and how stable the ranking is."""
    table = result.table
    heads = table.scores.size
    five = table.top_share(0.05)
    layer, head, share = table.top_heads(1)[0]
    tokens = table.header.get("tokens")
    looked = f" and looks at the right word for {table.hits[layer, head] / tokens:.0%} of tokens" if tokens else ""
    return (
        f"The top 5 % of heads ({top_count(heads, 0.05)} of {heads}) hold {five:.0%} of the visual score; "
        f"an even spread would give them 5 %. The best head (layer {layer}, head {head}) alone holds "
        f"{share:.0%}{looked}. "
        f"Scores from one half of the samples agree with the other half at r = {table.split_half():.3f}."
    )


def comparison(result: Results, task: str, method: str) -> str | None:
    """Where sparsemm is better or worse than a method on a task, budget by budget; None if not both were run."""
    found: dict[str, list[str]] = {}
    for budget in result.budgets():
        row = result.row(task, method, budget)
        if row is not None and row["diff_ci_low"]:
            found.setdefault(verdict(row), []).append(budget)
    if not found:
        return None
    parts = [
        f"{word} at {_listed(found[word])}" for word in ("better", "worse", "no difference shown") if word in found
    ]
    return f"sparsemm against {method}: {'; '.join(parts)}."


def smallest_lossless(result: Results, task: str) -> str | None:
    """The smallest budget from which on sparsemm is not shown to be worse than the full cache."""
    full = result.row(task, "full", "")
    if full is None or "sparsemm" not in result.methods():
        return None
    kept = float(full["kept_slots"])
    best = None
    for budget in reversed(result.budgets()):
        row = result.row(task, "sparsemm", budget)
        if row is None or not row.get("diff_full_ci_high") or float(row["diff_full_ci_high"]) < 0:
            break
        best = budget
    if best is None:
        return f"At every budget tried sparsemm loses accuracy against the full cache ({float(full['value']):.3f})."
    row = result.row(task, "sparsemm", best)
    assert row is not None
    low, high = float(row["diff_full_ci_low"]), float(row["diff_full_ci_high"])
    return (
        f"From B = {best} on ({int(best) / kept:.0%} of the full cache's {kept:.0f} slots a head) sparsemm is not "
        f"shown to lose: {float(row['value']):.3f} against {float(full['value']):.3f}, difference "
        f"{float(row['diff_vs_full']):+.3f} [{low:+.3f}, {high:+.3f}]."
    )


def speed(result: Results) -> str | None:
    """What a token costs under sparsemm at the longest prompt, against transformers' own full cache."""
    rows = [row for row in result.profile if row["method"] == "sparsemm"]
    if not rows:
        return None
    row = max(rows, key=lambda r: int(r["prompt_length"]))
    ratio = float(row["decode_ratio_to_full"])
    word = "faster" if ratio < 0.95 else "slower" if ratio > 1.05 else "neither faster nor slower"
    times = "" if word.startswith("neither") else f" ({ratio:.2f} times the time a token)"
    share = int(row["kept_bytes"]) / int(row["full_bytes"])
    return (
        f"At a prompt of {row['prompt_length']} tokens it holds {share:.1%} of "
        f"the full cache's bytes and decodes {word}{times} on {result.machine.get('device', 'an unknown device')}."
    )


def _listed(budgets: list[str]) -> str:
    return "B = " + ", ".join(budgets)

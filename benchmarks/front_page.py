"""Writes the table of results into README.md, from artifacts/evaluate: `python -m benchmarks.front_page`.

A test holds the table against the files, so README cannot say what they do not.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODEL, TASK = "tiny-qwen2-vl", "read"
METHODS = {
    "full": "full cache of transformers",
    "sparsemm": "`sparsemm`, as published",
    "snapkv": "`snapkv`",
    "adakv": "`adakv`",
    "random": "`random` heads get the slots",
}
BETWEEN = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- end of results -->)", re.DOTALL)


def table(path: Path) -> str:
    """A row per method and a column per budget: accuracy with its 95 % interval, in per cent.

    Args:
        path: artifacts/evaluate/<key>.csv.
    """
    with open(path, newline="", encoding="utf-8") as handle:
        rows = [row for row in csv.DictReader(handle) if row["task"] == TASK and row["method"] in METHODS]
    cells = {(row["method"], row["budget"]): row for row in rows}
    prompt = float(cells["full", ""]["kept_slots"])
    budgets = sorted({row["budget"] for row in rows if row["budget"]}, key=int)
    lines = [
        " | ".join(["| words read", *(f"{b} slots, {int(b) / prompt:.0%} of the prompt" for b in budgets)]) + " |",
        "|---" * (len(budgets) + 1) + "|",
    ]
    for method, name in METHODS.items():
        found = [cells.get((method, budget), cells.get((method, ""))) for budget in budgets]
        lines.append(" | ".join([f"| {name}", *(_percent(row) for row in found if row)]) + " |")
    pages = cells["full", ""]["pages"]
    return "\n".join(lines) + f"\n\nModel `{MODEL}`, {pages} held-out pages, 95 % intervals in brackets.\n"


def _percent(row: dict[str, str]) -> str:
    value, low, high = (100 * float(row[name]) for name in ("value", "ci_low", "ci_high"))
    return f"{value:.0f} [{low:.0f}, {high:.0f}]"


def main() -> None:
    """Replace what stands between the marks in README.md."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    block = table(ROOT / "artifacts" / "evaluate" / f"{MODEL}.csv")
    readme.write_text(BETWEEN.sub(lambda _: block, text), encoding="utf-8")


if __name__ == "__main__":
    main()

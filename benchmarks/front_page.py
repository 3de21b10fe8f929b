"""Writes README's table of results and its picture from artifacts: `python -m benchmarks.front_page`.

A test holds the table against artifacts/evaluate, so README cannot say what the results do not. The picture is that of
artifacts/explorer, which Git does not hold.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from pathlib import Path

from PIL import Image

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


def picture(path: Path) -> tuple[Image.Image, list[str]]:
    """The pictures of the method side by side (where the best head looks, what each method keeps), and their texts.

    Args:
        path: artifacts/explorer/<key>.json.
    """
    parts = json.loads(path.read_text(encoding="utf-8"))["method"]
    images = [Image.open(io.BytesIO(base64.b64decode(part["image"].partition(",")[2]))) for part in parts]
    gap, height = 24, max(image.height for image in images)
    whole = Image.new("RGB", (sum(image.width + gap for image in images) - gap, height), "white")
    left = 0
    for image in images:
        whole.paste(image.convert("RGB"), (left, 0))
        left += image.width + gap
    return whole, [part["text"] for part in parts]


def main() -> None:
    """Replace what stands between the marks in README.md, and docs/method.png."""
    whole, texts = picture(ROOT / "artifacts" / "explorer" / f"{MODEL}.json")
    whole.save(ROOT / "docs" / "method.png", optimize=True)
    print("\n".join(texts))
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    block = table(ROOT / "artifacts" / "evaluate" / f"{MODEL}.csv")
    readme.write_text(BETWEEN.sub(lambda _: block, text), encoding="utf-8")


if __name__ == "__main__":
    main()

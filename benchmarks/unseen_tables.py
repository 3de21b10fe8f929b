"""Writes the tables of docs/pretrained.md that `benchmarks.unseen` measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.controls import NAME
from benchmarks.unseen_inputs import CHAT, NEW_TOKENS, SHOWN

STORED = Path(__file__).parents[1] / "artifacts" / "benchmarks" / f"unseen-{NAME}.json"
Part = dict[str, Any]


def percent(ends: Sequence[float], sign: str = "") -> str:
    """Returns a value and its interval in per cent."""
    value, low, high = (100 * end for end in ends)
    return f"{value:{sign}.0f} [{low:{sign}.0f}, {high:{sign}.0f}]"


def nats_per_character(ends: Sequence[float], sign: str = "") -> str:
    """Returns a loss and its interval."""
    value, low, high = ends
    return f"{value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def real_table(part: Part) -> list[str]:
    """Returns a row per way of showing real pages; one without figures yet has dashes."""
    lines = ["| shown | pages | words a page | words read | letters and digits alone |", "|---" * 5 + "|"]
    for name in SHOWN:
        row = part.get(name)
        shares = [percent(row[share]) for share in ("word_accuracy", "letters_alone")] if row else ["-", "-"]
        cells = name, row["n"] if row else "-", row["words"] if row else "-", *shares
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def instruction_table(part: Part) -> list[str]:
    """Returns a row for our instruction, one for all others, and one for each."""
    lines = ["| instruction | words read |", "|---|---|"]
    lines += [f"| {prompt} (ours) | {percent(ends)} |" for prompt, ends in part["ours"].items()]
    lines += [f"| {len(part['each'])} others, together | {percent(part['others'])} |"]
    lines += [f"| others minus ours, in points | {percent(part['others_minus_ours'], '+')} |"]
    best_first = sorted(part["each"].items(), key=lambda one: -one[1][0])
    return lines + [f"| {prompt} | {percent(ends)} |" for prompt, ends in best_first]


def loss_table(rows: Part) -> list[str]:
    """Returns a row per text: nats per character before and after tuning, and the difference."""
    rates = ("before", "after", "after minus before")
    lines = ["| text | passages | shared with training prose | before | tuned | tuned minus before |", "|---" * 6 + "|"]
    for name, row in rows.items():
        if isinstance(row, dict):
            losses = " | ".join(nats_per_character(row[rate], "+" if rate == rates[2] else "") for rate in rates)
            part = f"{row['shared']:.1%}" if "shared" in row else "-"
            lines.append(f"| {name} | {row['n']} | {part} | {losses} |")
    return lines


def chat_table(part: Part) -> list[str]:
    """Returns the loss of answers, and then how often both models answer the same, with the answers to `CHAT`."""
    lines = loss_table({"answers of the Debian FAQ, after their questions": part["loss"]})
    same = f"{percent(part['same_tokens'])} % of the first {NEW_TOKENS} tokens of {part['questions']} greedy answers"
    lines += ["", f"Both models agree on {same}, and on {percent(part['same_answers'])} % of the whole answers.", ""]
    lines += ["| asked, without an image | before | tuned |", "|---|---|---|"]
    for question in CHAT:
        answers = (part["answers"][question][name] for name in ("before", "after"))
        plain = (" ".join(text.replace("<|im_end|>", "").replace("|", "").split()) for text in answers)
        lines.append(f"| {question} | {' | '.join(plain)} |")
    return lines


def long_table(part: Part) -> list[str]:
    """Returns a row per page size, task and method, and a column per share of the prompt."""
    heads = (f"{share:.0%} of the prompt" for share in part["shares"])
    lines = [f"| page, task | prompt tokens | method | {' | '.join(heads)} |", "|---" * 6 + "|"]
    for name, row in part.items():
        if not isinstance(row, dict):
            continue
        full = percent(row["accuracy"]["full"])
        lines.append(f"| {name}, n = {row['n']} | {row['prompt_tokens']} | `full` | {full} | {full} | {full} |")
        for method in dict.fromkeys(name.split()[0] for name in row["accuracy"] if name != "full"):
            cells = (percent(row["accuracy"][f"{method} {budget}"]) for budget in row["budgets"])
            lines.append(f"| | | `{method}` | {' | '.join(cells)} |")
    return lines


TABLES = {
    "real_pages": real_table,
    "instructions": instruction_table,
    "chat": chat_table,
    "prose": loss_table,
    "long_pages": long_table,
}


def tables(stored: Path = STORED) -> dict[str, str]:
    """Returns the tables of docs/pretrained.md by the names of `PARTS`, in Markdown."""
    figures = json.loads(stored.read_text(encoding="utf-8")) if stored.is_file() else {}
    lines = {name: table(figures[name]) if name in figures else ["Not measured yet."] for name, table in TABLES.items()}
    return {name: "\n".join(rows) + "\n" for name, rows in lines.items()}

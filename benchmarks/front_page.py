"""Writes the results into README.md and docs/results.md, and the commands into docs: `python -m benchmarks.front_page`.

A test compares the tables with artifacts, so these pages cannot say what the results do not. The picture is that of the
stage `explore`, whose files are not in Git: name its file as the only argument to draw it anew.
"""

from __future__ import annotations

import argparse
import base64
import csv
import io
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import wrap
from typing import Any

from PIL import Image

from benchmarks import controls_tables, expectations, peers, unseen_tables, vllm
from sparsemm.cli import _parser as command_parser
from sparsemm.evaluate.rows import FULL, OVERALL, PAPER
from sparsemm.files import sha256_file, write_json
from sparsemm.recipes import Recipe
from sparsemm.statistics import Estimate
from sparsemm.studies import StudyRow, read_study
from sparsemm.studies import protocol as every_method
from sparsemm.studies.common.cut_prompts import IMAGE
from sparsemm.studies.common.heads import LAYERS, NONE, RANDOM, TOP
from sparsemm.studies.oracle import ORACLE, SELECTORS
from sparsemm.studies.retrieval import BEFORE, RETRIEVAL

ROOT = Path(__file__).parents[1]
ARTIFACTS = ROOT / "artifacts" / "benchmarks"
PICTURE = ROOT / "docs" / "method.png"
MODEL = "smollm2-llava-next"
RESULTS = ROOT / "artifacts" / "evaluate" / f"{MODEL}.csv"
ROWS = {  # of README; docs/results.md has all
    "full": "full cache of transformers",
    "sparsemm+blend-echo": "`sparsemm+blend-echo`, ours",
    "sparsemm+peak": "`sparsemm+peak`, ours, cheaper",
    "sparsemm": "`sparsemm`, as published",
    "snapkv": "`snapkv`",
    "random": "`random` heads get the slots",
}
TASKS = {"read": "words read", "qa": "exact answers"}


def table(path: Path, task: str, names: Mapping[str, str] | None = None) -> str:
    """Returns a row per method and a column per budget: accuracy with its 95 % interval, in per cent, or "refused".

    Args:
        path: file that the evaluate stage wrote.
        task: key of `TASKS`.
        names: methods to show, with what to call them; None shows all.
    """
    with open(path, newline="", encoding="utf-8") as handle:
        rows = [row for row in csv.DictReader(handle) if row["task"] == task]
    names = names or {row["method"]: f"`{row['method']}`" for row in rows}
    cells = {(row["method"], row["budget"]): row for row in rows if row["method"] in names}
    full = cells["full", ""]
    budgets = sorted({budget for _, budget in cells if budget}, key=int)
    heads = (f"{budget} slots, {int(budget) / float(full['kept_slots']):.0%} of the prompt" for budget in budgets)
    lines = [f"| {TASKS[task]} | {' | '.join(heads)} |", "|---" * (len(budgets) + 1) + "|"]
    for method, name in names.items():
        values = [_percent(cells.get((method, budget)) or cells[method, ""]) for budget in budgets]
        lines.append(f"| {name} | {' | '.join(values)} |")
    return (
        "\n".join(lines) + f"\n\nModel `{full['model']}`, {full['pages']} held-out pages, 95 % intervals in brackets.\n"
    )


def _percent(row: Mapping[str, Any]) -> str:
    if row.get("refused"):
        return "refused"
    value, low, high = (100 * float(row[name]) for name in ("value", "ci_low", "ci_high"))
    return f"{value:.0f} [{low:.0f}, {high:.0f}]"


def differences(study: str, at: str, shown: Callable[[StudyRow], bool] = lambda row: True) -> str:
    """Returns a row per comparison of a study of the model, in per cent, with the interval of the paired difference.

    Args:
        study: name of the study.
        at: what a row's level or budget is: "slots", "of the heads off".
        shown: whether a comparison is shown.
    """
    rows = read_study(ROOT / "artifacts" / "studies" / study / f"{MODEL}.csv", study, MODEL)
    lines = [f"| asked | {at} | | accuracy | minus | difference |", "|---|---|---|---|---|---|"]
    for row in rows:
        if row.difference is not None and shown(row):
            place = str(row.budget or "") if row.level is None else f"{row.level:.0%}"
            asked = ", ".join(part for part in (row.task, row.condition) if part)
            cells = asked, place, row.setting, f"{100 * row.value:.0f}", row.against, _signed(row.difference)
            lines.append(f"| {' | '.join(str(cell) for cell in cells)} |")
    pages = " or ".join(str(count) for count in sorted({row.n for row in rows if row.difference is not None and row.n}))
    return "\n".join(lines) + f"\n\nModel `{MODEL}`, n = {pages}, per cent, 95 % intervals in brackets.\n"


def _signed(one: Estimate) -> str:
    return f"{100 * one.value:+.0f} [{100 * one.low:+.0f}, {100 * one.high:+.0f}]"  # type: ignore[operator]


def selections(model: str = MODEL) -> str:
    """Returns a row per split and budget of the study `oracle` and a column per selector: accuracy in per cent."""
    rows = read_study(ROOT / "artifacts" / "studies" / "oracle" / f"{model}.csv", "oracle", model)
    cells = {(row.task, row.condition, row.budget, row.setting): row for row in rows}
    settings = [*SELECTORS, ORACLE, FULL]
    lines = [f"| asked | slots | {' | '.join(f'`{name}`' for name in settings)} |", "|---" * (len(settings) + 2) + "|"]
    for task, condition, budget in dict.fromkeys(key[:3] for key in cells if key[2] is not None):
        full = cells[task, "", None, FULL]
        values = " | ".join(_percent(dict(cells.get((task, condition, budget, name), full))) for name in settings)
        lines.append(f"| {task}, {condition} | {budget} | {values} |")
    return "\n".join(lines) + f"\n\nModel `{model}`, n = {rows[0].n}, per cent, 95 % intervals in brackets.\n"


def protocol(model: str, folder: Path = expectations.FOLDER) -> str:
    """Returns a row per method of the study `protocol` and a column per share of the prompt, or that it has not run."""
    measured = expectations.read(model, folder)
    if measured is None:
        return f"{expectations.NOT_MEASURED}\n"
    rows = read_study(folder / f"{model}.csv", "protocol", model)
    shown = every_method.tables(rows, [one.setting for one in measured.refused])[0]
    lines = [shown.header, ["---"] * len(shown.header), *shown.rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{text}\n\nModel `{model}`, n = {rows[0].n}. {shown.caption}.\n"


def recipes() -> str:
    """Returns a row per model and scenario: the method of its recipe, and its mean accuracy minus that of others."""
    lines = [
        "| model | question | method | minus `snapkv` | minus `sparsemm` | minus `full` |",
        "|---|---|---|---|---|---|",
    ]
    for path in sorted((ROOT / "artifacts" / "recipes").glob("*.json")):
        for scenario, choice in Recipe.load(path).scenarios.items():
            means = [row for row in choice.evidence if row.task == OVERALL and row.budget is None]
            differences = {row.against: row.difference.text("+") for row in means if row.method == choice.name}
            others = (differences.get(name, "-") for name in ("snapkv", "sparsemm", "full"))
            lines.append(f"| `{path.stem}` | {scenario} | `{choice.name}` | {' | '.join(others)} |")
    return "\n".join(lines if len(lines) > 2 else ["No recipe has been made yet."]) + "\n"


def commands() -> str:
    """Returns a row per command: what it does, and an example, from its own help."""
    lines = ["| command | what it does | example |", "|---|---|---|"]

    def add(name: str, parser: argparse.ArgumentParser) -> None:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for choice in action._choices_actions:
                    inner = action.choices[choice.dest]
                    if any(isinstance(one, argparse._SubParsersAction) for one in inner._actions):
                        add(f"{name} {choice.dest}", inner)
                    else:
                        example = (inner.epilog or "").removeprefix("example: ").replace("|", "\\|")
                        cells = f"`{name} {choice.dest}`", choice.help, f"`{example}`" if example else ""
                        lines.append(f"| {' | '.join(str(cell) for cell in cells)} |")

    add("sparsemm", command_parser())
    return "\n".join(lines) + "\n"


def served(file: str, measured: str = "measure") -> str:
    """Returns the medians of stock vLLM and of the plug-in in a file of `python -m benchmarks.vllm --json`."""
    stored = json.loads((ARTIFACTS / file).read_text(encoding="utf-8"))
    return "\n".join(vllm.table(stored[measured])) + "\n"


def load() -> str:
    """Returns what became of the requests of `python -m tests.vllm.load`, from its state."""
    parts = json.loads((ARTIFACTS / "vllm-load.json").read_text(encoding="utf-8"))["parts"]
    rows = {
        "right answers": sum(part["right"] for part in parts),
        "wrong answers": sum(part["wrong"] for part in parts),
        "clients that left": sum(part["left"] for part in parts),
        "preemptions": sum(int(part["preemptions"]) for part, after in zip(parts, [*parts[1:], None], strict=True)
                           if after is None or after["server"] != part["server"]),
        "MiB of the server after the first, the tenth and the last hundred":
            ", ".join(str(part["MiB"]) for part in (parts[0], parts[9], parts[-1])),
    }  # fmt: skip
    total = sum(part[name] for part in parts for name in ("right", "tied", "wrong", "left", "refused"))
    return "\n".join([f"| of {total:,} requests | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())]) + "\n"


def both_tasks() -> str:
    """Returns what reading and questions together keep of the full cache's accuracy, at two shares of `protocol`."""
    measured = expectations.read(MODEL)
    assert measured is not None
    shown = [row for row in measured.rows if row.level in expectations.SHARES]
    parts = []
    for name in ("sparsemm+blend-echo", "sparsemm", "snapkv"):
        rows = {every_method.place(row): _percent(dict(row)) for row in shown if row.setting == name}
        parts.append(f"`{name}` {' and '.join(rows.values())}")
    places = " and ".join(dict.fromkeys(map(every_method.place, shown)))
    text = f"Both tasks, per cent of the full cache's accuracy at {places} of each prompt: {', '.join(parts)}."
    return "\n".join(wrap(text, 120, break_on_hyphens=False)) + "\n"


def _top_against_random(row: StudyRow) -> bool:
    return row.setting == TOP and row.against in (RANDOM, LAYERS)


BLOCKS = {  # document -> mark -> what stands between `<!-- mark -->` and `<!-- end -->`
    "README.md": {"results": table(RESULTS, "read", ROWS), "both": both_tasks()},
    "docs/reference/commands.md": {"commands": commands()},
    "docs/pretrained.md": unseen_tables.tables()
    | {
        "real_pages continued": unseen_tables.tables(ARTIFACTS / "unseen-real-pages.json")["real_pages"],
        "controls continued": controls_tables.table(ROOT / "artifacts" / "real-pages"),
        "peers": peers.table(),
    },
    "docs/vllm.md": {
        "two": served("vllm-two.json"),
        "five": served("vllm.json"),
        "step": served("vllm-step.json"),
        "scheduler": served("vllm.json", "measure_scheduler"),
        "load": load(),
    },
    "docs/results.md": {task: table(RESULTS, task) for task in TASKS}
    | {
        "registered": differences("registered", "slots"),
        "masking": differences("masking", "of the heads off", _top_against_random),
        "language": differences(
            "language", "of the heads off", lambda row: _top_against_random(row) or row.setting == NONE
        ),
        "retrieval": differences("retrieval", "slots", lambda row: row.setting in (RETRIEVAL, BEFORE)),
        "later": differences("later", "slots", lambda row: (row.setting, row.condition) == (PAPER, IMAGE)),
        "controls smolvlm": controls_tables.table(ROOT / "artifacts" / "smolvlm"),
        "oracle": selections(),
        "oracle qwen2": selections("tiny-qwen2-vl"),
        "oracle vicuna": selections("tiny-llava-next-vicuna"),
        "expectations": expectations.table(),
        "protocol": protocol(MODEL),
        "protocol qwen2": protocol("tiny-qwen2-vl"),
        "protocol vicuna": protocol("tiny-llava-next-vicuna"),
        "recipes": recipes(),
        "controls": controls_tables.table(ROOT / "artifacts" / "controls"),
    },
}


def filled(document: str) -> str:
    """Returns the text of a document with its tables as the artifacts have them."""
    text = (ROOT / document).read_text(encoding="utf-8")
    for mark, block in BLOCKS[document].items():
        before, start, rest = text.partition(f"<!-- {mark} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        text = before + start + block + end + after
    return text


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
    """Fills the tables of README.md and docs/results.md; draws docs/method.png if its source is named.

    What the picture says goes to artifacts/benchmarks/method.json, with its hash.
    """
    if sys.argv[1:]:
        whole, texts = picture(Path(sys.argv[1]))
        whole.save(PICTURE, optimize=True)
        write_json(ARTIFACTS / "method.json", {"picture_sha256": sha256_file(PICTURE), "texts": texts})
    for document in BLOCKS:
        (ROOT / document).write_text(filled(document), encoding="utf-8")


if __name__ == "__main__":
    main()

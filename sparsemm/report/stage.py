"""The report stage: read what the other stages wrote, draw it, say what follows from it."""

from __future__ import annotations

from pathlib import Path

from sparsemm.datasets.synthetic import page_text
from sparsemm.errors import DataError
from sparsemm.files import atomic_path
from sparsemm.params import Params
from sparsemm.progress import progress
from sparsemm.report import figures
from sparsemm.report.looking import Looking, looking
from sparsemm.report.page import bullets, figure, page, paragraph, section, table
from sparsemm.report.results import (
    SHARES,
    Results,
    comparison,
    concentration,
    read_results,
    smallest_lossless,
    speed,
)

QUESTION = "Which attention heads look at the image, and how small can the KV cache be when you know?"


def run(params: Params, root: Path = Path(".")) -> None:
    """Write artifacts/report/index.html, and its figures as PNG under artifacts/report/figures.

    Raises:
        DataError: if there is no model.
        ScoreTableError: if a model has no score table.
    """
    if not params.models:
        raise DataError("no model to report on", where="params.yaml: models", hint="sparsemm models add <checkpoint>")
    results = [read_results(params, key, root) for key in params.models]
    pictures: dict[str, Looking | str] = {}
    for key, result in progress(zip(params.models, results, strict=True), len(results), "report: heads on a page"):
        pictures[key] = looking(params, key, result.table, root)
    images: dict[str, bytes] = {}
    parts = [summary(results), heads(results, images)]
    parts += [model(result, pictures[result.key], images) for result in results]
    parts.append(method_notes(params))
    contents = [("found", "What was found"), ("heads", "Heads"), *((r.key, r.key) for r in results), ("how", "How")]
    folder = root / "artifacts" / "report"
    for name, image in images.items():
        with atomic_path(folder / "figures" / f"{name}.png") as temporary:
            temporary.write_bytes(image)
    with atomic_path(folder / "index.html") as temporary:
        temporary.write_text(page("SparseMM: visual heads and KV-cache budgets", contents, *parts), encoding="utf-8")


def _sentences(result: Results) -> list[str]:
    found = [concentration(result)]
    for task in result.tasks():
        said = [smallest_lossless(result, task)]
        said += [comparison(result, task, m) for m in result.methods() if m not in ("full", "sparsemm")]
        found += [f"{task}: {sentence}" for sentence in said if sentence]
    return [*found, *filter(None, [speed(result)])]


def summary(results: list[Results]) -> str:
    """The findings, generated from the tables."""
    parts = [
        paragraph(QUESTION),
        paragraph(
            "Every sentence below is generated from the tables of this page. Better and worse mean that the 95 % "
            "bootstrap interval of the paired difference excludes zero; the intervals are not corrected for the number "
            "of comparisons. B is the mean number of tokens kept per KV head; all methods keep the same total."
        ),
    ]
    for result in results:
        parts.append(f"<h3>{_name(result)}</h3>")
        if result.note:
            parts.append(paragraph(f"* {result.note}", "note"))
        parts.append(bullets(_sentences(result)))
    return section("found", "What was found", *parts)


def _name(result: Results) -> str:
    from html import escape

    return escape(result.name)


def heads(results: list[Results], images: dict[str, bytes]) -> str:
    """Concentration of the scores over all models."""
    images["score-curve"] = figures.share_curve(results)
    rows = []
    for result in results:
        metrics, kept = result.align, result.table
        shares = [f"{kept.top_share(fraction):.1%}" for fraction in SHARES]
        found = f"{metrics['share_found']:.1%}" if "share_found" in metrics else "-"
        rows.append([result.name, str(kept.scores.size), *shares, f"{kept.split_half():.3f}", found])
    header = ["model", "heads", *(f"top {fraction:.0%}" for fraction in SHARES), "split-half r", "words read"]
    return section(
        "heads",
        "How few heads do the looking",
        figure(
            images["score-curve"],
            "Cumulative share of the visual score over heads, one line per model",
            "Share of the visual score held by the best heads. The further a line bends away from the even spread, "
            "the fewer heads do the looking.",
        ),
        table(header, rows),
        paragraph(
            "Words read is the share of words on the calibration pages that the model says in order; the others are "
            "not scored. Split-half r compares the scores of even and odd samples. These are small models that do "
            "nothing but read: how sparse they are says little about models of 7B parameters."
        ),
    )


def model(result: Results, picture: Looking | str, images: dict[str, bytes]) -> str:
    """Everything about one model."""
    key = result.key
    parts = [paragraph(f"* {result.note}", "note")] if result.note else []
    held = result.card.get("held_out", {})
    styles = [(name, value) for name, value in held.items() if isinstance(value, dict)]
    if styles:
        said = "; ".join(
            f"{n}: {v['word_accuracy']:.1%} of words, {v['exact_match']:.1%} of answers" for n, v in styles
        )
        parts.append(paragraph(f"Trained in this repository. Held-out pages, full cache: {said}."))
    images[f"heads-{key}"] = figures.heat_map(result)
    parts.append(
        figure(
            images[f"heads-{key}"],
            f"Heat map of visual scores of {key}, layers by heads",
            "Share of the visual score of every head. A head scores when the position it attends to most, over the "
            "whole prompt, lies on the word the model is about to say.",
        )
    )
    if isinstance(picture, Looking):
        entry = picture.record.entries[picture.entry]
        images[f"looking-{key}"] = figures.overlay(picture.record.image, entry.box, picture.views)
        parts.append(
            figure(
                images[f"looking-{key}"],
                f"Attention of four heads of {key} over a page",
                f"Where three visual heads and the last-ranked head look just before the model says {entry.text!r} "
                f"(outlined). Colours are scaled per head. The page: {page_text(picture.record)!r}.",
            )
        )
    else:
        parts.append(paragraph(f"No picture of its heads: {picture}."))
    if not result.evaluation:
        parts.append(paragraph("Not evaluated yet.", "note"))
    for task in result.tasks():
        images[f"accuracy-{key}-{task}"] = figures.accuracy(result, task)
        n = next(row["n"] for row in result.evaluation if row["task"] == task)
        parts.append(f"<h3>{task}: accuracy against budget</h3>")
        parts.append(
            figure(
                images[f"accuracy-{key}-{task}"],
                f"Accuracy against budget of every method, {key}, {task}",
                f"{n} pages. Bars are 95 % bootstrap intervals over pages; the line and band are the full cache.",
            )
        )
        parts.append(_accuracy_table(result, task))
    if not result.profile:
        parts.append(paragraph("Not profiled yet.", "note"))
    else:
        images[f"latency-{key}"] = figures.latency(result)
        device = f"{result.machine.get('device')}, {result.machine.get('threads')} threads"
        versions = f"torch {result.machine.get('torch')}, transformers {result.machine.get('transformers')}"
        parts.append("<h3>Time and bytes</h3>")
        parts.append(
            figure(
                images[f"latency-{key}"],
                f"Decode latency and bytes held against prompt length, {key}",
                f"Medians on {device}; {versions}. transformers is its own growing cache with sdpa, in the same run.",
            )
        )
        columns = "method budget prompt_length prefill_ms decode_ms_per_token decode_ratio_to_full kept_bytes".split()
        header = [column.replace("_", " ") for column in columns]
        parts.append(table(header, ([row.get(column) or "-" for column in columns] for row in result.profile)))
    return section(key, result.name, *parts)


def _accuracy_table(result: Results, task: str) -> str:
    rows = []
    for row in result.evaluation:
        if row["task"] == task:
            interval = f"[{float(row['ci_low']):.3f}, {float(row['ci_high']):.3f}]"
            against = "-"
            if row["diff_ci_low"]:
                low, high = float(row["diff_ci_low"]), float(row["diff_ci_high"])
                against = f"{float(row['diff_vs_sparsemm']):+.3f} [{low:+.3f}, {high:+.3f}]"
            kept = f"{float(row['kept_slots']):.1f}"
            value = f"{float(row['value']):.3f}"
            rows.append([row["method"], row["budget"] or "all", kept, row["bytes"], value, interval, against])
    header = ["method", "B", "slots kept", "bytes", "accuracy", "95 % interval", "minus sparsemm"]
    return table(header, rows)


def method_notes(params: Params) -> str:
    """How the numbers were made."""
    given, asked = params.allocate, params.evaluate
    return section(
        "how",
        "How this was measured",
        bullets(
            [
                f"Scores: {params.chase.answer} answers to {params.chase.prompt!r} over the data set "
                f"{params.chase.dataset!r}; the row that predicts a token counts, argmax of q.k in fp32 over the whole "
                "prefix; a hit weighs one over the number of visual tokens under the word.",
                f"Budgets: window {given.window}, rho {given.rho}, mode {given.mode}; observation scores are pooled "
                f"over {asked.pooling_kernel} positions for every method.",
                f"Accuracy: {asked.samples} pages of {asked.dataset!r}, which share no page with training or "
                f"calibration; {asked.bootstrap} bootstrap resamples, paired over pages. read is word accuracy (one "
                "minus the word error rate), qa is exact match.",
                "sparsemm, random and the others hold exactly the same number of slots; bytes are keys and values.",
            ]
        ),
    )

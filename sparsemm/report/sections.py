"""The sections of the page: what was found, the heads, every model, and how it was measured."""

from __future__ import annotations

from sparsemm.datasets.synthetic import page_text
from sparsemm.params import Params
from sparsemm.report import efficiency, figures
from sparsemm.report.findings import (
    comparison,
    concentration,
    difference,
    equal_slots,
    in_short,
    lossless_from,
    smallest_lossless,
    speed,
    verdict,
    verdicts,
)
from sparsemm.report.looking import Looking
from sparsemm.report.page import bullets, details, figure, heading, paragraph, section, table
from sparsemm.report.results import SHARES, Results, Row

QUESTION = "Which attention heads look at the image, and how small can the KV cache be when you know?"
NOT_EVALUATED = "Not evaluated yet."
NOT_PROFILED = "Not profiled yet."


def anchor(result: Results) -> str:
    """Where a model's section is; its key alone could be the name of another section."""
    return f"model-{result.key}"


def _sentences(result: Results) -> list[str]:
    found = [concentration(result)]
    for task in result.tasks():
        said = [smallest_lossless(result, task)]
        said += [comparison(result, task, m) for m in result.methods() if m not in ("full", "sparsemm")]
        found += [f"{task}: {sentence}" for sentence in said if sentence]
    if not result.evaluation:
        found.append(NOT_EVALUATED)
    return [*found, *(speed(result) or [NOT_PROFILED])]


def summary(results: list[Results]) -> str:
    """The findings, generated from the tables."""
    parts = [
        paragraph(QUESTION),
        paragraph(
            "Every sentence below is generated from the tables of this page. B is the mean number of tokens kept per "
            "KV head. Better and worse mean that the 95 % bootstrap interval of the paired difference over pages "
            "excludes zero; no difference shown means that it does not, not that the two are equal. The intervals are "
            "not corrected for the number of comparisons."
        ),
        heading("In short"),
        bullets(in_short(results)),
    ]
    if any(result.evaluation for result in results):
        parts.append(_verdict_table(results))
    for result in results:
        parts.append(heading(result.name))
        if result.note:
            parts.append(paragraph(f"* {result.note}", "note"))
        parts.append(bullets(_sentences(result)))
    return section("found", "What was found", *parts)


def _verdict_table(results: list[Results]) -> str:
    others = dict.fromkeys(m for r in results for m in r.methods() if m not in ("full", "sparsemm"))
    rows = []
    for result in results:
        for task in result.tasks():
            cells = []
            for method in others:
                found = verdicts(result, task, method)
                counts = [str(len(found.get(w, ()))) for w in ("better", "no difference shown", "worse")]
                cells.append(" / ".join(counts) if found else "-")
            cells.append("-" if smallest_lossless(result, task) is None else lossless_from(result, task) or "none")
            rows.append([result.label, task, *cells])
        if not result.evaluation:
            rows.append([result.label, "not evaluated yet", *["-"] * (len(others) + 1)])
    header = ["model", "task", *(f"vs {method}" for method in others), "not shown worse than full from B ="]
    return table(header, rows, "sparsemm against every method: budgets at which it is better / undecided / worse")


def heads(results: list[Results], images: dict[str, bytes]) -> str:
    """Concentration of the scores over all models."""
    images["score-curve"] = figures.share_curve(results)
    rows, tops = [], []
    for result in results:
        metrics, kept = result.align, result.table
        shares = [f"{kept.top_share(fraction):.1%}" for fraction in SHARES]
        found = f"{metrics['share_found']:.1%}" if "share_found" in metrics else "-"
        samples = str(len(kept.per_sample))
        rows.append([result.label, str(kept.scores.size), *shares, f"{kept.split_half():.3f}", samples, found])
        tops.append(f"{result.name}: {kept.top_share(0.05):.0%} in the top 5 %")
    header = ["model", "heads", *(f"top {f:.0%}" for f in SHARES), "split-half r", "samples", "words read"]
    parts = [
        figure(
            images["score-curve"],
            f"Line chart: cumulative share of the visual score over heads, best first. {'; '.join(tops)}.",
            "Share of the visual score held by the best heads. The further a line bends away from the even spread, "
            "the fewer heads do the looking. A * marks a declared test model."
            if any(result.note for result in results)
            else "Share of the visual score held by the best heads. The further a line bends away from the even "
            "spread, the fewer heads do the looking.",
        ),
        table(header, rows, "Share of the visual score in the best heads, and how stable it is"),
        paragraph(
            "Words read is the share of words on the calibration pages that the model says in order; the others are "
            "not scored. Split-half r is the correlation between the scores of even and odd samples: near 1, other "
            "pages of this kind would rank the heads alike; near 0, the ranking is noise."
        ),
    ]
    if trained := [result.key for result in results if result.card]:
        parts.append(
            paragraph(
                f"Small models trained in this repository: {', '.join(trained)}. How sparse their heads are says "
                "little about models a thousand times their size.",
                "note",
            )
        )
    return section("heads", "How few heads do the looking", *parts)


def model(result: Results, picture: Looking | str, images: dict[str, bytes]) -> str:
    """Everything about one model."""
    parts = [paragraph(f"* {result.note}", "note")] if result.note else []
    parts += [_card(result), _heat_map(result, images), _picture(result, picture, images)]
    if not result.evaluation:
        parts.append(paragraph(NOT_EVALUATED, "note"))
    for task in result.tasks():
        parts.append(heading(f"{task}: accuracy against budget"))
        parts.append(_accuracy(result, task, images))
    parts.append(_profile(result, images) if result.profile else paragraph(NOT_PROFILED, "note"))
    return section(anchor(result), result.name, *parts)


def _card(result: Results) -> str:
    held = result.card.get("held_out", {})
    columns = ("word_accuracy", "exact_match")
    rows = [
        [f"{result.label}, {style}", *(f"{value[column]:.1%}" for column in columns)]
        for style, value in (held.items() if isinstance(held, dict) else ())
        if isinstance(value, dict) and all(isinstance(value.get(column), float | int) for column in columns)
    ]
    if not rows:
        return ""
    pages = f" ({held['pages_per_style']} pages each)" if "pages_per_style" in held else ""
    return table(
        ["pages", "words read", "exact answers"],
        rows,
        f"How well it reads held-out pages with the full cache, from its card{pages}",
    )


def _heat_map(result: Results, images: dict[str, bytes]) -> str:
    image = images[f"heads-{result.key}"] = figures.heat_map(result)
    share = result.table.normalised()
    best = ", ".join(f"layer {at} head {head} ({part:.0%})" for at, head, part in result.table.top_heads(3))
    quiet = int((share < 0.1 / share.size).sum())
    return figure(
        image,
        f"Heat map of visual scores of {result.key}, {share.shape[0]} layers by {share.shape[1]} heads. "
        f"Brightest: {best}.",
        "Share of the visual score of every head. A head scores when the position it attends to most, over the whole "
        f"prompt, lies on the word the model is about to say. Brightest: {best}. "
        f"{quiet} of {share.size} heads have less than a tenth of an even share.",
    )


def _picture(result: Results, picture: Looking | str, images: dict[str, bytes]) -> str:
    if isinstance(picture, str):
        return paragraph(f"No picture of its heads at work: {picture}.", "note")
    entry = picture.record.entries[picture.entry]
    image = images[f"looking-{result.key}"] = figures.overlay(picture.record.image, entry.box, picture.views)
    which = "; ".join(", ".join(view.title.split("\n")) for view in picture.views)
    thumbnail = ""
    if any(view.coarse.any() for view in picture.views):
        thumbnail = (
            "Orange is attention on the page in full resolution, green on the thumbnail, a coarser second view of the "
            "page that never scores. "
        )
    return figure(
        image,
        f"Attention of {len(picture.views)} heads of {result.key} over a page, as the model is about to say "
        f"{entry.text!r}. {which}.",
        f"Where the heads with the highest scores and the one with the lowest look just before the model says "
        f"{entry.text!r} (blue outline): the darker, the more attention, on one scale for all. "
        f"{thumbnail}A head with a high score looks at the word for many tokens, not for all. One word of one page "
        "illustrates, it is no evidence. "
        f"The page reads {page_text(picture.record)!r}, the model says {picture.said!r}.",
    )


def _accuracy(result: Results, task: str, images: dict[str, bytes]) -> str:
    image = images[f"accuracy-{result.key}-{task}"] = figures.accuracy(result, task)
    rows = [row for row in result.evaluation if row["task"] == task]
    found = [smallest_lossless(result, task)]
    found += [comparison(result, task, m) for m in result.methods() if m not in ("full", "sparsemm")]
    said = " ".join(sentence for sentence in found if sentence)
    shown = figure(
        image,
        f"Line chart: {task} accuracy of {result.key} against slots kept, one line per method. {said}",
        f"{rows[0]['n']} pages. Bars are 95 % bootstrap intervals over pages; the line and its band are the full "
        "cache. Methods are compared page by page, so a difference can be shown although the bars overlap: the table "
        "has these differences.",
    )
    header = ["method", "B", "slots kept", "bytes", "accuracy", "95 % interval"]
    header += ["minus sparsemm", "sparsemm is", "minus full", "against full"]
    listed = table(header, map(_accuracy_row, rows), f"{result.label}: {task}, {rows[0]['metric'].replace('_', ' ')}")
    return shown + details("All numbers", listed)


def _accuracy_row(row: Row) -> list[str]:
    return [
        row["method"],
        row["budget"] or "all",
        f"{float(row['kept_slots']):.1f}",
        f"{int(row['bytes']):,}",
        f"{float(row['value']):.3f}",
        f"[{float(row['ci_low']):.3f}, {float(row['ci_high']):.3f}]",
        difference(row, "diff_vs_sparsemm"),
        verdict(row) if row["diff_ci_low"] else "-",
        difference(row, "diff_vs_full"),
        verdict(row, "diff_full") if row["diff_full_ci_low"] else "-",
    ]


def _profile(result: Results, images: dict[str, bytes]) -> str:
    image = images[f"latency-{result.key}"] = efficiency.figure(result.name, result.profile)
    given = result.machine
    known = [f"{name} {given[name]}" for name in ("device", "threads", "torch", "transformers") if name in given]
    said = " ".join(speed(result))
    shown = figure(
        image,
        f"Three line charts against prompt length for {result.key}: milliseconds a token, most memory and bytes "
        f"held. {said}",
        f"Medians, {', '.join(known) or 'machine unknown'}. The method called transformers is its own growing cache "
        f"with sdpa, in the same run. Times have no interval; bytes are exact. Dotted: bytes of weights and kept keys "
        "and values over the bandwidth of a copy, no bound where they fit into the processor's own caches. "
        f"Most memory counts the weights. {said}",
    )
    header = ["method", "B", "prompt", "prefill ms", "compression", "ms a token", "times transformers"]
    header += ["tokens a second", "most bytes", "bytes held"]
    rows = [
        [
            row["method"],
            row["budget"] or "all",
            row["prompt_length"],
            f"{float(row['prefill_ms']):.1f}",
            f"{float(row['compression_share']):.1%}",
            f"{float(row['decode_ms_per_token']):.2f}",
            f"{float(row['decode_ratio_to_full']):.2f}",
            f"{float(row['tokens_per_second']):.0f}",
            f"{int(row['peak_bytes']):,}",
            f"{int(row['kept_bytes']):,}",
        ]
        for row in result.profile
    ]
    listed = table(header, rows, f"{result.label}: time and bytes")
    return heading("Time and bytes") + shown + details("All numbers", listed)


def method_notes(params: Params, results: list[Results]) -> str:
    """How the numbers were made."""
    given, asked = params.allocate, params.evaluate
    notes = [
        f"Scores: {params.chase.answer} answers to {params.chase.prompt!r} over the data set "
        f"{params.chase.dataset!r}; the row that predicts a token counts, argmax of q.k in fp32 over the whole "
        "prefix; a hit weighs one over the number of visual tokens under the word. The top 5 % of heads are the "
        "nearest whole number of heads, at least one.",
        f"Budgets: window {given.window}, rho {given.rho}, mode {given.mode}; observation scores are pooled over "
        f"{asked.pooling_kernel} positions for every method.",
        f"Accuracy: {asked.samples} pages of {asked.dataset!r}, drawn from another split than the calibration pages; "
        f"{asked.bootstrap} bootstrap resamples, paired over pages. read is word accuracy (one minus the word error "
        "rate), qa is exact match.",
        "Not measured: other seeds of the same checkpoint. An interval says how far other pages could move a number, "
        "not how far another training run could.",
    ]
    if slots := equal_slots(results):
        notes.append(slots)
    return section("how", "How this was measured", bullets(notes))

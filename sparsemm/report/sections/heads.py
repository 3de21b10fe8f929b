"""How concentrated the visual score is, over all models and head by head."""

from __future__ import annotations

from sparsemm.report import charts
from sparsemm.report.findings import at_least, concentration
from sparsemm.report.images import data_uri
from sparsemm.report.page import chart, pair, paragraph, pictures, table
from sparsemm.report.page import heading as page_heading
from sparsemm.report.results import SHARES, Results
from sparsemm.report.sections.material import Material
from sparsemm.report.views import Views, head_views, picture

READING = (
    "Words read is the share of words on the calibration pages that the model says{}; the others are not scored. "
    "Split-half r is Pearson's correlation between the scores of even and odd samples, rounded down: near 1, "
    "other pages of this kind would give the heads of large score alike, which decide it; near 0, the scores are noise."
)

NOT_VISUAL = "Non-visual heads, of zero score (or the least), at the same moment."
SCALE = (
    "The stronger the colour, the more attention, on one scale for all six; orange is the page, green its thumbnail. "
    "One page illustrates, it is no evidence: the heat map is."
)


def parts(material: Material) -> list[str]:
    """The curves and shares of all models, then every model's heat map."""
    results = material.results
    tops = [f"{result.name}: {result.table.top_share(0.05):.0%} in the top 5 %" for result in results]
    marked = " A * marks a declared test model." if any(result.note for result in results) else ""
    found = [
        chart(
            charts.sorted_scores(results),
            f"Line charts over heads, best first: the score of each head, and the share so far. {'; '.join(tops)}.",
            "Above, the score of every head as a multiple of an even share; below, the share that the best heads hold "
            "together. The further a line bends away from the even spread, the fewer heads do the looking." + marked,
        ),
        table(*_shares(results)),
        paragraph(READING.format(" in order" if material.params.chase.align == "ordered" else "")),
    ]
    if trained := [result.key for result in results if result.card]:
        said = f"Small models trained in this repository: {', '.join(trained)}. How sparse their heads are says little "
        found.append(paragraph(said + "about models a thousand times their size.", "note"))
    for result in results:
        found += [page_heading(result.name), paragraph(concentration(result)), _heat_map(result)]
        found += [_on_a_page(result.key, head_views(material.seen[result.key], result.table)), _card(result)]
    return found


def _shares(results: list[Results]) -> tuple[list[str], list[list[str]], str]:
    rows = []
    for result in results:
        metrics, kept = result.align, result.table
        shares = [f"{kept.top_share(fraction):.1%}" for fraction in SHARES]
        read = f"{metrics['share_found']:.1%}" if "share_found" in metrics else "-"
        samples = str(len(kept.per_sample))
        rows.append([result.label, str(kept.scores.size), *shares, at_least(kept.split_half()), samples, read])
    header = ["model", "heads", *(f"top {f:.0%}" for f in SHARES), "split-half r", "samples", "words read"]
    return header, rows, "Share of the visual score in the best heads, and how stable it is"


def _heat_map(result: Results) -> str:
    share = result.table.normalised()
    best = ", ".join(f"layer {at} head {head} ({part:.0%})" for at, head, part in result.table.top_heads(3))
    quiet = int((share < 0.1 / share.size).sum())
    return chart(
        charts.heat_map(result.table),
        f"Heat map of visual scores of {result.key}, {share.shape[0]} layers by {share.shape[1]} heads. "
        f"Brightest: {best}.",
        f"Share of the visual score of every head. Brightest: {best}. {quiet} of {share.size} heads have less than a "
        "tenth of an even share. A click opens a head in the explorer.",
        model=result.key,
    )


def _on_a_page(key: str, views: Views | None) -> str:
    """Pictures of visual heads and of others, side by side; nothing where no page was looked at."""
    if views is None:
        return ""
    moment = f"just before {key} says \u201c{views.word}\u201d (blue)"
    kinds = ((f"Visual heads, best by score, {moment}.", views.visual), (NOT_VISUAL, views.others))
    made = (
        pictures(
            [
                (data_uri(picture(views, view), 0), f"{view.title}: {view.said}", f"{view.title}: {view.said}.")
                for view in shown
            ],
            caption,
        )
        for caption, shown in kinds
    )
    return pair(*made) + paragraph(SCALE, "quiet")


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
    header = ["pages", "words read", "exact answers"]
    return table(header, rows, f"How well it reads held-out pages with the full cache, from its card{pages}")

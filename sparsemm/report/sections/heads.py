"""Shows how concentrated the visual score is, head by head, and how well other data sets agree."""

from __future__ import annotations

from sparsemm.report import charts
from sparsemm.report.findings import at_least
from sparsemm.report.html import chart, details, pair, paragraph, pictures, table, tabs
from sparsemm.report.results import Model, Results
from sparsemm.scores import top_count

SHARES = (0.01, 0.02, 0.05, 0.10, 0.20)
READING = (
    "Words read is the share of words on the calibration pages that the model reads{}; only these are scored. "
    "Split-half r is Pearson's correlation between the scores of even and odd samples, rounded down. Near 1, other "
    "pages of this kind would give the same heads of large score, which dominate r; near 0, the scores are noise."
)
SMALL = (
    "Trained from nothing in this repository, and very small: {}. How sparse their heads are says little about models "
    "a thousand times larger."
)
TUNED = "{} is the pretrained language model {}, which was tuned in this repository to read pages."
SCALE = (
    "The stronger the colour, the more attention, on the same scale in all pictures; orange is the page, green its "
    "thumbnail. One page is an illustration; the heat map is the evidence."
)
AGREEMENT = "Two tables cannot agree better than each agrees with itself, which the split-half correlation shows."
RATES = (
    "Share of answer tokens whose box heads attend to, for words that the model reads, with bootstrap intervals over "
    "samples. The best heads are chosen on the same samples, so compare bins with each other. Box height measures font "
    "size if boxes enclose the text{}."
)
DRAWN = "; all lines of synthetic pages have the same height, and data sets differ in the size of the letters"


def parts(results: Results) -> list[str]:
    """Shows curves and shares of all models, then every model on its own."""
    models = results.evidence or results.models
    tops = "; ".join(f"{model.label}: {model.heads.top_share(0.05):.0%} in the top 5 %" for model in models)
    caption = "The further a line bends away from the even spread, the fewer heads attend to the image."
    small = ", ".join(model.key for model in models if model.small and not model.base)
    notes = [TUNED.format(model.label, model.base) for model in models if model.base]
    notes += [SMALL.format(small)] if small else []
    in_order = " in order" if results.params.chase.align == "ordered" else ""
    return [
        chart(charts.score_curves(models), f"Line charts over heads, best first. {tops}.", caption),
        table(*_shares(models)),
        details("How to read these numbers", paragraph(READING.format(in_order)), paragraph(AGREEMENT)),
        paragraph(" ".join(notes), "note"),
        tabs("heads", [(model.label, of_model(results, model)) for model in models]),
    ]


def _shares(models: list[Model]) -> tuple[list[str], list[list[str]], str]:
    rows = []
    for model in models:
        heads = model.heads
        shares = [f"{heads.top_share(fraction):.1%}" for fraction in SHARES]
        stable = [at_least(heads.metrics.split_half), str(heads.metrics.samples), _percent(heads.words_read)]
        rows.append([model.label, str(heads.shares.size), *shares, *stable])
    header = ["model", "heads", *(f"top {share:.0%}" for share in SHARES), "split-half r", "samples", "words read"]
    return header, rows, "Share of the visual score in the best heads, and how stable it is"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def of_model(results: Results, model: Model) -> str:
    """Shows one model: its concentration, the heat map beside pictures of attention, and other data sets."""
    return (
        paragraph(concentration(model))
        + pair(_heat_map(model), _on_a_page(model))
        + _other_data(results, model)
        + _rates(results, model)
        + _card(model)
    )


def concentration(model: Model) -> str:
    """Describes how few heads hold the score, and how stable it is."""
    heads = model.heads
    count, total = top_count(heads.shares.size, 0.05), heads.shares.size
    layer, head, share = heads.ranked[0]
    rate = heads.metrics.top_head_hit_rate
    hits = f" and attends to the right word for {rate:.0%} of tokens" if rate is not None else ""
    r = heads.metrics.split_half
    stable = (
        "The stability of these scores is unknown, because one half of the samples gives no scores to compare."
        if r is None
        else f"Scores from one half of the samples agree with the other half at Pearson's r = {at_least(r)}."
    )
    return (
        f"The top 5 % of heads ({count} of {total}) hold {heads.top_share(0.05):.0%} of the visual score; an even "
        f"spread would give them {count / total:.0%}. The best head (layer {layer}, head {head}) alone holds "
        f"{share:.0%}{hits}. {stable}"
    )


def _heat_map(model: Model) -> str:
    share = model.heads.shares
    best = ", ".join(f"layer {layer} head {head} ({part:.0%})" for layer, head, part in model.heads.ranked[:3])
    quiet = int((share < 0.1 / share.size).sum())
    return chart(
        charts.heat_map(model.heads, ""),
        f"Heat map of visual scores of {model.key}, {share.shape[0]} layers by {share.shape[1]} heads. Brightest: "
        f"{best}.",
        f"Share of the visual score of every head. Brightest: {best}. {quiet} of {share.size} heads have less than a "
        "tenth of an even share. Click on a head to open it in the explorer.",
        model=model.key,
    )


def _on_a_page(model: Model) -> str:
    """Shows pictures of visual and other heads on one page, if the explore stage has made them."""
    views = model.explorer.get("views")
    if not views:
        return ""
    moment = f"just before {model.key} reads “{views['word']}” (blue)"
    return (
        pictures(views["visual"], f"Visual heads with the highest scores, {moment}.")
        + pictures(views["others"], "Heads with a score of zero (or the lowest), at the same moment.")
        + paragraph(SCALE, "quiet")
    )


def _other_data(results: Results, model: Model) -> str:
    """Shows how well tables over other data sets agree with that of the calibration set, and their heat maps."""
    if not model.others:
        return ""
    calibration = results.params.chase.dataset
    header = ["data set", "rank correlation", "top 5 % shared", "top 10 % shared"]
    header += ["split-half r", "samples", "words read"]
    rows, maps = [], []
    most = 100 * max(float(heads.shares.max()) for heads in (model.heads, *model.others.values()))
    for name, heads in {calibration: model.heads, **model.others}.items():
        r = at_least(model.heads.correlation(heads))
        if name != calibration:
            shared = [f"{model.heads.overlap(heads, fraction):.0%}" for fraction in (0.05, 0.10)]
            stable = [at_least(heads.metrics.split_half), str(heads.metrics.samples), _percent(heads.words_read)]
            rows.append([name, r, *shared, *stable])
        alt = f"Heat map of visual scores of {model.key} over the data set {name}. Rank correlation {r}."
        maps.append(chart(charts.heat_map(heads, name, most), alt, f"{name}: all data sets on the same scale."))
    numbers = table(header, rows, f"{model.label}: tables over other data sets against that of {calibration!r}")
    return details("Do other data sets find the same heads?", numbers, pair(*maps))


def _rates(results: Results, model: Model) -> str:
    """Shows hit rates by kind of text, for every data set."""
    header = ["kind of text", "best 5 % of heads", "95 % interval", "all heads", "samples", "answer tokens"]
    tables = []
    for name, heads in {results.params.chase.dataset: model.heads, **model.others}.items():
        rows = [
            [
                rate.name,
                f"{rate.top_heads:.1%}",
                f"{rate.ci_low:.1%} to {rate.ci_high:.1%}" if rate.samples > 1 else "-",
                f"{rate.all_heads:.1%}",
                str(rate.samples),
                str(rate.tokens),
            ]
            for rate in heads.rates
        ]
        dataset = results.params.datasets.get(name)
        drawn = DRAWN if dataset is not None and dataset.source == "synthetic" else ""
        tables += [table(header, rows, f"{model.label}, {name}. {RATES.format(drawn)}")] if rows else []
    return details("Hit rates by size, script and kind of the text", *tables)


def _card(model: Model) -> str:
    header = ["pages", "words read", "exact answers"]
    rows = [[style, f"{n.word_accuracy:.1%}", f"{n.exact_match:.1%}"] for style, n in model.held_out.items()]
    caption = f"{model.label}: how well it reads held-out pages with the full cache, from its card"
    return details("How well it reads", table(header, rows, caption)) if rows else ""

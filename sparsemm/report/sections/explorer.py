"""Builds the frame of the explorer, with labelled controls and empty charts that explorer.js fills."""

from __future__ import annotations

from sparsemm.report.html import data, details, paragraph
from sparsemm.report.results import Model, Results
from sparsemm.report.style import method_style

CONTROLS = ("model", "page", "layer", "head", "method", "budget", "view")
LEAD = (
    "Select a head, here or by clicking on a heat map, and a token of the answer. The page shows what the head attends "
    "to just before the model produces the token: the stronger the orange, the more attention. Select a method to see "
    "which positions it keeps in this head's KV head after the prompt: evicted positions fade."
)
KEYS = (
    "Keys: on the heat map, arrows select layer and head, Page Up and Page Down the rank, Home the best head; on the "
    "answer, arrows select the token."
)
ILLUSTRATES = (
    "Single pages are illustrations, not evidence: a head with a high score finds many words, but not every one."
)
FRAME = """
<div id="explorer-app" hidden>
<div class="controls">{controls}</div>
<p id="explorer-facts" role="status" aria-live="polite"></p>
<div class="beside">
<figure><div id="explorer-heads" class="plot" tabindex="0" role="group"
 aria-label="Scores of all heads. Arrow keys choose layer and head, Page Up and Page Down the next rank."></div>
<figcaption>Share of the visual score; the frame is the chosen head.</figcaption></figure>
<figure><div id="explorer-sight" class="plot" role="img" aria-label="The page"></div>
<figcaption id="explorer-legend"></figcaption></figure>
</div>
<p class="label" id="explorer-answer">The answer, token by token <span class="quiet">(dotted: of a word on the page;
 orange: this head looks at that word)</span></p>
<div id="explorer-tokens" role="radiogroup" aria-labelledby="explorer-answer"></div>
<p id="explorer-rest" class="quiet"></p>
<figure><div id="explorer-kept" class="plot" role="img" aria-label="Kept positions"></div>
<figcaption>What every method keeps of the prompt in <span id="explorer-where"></span>: slots in all, and in brackets
 those that hold visual tokens.</figcaption></figure>
</div>
"""


def parts(results: Results) -> list[str]:
    """Shows the frame with its data, and names models that are not in it. It is empty before the explore stage."""
    missing = [
        paragraph(f"{model.label} is not in the explorer: {model.explorer['reason']}.", "note")
        for model in results.models
        if model.explorer.get("reason")
    ]
    shown = [model for model in results.models if model.explorer.get("pages")]
    if not shown:
        return missing
    controls = "".join(
        f'<label for="explorer-{name}">{name.capitalize()}<select id="explorer-{name}"></select></label>'
        for name in CONTROLS
    )
    pages = [page for model in shown for page in model.explorer["pages"]]
    methods = dict.fromkeys(kept["method"] for page in pages for kept in page["kept"])
    colours = {method: method_style(method).colour for method in methods}
    values = {"models": [_values(model) for model in shown], "colours": colours}
    return [
        paragraph(LEAD),
        FRAME.format(controls=controls),
        details("Keys, and what a page shows", paragraph(KEYS), paragraph(ILLUSTRATES)),
        *missing,
        data(values, "explorer-data"),
    ]


def _values(model: Model) -> dict[str, object]:
    names = ("hits", "tokens", "kvHeads", "pages")
    values = {name: model.explorer[name] for name in names}
    return {"key": model.key, "name": model.label, "share": model.heads.shares.round(6).tolist(), **values}

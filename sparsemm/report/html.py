"""Builds HTML elements and the page around them: a single file that needs no network and can be read on a phone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from sparsemm.report.charts import Chart
from sparsemm.report.style import Style

# With this policy the browser ensures that the page loads nothing and sends nothing.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
NO_SCRIPT = "The charts and the explorer need JavaScript, which is part of this file. Every table works without it."
SCRIPTS = ("charts.js", "tabs.js", "explorer_data.js", "explorer_views.js", "explorer.js")
SWIPE = "Scroll sideways for more columns."


def paragraph(text: str, css: str = "") -> str:
    """Returns an escaped paragraph, or nothing if the text is empty."""
    attribute = f' class="{escape(css)}"' if css else ""
    return f"<p{attribute}>{escape(text)}</p>" if text else ""


def link(text: str, address: str) -> str:
    """Returns a paragraph that is a link."""
    return f'<p class="quiet"><a href="{escape(address, quote=True)}">{escape(text)}</a></p>'


def bullets(items: Iterable[str]) -> str:
    """Returns an escaped list of the items that are not empty, or nothing if all are."""
    body = "".join(f"<li>{escape(item)}</li>" for item in items if item)
    return f"<ul>{body}</ul>" if body else ""


def terms(glossary: Iterable[tuple[str, str]]) -> str:
    """Returns a list of terms with their definitions."""
    return "<dl>" + "".join(f"<dt>{escape(term)}</dt><dd>{escape(text)}</dd>" for term, text in glossary) + "</dl>"


def data(value: Any, anchor: str = "") -> str:
    """Returns a script element with JSON values for the page's scripts. Raises ValueError if a number is not finite."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    name = f' id="{escape(anchor, quote=True)}"' if anchor else ""
    return f'<script type="application/json"{name}>{text}</script>'


def chart(chart: Chart | dict[str, Any], alt: str, caption: str, model: str = "") -> str:
    """Returns a chart with its legend. With `model`, a click on a heat map selects the model's head in the explorer."""
    attribute = f' data-model="{escape(model, quote=True)}"' if model else ""
    spec, styles = (chart.spec(), chart.legend()) if isinstance(chart, Chart) else (chart, {})
    return (
        f'<figure class="chart"{attribute}>{legend(styles) if len(styles) > 1 else ""}'
        f'<div class="plot" role="img" aria-label="{escape(alt, quote=True)}"></div>{data(spec)}'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def legend(styles: dict[str, Style]) -> str:
    """Returns the legend of a chart: names with their symbols and colours."""
    items = (
        f'<li><span style="color:{escape(style.colour, quote=True)}" aria-hidden="true">{style.glyph}</span>'
        f" {escape(name)}</li>"
        for name, style in styles.items()
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def pictures(images: Iterable[dict[str, str]], caption: str = "") -> str:
    """Returns small pictures side by side, each {"image": data URI, "text": its caption}, under a common caption."""
    figures = "".join(
        f'<figure><img src="{escape(picture["image"], quote=True)}" alt="{escape(picture["text"], quote=True)}">'
        f"<figcaption>{escape(picture['text'])}</figcaption></figure>"
        for picture in images
    )
    above = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure>{above}<div class="pictures">{figures}</div></figure>' if figures else ""


def table(header: Iterable[str], rows: Iterable[Iterable[str]], caption: str) -> str:
    """Returns a table of full width that scrolls sideways on narrow screens, also with the keyboard.

    The first cell of a row stays visible, so it should identify the row.
    """
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = ""
    for first, *rest in rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        body += f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>'
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption, quote=True)}"><table>'
        f'<caption><span>{escape(caption)} <em class="swipe">{SWIPE}</em></span></caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def details(summary: str, *parts: str) -> str:
    """Returns parts that are folded until the reader opens them, or nothing if all are empty."""
    inside = "".join(parts)
    return f"<details><summary>{escape(summary)}</summary>{inside}</details>" if inside else ""


def tabs(anchor: str, panels: Sequence[tuple[str, str]]) -> str:
    """Returns panels (name, HTML) as tabs. Selecting a name selects it in all tabs of the page."""
    if len(panels) < 2:
        return "".join(html for _, html in panels)
    buttons = "".join(
        f'<button type="button" role="tab" id="{anchor}-tab-{n}" aria-controls="{anchor}-panel-{n}"'
        f' data-name="{escape(name, quote=True)}">{escape(name)}</button>'
        for n, (name, _) in enumerate(panels)
    )
    shown = "".join(
        f'<div role="tabpanel" id="{anchor}-panel-{n}" aria-labelledby="{anchor}-tab-{n}">{html}</div>'
        for n, (_, html) in enumerate(panels)
    )
    return f'<div class="tabs"><div role="tablist" aria-label="Models">{buttons}</div>{shown}</div>'


def pair(*parts: str) -> str:
    """Returns parts side by side on a wide screen."""
    filled = [part for part in parts if part]
    if len(filled) < 2:
        return "".join(filled)
    return f'<div class="pair">{"".join(f"<div>{part}</div>" for part in filled)}</div>'


def heading(text: str, level: int = 3, anchor: str = "") -> str:
    """Returns an escaped heading."""
    name = f' id="{escape(anchor, quote=True)}"' if anchor else ""
    return f"<h{level}{name}>{escape(text)}</h{level}>"


def section(anchor: str, title: str, *parts: str) -> str:
    """Returns a section of the page with its heading."""
    return f'<section id="{escape(anchor, quote=True)}">{heading(title, 2)}{"".join(parts)}</section>'


def _beside(*names: str) -> str:
    return "\n".join(Path(__file__).with_name(name).read_text(encoding="utf-8") for name in names)


def page(title: str, links: Iterable[tuple[str, str]], footer: str, *parts: str) -> str:
    """Returns the document with styles, scripts and chart library; `links` are (anchor, name), `parts` the sections."""
    from plotly.offline import get_plotlyjs

    items = "".join(f'<li><a href="#{escape(anchor, quote=True)}">{escape(text)}</a></li>' for anchor, text in links)
    scripts = [get_plotlyjs().replace("</script", "<\\/script"), *map(_beside, SCRIPTS)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY, quote=True)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_beside('page.css', 'explorer.css')}</style></head><body>"
        f'<header><h1>{escape(title)}</h1></header><nav aria-label="Contents"><ul>{items}</ul></nav>'
        f"<noscript>{paragraph(NO_SCRIPT, 'note')}</noscript><main>{''.join(parts)}</main><footer>{footer}</footer>"
        f"{''.join(f'<script>{script}</script>' for script in scripts)}</body></html>\n"
    )

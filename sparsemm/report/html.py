"""Pieces of HTML, and the whole page around them: one file, no network, readable on a phone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from sparsemm.report.charts import Chart
from sparsemm.report.style import Style

# The browser itself holds the page to what it promises: nothing is fetched, nothing is sent.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
NO_SCRIPT = "The charts and the explorer need JavaScript, which is part of this file. Every table works without it."
SCRIPTS = ("charts.js", "tabs.js", "explorer_data.js", "explorer_views.js", "explorer.js")
SWIPE = "Scroll sideways for more columns."


def paragraph(text: str, css: str = "") -> str:
    """An escaped paragraph; nothing where there is no text."""
    attribute = f' class="{escape(css)}"' if css else ""
    return f"<p{attribute}>{escape(text)}</p>" if text else ""


def bullets(items: Iterable[str]) -> str:
    """An escaped list; nothing where there is no item."""
    listed = "".join(f"<li>{escape(item)}</li>" for item in items if item)
    return f"<ul>{listed}</ul>" if listed else ""


def terms(known: Iterable[tuple[str, str]]) -> str:
    """Words and what they mean."""
    return "<dl>" + "".join(f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>" for word, text in known) + "</dl>"


def data(value: Any, anchor: str = "") -> str:
    """Plain JSON values for the page's scripts.

    Raises:
        ValueError: if a number is not finite.
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    name = f' id="{escape(anchor, quote=True)}"' if anchor else ""
    return f'<script type="application/json"{name}>{text}</script>'


def chart(chart: Chart | dict[str, Any], alt: str, caption: str, model: str = "") -> str:
    """A chart with its legend; `model` makes a click on a heat map choose that model's head in the explorer."""
    chosen = f' data-model="{escape(model, quote=True)}"' if model else ""
    spec, styles = (chart.spec(), chart.legend()) if isinstance(chart, Chart) else (chart, {})
    return (
        f'<figure class="chart"{chosen}>{legend(styles) if len(styles) > 1 else ""}'
        f'<div class="plot" role="img" aria-label="{escape(alt, quote=True)}"></div>{data(spec)}'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def legend(styles: dict[str, Style]) -> str:
    """What the symbols and colours of a chart mean."""
    items = (
        f'<li><span style="color:{escape(style.colour, quote=True)}" aria-hidden="true">{style.glyph}</span>'
        f" {escape(name)}</li>"
        for name, style in styles.items()
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def pictures(images: Iterable[dict[str, str]], caption: str = "") -> str:
    """Small pictures side by side, each {"image": data URI, "text": what it shows}, under one caption."""
    shown = "".join(
        f'<figure><img src="{escape(one["image"], quote=True)}" alt="{escape(one["text"], quote=True)}">'
        f"<figcaption>{escape(one['text'])}</figcaption></figure>"
        for one in images
    )
    above = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure>{above}<div class="pictures">{shown}</div></figure>' if shown else ""


def table(header: Iterable[str], rows: Iterable[Iterable[str]], caption: str) -> str:
    """A table of the page's full width that scrolls on its own on narrow screens, also from the keyboard.

    The first cell of a row stays in sight, so it should say all that tells the row from others.
    """
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = ""
    for first, *others in rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in others)
        body += f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>'
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption, quote=True)}"><table>'
        f'<caption><span>{escape(caption)} <em class="swipe">{SWIPE}</em></span></caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def details(summary: str, *parts: str) -> str:
    """Parts that are folded until asked for; nothing where there is none."""
    inside = "".join(parts)
    return f"<details><summary>{escape(summary)}</summary>{inside}</details>" if inside else ""


def tabs(anchor: str, panels: Sequence[tuple[str, str]]) -> str:
    """One panel at a time, each (name, HTML); a choice is the choice of all tabs on the page that have this name."""
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
    """Parts side by side where the screen is wide enough."""
    shown = [part for part in parts if part]
    return (
        f'<div class="pair">{"".join(f"<div>{part}</div>" for part in shown)}</div>'
        if len(shown) > 1
        else "".join(shown)
    )


def heading(text: str, level: int = 3, anchor: str = "") -> str:
    """An escaped heading."""
    name = f' id="{escape(anchor, quote=True)}"' if anchor else ""
    return f"<h{level}{name}>{escape(text)}</h{level}>"


def section(anchor: str, title: str, *parts: str) -> str:
    """A titled part of the page."""
    return f'<section id="{escape(anchor, quote=True)}">{heading(title, 2)}{"".join(parts)}</section>'


def _beside(*names: str) -> str:
    return "\n".join(Path(__file__).with_name(name).read_text(encoding="utf-8") for name in names)


def page(title: str, links: Iterable[tuple[str, str]], footer: str, *parts: str) -> str:
    """The whole document with its styles, scripts and chart library.

    Args:
        title: of the page.
        links: (anchor, name) of its sections.
        footer: HTML below them.
        parts: the sections.
    """
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

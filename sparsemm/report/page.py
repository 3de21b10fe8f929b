"""The HTML page: one file, no network, readable on a phone."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

# The browser itself holds the page to what it promises: nothing is fetched, nothing is sent.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
NO_SCRIPT = "The charts and the explorer need JavaScript, which is part of this file. Every table works without it."


def paragraph(text: str, css: str = "") -> str:
    """An escaped paragraph."""
    attribute = f' class="{escape(css)}"' if css else ""
    return f"<p{attribute}>{escape(text)}</p>"


def bullets(items: Iterable[str]) -> str:
    """An escaped list."""
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


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


def chart(spec: dict[str, Any], alt: str, caption: str, model: str = "") -> str:
    """A plotly figure; `model` makes a click on it choose that model's head in the explorer."""
    chosen = f' data-model="{escape(model, quote=True)}"' if model else ""
    return (
        f'<figure class="chart"{chosen}><div class="plot" role="img" aria-label="{escape(alt, quote=True)}"'
        f' style="height:{int(spec["layout"]["height"])}px"></div>{data(spec)}'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def pictures(shown: Iterable[tuple[str, str, str]], caption: str) -> str:
    """Small pictures side by side, each (data URI, what it shows, words below it), under one caption."""
    made = "".join(
        f'<figure><img src="{escape(source, quote=True)}" alt="{escape(alt, quote=True)}">'
        f"<figcaption>{escape(text)}</figcaption></figure>"
        for source, alt, text in shown
    )
    return f'<figure><figcaption>{escape(caption)}</figcaption><div class="pictures">{made}</div></figure>'


def table(header: Iterable[str], rows: Iterable[Iterable[str]], caption: str) -> str:
    """A table that scrolls on its own on narrow screens, also from the keyboard; the first cell names its row.

    The first cell stays in sight, so it should say all that tells a row from others.
    """
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = ""
    for row in rows:
        first, *others = row
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in others)
        body += f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>'
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption, quote=True)}"><table>'
        f"<caption><span>{escape(caption)}</span></caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def details(summary: str, *parts: str) -> str:
    """Parts that are folded until asked for."""
    return f"<details><summary>{escape(summary)}</summary>{''.join(parts)}</details>"


def pair(*parts: str) -> str:
    """Parts side by side where the screen is wide enough."""
    return f'<div class="pair">{"".join(f"<div>{part}</div>" for part in parts)}</div>'


def heading(text: str, level: int = 3, anchor: str = "") -> str:
    """An escaped heading."""
    name = f' id="{escape(anchor, quote=True)}"' if anchor else ""
    return f"<h{level}{name}>{escape(text)}</h{level}>"


def contents(label: str, links: Iterable[tuple[str, str]]) -> str:
    """Links to (anchor, title) of parts of the page."""
    items = "".join(f'<li><a href="#{escape(anchor, quote=True)}">{escape(text)}</a></li>' for anchor, text in links)
    return f'<nav aria-label="{escape(label, quote=True)}"><ul>{items}</ul></nav>'


def section(anchor: str, title: str, *parts: str) -> str:
    """A titled part of the page."""
    return f'<section id="{escape(anchor, quote=True)}">{heading(title, 2)}{"".join(parts)}</section>'


def _beside(*names: str) -> str:
    return "\n".join(Path(__file__).with_name(name).read_text(encoding="utf-8") for name in names)


def page(title: str, links: Iterable[tuple[str, str]], *parts: str) -> str:
    """The whole document with its styles, scripts and chart library; `links` are (anchor, title) of its sections."""
    from plotly.offline import get_plotlyjs

    own = (_beside(name) for name in ("charts.js", "pages.js", "views.js", "explorer.js"))
    scripts = [get_plotlyjs().replace("</script", "<\\/script"), *own]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY, quote=True)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_beside('page.css', 'explorer.css')}</style></head><body>"
        f"<header><h1>{escape(title)}</h1></header>{contents('Contents', links)}"
        f"<noscript>{paragraph(NO_SCRIPT, 'note')}</noscript>"
        f"<main>{''.join(parts)}</main>{''.join(f'<script>{script}</script>' for script in scripts)}</body></html>\n"
    )

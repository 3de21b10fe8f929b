"""The HTML page: one file, no network, readable on a phone."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape

STYLE = """
:root { color-scheme: light; }
body { font: 1rem/1.6 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto; max-width: 44rem;
  padding: 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; }
h2 { font-size: 1.3rem; margin-top: 3rem; border-top: 1px solid #ccc; padding-top: 1rem; }
h3 { font-size: 1.05rem; margin-top: 2rem; }
nav ul { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; }
a { color: #00569c; } li { margin-bottom: .35rem; }
figure { margin: 1.5rem 0; } img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figcaption, caption { color: #444; font-size: .9rem; text-align: left; padding: .4rem 0; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #e0e0e0; white-space: nowrap; }
th { font-weight: 600; } thead th { border-bottom: 1px solid #888; }
tr > :first-child { text-align: left; } tbody th { white-space: normal; min-width: 7rem; font-weight: 400; }
.note { background: #fff6e0; border-left: 3px solid #b37400; padding: .4rem .8rem; }
summary { cursor: pointer; color: #00569c; padding: .4rem 0; }
:focus-visible { outline: 3px solid #b34a00; outline-offset: 2px; }
@media print { .wide { overflow: visible; } }
"""


def paragraph(text: str, css: str = "") -> str:
    """An escaped paragraph."""
    attribute = f' class="{escape(css)}"' if css else ""
    return f"<p{attribute}>{escape(text)}</p>"


def bullets(items: Iterable[str]) -> str:
    """An escaped list."""
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def figure(image: bytes, alt: str, caption: str) -> str:
    """A PNG inside the page."""
    data = base64.b64encode(image).decode("ascii")
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{escape(alt, quote=True)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def table(header: Iterable[str], rows: Iterable[Iterable[str]], caption: str) -> str:
    """A table that scrolls on its own on narrow screens, also from the keyboard; the first cell names its row."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = ""
    for row in rows:
        first, *others = row
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in others)
        body += f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>'
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption, quote=True)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def details(summary: str, *parts: str) -> str:
    """Parts that are folded until asked for."""
    return f"<details><summary>{escape(summary)}</summary>{''.join(parts)}</details>"


def heading(text: str, level: int = 3) -> str:
    """An escaped heading."""
    return f"<h{level}>{escape(text)}</h{level}>"


def section(anchor: str, title: str, *parts: str) -> str:
    """A titled part of the page."""
    return f'<section id="{escape(anchor, quote=True)}">{heading(title, 2)}{"".join(parts)}</section>'


def page(title: str, contents: Iterable[tuple[str, str]], *parts: str) -> str:
    """The whole document; `contents` are (anchor, title) of its sections."""
    links = "".join(f'<li><a href="#{escape(anchor, quote=True)}">{escape(text)}</a></li>' for anchor, text in contents)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f'<header><h1>{escape(title)}</h1><nav aria-label="Contents"><ul>{links}</ul></nav></header>'
        f"<main>{''.join(parts)}</main></body></html>\n"
    )

"""The HTML page: one file, no network, readable on a phone."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto; max-width: 46rem;
  padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.25rem; margin-top: 2.5rem; border-top: 1px solid #ddd;
  padding-top: 1rem; } h3 { font-size: 1.05rem; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; } figcaption { color: #555; font-size: .9rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .85rem; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #e5e5e5; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { border-bottom: 1px solid #888; }
.note { background: #fff6e0; border-left: 3px solid #e0a800; padding: .4rem .8rem; }
nav a { margin-right: 1rem; } a { color: #00569c; } :focus-visible { outline: 3px solid #D55E00; }
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


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table that scrolls on its own on narrow screens."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def section(anchor: str, title: str, *parts: str, level: int = 2) -> str:
    """A titled part of the page."""
    return f'<section id="{escape(anchor, quote=True)}"><h{level}>{escape(title)}</h{level}>{"".join(parts)}</section>'


def page(title: str, contents: Iterable[tuple[str, str]], *parts: str) -> str:
    """The whole document; `contents` are (anchor, title) of its sections."""
    links = "".join(f'<a href="#{escape(anchor, quote=True)}">{escape(text)}</a>' for anchor, text in contents)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main><h1>{escape(title)}</h1>"
        f'<nav aria-label="Contents">{links}</nav>{"".join(parts)}</main></body></html>\n'
    )

"""The sections of the page, one file each, in the order they are read. A sentence is changed where it is shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from sparsemm.report.html import section
from sparsemm.report.results import Results
from sparsemm.report.sections import accuracy, appendix, cost, explorer, heads, method, studies, summary


class Section(NamedTuple):
    """A part of the page: its id, its name in the contents, its heading, and what makes its pieces of HTML."""

    anchor: str
    link: str
    title: str
    parts: Callable[[Results], list[str]]


SECTIONS = (
    Section("found", "Findings", "What was found", summary.parts),
    Section("accuracy", "Accuracy", "Accuracy against budget", accuracy.parts),
    Section("heads", "Heads", "How few heads look at the image", heads.parts),
    Section("explorer", "Explorer", "See what a head looks at", explorer.parts),
    Section("cost", "Bytes and latency", "Bytes and latency", cost.parts),
    Section("studies", "Studies", "Studies", studies.parts),
    Section("limits", "Method and limits", "How it was done, and how sure it is", method.parts),
    Section("appendix", "Test models", "Appendix: declared test models", appendix.parts),
)


def written(results: Results) -> tuple[list[tuple[str, str]], list[str]]:
    """(anchor, link) of the sections that have something to say, and their HTML."""
    made = [(one, [part for part in one.parts(results) if part]) for one in SECTIONS]
    kept = [(one, parts) for one, parts in made if parts]
    return [(one.anchor, one.link) for one, _ in kept], [section(one.anchor, one.title, *p) for one, p in kept]

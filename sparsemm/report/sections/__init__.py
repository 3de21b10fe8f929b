"""The sections of the page, one file each, in the order they are read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sparsemm.report.page import section
from sparsemm.report.sections import accuracy, agreement, cost, explorer, heads, limits, method, studies, summary
from sparsemm.report.sections.material import Material

__all__ = ["SECTIONS", "Material", "Section", "written"]


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        anchor: its id, which links lead to.
        link: its name in the contents.
        title: its heading.
        parts: pieces of HTML made from the material; a section without any is left out.
    """

    anchor: str
    link: str
    title: str
    parts: Callable[[Material], list[str]]


SECTIONS = (
    Section("found", "Findings", "What was found", summary.parts),
    Section("method", "Method", "How it was done", method.parts),
    Section("accuracy", "Accuracy", "Accuracy against budget", accuracy.parts),
    Section("heads", "Heads", "How few heads do the looking", heads.parts),
    Section("explorer", "Explorer", "See what a head looks at", explorer.parts),
    Section("cost", "Bytes and latency", "Bytes and latency", cost.parts),
    Section("agreement", "Other data sets", "Do other data sets name the same heads?", agreement.parts),
    Section("studies", "Studies", "Studies", studies.parts),
    Section("limits", "Limits", "How sure this is", limits.parts),
)


def written(material: Material) -> tuple[list[tuple[str, str]], list[str]]:
    """(anchor, link) of the sections that have something to say, and their HTML."""
    made = [(one, one.parts(material)) for one in SECTIONS]
    kept = [(one, parts) for one, parts in made if parts]
    return [(one.anchor, one.link) for one, _ in kept], [section(one.anchor, one.title, *p) for one, p in kept]

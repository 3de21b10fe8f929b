"""The sections of the page in their order, one file each. Each file holds the sentences that it shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from sparsemm.report.html import section
from sparsemm.report.results import Results
from sparsemm.report.sections import (
    accuracy,
    all_studies,
    appendix,
    bytes_and_latency,
    explorer,
    first_screen,
    heads,
    method,
    recipes,
)


class Section(NamedTuple):
    """A section of the page: its id, its name in the contents, its heading, and the function that builds its HTML."""

    anchor: str
    link: str
    title: str
    parts: Callable[[Results], list[str]]


SECTIONS = (
    Section("found", "Findings", "Findings", first_screen.parts),
    Section("accuracy", "Accuracy", "Accuracy against budget", accuracy.parts),
    Section("recipes", "Recipes", "The method for each model", recipes.parts),
    Section("heads", "Heads", "How few heads attend to the image", heads.parts),
    Section("explorer", "Explorer", "See what a head attends to", explorer.parts),
    Section("cost", "Bytes and latency", "Bytes and latency", bytes_and_latency.parts),
    Section("studies", "Studies", "Studies", all_studies.parts),
    Section("limits", "Method and limits", "Method and limits", method.parts),
    Section("appendix", "Test models", "Appendix: declared test models", appendix.parts),
)


def written(results: Results) -> tuple[list[tuple[str, str]], list[str]]:
    """Returns (anchor, link) of the sections that are not empty, and their HTML."""
    links, pieces = [], []
    for entry in SECTIONS:
        if parts := [part for part in entry.parts(results) if part]:
            links.append((entry.anchor, entry.link))
            pieces.append(section(entry.anchor, entry.title, *parts))
    return links, pieces

"""Prints the size of this repository as JSON: `python -m benchmarks.figures`.

Lines are all lines of the Python files, blank ones included. The files to touch are counted in the tables of
CONTRIBUTING.md, section by section.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.imports import ROOT, circles, import_graph

LIBRARY = ("sparsemm", "flows", "examples")


def size(*folders: str, root: Path = ROOT) -> dict[str, int]:
    """Counts lines and files of the Python code in some folders."""
    files = [path for folder in folders for path in (root / folder).rglob("*.py")]
    return {"lines": sum(len(path.read_bytes().splitlines()) for path in files), "files": len(files)}


def lines_by_folder(root: Path = ROOT) -> dict[str, int]:
    """Counts lines of the Python code in each folder of the package, most first; `.` is the files beside them."""
    lines: Counter[str] = Counter()
    for path in (root / "sparsemm").rglob("*.py"):
        folder, *below = path.relative_to(root / "sparsemm").parts
        lines[folder if below else "."] += len(path.read_bytes().splitlines())
    return dict(lines.most_common())


def files_to_touch(contributing: str) -> dict[str, int]:
    """Counts the rows of the first table in each section `### Add ...` of CONTRIBUTING.md, one row per file."""
    counts = {}
    for section in re.split(r"^#+ (?=\S)", contributing, flags=re.MULTILINE):
        heading, _, text = section.partition("\n")
        table = re.search(r"^\| file \|.*\n\|[-| ]+\|\n((?:\|.*\n)+)", text, flags=re.MULTILINE)
        if heading.startswith("Add ") and table:
            counts[heading.removeprefix("Add ")] = len(table[1].splitlines())
    return counts


def figures(root: Path = ROOT) -> dict[str, Any]:
    """Returns all figures as JSON values."""
    real, typed = circles(import_graph(root=root)), circles(import_graph(types=True, root=root))
    return {
        "library": size(*LIBRARY, root=root),
        "by_folder": {name: size(name, root=root) for name in (*LIBRARY, "benchmarks", "tests")},
        "lines_by_folder": lines_by_folder(root),
        "import_circles": {"count": len(real), "circles": real},
        "import_circles_of_types_alone": [circle for circle in typed if circle not in real],
        "files_to_touch": files_to_touch((root / "CONTRIBUTING.md").read_text(encoding="utf-8")),
    }


if __name__ == "__main__":
    print(json.dumps(figures(), indent=2))

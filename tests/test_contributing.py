"""What the Makefile, the tests' markers, the documents and CI name is in the repository."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys

import pytest
import yaml

from benchmarks import front_page
from benchmarks.figures import LIBRARY, figures, files_to_touch
from tests.conftest import MARKED, ROOT

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")),
)


def listed(variable):
    """Words of a variable of the Makefile."""
    return re.search(rf"^{variable} := ((?:.*\\\n)*.*)$", MAKEFILE, flags=re.MULTILINE)[1].replace("\\\n", " ").split()


def test_files_that_are_selected_or_marked_exist():
    names = [*listed("CHECK_TESTS"), *listed("CUDA_TESTS"), *(place for places in MARKED.values() for place in places)]
    assert [name for name in names if not (ROOT / "tests" / name).exists()] == []


def test_markers_are_declared():
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(f'"{marker}: ' in declared for marker in MARKED)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_paths_in_documents_lead_somewhere(document):
    text, folder = (ROOT / document).read_text(encoding="utf-8"), (ROOT / document).parent
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    paths = re.findall(
        r"`((?:sparsemm|tests|docs|flows|csrc|benchmarks|examples)/[\w./-]+\.(?:py|md|yaml|cpp|cu))`", text
    )
    missing = [link for link in links if link and not (folder / link).exists()]
    assert missing + [path for path in paths if not (ROOT / path).exists()] == []


def test_anchors_of_links_are_headings():
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        for link, anchor in re.findall(r"\]\(([\w./-]*\.md)?#([^)\s]+)\)", text):
            target = (ROOT / document).parent / link if link else ROOT / document
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, (
                document
            )


def test_ci_runs_what_the_script_runs():
    (job,) = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert "secrets" not in str(job)


def test_rows_of_the_tables_in_contributing_are_counted():
    text = "## Add a thing\n\ntext\n\n| file | what |\n|---|---|\n| `a` | b |\n| `c` | d |\n\n| file | x |\n|---|---|\n"
    assert files_to_touch(text + "| e | f |\n\n## Other\n\n| file | what |\n|---|---|\n| g | h |\n") == {"a thing": 2}


def test_figures_are_printed_as_json():
    command = [sys.executable, "-m", "benchmarks.figures"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    values = json.loads(printed)
    assert values == json.loads(json.dumps(figures()))
    assert sum(values["lines_by_folder"].values()) == values["by_folder"]["sparsemm"]["lines"]
    assert values["import_circles"]["count"] == 0 and values["library"]["lines"] > 10_000
    assert set(values["files_to_touch"]) == {"a method", "a study", "a model family", "an operation", "a data source"}


def badly_named(code):
    """Names that code gives to values, functions and classes and that say how a thing came, not what it is."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.id if isinstance(node, ast.Name) else node.attr)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
    return {name for name in names if name.strip("_") in {"found", "given", "said", "got", "told", "mine", "made"}}


def test_names_hold_what_a_thing_is_and_not_how_it_came():
    code = "found = told.text = 1\nfor got, x in y: pass\ndef _made(given): return said\nlambda mine: [a for told in b]"
    assert badly_named(code) == {"found", "got", "_made", "given", "mine", "told"}
    files = [path for folder in (*LIBRARY, "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    assert {str(path): names for path in files if (names := badly_named(path.read_text(encoding="utf-8")))} == {}


@pytest.mark.parametrize("document", front_page.BLOCKS)
def test_tables_of_documents_are_those_of_their_artifacts(document):
    assert front_page.filled(document) == (ROOT / document).read_text(encoding="utf-8")


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(re.findall(r"\S*\w\S*", text)) <= 900  # all of it: tables and code too

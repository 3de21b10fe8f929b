"""The documentation site, without MkDocs: every page is in the navigation, links resolve, commands parse."""

from __future__ import annotations

import os
import posixpath
import re
import shlex
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest
import yaml

from sparsemm.cli import _parser
from sparsemm.policies import METHODS, SELECTORS
from sparsemm.report.sections import SECTIONS
from sparsemm.vllm.methods import RATES, STATIC
from tests.test_tutorials import NOT_RUN, RUN, snippets

ROOT = Path(__file__).parent.parent
DOCS = sorted(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md"))
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))

spec = util.spec_from_file_location("site_links", ROOT / CONFIG["hooks"][0])
assert spec is not None and spec.loader is not None
site_links = util.module_from_spec(spec)
spec.loader.exec_module(site_links)

PAGES = {*DOCS, *site_links.PAGES}
FILES = PAGES | {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.png")}


def text_of(page):
    """Text of a page of the site, with its links as MkDocs sees them."""
    path = ROOT / site_links.PAGES.get(page, f"docs/{page}")
    return site_links.rewrite(path.read_text(encoding="utf-8"), page, FILES)


def navigation(entry):
    """Pages of a part of the navigation, in order."""
    if isinstance(entry, str):
        return [entry]
    return [page for one in (entry.values() if isinstance(entry, dict) else entry) for page in navigation(one)]


def headings(text):
    """Anchors of the headings, as MkDocs makes them."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for heading in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE):
        yield re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def test_every_page_is_in_the_navigation_once():
    assert sorted(navigation(CONFIG["nav"])) == sorted(PAGES)


def test_long_lines_of_code_go_on_in_the_next_line():
    (style,) = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in CONFIG["extra_css"]]
    assert re.search(r"pre > code \{\s*white-space: pre-wrap;", style)


@pytest.mark.parametrize("page", sorted(PAGES))
def test_links_between_pages_resolve(page):
    links = re.findall(r"\]\(([^)\s#]*)(#[^)\s]*)?\)", re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL))
    for target, anchor in links:
        if "://" in target:
            continue
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target)) if target else page
        assert path in FILES, target
        if anchor:
            assert anchor[1:] in {*headings(text_of(path))}, f"{target}{anchor}"


def test_links_to_source_code_become_text_and_links_to_documents_become_pages():
    text = "[a](../../sparsemm/cli.py) [b](../../README.md) ![c](../method.png) [d](#e) [f](https://g) [h](../data.md)"
    expected = "a [b](../index.md) ![c](../method.png) [d](#e) [f](https://g) [h](../data.md)"
    assert site_links.rewrite(text, "reference/x.md", FILES) == expected


def test_every_method_and_selector_has_a_reference():
    text = site_links.methods(ROOT)
    for name in [*METHODS.values(), *SELECTORS.values()]:
        assert f"::: sparsemm.policies.{name}\n" in text


def test_references_name_what_there_is():
    for page in DOCS:
        for name in re.findall(r"^::: (sparsemm[\w.]*)$", text_of(page), flags=re.MULTILINE):
            module, _, member = name.rpartition(".")
            if util.find_spec(module) is None or not re.search(
                rf"^(?:def|class) {member}\b|^{member}\b", Path(util.find_spec(module).origin).read_text(), re.MULTILINE
            ):
                assert util.find_spec(name) is not None, name


@pytest.mark.parametrize("page", sorted(PAGES))
def test_commands_in_documents_parse(page):
    blocks = re.findall(r"```(\w*)\n(.*?)```", text_of(page), re.DOTALL)
    lines = "\n".join(code for language, code in blocks if language in ("", "bash")).replace("\\\n", " ").splitlines()
    for line in lines:
        command = re.match(r"(?:(?:[A-Z_]+=\S+|time) )*sparsemm (?!flows)(.*)", line)
        if command and " ... " not in line:
            _parser().parse_args(shlex.split(command[1], comments=True))


def test_every_snippet_is_run_or_says_why_not():
    counts = {document: len(snippets(document)) for document in ["README.md", *(f"docs/{page}" for page in DOCS)]}
    assert {document for document, count in counts.items() if count} == {*RUN, *NOT_RUN}
    assert all(len(left_out) <= counts[document] for document, left_out in NOT_RUN.items())
    assert {document for document in NOT_RUN if len(NOT_RUN[document]) < counts[document]} <= {*RUN}


def rows_of(document, heading):
    """First cells of the first table under a heading of a document."""
    text = (ROOT / "docs" / document).read_text(encoding="utf-8").partition(heading)[2]
    return [row.partition(" | ")[0] for row in re.search(r"(?:^\| .*\n|^\|---.*\n)+", text, re.M)[0][2:].split("\n| ")]


def test_the_document_of_the_report_lists_its_sections():
    assert rows_of("report.md", "# The report")[1:] == [section.link for section in SECTIONS]


def test_documents_name_what_vllm_serves():
    (names,) = re.findall(r"vLLM plug-in serves ([^.]*)\.", (ROOT / "docs/cache.md").read_text(encoding="utf-8"))
    assert set(re.findall(r"`([\w-]+)`", names)) == {*RATES}
    (methods,) = re.findall(
        r"^\| `method` \| (.*?);", (ROOT / "docs/vllm.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert set(re.findall(r"`([\w-]+)`", methods)) == {*STATIC}


def test_the_readme_activates_the_environment_before_it_uses_its_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert 0 < text.index(". .venv/bin/activate") < text.index("\npip install") < text.index("\nsparsemm ")


def test_modules_that_documents_run_are_found_in_a_clone():
    """`tests` is not: a package of lmms-eval's installs a package of that name, which comes first. vLLM's has none."""
    texts = {path: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))}
    named = {name for text in texts.values() for name in re.findall(r"python -m ((?:\w+)(?:\.\w+)*)", text)}
    own = sorted(n for n in named if (ROOT / n.split(".")[0]).is_dir() and not n.startswith("tests.vllm."))
    code = "import sys; from importlib.util import find_spec; print(*(n for n in sys.argv[1:] if find_spec(n) is None))"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code, *own], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert len(own) > 10 and done.stdout.split() == [] and done.returncode == 0, done.stderr

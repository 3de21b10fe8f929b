"""A hook of MkDocs: README.md is the front page, documents outside docs/ are pages too, and links to them work.

`::: sparsemm.policies.*` on a page stands for every method and selector.

Links are written for whoever reads the files in a clone. Here they are turned into links between pages; a link to
source code, which is no page, becomes plain text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

OUTSIDE = {  # documents outside docs/, and the pages they become
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "examples/service/README.md": "service.md",
}
PAGES = {page: document for document, page in OUTSIDE.items()}
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]*)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Adds the documents outside docs/ as pages."""
    from mkdocs.structure.files import File

    root = Path(config["config_file_path"]).parent
    for document, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(root / document).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrites the links of a page."""
    root = Path(config["config_file_path"]).parent
    uris = {file.src_uri for file in files}
    return rewrite(markdown, page.file.src_uri, uris).replace("::: sparsemm.policies.*", methods(root))


def methods(root: Path) -> str:
    """Returns a reference for each class that `METHODS` and `SELECTORS` name."""
    text = (root / "sparsemm" / "policies" / "__init__.py").read_text(encoding="utf-8")
    names = re.findall(r'^    "[\w-]+": "(\w+\.\w+)",$', text, flags=re.MULTILINE)
    return "\n".join(f"::: sparsemm.policies.{name}\n" for name in dict.fromkeys(names))


def rewrite(markdown: str, page: str, pages: set[str]) -> str:
    """Returns a page's text with links from page to page.

    Args:
        markdown: text of the page.
        page: path of the page below docs/.
        pages: every page and picture of the site, likewise.
    """
    folder = posixpath.dirname(PAGES.get(page, f"docs/{page}"))

    def link(match: re.Match[str]) -> str:
        picture, text, target, anchor = match.groups("")
        if not target or "://" in target:
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        uri = OUTSIDE.get(path, path.removeprefix("docs/"))
        if uri not in pages or (path not in OUTSIDE and not path.startswith("docs/")):
            return text
        return f"{picture}[{text}]({posixpath.relpath(uri, posixpath.dirname(page) or '.')}{anchor})"

    return LINK.sub(link, markdown)

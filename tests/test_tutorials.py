"""The Python code of the documents runs as it stands, in order, with small checkpoints in place of large ones."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CHECKPOINT = ROOT / "data" / "checkpoints" / "tiny-qwen2-vl"

# Documents whose snippets run, with code that makes what they name. `tests/chase/test_score_heads.py` runs that of
# README.md, `tests/cache/test_documented.py` those of docs/cache.md.
HEADS = """
from sparsemm import compressed_cache, score_heads
from sparsemm.datasets.synthetic import PageStyle, draw_record
from sparsemm.models import load_model, new_entry

model, processor = load_model(new_entry("data/checkpoints/tiny-qwen2-vl"))
tokenizer = processor
pages = [draw_record("calibration", 0, i, PageStyle(filled=(2, 3))) for i in range(4)]
score_heads(model, processor, pages, max_new_tokens=32).save("heads.safetensors")
"""
PUBLISHED = """
import sparsemm

sparsemm.load_scores = lambda address, config=None: sparsemm.ScoreTable.load("heads.safetensors")
"""
RUN = {
    "README.md": None,
    "docs/cache.md": None,
    "docs/chase.md": HEADS,
    "docs/evaluate.md": HEADS + "import sparsemm",
    "docs/registry.md": HEADS + PUBLISHED,
    "docs/tutorials/compress.md": "",
    "docs/tutorials/score.md": "",
    "docs/tutorials/team.md": HEADS + PUBLISHED,
    "docs/tutorials/serve.md": HEADS,
}
NOT_RUN = {  # of these documents the snippets of these numbers are not run
    "docs/evaluate.md": {0: "a line of a dictionary in the source code"},
    "docs/recipes.md": {0: "needs a recipe of the stage; tests/test_recipes.py does the same"},
    "docs/vllm.md": {0: "needs vLLM; tests/vllm runs the same"},
}


def snippets(document):
    """The Python code of a document, block by block."""
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("document", [document for document, before in RUN.items() if before is not None])
def test_the_code_of_a_document_runs(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(ROOT / "data")
    if "my_documents" in "".join(snippets(document)):
        from examples.sample_pdfs import main

        monkeypatch.setattr(sys, "argv", ["sample_pdfs", "my_documents", "--pages", "12"])
        main()
    names: dict[str, object] = {}
    codes = [code for i, code in enumerate(snippets(document)) if i not in NOT_RUN.get(document, {})]
    for code in [RUN[document], *codes]:
        exec(code, names)  # noqa: S102
    if "def answer" in "".join(snippets(document)):
        page = names["pages"][0]
        texts = names["answer"]([page.image, page.image], ["Read the page.", "What is first on this page?"])
        assert len(texts) == 2 and texts[0].split()[0] == page.entries[0].text


def test_sample_pdfs_are_read_as_the_pages_that_they_show(tmp_path, monkeypatch):
    import numpy as np

    from examples.sample_pdfs import main
    from sparsemm.datasets.pdf import read_pdfs
    from sparsemm.datasets.synthetic import PageStyle, draw_record

    monkeypatch.setattr(sys, "argv", ["sample_pdfs", str(tmp_path / "new" / "folder"), "--pages", "8", "--seed", "3"])
    main()
    pages = read_pdfs(tmp_path / "new" / "folder")
    assert len(pages) == 8
    for i, page in enumerate(pages):
        drawn = draw_record("calibration", 3, i, PageStyle())
        np.testing.assert_array_equal(np.asarray(page.image), np.asarray(drawn.image))
        assert sorted(entry.text for entry in page.entries) == sorted(entry.text for entry in drawn.entries)


def test_the_notebook_runs(tmp_path, monkeypatch):
    notebook = json.loads((ROOT / "examples" / "compress.ipynb").read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4 and all(not cell.get("outputs") for cell in notebook["cells"])
    (tmp_path / "data").symlink_to(ROOT / "data")
    (tmp_path / "examples").mkdir()
    monkeypatch.chdir(tmp_path / "examples")
    names: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)  # noqa: S102
    assert names["slots"].sum() == 24 * names["slots"].size
    assert {row["method"] for row in names["compared"].rows} == set(names["methods"])
    assert names["compared"].rows[0]["value"] > 0.9  # the full cache reads the pages

"""COCO against OCR: objects and text asked with prompts of their own, and how far their tables agree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from sparsemm.align import stage as align
from sparsemm.chase import stage as chase
from sparsemm.cli import main
from sparsemm.datasets import download
from sparsemm.datasets.records import read_records
from sparsemm.params import Params, parse_params
from sparsemm.report.findings import at_least
from sparsemm.report.results import read_results
from sparsemm.report.sections import heads
from sparsemm.scores import ScoreTable
from tests.datasets.samples import COCO_FEATURES, OWN, coco_rows, parquet

PROMPT = "Describe objects in the picture."
SETS = ("ocr", "objects")


def declared(root: Path) -> Params:
    """Synthetic pages are chased, and a folder of COCO files too."""
    raw = yaml.safe_load(OWN.read_text(encoding="utf-8"))
    raw["models"] = {"m": {"checkpoint": str(root / "checkpoint"), "family": "qwen2_vl", "dtype": "float32"}}
    ocr = {"source": "synthetic", "split": "calibration", "samples": 4}
    objects = {"source": "folder", "path": str(root / "coco"), "format": "coco", "licence": "CC-BY-4.0", "samples": 4}
    raw["datasets"] |= {"ocr": ocr, "objects": objects}
    raw["chase"] |= {"dataset": "ocr", "max_new_tokens": 32}
    raw["robustness"] = {"objects": {"prompt": PROMPT}}
    return parse_params(json.dumps(raw))


def write_coco(root: Path, names: list[str]) -> None:
    """Noise with two objects that are called so."""
    features = json.loads(json.dumps(COCO_FEATURES))
    features["objects"]["feature"]["category"]["names"] = names
    (root / "coco").mkdir(exist_ok=True)
    (root / "coco" / "val-00000-of-00001.parquet").write_bytes(parquet(coco_rows(4), features))


def test_objects_and_text_are_chased_and_compared(tiny: Any, tmp_path: Path, capsys: Any) -> None:
    model, processor = tiny("tiny-qwen2-vl")
    for part in (model, processor):
        part.save_pretrained(tmp_path / "checkpoint")
    params = declared(tmp_path)
    write_coco(tmp_path, ["person", "bicycle", "car"])
    download.run(params, "objects", tmp_path)
    records = read_records(tmp_path / "artifacts" / "datasets" / "objects.parquet")
    said = [processor.tokenizer.decode(a) for a in align.greedy_answers(model, processor, records, PROMPT, 32)]
    # A model this small knows no objects: they are called what it says of the first two pictures.
    write_coco(tmp_path, [said[0].split()[0], "bicycle", said[1].split()[0]])
    for name in SETS:
        download.run(params, name, tmp_path)
        also = None if name == "ocr" else name
        align.run(params, "m", tmp_path, also)
        chase.run(params, "m", tmp_path, also)
    scores = tmp_path / "artifacts" / "scores"
    paths = [scores / "m.safetensors", scores / "also" / "m" / "objects.safetensors"]
    tables = [ScoreTable.load(path) for path in paths]
    assert [table.header["dataset"] for table in tables] == list(SETS)
    assert [table.header["prompt"] for table in tables] == [params.chase.prompt, PROMPT]

    capsys.readouterr()
    assert main(["scores", "diff", *map(str, paths)]) == 0
    printed = capsys.readouterr().out
    assert "dataset: ocr | objects" in printed and f"prompt: {params.chase.prompt} | {PROMPT}" in printed
    assert f"rank correlation: {tables[0].rank_correlation(tables[1]):.4f}" in printed
    assert f"overlap of the top 5%: {tables[0].top_overlap(tables[1]):.1%}" in printed

    results = read_results(params, tmp_path)
    page = heads.of_model(results, results.models[0])
    assert at_least(tables[0].rank_correlation(tables[1])) in page
    assert "kind object" in page and "kind key" in page and "script latin" in page


def test_what_a_model_does_not_name_is_told(tiny: Any, tmp_path: Path) -> None:
    from sparsemm.errors import AlignError

    for part in tiny("tiny-qwen2-vl"):
        part.save_pretrained(tmp_path / "checkpoint")
    params = declared(tmp_path)
    write_coco(tmp_path, ["@", "@@", "@@@"])  # no character of its vocabulary
    download.run(params, "objects", tmp_path)
    with pytest.raises(AlignError, match="dataset objects"):
        align.run(params, "m", tmp_path, "objects")
    assert not (tmp_path / "artifacts" / "align" / "also" / "m" / "objects.parquet").exists()

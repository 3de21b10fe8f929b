"""Score tables on the command line: where they cannot go, and what they cannot be of."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sparsemm.cli import main
from sparsemm.scores import ScoreTable


@pytest.fixture
def table(tmp_path):
    header = {"model": "m", "revision": None, "fingerprint": "f", "num_kv_heads": 1}
    path = tmp_path / "table.safetensors"
    ScoreTable.from_samples(np.ones((2, 1, 2)), np.zeros((1, 2), np.int64), header).save(path)
    return path


def test_a_place_that_cannot_be_written_is_named(table, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    assert main(["scores", "export", str(table), str(tmp_path / "folder")]) == 1
    assert capsys.readouterr().err == f"sparsemm: {tmp_path / 'folder'}: Is a directory\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "table.safetensors"]  # nothing half-written


def test_a_table_of_another_shape_is_not_imported(tmp_path, capsys):
    heads = {f"{layer}-{head}": [1.0, 2.0] for layer in range(2) for head in range(8)}  # 8 heads would share 4 KV heads
    (tmp_path / "heads.json").write_text(json.dumps(heads))
    output = tmp_path / "out.safetensors"
    assert main(["scores", "import", str(tmp_path / "heads.json"), "tiny-qwen2-vl", str(output)]) == 1
    assert "16 heads do not fill 6 layers x 16" in capsys.readouterr().err
    assert not output.exists()


def test_a_table_is_named_by_its_file_or_by_its_model(table, tmp_path, capsys):
    folder = tmp_path / "root" / "artifacts" / "scores"
    folder.mkdir(parents=True)
    table.rename(folder / "tiny.safetensors")
    assert main(["--root", str(tmp_path / "root"), "scores", "show", "tiny"]) == 0
    shown = capsys.readouterr().out
    assert main(["scores", "show", str(folder / "tiny.safetensors")]) == 0
    assert capsys.readouterr().out == shown
    assert main(["--root", str(tmp_path / "root"), "scores", "show", "tinny"]) == 1
    assert "no score table of a model 'tinny'" in (error := capsys.readouterr().err) and "known keys: tiny" in error
    assert main(["--root", str(tmp_path), "scores", "diff", "a", "b"]) == 1
    assert "run `dvc repro` first" in capsys.readouterr().err

"""Tables of other data sets: listed, found, refused."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from sparsemm.errors import DataError, ScoreTableError
from sparsemm.scores import ScoreTable
from sparsemm.studies.tables import FOLDER, read_tables, run, table_path

PARAMS = SimpleNamespace(models={"m": None, "n": None}, robustness={"signs": None, "forms": None})


def table(number=0, fingerprint="f"):
    header = {"model": "m", "revision": None, "fingerprint": fingerprint, "num_kv_heads": 2}
    per_sample = np.random.default_rng(number).random((4, 5, 4))
    return ScoreTable.from_samples(per_sample, np.zeros((5, 4), np.int64), header)


@pytest.fixture
def root(tmp_path):
    """Tables of two models over two data sets, and of one that is not asked for; listed."""
    for number, (dataset, key) in enumerate((d, k) for d in ("signs", "forms", "gone") for k in ("m", "n")):
        table(number).save(table_path(tmp_path, dataset, key))
    run(PARAMS, tmp_path)
    return tmp_path


def test_what_is_listed_is_read(root):
    found = read_tables(root, "m", table())
    assert list(found) == ["forms", "signs"] and np.array_equal(found["forms"].scores, table(2).scores)


def test_another_models_new_table_does_not_change_a_list(root):
    before = {path.name: path.read_bytes() for path in (root / FOLDER).iterdir()}
    table(9).save(table_path(root, "signs", "n"))
    run(PARAMS, root)
    after = {path.name: path.read_bytes() for path in (root / FOLDER).iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"n.json"}


def test_without_other_data_sets_the_list_is_empty(tmp_path):
    run(SimpleNamespace(models={"m": None}, robustness={}), tmp_path)
    assert read_tables(tmp_path, "m", table()) == {}


def test_what_is_missing_or_changed_is_refused(root):
    with pytest.raises(ScoreTableError, match="another config"):
        read_tables(root, "m", table(fingerprint="g"))
    path = table_path(root, "signs", "m")
    table(9).save(path)
    with pytest.raises(ScoreTableError, match="not the table that is listed"):
        read_tables(root, "m", table())
    path.unlink()
    with pytest.raises(ScoreTableError, match="not the table that is listed"):
        read_tables(root, "m", table())
    with pytest.raises(ScoreTableError, match="no score table.*sparsemm chase m --dataset signs"):
        run(PARAMS, root)


@pytest.mark.parametrize("text", ["", "3", "[1]", json.dumps({"signs": 3})])
def test_a_damaged_list_is_refused(root, text):
    (root / FOLDER / "m.json").write_text(text)
    with pytest.raises((DataError, ScoreTableError), match="m.json|not the table"):
        read_tables(root, "m", table())
    (root / FOLDER / "m.json").unlink()
    with pytest.raises(DataError, match="sparsemm tables"):
        read_tables(root, "m", table())

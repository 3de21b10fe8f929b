"""Entries in params.yaml: added, replaced, removed, and the rest of the file left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsemm.errors import ParamsError
from sparsemm.models import content_revision, new_entry
from sparsemm.params import load_params
from sparsemm.params.entries import add_entry, remove_entry
from sparsemm.training.architectures import build

OWN = Path(__file__).parents[2] / "params.yaml"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from sparsemm.training.scratch import save

    folder = tmp_path_factory.mktemp("models") / "tiny-qwen2-vl"
    save(*build("tiny-qwen2-vl", 4), folder)
    return folder


@pytest.fixture
def params_file(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(OWN.read_text(encoding="utf-8"), encoding="utf-8")
    return path


def test_add_list_and_remove_leave_the_rest_of_the_file_alone(params_file, checkpoint):
    before = params_file.read_text()
    entry = new_entry(str(checkpoint))
    assert entry.family == "qwen2_vl" and entry.dtype == "float32"
    assert entry.revision == content_revision(checkpoint)
    assert add_entry(params_file, "second-seed", entry)
    assert load_params(params_file).models["second-seed"] == entry
    assert not add_entry(params_file, "second-seed", entry)  # nothing changed
    remove_entry(params_file, "second-seed")
    assert params_file.read_text() == before


def test_adding_again_replaces_the_entry(params_file, checkpoint):
    entry = new_entry(str(checkpoint))
    first = list(load_params(params_file).models)[-1]  # one without overrides, which would be kept
    count = len(load_params(params_file).models)
    assert add_entry(params_file, first, entry)
    params = load_params(params_file)
    assert params.models[first] == entry and len(params.models) == count
    assert "# The only configuration" in params_file.read_text()


def test_the_last_model_can_be_removed_and_one_added_to_none(params_file, checkpoint):
    for key in load_params(params_file).models:
        remove_entry(params_file, key)
    assert load_params(params_file).models == {}
    add_entry(params_file, "one", new_entry(str(checkpoint)))
    assert list(load_params(params_file).models) == ["one"]


def test_bad_keys_and_unknown_entries_change_nothing(params_file, checkpoint):
    before = params_file.read_text()
    with pytest.raises(ParamsError, match="key 'a.b'"):
        add_entry(params_file, "a.b", new_entry(str(checkpoint)))
    with pytest.raises(ParamsError, match="no model"):
        remove_entry(params_file, "nobody")
    assert params_file.read_text() == before
    assert sorted(path.name for path in params_file.parent.iterdir()) == ["params.yaml"]


def test_revisions_that_look_like_numbers_stay_text_for_dvc(params_file, checkpoint):
    from dvc.utils.serialize import load_yaml  # YAML 1.2

    for revision in ("12e4567890123456", "0123456789012389", "1234567890123456", "cbbb583ca5406656"):
        add_entry(params_file, "one", new_entry(str(checkpoint)).model_copy(update={"revision": revision}))
        assert load_params(params_file).models["one"].revision == revision
        assert load_yaml(str(params_file))["models"]["one"]["revision"] == revision


@pytest.mark.parametrize("text", [None, "models: [", "models: null", "a: 1"])
def test_files_that_hold_no_models_are_told(tmp_path, checkpoint, text):
    path = tmp_path / "params.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ParamsError, match="params.yaml"):
        remove_entry(path, "one")
    with pytest.raises(ParamsError, match="params.yaml"):
        add_entry(path, "one", new_entry(str(checkpoint)))

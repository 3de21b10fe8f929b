import pytest
import yaml
from safetensors.numpy import load_file, save_file

from sparsemm.errors import LayoutError, ModelError, PipelineError, WatchError
from sparsemm.models import content_revision
from sparsemm.params import load_params
from sparsemm.pipeline.adopt import adopt
from tests.watch.checkpoints import write_checkpoint


@pytest.fixture
def watched(repository):
    """The repository, with a folder watched for "one" and for a model that is not there yet."""
    path = repository.root / "params.yaml"
    params = yaml.safe_load(path.read_text())
    source = {"source": "folder", "location": "incoming", "settle_seconds": 0.0}
    params["watch"] = {"one": source, "new": source}
    params["models"]["one"] |= {"dtype": "bfloat16", "note": "kept"}
    path.write_text(yaml.safe_dump(params))
    (repository.root / "incoming").mkdir()
    with open(repository.root / ".gitignore", "a") as ignore:
        ignore.write("/incoming/\n")
    repository.git("commit", "-qam", "watch")
    return repository


def test_an_arrival_is_written_and_committed_once(watched):
    assert adopt(watched.root, "one") is None
    folder = write_checkpoint(watched.root / "incoming" / "v2")
    arrival = adopt(watched.root, "one")
    entry = load_params(watched.root / "params.yaml").models["one"]
    assert (
        (entry.checkpoint, entry.revision)
        == ("incoming/v2", content_revision(folder))
        == (
            arrival.checkpoint,
            arrival.revision,
        )
    )
    assert (entry.dtype, entry.note, entry.family) == ("bfloat16", "kept", "qwen2_vl")
    assert arrival.revision in watched.git("log", "-1", "--format=%s") and not watched.git("status", "--short")
    assert adopt(watched.root, "one") is None


def test_a_model_that_was_not_there_is_added(watched):
    write_checkpoint(watched.root / "incoming" / "v1")
    assert adopt(watched.root, "new") is not None
    assert list(load_params(watched.root / "params.yaml").models) == ["one", "two", "new"]


def test_an_unsupported_family_changes_nothing(watched):
    folder = write_checkpoint(watched.root / "incoming" / "v1")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    before = (watched.root / "params.yaml").read_text()
    with pytest.raises(LayoutError):
        adopt(watched.root, "one")
    assert (watched.root / "params.yaml").read_text() == before


def test_a_checkpoint_that_lacks_weights_changes_nothing(watched):
    folder = write_checkpoint(watched.root / "incoming" / "v1")
    weights = load_file(folder / "model.safetensors")
    lost = weights.popitem()[0]
    save_file(weights, folder / "model.safetensors")
    before = (watched.root / "params.yaml").read_text()
    with pytest.raises(ModelError, match=f"1 of its weights are missing: {lost}"):
        adopt(watched.root, "one")
    assert (watched.root / "params.yaml").read_text() == before


def test_a_key_nobody_watches(watched):
    with pytest.raises(WatchError, match="watched: new, one"):
        adopt(watched.root, "two")


def test_an_edited_params_file_is_not_committed_along(watched):
    write_checkpoint(watched.root / "incoming" / "v1")
    path = watched.root / "params.yaml"
    path.write_text(path.read_text() + "# mine\n")
    with pytest.raises(PipelineError, match="uncommitted"):
        adopt(watched.root, "one")
    assert path.read_text().endswith("# mine\n")

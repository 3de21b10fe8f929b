"""Checkpoints put together from a base and updates: what they compute, their bytes, and what is refused."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from sparsemm.assemble import stage
from sparsemm.assemble.updates import UPDATES, read_pin
from sparsemm.cli import main
from sparsemm.datasets.synthetic import PageStyle
from sparsemm.errors import ModelError
from sparsemm.models import check_weights, content_revision, load_model, new_entry
from sparsemm.params import load_params
from sparsemm.training import tuning
from sparsemm.training.batches import BatchMaker
from sparsemm.training.tuning import BASES, Tuning
from tests import tiny_base

NAME = "smollm2-llava-next"
ROOT = Path(__file__).parents[2]
TOWER = ROOT / tuning.TOWER


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A recipe on the tiny base whose updates are not zero, and the folder they are written to."""
    folder = tmp_path_factory.mktemp("tuned")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder / "site")
        patch.setitem(tuning.BASES, NAME, tiny_base.install(folder / "site"))
        recipe = Tuning(NAME, 0, "cpu", tower=TOWER, rank=2)
        torch.manual_seed(0)
        with torch.no_grad():
            for name, value in recipe.parameters().items():
                value.copy_(value.bfloat16())  # as it will be written
                if name.endswith(".up"):
                    value.copy_((0.1 * torch.randn(value.shape, dtype=torch.float32, device="cpu")).bfloat16())
        recipe.save(folder / NAME)
        yield recipe, folder / NAME


def write_params(folder: Path, assembled: dict[str, Any], models: dict[str, Any] | None = None) -> None:
    """Write the repository's params.yaml with other checkpoints to assemble, and with further models."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params |= {"assembled": assembled, "models": params["models"] | (models or {})}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def test_it_computes_what_was_trained(tuned, tmp_path):
    recipe, folder = tuned
    stage.assemble(folder, tmp_path / "whole")
    model, processor = load_model(new_entry(str(tmp_path / "whole")), device="cpu")
    inputs = BatchMaker(processor, 0).make(2, PageStyle(2, 6, (6, 12)), True).to("cpu").inputs
    want_inputs = BatchMaker(recipe.processor, 0).make(2, PageStyle(2, 6, (6, 12)), True).inputs
    assert torch.equal(inputs["input_ids"], want_inputs["input_ids"])
    with torch.inference_mode():
        want, logits = recipe.model.eval()(**inputs).logits, model(**inputs).logits
        frozen = {name: value for name, value in recipe.parameters().items() if name.endswith(".up")}
        before = [value.clone() for value in frozen.values()]
        for value in frozen.values():
            value.zero_()
        without = recipe.model(**inputs).logits
        for value, old in zip(frozen.values(), before, strict=True):
            value.copy_(old)
    assert torch.allclose(logits, want, atol=5e-3)
    assert (want - without).abs().max() > 0.1  # so the updates are in it


def test_the_same_bytes_whenever_it_is_assembled(tuned, tmp_path):
    _, folder = tuned
    revisions = set()
    for name, threads in (("one", 1), ("two", 2)):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        stage.assemble(folder, tmp_path / name)
        torch.set_num_threads(before)
        revisions.add(content_revision(str(tmp_path / name)))
    assert len(revisions) == 1


def test_its_weights_are_rounded_once_from_fp64(tuned, tmp_path):
    recipe, folder = tuned
    stage.assemble(folder, tmp_path / "whole")
    weights, updates = load_file(tmp_path / "whole" / "model.safetensors"), load_file(folder / UPDATES)
    layer = "layers.1.self_attn.k_proj"
    start = recipe.model.model.language_model.layers[1].self_attn.k_proj.linear.weight
    up, down = (updates[f"model.language_model.{layer}.{part}"].double() for part in ("up", "down"))
    assert torch.equal(weights[f"language_model.model.{layer}.weight"], (start.double() + 2.0 * up @ down).half())
    # The names that vLLM reads; transformers reads them too, as `load_model` shows.
    assert {name.split(".encoder")[0] for name in weights if ".encoder." in name} == {"vision_tower.vision_model"}


def test_the_command_makes_a_checkpoint_that_models_add_takes(tuned, tmp_path, monkeypatch, capsys):
    _, folder = tuned
    write_params(tmp_path, {NAME: {"updates": str(folder)}})
    monkeypatch.chdir(tmp_path)
    assert main(["assemble", NAME]) == 0
    assert main(["models", "add", f"artifacts/checkpoints/{NAME}"]) == 0
    assert f"{NAME}: llava_next, float32, revision" in capsys.readouterr().out
    assert main(["assemble", "other"]) == 1
    assert f"known: {NAME}" in capsys.readouterr().err


def test_a_model_that_was_not_assembled_yet_says_how(tuned, tmp_path, monkeypatch, capsys):
    entry = {"checkpoint": f"artifacts/checkpoints/{NAME}", "family": "llava_next"}
    write_params(tmp_path, {NAME: {"updates": str(tuned[1])}}, {NAME: entry})
    monkeypatch.chdir(tmp_path)
    assert main(["align", NAME]) == 1
    assert f"`sparsemm assemble {NAME}` creates it" in capsys.readouterr().err


def change(folder: Path, output: Path, **tensors: Any) -> Path:
    """A copy of the updates with tensors replaced, or left out where they are None."""
    output.mkdir()
    for path in folder.iterdir():
        (output / path.name).write_bytes(path.read_bytes())
    values = load_file(folder / UPDATES) | tensors
    save_file({name: value for name, value in values.items() if value is not None}, output / UPDATES)
    return output


LAYER = "model.language_model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    "tensors, message",
    [
        ({f"{LAYER}.up": None}, "the update of .*up_proj has no counterpart"),
        ({f"{LAYER}.down": None}, "the update of .*up_proj has no counterpart"),
        ({f"{LAYER}.up": torch.ones(96, 3)}, "the update of .*up_proj has no counterpart"),
        ({f"{LAYER}.up": torch.ones(95, 2)}, r"has the shape \(95, 64\), not \(96, 64\)"),
        ({f"{LAYER}.up": torch.full((96, 2), 1e6)}, "does not fit into fp16"),
    ],
)
def test_updates_that_do_not_fit_are_refused_and_leave_nothing(tuned, tmp_path, tensors, message):
    folder = change(tuned[1], tmp_path / "updates", **tensors)
    with pytest.raises(ModelError, match=message):
        stage.assemble(folder, tmp_path / "out" / "whole")
    assert not list((tmp_path / "out").iterdir())


def test_what_is_no_folder_of_updates_is_refused(tuned, tmp_path):
    with pytest.raises(ModelError, match="base.json cannot be read"):
        stage.assemble(tmp_path, tmp_path / "whole")
    folder = change(tuned[1], tmp_path / "updates")
    (folder / "base.json").write_text(json.dumps({"package": "x"}))
    with pytest.raises(ModelError, match="base.json cannot be read"):
        stage.assemble(folder, tmp_path / "whole")
    folder = change(tuned[1], tmp_path / "more")
    (folder / UPDATES).write_bytes(b"half")
    with pytest.raises(ModelError, match="updates.safetensors cannot be read"):
        stage.assemble(folder, tmp_path / "whole")


COMMITTED, PINS = load_params(ROOT / "params.yaml").assembled, dict(BASES)


@pytest.mark.parametrize("key", COMMITTED)
def test_committed_updates_are_small_and_name_the_pinned_base(key):
    folder = ROOT / COMMITTED[key].updates
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 15e6
    assert read_pin(folder) == PINS[key]
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    assert card["licence"] == card["base"]["base_licence"] == "Apache-2.0"
    assert {"model", "quantised", "packaged", "changes"} <= card["base"].keys()


@pytest.mark.parametrize("key", COMMITTED)
def test_committed_updates_fit_the_real_base(key, tmp_path):
    folder = ROOT / COMMITTED[key].updates
    pin = read_pin(folder)
    if importlib.util.find_spec(pin.file.partition("/")[0]) is None:
        pytest.skip("the package of the base is not installed")
    stage.assemble(folder, tmp_path / key)
    check_weights(tmp_path / key)
    assert new_entry(str(tmp_path / key)).dtype == "float32"

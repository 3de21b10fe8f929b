"""Entries in params.yaml, content revisions, loading."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DynamicCache

from sparsemm import compressed_cache
from sparsemm.chase.strongest_keys import strongest_keys
from sparsemm.cli import main
from sparsemm.datasets.synthetic import PageStyle, draw_record
from sparsemm.errors import LayoutError, ModelError
from sparsemm.layouts import FAMILIES, family_of, get_layout
from sparsemm.models import (
    check_weights,
    content_revision,
    default_key,
    fingerprint,
    load_model,
    new_entry,
    read_config,
)
from sparsemm.params import ModelParams, load_params
from sparsemm.prompts import build_inputs
from sparsemm.training.architectures import build
from tests.families import MODELS, made
from tests.faults import Repo
from tests.repository import ROOT
from tests.servers import free_port

NAME = "tiny-qwen2-vl"
FOLDER = Path(__file__).parents[1] / "data" / "checkpoints" / NAME
STYLE = PageStyle(columns=1, rows=4, filled=(2, 4))
TRAINED = ModelParams(checkpoint=str(FOLDER), family="qwen2_vl")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from sparsemm.training.scratch import save

    folder = tmp_path_factory.mktemp("models") / "tiny-qwen2-vl"
    save(*build("tiny-qwen2-vl", 4), folder)
    return folder


@pytest.mark.parametrize(
    ("model_type", "kind"),
    [
        ("t5", "encoder-decoder"),
        ("florence2", "encoder-decoder"),
        ("vision-encoder-decoder", "encoder-decoder"),
        ("clip", "vision-only"),
        ("vit", "vision-only"),
        ("siglip_vision_model", "vision-only"),
        ("llama", "text-only"),
        ("mllama", "no layout knows"),
        ("wav2vec2", "not image and text"),
        ("my_own", "transformers does not know it"),
        (None, "names no model_type"),
    ],
)
def test_models_that_are_not_supported_are_refused_by_kind(tmp_path, capsys, model_type, kind):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    (tmp_path / "params.yaml").write_text("models: {}\n")
    assert main(["--params", str(tmp_path / "params.yaml"), "models", "add", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert kind in said
    for family in FAMILIES:
        assert all(name in said for name in get_layout(family).model_types)
    assert (tmp_path / "params.yaml").read_text() == "models: {}\n"


def test_a_config_may_say_itself_that_it_is_an_encoder_decoder():
    with pytest.raises(LayoutError, match="encoder-decoder"):
        family_of({"model_type": "my_own", "is_encoder_decoder": True})


def test_broken_checkpoints_are_refused(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="config.json"):
        new_entry(str(tmp_path))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="not an object"):
        read_config(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "qwen2_vl", "text_config": [1]}, "text_config of config.json is not an object"),
        ({"model_type": "qwen2_vl", "dtype": "float64"}, "--dtype"),
        ({"model_type": "qwen2_vl", "dtype": 7}, "--dtype"),
        ({"model_type": "qwen2_vl"}, "not a complete checkpoint"),
        ({"model_type": "vit"}, "vision-only"),
    ],
)
def test_what_cannot_be_added_is_told_with_its_place(tmp_path, capsys, config, reason):
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "params.yaml").write_text("models: {}\n")
    given = ["--params", str(tmp_path / "params.yaml"), "models", "add", str(tmp_path)]
    assert main([*given, "--key", "one"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"sparsemm: {tmp_path}: ") and reason in said
    assert main([*given, "--key", "../one"]) == 1  # before a folder of that name could be made
    assert "--key" in capsys.readouterr().err


def test_another_checkpoint_does_not_take_an_entrys_place(tmp_path, monkeypatch, capsys):
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(text)
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    assert main(["models", "add", str(tmp_path / "data" / "checkpoints" / "tiny-qwen2-vl")]) == 0, "the same, absolute"
    assert load_params(tmp_path / "params.yaml").models["tiny-qwen2-vl"].checkpoint == "data/checkpoints/tiny-qwen2-vl"
    before = (tmp_path / "params.yaml").read_bytes()
    capsys.readouterr()
    assert main(["models", "add", "data/checkpoints/small-qwen2-vl", "--key", "tiny-qwen2-vl"]) == 1
    said = capsys.readouterr().err
    assert "this is the key of data/checkpoints/tiny-qwen2-vl" in said and "models remove tiny-qwen2-vl" in said
    assert (tmp_path / "params.yaml").read_bytes() == before


def test_the_hub_is_asked_with_the_revision(monkeypatch, checkpoint):
    import huggingface_hub

    asked = []

    def download(repo, name, revision=None):
        asked.append((repo, name, revision))
        return str(checkpoint / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    entry = new_entry("Qwen/Qwen2-VL-7B-Instruct", revision="abc", dtype="bfloat16")
    assert asked == [("Qwen/Qwen2-VL-7B-Instruct", "config.json", "abc")]
    assert entry.revision == "abc" and entry.dtype == "bfloat16"


def test_an_unreachable_hub_is_said_so(monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def download(*_, **__):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(ModelError, match="HF_ENDPOINT"):
        new_entry("Qwen/Qwen2-VL-7B-Instruct")


def adding(tmp_path, checkpoint="org/model"):
    (tmp_path / "params.yaml").write_text("models: {}\n")
    return main(["--params", str(tmp_path / "params.yaml"), "models", "add", checkpoint])


def test_a_hub_that_does_not_answer_is_told_in_one_line(hub, monkeypatch, tmp_path, capsys):
    import huggingface_hub

    usual = huggingface_hub.hf_hub_download

    def download(*given, **named):  # warnings are what huggingface_hub says of every attempt
        assert not logging.getLogger("huggingface_hub.utils._http").isEnabledFor(logging.WARNING)
        return usual(*given, **named)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.repos["org/model"] = Repo({"README.md": b""})
    assert adding(tmp_path) == 1
    assert capsys.readouterr().err.splitlines()[1:] == [
        "sparsemm: org/model: no config.json in the repository (check that it is a transformers checkpoint)"
    ]
    hub.repos["org/model"] = Repo({"config.json": b"{"})
    assert adding(tmp_path) == 1
    assert "org/model: config.json cannot be read" in capsys.readouterr().err
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "void"))
    template = f"http://127.0.0.1:{free_port()}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    assert adding(tmp_path) == 1
    asked, told = capsys.readouterr().err.splitlines()
    assert asked.startswith("asking the hub for org/model")
    assert "the hub cannot be reached" in told and "check the network and HF_ENDPOINT" in told
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert adding(tmp_path) == 1 and "unset it, or name a local folder" in capsys.readouterr().err
    assert logging.getLogger("huggingface_hub.utils._http").isEnabledFor(logging.WARNING)


@pytest.mark.parametrize("checkpoint", ["./nothing", "data/nothing", "a/b/c", "params.yaml"])
def test_what_is_no_folder_is_not_asked_of_the_hub(checkpoint, tmp_path, capsys):
    assert adding(tmp_path, checkpoint) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"sparsemm: {checkpoint}: no such folder (") or "key" in said
    assert "asking" not in said


def test_default_keys():
    assert default_key("Qwen/Qwen2.5-VL-7B-Instruct") == "qwen2-5-vl-7b-instruct"
    assert default_key("some/folder/My_Model/") == "my_model"
    assert default_key(".") == Path.cwd().name.lower().replace(".", "-").strip("-_")


def test_changed_contents_are_noticed(checkpoint, tmp_path):
    entry = new_entry(str(checkpoint))
    with pytest.raises(ModelError, match="models add"):
        load_model(entry.model_copy(update={"revision": "0" * 16}))
    with pytest.raises(ModelError, match="revision"):
        new_entry(str(checkpoint), revision="0" * 16)
    before = content_revision(checkpoint)
    (checkpoint / "card.json").write_text("{}")  # the card is not content
    assert content_revision(checkpoint) == before


def test_load_model_gives_what_was_saved(checkpoint):
    model, processor = load_model(new_entry(str(checkpoint)), device="cpu")
    want, _ = build("tiny-qwen2-vl", 4)
    assert not model.training and model.dtype == torch.float32 and processor.tokenizer.padding_side == "left"
    for (name, got), (_, one) in zip(model.named_parameters(), want.named_parameters(), strict=True):
        assert torch.equal(got, one.half().float()), name


def test_a_folder_without_weights_is_refused(tmp_path, checkpoint):
    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text())
    with pytest.raises(ModelError, match="complete checkpoint"):
        load_model(ModelParams(checkpoint=str(tmp_path), family="qwen2_vl"))


def test_pickled_weights_are_not_loaded(tmp_path, checkpoint):
    broken = tmp_path / "pickled"
    broken.mkdir()
    for path in checkpoint.iterdir():
        if path.suffix != ".safetensors":
            (broken / path.name).write_bytes(path.read_bytes())
    torch.save(load_file(checkpoint / "model.safetensors"), broken / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors"):
        load_model(new_entry(str(broken)), device="cpu")


def sharded(checkpoint, folder):
    """A copy of the checkpoint in several weight files, and its entry without a revision."""
    model, processor = load_model(ModelParams(checkpoint=str(checkpoint), family="qwen2_vl"))
    model.save_pretrained(folder, max_shard_size="300KB")
    processor.save_pretrained(folder)
    weights = sorted(folder.glob("model-*.safetensors"))
    assert len(weights) > 1
    return weights, ModelParams(checkpoint=str(folder), family="qwen2_vl")


def test_a_missing_or_damaged_shard_is_told(checkpoint, tmp_path):
    weights, entry = sharded(checkpoint, tmp_path)
    load_model(entry)
    data = weights[1].read_bytes()
    weights[1].write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(entry)
    weights[1].unlink()
    with pytest.raises(ModelError, match="complete checkpoint"):
        load_model(entry)


def altered(folder, weights=lambda stored: stored, config=lambda stored: stored):
    """A copy of the trained checkpoint whose weights (name -> tensor) and config.json have gone through functions."""
    folder.mkdir()
    for path in FOLDER.iterdir():
        if path.is_file() and path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    save_file(weights(load_file(FOLDER / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config(json.loads((FOLDER / "config.json").read_text()))))
    return ModelParams(checkpoint=str(folder), family="qwen2_vl")


def without(part):
    return lambda stored: {name: weight for name, weight in stored.items() if part not in name}


def under(prefix):
    return lambda stored: {prefix + name: weight for name, weight in stored.items()}


def narrow(stored):
    name = next(name for name in stored if "q_proj.weight" in name)
    return stored | {name: stored[name][:5].clone()}


INCOMPLETE = {
    "layer": (without(".layers.1."), "weights are missing: model.language_model.layers.1.input.* and 9 more"),
    "vision tower": (without("visual."), r"weights are missing: model.visual.blocks.0"),
    "projector": (without("merger"), r"weights are missing: model.visual.merger"),
    "one bias": (without("layers.2.self_attn.k_proj.bias"), r"1 of its weights .*layers.2.self_attn.k_proj.bias \("),
    "wrapper": (under("module."), "weights are missing: .*begin with 'module.' instead: module.visual"),
    "adapter": (under("base_model.model."), "begin with 'base_model.*merge_and_unload"),
    "compiled": (under("_orig_mod."), "begin with '_orig_mod.' instead"),
    "everything": (lambda stored: {}, "weights are missing: "),
    "shapes": (narrow, r"q_proj.weight has shape \(5, 192\), by config.json it is \(192, 192\) \(config.json and"),
}


@pytest.mark.parametrize("kind", INCOMPLETE)
def test_incomplete_checkpoints_are_refused_before_anything_runs(tmp_path, capfd, kind):
    weights, words = INCOMPLETE[kind]
    entry = altered(tmp_path / "model", weights)
    with pytest.raises(ModelError, match=f"^{tmp_path}/model: .*{words}"):
        load_model(entry, "cpu")
    with pytest.raises(ModelError, match=words):
        check_weights(entry.checkpoint)
    assert adding(tmp_path, entry.checkpoint) == 1
    assert (tmp_path / "params.yaml").read_text() == "models: {}\n"
    errors = capfd.readouterr().err
    assert errors.startswith(f"sparsemm: {entry.checkpoint}: ") and errors.count("\n") == 1  # no other report


@pytest.mark.skipif("CUDA_STAND_IN" in os.environ, reason="bitsandbytes brings CUDA code of its own")
@pytest.mark.parametrize("options", [{"device_map": "auto"}, {"load_in": "4bit"}, {"load_in": "8bit"}], ids=str)
def test_incomplete_checkpoints_are_refused_wherever_their_weights_go(tmp_path, options):
    entry = altered(tmp_path / "model", without(".layers.1.")).model_copy(update=options)
    with pytest.raises(ModelError, match="12 of its weights are missing: model.language_model.layers.1.input"):
        load_model(entry)


def test_a_shard_that_lacks_weights_is_told(checkpoint, tmp_path):
    shards, entry = sharded(checkpoint, tmp_path / "model")
    lost = [name.removeprefix("model.") for name in sorted(load_file(shards[1]))]
    save_file({"spare": torch.zeros(1)}, shards[1], {"format": "pt"})
    for check in (load_model, lambda entry: check_weights(entry.checkpoint)):
        with pytest.raises(ModelError, match=f"{len(lost)} of its weights are missing: .*{lost[0]}"):
            check(entry)


@pytest.mark.parametrize("name", MODELS)
def test_what_transformers_leaves_out_of_files_is_not_missing(tmp_path, name):
    """Tied weights, buffers, and names of older versions; weights that nobody needs do no harm."""
    for part in made(name):
        part.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    save_file(stored | {"mtp.layers.0.weight": torch.zeros(3)}, tmp_path / "model.safetensors", {"format": "pt"})
    check_weights(tmp_path)
    load_model(ModelParams(checkpoint=str(tmp_path), family=MODELS[name][0]), "cpu")
    last = made(name)[0].config.get_text_config().num_hidden_layers - 1
    save_file(without(f"layers.{last}.")(stored), tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="of its weights are missing"):
        check_weights(tmp_path)


def in_text(**values):
    return lambda config: config | {"text_config": config["text_config"] | values}


NOT_LOADED = {
    "awq": (lambda config: config | {"quantization_config": {"quant_method": "awq", "bits": 4}}, "gptqmodel.*install"),
    "gptq": (lambda config: config | {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "optimum.*install"),
    "no method": (lambda config: config | {"quantization_config": "nf4"}, "check config.json"),
    "flash": (
        lambda config: config | {"_attn_implementation": "flash_attention_2"},
        "[Ff]lash.*keys that need it",
    ),
    "attention": (lambda config: config | {"_attn_implementation": "other"}, "other.*check config.json"),
    "dtype": (lambda config: config | {"dtype": "float7"}, "float7.*check config.json"),
    "dtype of the text": (in_text(dtype="bfloat61"), "bfloat61.*check config.json"),
    "sizes": (in_text(hidden_size=64), "has shape.*, by config.json it is"),
    "no heads": (in_text(num_attention_heads=0), "check config.json"),
    "activation": (in_text(hidden_act="nope"), "nope.*check config.json"),
    "a word for a number": (in_text(num_hidden_layers="four"), "num_hidden_layers.*check config.json"),
    "rope": (in_text(rope_parameters={"rope_type": "other", "rope_theta": 1.0}), "check config.json"),
}


@pytest.mark.parametrize("kind", NOT_LOADED)
def test_whatever_transformers_raises_is_told_with_what_to_do(tmp_path, kind):
    config, words = NOT_LOADED[kind]
    entry = altered(tmp_path / "model", config=config)
    with pytest.raises(ModelError, match=words) as raised:
        load_model(entry, "cpu")
    assert raised.value.where == entry.checkpoint and raised.value.hint and len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("tokenizer.json", "{"),
        ("tokenizer_config.json", "[]"),
        ("processor_config.json", "[]"),
        ("generation_config.json", "[]"),
        ("processor_config.json", None),
        ("tokenizer.json", None),
    ],
)
def test_damaged_files_beside_the_weights_are_told(tmp_path, file, text):
    entry = altered(tmp_path / "model")
    path = tmp_path / "model" / file
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(ModelError, match="cannot be loaded") as raised:
        load_model(entry, "cpu")
    assert raised.value.where == entry.checkpoint and raised.value.hint


def test_too_little_memory_is_told(monkeypatch):
    def to(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.nn.Module, "to", to)
    with pytest.raises(ModelError, match="out of memory.*load_in"):
        load_model(TRAINED, "cpu")


def test_a_config_of_another_family_is_refused(checkpoint):
    with pytest.raises(ModelError, match="is of family qwen2_vl, params.yaml says llava_next"):
        load_model(ModelParams(checkpoint=str(checkpoint), family="llava_next"))


def test_fingerprint_ignores_where_a_config_lies_but_not_what_it_says():
    one, other = build("tiny-qwen2-vl", 0)[0].config, build("tiny-qwen2-vl", 1)[0].config
    assert fingerprint(one) == fingerprint(other)
    other._name_or_path = "elsewhere"
    assert fingerprint(one) == fingerprint(other)
    other.text_config.num_hidden_layers = 5
    assert fingerprint(one) != fingerprint(other)


def answers(model, processor, cache):
    """Eight greedy tokens to two prompts, one of them with a page."""
    page = draw_record("calibration", 0, 0, STYLE).image
    inputs = build_inputs(processor, [[page], []], ["Read the page.", "What is sun?"]).to(model.device)
    with torch.inference_mode():
        return model.generate(**inputs, past_key_values=cache, max_new_tokens=8, min_new_tokens=8, do_sample=False)


@pytest.mark.skipif("CUDA_STAND_IN" in os.environ, reason="bitsandbytes brings CUDA code of its own")
@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"load_in": "8bit"}, "Linear8bitLt"),
        ({"load_in": "4bit"}, "Linear4bit"),
        ({"load_in": "4bit", "device_map": "auto"}, "Linear4bit"),
    ],
    ids=str,
)
def test_quantised_weights_serve_the_cache(tiny, caplog, given, kind):
    whole, processor = tiny(NAME)
    model, _ = load_model(TRAINED.model_copy(update=given))
    linear = {type(part).__name__ for name, part in model.named_modules() if name.endswith("_proj")}
    assert linear == {kind}
    head = model.get_output_embeddings()
    assert type(head) is torch.nn.Linear and head.weight is model.get_input_embeddings().weight
    assert model.dtype == torch.float32 and model.get_memory_footprint() < whole.get_memory_footprint() / 3
    assert fingerprint(model.config) == fingerprint(whole.config)
    caplog.clear()
    want = answers(model, processor, DynamicCache(config=model.config))
    assert torch.equal(answers(model, processor, compressed_cache(model, "full")), want)
    assert not caplog.messages


def test_weights_on_several_devices_compute_the_same(tiny, monkeypatch):
    whole, processor = tiny(NAME)
    room = SimpleNamespace(available=whole.get_memory_footprint() // 2)
    monkeypatch.setattr("psutil.virtual_memory", lambda: room)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    entry = TRAINED.model_copy(update={"device_map": "auto"})
    model, _ = load_model(entry)
    assert set(model.hf_device_map.values()) == {"cpu", "disk"}
    page = build_inputs(processor, [[draw_record("calibration", 0, 0, STYLE).image]], ["Read the page."])
    rows = [[page["input_ids"].shape[1] - 1]]
    for got, want in zip(strongest_keys(model, page, rows), strongest_keys(whole, page, rows), strict=True):
        assert torch.equal(got.positions, want.positions) and torch.equal(got.predicted, want.predicted)
    got, want = (answers(m, processor, compressed_cache(m, "snapkv", 10, window=4)) for m in (model, whole))
    assert torch.equal(got, want)
    room.available = 1
    with pytest.raises(ModelError, match="no device has room"):
        load_model(entry)


@pytest.mark.parametrize(
    ("given", "package"), [({"load_in": "4bit"}, "bitsandbytes"), ({"device_map": "auto"}, "accelerate")]
)
def test_a_missing_package_is_named(tiny, monkeypatch, tmp_path, given, package):
    import importlib.util

    tiny("tiny-qwen2-vl")[0].config.save_pretrained(tmp_path)
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else known(name) or name)
    entry = ModelParams(checkpoint=str(tmp_path), revision=None, family="qwen2_vl", dtype="float32", **given)
    with pytest.raises(ModelError, match=f"needs the package {package}.*\\[gpu"):
        load_model(entry)


def test_quantisation_at_load_time_leaves_the_fingerprint(tiny):
    config = tiny("tiny-qwen2-vl")[0].config
    before = fingerprint(config)
    other = type(config).from_dict(config.to_dict() | {"quantization_config": {"quant_method": "bitsandbytes"}})
    assert fingerprint(other) == before
    stored = type(config).from_dict(config.to_dict() | {"quantization_config": {"quant_method": "awq"}})
    assert fingerprint(stored) != before

"""Settings for a new model: what is measured is right, what is suggested is valid, and what a user chose stays."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from sparsemm.cache import compressed_cache
from sparsemm.cli import main
from sparsemm.models import load_model, new_entry
from sparsemm.params import load_params
from sparsemm.params.entries import add_entry
from sparsemm.prompts import build_inputs
from sparsemm.suggestions import PAGE, Needs, advice, needed_memory, needed_time, needs_of, overrides, suggested_entry
from tests.families import MODELS, made

ROOT = Path(__file__).parent.parent
CHECKPOINT = ROOT / "data" / "checkpoints" / "tiny-qwen2-vl"
SEVEN_BILLION = Needs(parameters=8_291_000_000, row_bytes=57_344, prompt=2430, weight_bytes=16_582_000_000)


@pytest.fixture
def params_file(tmp_path):
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path / "params.yaml"


def test_a_model_is_measured_without_its_weights():
    from PIL import Image

    needs = needs_of(new_entry(str(CHECKPOINT)))
    model, processor = load_model(new_entry(str(CHECKPOINT)))
    inputs = build_inputs(processor, [[Image.new("RGB", PAGE, "white")]], ["Read the page."])
    cache = compressed_cache(model, "full")
    model(**inputs, past_key_values=cache)
    assert needs.prompt == inputs["input_ids"].shape[1]
    assert needs.row_bytes * needs.prompt == cache.kept_bytes()
    assert needs.parameters == sum(weights.numel() for weights in model.parameters())
    assert needs.weight_bytes == 4 * needs.parameters


@pytest.mark.parametrize("name", MODELS)
def test_every_family_is_measured(name, tmp_path):
    model, processor = made(name)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    needs = needs_of(new_entry(str(tmp_path)))
    assert needs.parameters == sum(weights.numel() for weights in model.parameters())
    assert needs.prompt > 0 and needs.row_bytes > 0


@pytest.mark.parametrize("prompt", [512, 700, 2430, 100_000])
def test_suggested_settings_are_valid_and_suit_the_prompt(params_file, prompt):
    params = load_params(params_file)
    entry = suggested_entry(params, new_entry(str(CHECKPOINT)), replace(SEVEN_BILLION, prompt=prompt))
    add_entry(params_file, "long", entry)
    own = load_params(params_file).of("long")
    assert load_params(params_file).models["long"] == entry
    assert own.allocate.window == 32 and own.allocate.budgets[0] == 64
    assert len(own.allocate.budgets) <= 4 and own.allocate.budgets[-1] <= max(64, prompt // 4)
    assert own.profile.budget in own.allocate.budgets and own.evaluate.batch_size * prompt <= max(prompt, 16_384)
    for study in own.studies.enabled().values():
        budgets = getattr(study, "budgets", (getattr(study, "budget", 64),))
        assert set(budgets) <= set(own.allocate.budgets)
    assert load_params(params_file).of("tiny-qwen2-vl").allocate == params.allocate  # of no other model
    assert own.tune.scenarios == ("known", "later", "long") and max(own.tune.budgets) <= max(own.allocate.budgets)
    assert overrides(params.model_copy(update={"tune": None}), SEVEN_BILLION).get("tune") is None


def test_short_prompts_need_no_settings():
    params = load_params(ROOT / "params.yaml")
    short = replace(SEVEN_BILLION, prompt=300)
    assert overrides(params, short) == {}
    assert "suit it" in advice(params, short)[-1]


def test_estimates_grow_with_the_model_and_its_prompts(params_file):
    params = load_params(params_file)
    add_entry(params_file, "long", suggested_entry(params, new_entry(str(CHECKPOINT)), SEVEN_BILLION))
    own = load_params(params_file).of("long")
    larger = replace(SEVEN_BILLION, parameters=70_000_000_000, weight_bytes=140_000_000_000)
    longer = replace(SEVEN_BILLION, prompt=20_000)
    for more in (larger, longer):
        assert needed_memory(own, more) > needed_memory(own, SEVEN_BILLION) > SEVEN_BILLION.weight_bytes / 1e9
        assert all(a > b for a, b in zip(needed_time(own, more), needed_time(own, SEVEN_BILLION), strict=True))
    text = "\n".join(advice(own, SEVEN_BILLION))
    assert "not measured" in text and "SynthDoG" in text and "PDF" in text
    assert "several GPUs" in "\n".join(advice(own, larger))


def test_what_a_user_chose_stays_when_the_model_is_added_again(params_file, capsys):
    command = ["--params", str(params_file), "models", "add", str(CHECKPOINT), "--key", "second"]
    assert main(command) == 0
    assert "prompt of 268 tokens" in capsys.readouterr().out
    text = params_file.read_text(encoding="utf-8")
    own = "    allocate: {window: 8, budgets: [16, 24]}\n    load_in: 8bit\n"
    params_file.write_text(text.replace("  second:\n", f"  second:\n{own}"), encoding="utf-8")
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "nothing changed" in said and "models.second has its own settings for allocate" in said
    assert load_params(params_file).models["second"].load_in == "8bit"


def test_a_checkpoint_without_a_processor_is_added_with_a_word(params_file, tmp_path, capsys):
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(CHECKPOINT / name, folder)
    assert main(["--params", str(params_file), "models", "add", str(folder)]) == 0
    assert "check its window and budgets" in capsys.readouterr().out
    assert "bare" in load_params(params_file).models

"""Tuning a pretrained language model: what is frozen when, going on, and what is written."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from sparsemm.assemble.stage import assemble
from sparsemm.assemble.updates import UPDATES
from sparsemm.datasets.synthetic import PageStyle, draw_record
from sparsemm.errors import ModelError
from sparsemm.models import load_model, new_entry
from sparsemm.training import card, train, tuning
from sparsemm.training.batches import IGNORE, READ_PROMPT, BatchMaker
from sparsemm.training.prose import read_prose
from sparsemm.training.train import learnt, main
from sparsemm.training.tuning import STAGES, Tuning
from tests import tiny_base
from tests.training.runs import check_resumed_run, same, write_prose

NAME = "smollm2-llava-next"
TOWER = Path(__file__).parents[2] / tuning.TOWER
FEW = {"rank": 2, "tower": TOWER, "alignment_steps": 2}
TILED = FEW | {"tower": TOWER.with_name("tiny-qwen2-vl")}


@pytest.fixture(autouse=True)
def base(tmp_path_factory, monkeypatch):
    """A tiny language model in the place of the real one."""
    site = tmp_path_factory.mktemp("base") / "site"
    monkeypatch.syspath_prepend(site)
    monkeypatch.setitem(tuning.BASES, NAME, tiny_base.install(site))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_prose(tmp_path_factory.mktemp("base") / "prose")


def run(output: Path, **options: Any) -> dict[str, torch.Tensor]:
    """Train; the updates that were written."""
    train.train(NAME, output, batch_size=2, **FEW | options)
    return load_file(output / UPDATES)


@pytest.fixture
def tiled(monkeypatch):
    """The name of a tiny language model behind the classes of Idefics3."""
    pin = replace(tuning.BASES[NAME], tokens=tuning.BASES["smollm2-smolvlm"].tokens)
    monkeypatch.setitem(tuning.BASES, "smollm2-smolvlm", pin)
    return "smollm2-smolvlm"


@pytest.mark.parametrize("style", [PageStyle(1, 6, (3, 6)), PageStyle(2, 6, (6, 12)), PageStyle(2, 12, (12, 24))])
def test_batches_of_tiles_are_what_the_processor_makes_of_the_pages(tiled, style):
    processor = Tuning(tiled, 0, "cpu", **TILED).processor
    inputs = BatchMaker(processor, 5).make(2, style, True).to("cpu").inputs
    records = [draw_record("train", 5, index, style) for index in range(2)]
    content = [{"type": "image"}, {"type": "text", "text": READ_PROMPT}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    want = processor(text=[prompt] * 2, images=[[record.image] for record in records], return_tensors="pt")
    assert torch.equal(inputs["input_ids"][:, : want["input_ids"].shape[1]], want["input_ids"])
    assert torch.allclose(inputs["pixel_values"], want["pixel_values"], atol=0.01)  # rounded thumbnails
    assert (style.columns == 1) == (inputs["pixel_values"].shape[1] == 1)


def test_a_tower_starts_from_one_that_rotates(tiled, tiny):
    """Where nothing is attended to, the two compute the same; patches come in blocks of 2 x 2 in Qwen2-VL."""
    qwen, processor = tiny("tiny-qwen2-vl")
    recipe, style = Tuning(tiled, 0, "cpu", **TILED), PageStyle(1, 6, (3, 6))
    pixels = BatchMaker(recipe.processor, 7).make(1, style, True).to("cpu").inputs["pixel_values"][0]
    inputs = BatchMaker(processor, 7).make(1, style, True).to("cpu").inputs
    one, other = copy.deepcopy(qwen.model.visual), recipe.model.model.vision_model.eval()
    for value in (part for tower in (one, other) for name, part in tower.named_parameters() if "attn" in name):
        nn.init.zeros_(value)
    with torch.inference_mode():
        want = one.merger.ln_q(one(inputs["pixel_values"], inputs["image_grid_thw"]).last_hidden_state)
        patches = other(pixels, torch.ones(1, 12, 12, dtype=torch.bool, device="cpu")).last_hidden_state
    blocks = patches.view(6, 2, 6, 2, -1).transpose(1, 2).flatten(0, 3)
    assert torch.allclose(blocks, want, atol=1e-4)


def test_the_other_classes_learn_assemble_and_load(tiled, tmp_path):
    train.train(tiled, tmp_path / tiled, steps=4, batch_size=2, **TILED)
    updates = load_file(tmp_path / tiled / UPDATES)
    assert {name.split(".")[1] for name in updates} == {"text_model", "vision_model", "connector"}
    assert all(updates[name].any() for name in updates if name.endswith(".up"))
    assemble(tmp_path / tiled, tmp_path / "whole")
    entry = new_entry(str(tmp_path / "whole"), dtype="float32")
    model, processor = load_model(entry, device="cpu")
    assert entry.family == "idefics3" and len(processor.tokenizer) == model.config.text_config.vocab_size
    trained = Tuning(tiled, 0, "cpu", initial=tmp_path / tiled, rank=2).model.eval()
    inputs = BatchMaker(processor, 0).make(2, PageStyle(2, 6, (6, 12)), True).to("cpu").inputs
    with torch.inference_mode():
        assert torch.allclose(model(**inputs).logits, trained(**inputs).logits, atol=5e-3)


def test_alignment_leaves_the_language_model_alone_and_then_low_rank_updates_move_it(tmp_path):
    start = {name: value.bfloat16() for name, value in Tuning(NAME, 0, "cpu", **FEW).parameters().items()}
    aligned, tuned = run(tmp_path / "aligned", steps=2), run(tmp_path / "tuned", steps=4)
    assert same(start, aligned, "language_model") and not same(start, aligned, "projector")
    assert not same(start, aligned, "vision_tower.encoder.layers.0")
    ups = {name for name in tuned if name.endswith(".up")}
    assert len(ups) == 7 * tiny_base.SIZES["num_hidden_layers"]
    assert all(tuned[name].any() for name in ups) and not any(aligned[name].any() for name in ups)


def test_only_what_is_written_is_trained():
    recipe = Tuning(NAME, 0, "cpu", **FEW)
    before = {name: value.clone() for name, value in recipe.model.state_dict().items()}
    maker = BatchMaker(recipe.processor, 0)
    recipe.losses(maker.make(2, PageStyle(1, 6, (3, 6)), True).to("cpu"), 9)["answer"].backward()
    recipe.optimizers[0].step()
    moved = {name for name, value in recipe.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved <= recipe.parameters().keys()
    assert {name.split(".")[1] for name in moved} == {
        "vision_tower",
        "multi_modal_projector",
        "image_newline",
        "language_model",
    }


def test_the_loss_is_that_of_all_logits_at_the_answers():
    recipe = Tuning(NAME, 0, "cpu", **FEW)
    batch = BatchMaker(recipe.processor, 0).make(2, PageStyle(2, 6, (6, 12)), False).to("cpu")
    loss = recipe.losses(batch, 0)["answer"]
    logits = recipe.model(**batch.inputs, use_cache=False).logits[:, :-1]
    want = F.cross_entropy(logits.flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=IGNORE)
    assert torch.allclose(loss, want, atol=1e-5)


def test_answers_are_whole_and_end_their_turn():
    processor = Tuning(NAME, 0, "cpu", **FEW).processor
    batch = BatchMaker(processor, 0).make(1, PageStyle(1, 6, (3, 6)), False, turns=2)
    text = processor.tokenizer.decode(batch.inputs["input_ids"][0]).replace("<image>", "")
    assert text.startswith("<|im_start|>user\n\nWhat ") and text.count("<|im_end|>\n<|im_start|>assistant\n") == 2
    answers = processor.tokenizer.decode(batch.labels[0][batch.labels[0] != IGNORE])
    assert answers.count("<|im_end|>") == 2 and answers.endswith("<|im_end|>")
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    assert processor.apply_chat_template(turns, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_run_that_was_stopped_ends_where_one_that_was_not_does(folder, tmp_path, capsys):
    prose = read_prose([folder], Tuning(NAME, 0, "cpu", **FEW).processor.tokenizer)
    options = {"steps": 6, "prose": prose, "prose_share": 0.4, "save_every": 3, "precision": "bf16"}
    whole = check_resumed_run(Tuning, run, tmp_path, capsys, last=5, **options)
    assert not same(whole, run(tmp_path / "pages", **options | {"prose": None}))


def test_it_goes_on_from_updates_and_tells_what_it_can_do(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(card, "held_out", partial(card.held_out, pages=1))
    first, second = tmp_path / NAME, tmp_path / f"{NAME}-more"
    arguments = ["--batch-size", "2", "--device", "cpu", "--prose", str(folder), "--tower", str(TOWER), "--rank", "2"]
    main([NAME, "--output", str(first), "--steps", "3", "--alignment-steps", "1", *arguments])
    assert "characters of prose" in capsys.readouterr().out
    main([second.name, "--output", str(second), "--start", str(first), "--steps", "1", *arguments])
    told = json.loads((second / "card.json").read_text())
    assert told["training"]["after"]["steps"] == 3 and told["training"]["prose_share"] == 0.1
    assert told["base"]["package"] == "tiny-base" and told["base"]["sha256"]
    assert "low rank" in told["base"]["changes"]
    before, after = (told["prose"][f"held_out_nats_per_character{end}"] for end in ("_before", ""))
    assert 0.0 < before < 10.0 and 0.0 < after < 10.0 and before != after
    start, went_on = load_file(first / UPDATES), load_file(second / UPDATES)
    moved = max((went_on[name].float() - start[name].float()).abs().max() for name in start)
    assert 0.0 < moved < 0.01  # one step of the warm-up, from there
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", tuning.BASES)
def test_every_recipe_has_a_tower_that_fits(tiled, name):
    assert Tuning(f"{name}-mine", 0, "cpu", tower=TOWER.parents[2] / tuning.tower_of(f"{name}-mine"), rank=2).vision
    assert tuning.tower_of("tiny-qwen2-vl") is None


def test_what_does_not_fit_is_refused(tiled, tmp_path):
    run(tmp_path / "two", steps=1)
    with pytest.raises(ModelError, match="do not fit the model"):
        Tuning(NAME, 0, "cpu", initial=tmp_path / "two", rank=3)
    with pytest.raises(ModelError, match=r"has no vision tower of this size.*--tower"):
        Tuning(NAME, 0, "cpu", tower=TOWER.with_name("tiny-qwen2-vl"))
    with pytest.raises(ModelError, match=r"has no vision tower of this size.*a small Qwen2-VL checkpoint"):
        Tuning(tiled, 0, "cpu", tower=TOWER)
    with pytest.raises(ModelError, match="no base is known for 'tiny-qwen2-vl'"):
        Tuning("tiny-qwen2-vl", 0, "cpu")


def test_the_plan_ends_with_questions_and_two_columns():
    recipe = Tuning(NAME, 0, "cpu", **FEW)
    assert recipe.plan(1, 0) == (STAGES[0][0][0], True)
    both = {recipe.plan(number, len(STAGES) - 1) for number in range(6)}
    assert both == {(style, read) for style in STAGES[-1][0] for read in (True, False)}


def test_the_rate_warms_up_once_for_each_phase():
    recipe = Tuning(NAME, 0, "cpu", rank=2, tower=TOWER, alignment_steps=30)
    rates = [recipe.rate_at(step / 200, step) for step in range(200)]
    assert rates[0] == rates[30] == 1 / tuning.WARM_UP and rates[29] == rates[60] == 1.0
    assert rates[-1] == pytest.approx(1 / 200 / tuning.DECAY)


def test_every_stage_of_the_curriculum_can_be_left_by_what_it_trains():
    for number, stage in enumerate(STAGES[:-1]):
        kinds = {Tuning.plan(SimpleNamespace(stages=STAGES), batch, number)[1] for batch in range(12)}
        best = {f"{'read' if reads else 'ask'}_accuracy": 1.0 for reads in kinds}
        assert learnt(stage, best) and not learnt(stage, {})

"""Architectures of the small checkpoints: sizes, tokenizers, templates."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
import torch

from sparsemm.errors import ModelError
from sparsemm.training.architectures import NAMES, base_name, build, build_tokenizer

CHECKPOINTS = Path(__file__).parents[2] / "data" / "checkpoints"


@pytest.fixture(scope="module")
def small():
    return build("small-qwen2-vl")


def test_small_has_many_heads_and_fits_in_30_megabytes(small):
    model, processor = small
    text = model.config.text_config
    assert text.num_hidden_layers >= 8 and text.num_attention_heads >= 16
    assert text.num_key_value_heads < text.num_attention_heads
    head_dim = model.model.language_model.layers[0].self_attn.head_dim
    assert 2 * sum(text.rope_parameters["mrope_section"]) == head_dim
    assert sum(2 * p.numel() for p in model.parameters()) <= 30e6
    assert model.get_input_embeddings().num_embeddings == len(processor.tokenizer)


def test_small_reads_text_without_an_image(small):
    model, processor = small
    ids = processor.tokenizer("Some (plain) text.", add_special_tokens=False, return_tensors="pt").input_ids
    with torch.inference_mode():
        logits = model(input_ids=ids).logits
    assert logits.shape == (1, ids.shape[1], len(processor.tokenizer)) and logits.isfinite().all()


def test_prose_survives_the_small_tokenizer():
    tokenizer = build_tokenizer("small-qwen2-vl")
    text = string.printable[:95] + '\nThe page (of the *city*), 100% "sure": {a_b} ~/x | y; what is it?\n'
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text and tokenizer.unk_token_id not in ids


def test_the_small_tokenizer_keeps_the_ids_of_the_tiny_one():
    tiny, small = (build_tokenizer(name).get_vocab() for name in ("tiny-qwen2-vl", "small-qwen2-vl"))
    assert tiny.items() <= small.items()
    assert sorted(small.values()) == list(range(len(small)))


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("tiny-")])
def test_tiny_tokenizers_are_the_saved_ones_byte_for_byte(name, tmp_path):
    build_tokenizer(name).save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (CHECKPOINTS / name / "tokenizer.json").read_bytes()


def test_names_may_have_a_suffix_and_unknown_ones_are_refused():
    assert base_name("small-qwen2-vl-second") == "small-qwen2-vl"
    for name in ("", "small", "small-qwen2-vlx", "tiny-bert"):
        with pytest.raises(ModelError, match="small-qwen2-vl"):
            base_name(name)

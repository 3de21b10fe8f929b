"""Retrieval heads from text: a model made by hand whose one head copies, and every family against eager attention."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import sparsemm
from sparsemm import allocate
from sparsemm.attention_probe import PLACE
from sparsemm.chase import text
from sparsemm.chase.text import chase_text, copy_texts
from sparsemm.datasets.synthetic import ANCHORS, draw_words
from sparsemm.errors import DataError, ScoreTableError
from sparsemm.params import ModelParams, load_params
from sparsemm.scores import ScoreTable
from tests.families import MODELS, made
from tests.repository import ROOT

PROMPTS, WORDS = 3, 12
HALF, SLOW = 64, 30  # half of a head; from there on RoPE turns a pair by less than 1e-4 a position


def tokenizer_of(prompts: int = PROMPTS, words: int = WORDS) -> PreTrainedTokenizerFast:
    """A token for every word of the first texts."""
    texts = text.draw_texts(prompts, words, 0, prompts)[0]
    known = ["<s>", "<pad>", "<unk>", *dict.fromkeys(word for one in texts for word in one.split())]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", pad_token="<pad>", unk_token="<unk>")


def copying_model(size: int, noise: float = 0.0) -> LlamaForCausalLM:
    """Head 0 of layer 0 notes the token before, head 0 of layer 1 looks for the token behind an earlier like one.

    The residual stream holds one-hot vectors of the token, of the one before it and of the answer, and a constant.
    """
    rope = {"rope_type": "default", "rope_theta": 1e12}
    config = LlamaConfig(
        vocab_size=size, hidden_size=4 * size, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=2 * HALF, rope_parameters=rope, max_position_embeddings=64, eos_token_id=None,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM._from_config(config, dtype=torch.float32).eval()
    token, before, answer = (slice(i * size, (i + 1) * size) for i in range(3))
    one = torch.eye(size)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.zero_()
        model.model.embed_tokens.weight[:, token], model.model.embed_tokens.weight[:, -1] = one, 1.0
        first, second = (layer.self_attn for layer in model.model.layers)
        fast = torch.arange(16)
        angle = 1e12 ** (-fast / HALF)
        first.q_proj.weight[fast, -1] = 20.0
        first.k_proj.weight[fast, -1], first.k_proj.weight[fast + HALF, -1] = 20.0 * angle.cos(), 20.0 * angle.sin()
        slow = torch.cat([torch.arange(SLOW, HALF), torch.arange(SLOW, HALF) + HALF])[:size]
        second.q_proj.weight[slow, token] = second.k_proj.weight[slow, before] = 20.0 * one
        for layer, into in ((first, before), (second, answer)):
            layer.v_proj.weight[:size, token] = layer.o_proj.weight[into, :size] = one
        model.lm_head.weight[:, answer] = one
        generator = torch.Generator().manual_seed(0)
        for weight in model.parameters():
            weight += noise * torch.randn(weight.shape, generator=generator, dtype=torch.float32)
    return model


@pytest.fixture(scope="module")
def copying():
    tokenizer = tokenizer_of()
    return copying_model(len(tokenizer)), tokenizer


def test_the_head_that_copies_has_the_whole_score(copying):
    table = chase_text(*copying, prompts=PROMPTS, words=WORDS, batch_size=2)
    scored = PROMPTS * (WORDS - 1)  # nothing says with which word to begin
    assert table.hits.tolist() == [[0, 0], [scored, 0]] and np.array_equal(table.scores, table.hits)
    assert table.per_sample[:, 1, 0].tolist() == [WORDS - 1] * PROMPTS
    assert table.header["source"] == "text" and table.header["tokens"] == scored
    assert (table.header["samples"], table.header["num_kv_heads"]) == (PROMPTS, 2)
    table.check_model(copying[0].config)


def test_only_tokens_that_the_model_would_say_count(copying):
    tokenizer = copying[1]
    (one,) = text.draw_texts(1, WORDS, 0, 1)[0]
    model = copying_model(len(tokenizer))
    model.lm_head.weight.data[tokenizer.convert_tokens_to_ids(one.split()[5])] = -1.0  # looked at, but never said
    (copy,) = copy_texts(model, tokenizer, [one])
    assert copy.predicted.tolist() == [0 < t != 5 for t in range(WORDS)]
    assert copy.hits[1, 0].tolist() == [0 < t for t in range(WORDS)]
    table = chase_text(model, tokenizer, prompts=1, words=WORDS)
    assert table.hits[1, 0] == table.scores[1, 0] == table.header["tokens"] == WORDS - 2


def slow_copy(model, processor, one):
    """Token by token, from the attention that transformers itself gives out; blanks included, all of them."""
    before, words, after = text._tokens(processor, one, text.INSTRUCTION)
    ids = torch.tensor([[*before, *words, *after, *words]])
    config = model.config.get_text_config()
    own = vars(config)[PLACE]
    vars(config)[PLACE] = "eager"
    try:
        with torch.no_grad():
            out = model(input_ids=ids, output_attentions=True, use_cache=False)
    finally:
        vars(config)[PLACE] = own
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    hits = np.zeros((config.num_hidden_layers, config.num_attention_heads, len(words)), dtype=bool)
    right = np.zeros(len(words), dtype=bool)
    maps = iter([one for one in out.attentions if one is not None])
    maps = [None if kind == "linear_attention" else next(maps) for kind in kinds]
    for t, token in enumerate(words):
        row = len(before) + len(words) + len(after) + t - 1
        assert ids[0, row + 1] == ids[0, len(before) + t] == token
        right[t] = out.logits[0, row].argmax() == token
        for layer, weights in enumerate(maps):
            if weights is not None:
                hits[layer, :, t] = weights[0, :, row].argmax(-1).numpy() == len(before) + t
    tokenizer = getattr(processor, "tokenizer", processor)
    spoken = [t for t, token in enumerate(words) if tokenizer.decode([token]).strip()]
    return hits[:, :, spoken], right[spoken]


def check_copies(model, processor, texts):
    copies = copy_texts(model, processor, texts)
    for copy, one in zip(copies, texts, strict=True):
        hits, right = slow_copy(model, processor, one)
        assert np.array_equal(copy.hits, hits) and np.array_equal(copy.predicted, right)
    return copies


def test_texts_of_any_length_share_a_batch(copying):
    tokenizer = copying[1]
    noisy = copying_model(len(tokenizer), noise=0.03)
    one, two, three = text.draw_texts(PROMPTS, WORDS, 0, 9)[0]
    copies = check_copies(noisy, tokenizer, [one, " ".join(two.split()[:5]), " ".join(three.split()[:9])])
    hits = np.concatenate([copy.hits for copy in copies], axis=2)
    right = np.concatenate([copy.predicted for copy in copies])
    assert 0 < hits[:, 1].sum() < hits[1, 0].sum() and 0 < right.sum() < len(right)  # all of it has been compared


@pytest.mark.parametrize("name", MODELS)
def test_every_family_is_read_through_its_own_template(name):
    check_copies(*made(name), ["sun sky 123", "oak fig bar lead 90210"])


def test_words_are_different_and_depend_on_the_seed_alone():
    for count in (1, 2, 9, 300):
        words = draw_words(random.Random(3), count)
        assert len(set(words)) == len(words) == count and words == draw_words(random.Random(3), count)
        assert len(set(words) & set(ANCHORS)) == min(count // 2, len(ANCHORS))
    assert text.draw_texts(4, 5, 0, 4)[0][:2] == text.draw_texts(2, 5, 0, 2)[0] != text.draw_texts(2, 5, 1, 2)[0]
    with pytest.raises(DataError, match="different words"):
        draw_words(random.Random(0), 10**6)


@pytest.mark.parametrize("values", [{"prompts": 0}, {"words": 0}, {"batch_size": 0}, {"prompts": -3}])
def test_nothing_to_copy_is_refused(copying, values):
    with pytest.raises(DataError, match="nothing to copy"):
        chase_text(*copying, **values)


def test_texts_that_do_not_fit_are_refused(copying):
    model, tokenizer = copying
    with pytest.raises(DataError, match="model takes 64"):
        chase_text(model, tokenizer, prompts=1, words=40)
    with pytest.raises(DataError, match="no text"):
        copy_texts(model, tokenizer, [" "])
    twice = tokenizer_of()
    twice.chat_template = "{{ messages[0].content }} {{ messages[0].content }}"
    with pytest.raises(DataError, match="2 times"):
        copy_texts(model, twice, ["sun"])
    twice.chat_template = "{{ messages[0].content | upper }}"
    with pytest.raises(DataError, match="0 times"):
        copy_texts(model, twice, ["sun"])


def test_a_model_that_copies_nothing_has_no_table(copying):
    model = copying_model(len(copying[1]))
    model.lm_head.weight.data.zero_()
    with pytest.raises(ScoreTableError, match="copies no token"):
        chase_text(model, copying[1], prompts=2, words=WORDS)


def test_the_table_becomes_budgets_and_a_cache(copying, tmp_path, monkeypatch):
    """`chase --text`, `allocate --text`, and generation with what they wrote."""
    model, tokenizer = copying
    monkeypatch.setattr(text, "load_model", lambda entry: copying)
    monkeypatch.setattr(text, "WORDS", WORDS)
    base = load_params(ROOT / "params.yaml")
    entry = ModelParams(checkpoint="someone/model", revision="r", family="qwen2_vl", dtype="float32")
    params = base.model_copy(update={"models": {"m": entry}})
    text.run(params, "m", tmp_path, PROMPTS)
    folder = tmp_path / "artifacts" / "scores" / "text"
    table = ScoreTable.load(folder / "m.safetensors")
    assert np.array_equal(table.scores, chase_text(model, tokenizer, prompts=PROMPTS, words=WORDS).scores)
    assert (table.header["model"], table.header["revision"], table.header["source"]) == ("someone/model", "r", "text")
    known = json.loads((folder / "m.json").read_text())
    assert known["top_head"] == "1-0" and known["share_own_argmax"] == round((WORDS - 1) / WORDS, 6)
    assert (folder / "m.csv").read_text().splitlines()[1].startswith("1,1.00000000,")
    allocate.run(params, "m", tmp_path, folder="text")
    slots = np.array(json.loads((tmp_path / "artifacts" / "budgets" / "text" / "m.json").read_text())["slots"]["12"])
    assert slots.sum() == 12 * 4 and slots[1, 0] == slots.max() > 2 * np.delete(slots.ravel(), 2).max()
    assert not (tmp_path / "artifacts" / "budgets" / "m.json").exists()
    ids = torch.tensor([text._tokens(tokenizer, text.draw_texts(1, WORDS, 0, 1)[0][0], "")[1] * 2])
    cache = sparsemm.compressed_cache(model, "sparsemm", 8, table, window=2)
    with torch.no_grad():
        model(ids, past_key_values=cache)
    assert cache.kept_slots() == 8 * 4

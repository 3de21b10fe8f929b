"""Everything `generate` offers, with this cache: as with transformers' own, or refused."""

from __future__ import annotations

from threading import Thread

import pytest
import torch
from transformers import DynamicCache, StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from sparsemm.errors import CacheError
from sparsemm.policies import policy_class
from tests.policies.making import ANY_LENGTH


def both(lab, tokens, **options):
    """Tokens with transformers' cache and with everything kept by ours, from the same random state."""
    lab.model.set_attn_implementation("sdpa")
    torch.manual_seed(0)
    want = lab.generate(tokens, DynamicCache(), **options)
    torch.manual_seed(0)
    return lab.generate(tokens, lab.cache("full"), **options), want


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "temperature": 1.5},
        {"do_sample": True, "top_k": 5, "num_return_sequences": 3},
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5},
        {"num_beams": 2, "do_sample": True},
        {"repetition_penalty": 1.3},
        {"return_dict_in_generate": True, "output_scores": True},
    ],
    ids=str,
)
def test_modes_follow_transformers(lab, options):
    got, want = both(lab, lab.ids(), **options)
    if hasattr(want, "sequences"):
        torch.testing.assert_close(torch.stack(got.scores), torch.stack(want.scores), rtol=1e-4, atol=1e-4)
        got, want = got.sequences, want.sequences
    assert torch.equal(got, want)


@pytest.mark.parametrize("method", [m for m in ANY_LENGTH if m != "full"])
@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}])
def test_beams_and_samples_of_one_prompt_keep_the_budget_each(lab, method, options):
    cache = lab.cache(method, 12)
    lab.generate(lab.ids(), cache, new=6, **options)
    rows = 2 * max(options.values())
    assert cache.kept_slots().tolist() == [lab.heads * (12 + 5)] * rows


class After(StoppingCriteria):
    """Stop a row at one of some tokens."""

    def __init__(self, tokens):
        self.tokens = tokens

    def __call__(self, input_ids, scores, **options):
        return torch.isin(input_ids[:, -1], self.tokens)


def test_stopping_criteria_stop_rows_one_by_one(lab):
    free, _ = both(lab, lab.ids())
    stop = StoppingCriteriaList([After(free[[0, 1], [32, 35]])])
    got, want = both(lab, lab.ids(), stopping_criteria=stop)
    assert torch.equal(got, want) and torch.equal(got, free[:, : got.shape[1]]) and got.shape[1] < free.shape[1]


def test_text_streams_token_by_token(tiny):
    import sparsemm

    model, processor = tiny("tiny-llava-next-vicuna")
    inputs = processor.tokenizer(["Read the page."], return_tensors="pt")
    options = dict(max_new_tokens=8, min_new_tokens=8, do_sample=False)
    cache = sparsemm.compressed_cache(model, "snapkv", 8, window=4)
    with torch.no_grad():
        want = model.generate(**inputs, past_key_values=cache, **options)[0, inputs["input_ids"].shape[1] :]
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, timeout=60)
    cache = sparsemm.compressed_cache(model, "snapkv", 8, window=4)
    thread = Thread(target=model.generate, kwargs=dict(**inputs, past_key_values=cache, streamer=streamer, **options))
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert len(pieces) > 1
    assert "".join(pieces).strip() == processor.tokenizer.decode(want).strip()


def test_prompt_lookup_equals_plain_decoding(lab):
    tokens = lab.ids(batch=1, length=6).repeat(1, 5)
    for method in (one for one in ANY_LENGTH if not policy_class(one).measures):
        want = lab.generate(tokens, lab.cache(method, 12), new=30)
        cache = lab.cache(method, 12, prompt_length=30)
        assert torch.equal(lab.generate(tokens, cache, new=30, prompt_lookup_num_tokens=4), want), method
        # What was looked up and was wrong is gone.
        assert cache.kept_slots().tolist() == [lab.heads * ((30 if method == "full" else 12) + 29)]


def test_an_assistant_model_proposes_and_the_cache_takes_back(lab):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    assistant = LlamaForCausalLM._from_config(
        LlamaConfig(**(lab.sizes | {"num_hidden_layers": 1})), dtype=torch.float32
    ).eval()
    tokens = lab.ids(batch=1)
    for method in ("snapkv", "full"):
        want = lab.generate(tokens, lab.cache(method), new=20)
        cache = lab.cache(method, prompt_length=None if method == "full" else 30)
        assert torch.equal(lab.generate(tokens, cache, new=20, assistant_model=assistant), want), method


@pytest.mark.parametrize("options", [{}, {"recompress": True, "prompt_length": 30}, {"hold_budget": True}])
def test_assisted_decoding_is_refused_where_tokens_cannot_be_taken_back(lab, options):
    with pytest.raises(CacheError, match="assisted|removed again"):
        lab.generate(lab.ids(batch=1), lab.cache(**options), prompt_lookup_num_tokens=4)


def test_the_steps_of_contrastive_search(lab):
    """Its code is not in transformers; what it does to a cache is: repeat, step, select, crop."""
    cache, own, tokens = lab.cache("full"), DynamicCache(), lab.ids()
    got = []
    for one in (cache, own):
        lab.run(one, tokens)
        one.batch_repeat_interleave(3)
        lab.run(one, lab.ids(batch=6, length=1, seed=4))
        one.batch_select_indices(torch.tensor([1, 5]))
        one.crop(-1)
        got.append(lab.run(one, tokens[:, :1]))
    torch.testing.assert_close(*got, rtol=1e-4, atol=1e-4)


def test_two_caches_and_transformers_own_take_turns_on_one_model(lab):
    tokens = lab.ids(length=60)
    make = {
        "one": lambda: lab.cache("snapkv", 12),
        "two": lambda: lab.cache("sparsemm", 20, hold_budget=True),
        "three": lambda: lab.cache("adakv", 10, storage="int8", recompress=True),
        "own": DynamicCache,
    }
    parts = [(0, 30), (30, 31), (31, 35), (35, 36)]
    alone = {
        name: [lab.run(cache, tokens[:, a:b]) for a, b in parts] for name, cache in ((n, m()) for n, m in make.items())
    }
    caches = {name: m() for name, m in make.items()}
    for at, (a, b) in enumerate(parts):
        for name, cache in caches.items():
            assert torch.equal(lab.run(cache, tokens[:, a:b]), alone[name][at]), name

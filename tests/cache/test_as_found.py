"""A cache leaves its model as it found it: its attention, its config, what is saved of it, what it can do."""

from __future__ import annotations

import copy
import subprocess
import sys
import threading

import pytest
import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    ContinuousBatchingConfig,
    DiffLlamaConfig,
    DiffLlamaForCausalLM,
    DogeConfig,
    DogeForCausalLM,
    DynamicCache,
    Gemma2Config,
    Gemma2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import flash_attention_mask

import sparsemm
from sparsemm import attention_probe
from sparsemm.errors import CacheError
from tests.cache.conftest import SIZES

LAYERS = SIZES["num_hidden_layers"]
CALLS: list[tuple[int, int]] = []  # (new tokens, all tokens) of each call of the stand-in


def stand_in(module, query, key, value, attention_mask, **options):
    """What flash attention computes, of the mask (B, S) it gets."""
    new, seen = query.shape[2], key.shape[2]
    CALLS.append((new, seen))
    assert module.config._attn_implementation == "flash_attention_2"
    mask = torch.ones(new, seen, dtype=torch.bool).tril(seen - new).expand(len(query), 1, -1, -1)
    if attention_mask is not None:
        mask = mask & attention_mask[:, None, None].bool()
    return sdpa_attention_forward(module, query, key, value, mask, **options)


def model_with(name, monkeypatch):
    """A text model of its own with one of transformers' attention implementations; the stand-in is flash attention."""
    torch.manual_seed(0)
    model = LlamaForCausalLM._from_config(LlamaConfig(**SIZES), dtype=torch.float32).eval()
    if name == "flash_attention_2":
        monkeypatch.setitem(AttentionInterface._global_mapping, name, stand_in)
        monkeypatch.setitem(AttentionMaskInterface._global_mapping, name, flash_attention_mask)
    model.config._attn_implementation = name
    CALLS.clear()
    return model


def padded(lab):
    tokens = lab.ids()
    tokens[0, :7] = 0
    return tokens


@pytest.fixture
def nothing_compiled():
    """torch compiles flex attention anew for every chunk, and what it compiles is not ours."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of flex attention itself
@pytest.mark.parametrize("name", ["sdpa", "eager", "flex_attention", "flash_attention_2"])
@pytest.mark.parametrize("tokens", ["whole", "padded"])
@pytest.mark.parametrize("options", [{}, {"prefill_chunk_size": 7}])
def test_answers_are_those_of_the_own_attention(lab, monkeypatch, name, tokens, options):
    """Two turns, in the second of which several tokens come at once."""
    tokens = lab.ids() if tokens == "whole" else padded(lab)

    def two_turns(model, cache):
        mask = (tokens > 0).long()
        first = model.generate(tokens, cache, attention_mask=mask, **options)
        mask = torch.nn.functional.pad(mask, (0, 12 + 5), value=1)
        second = torch.cat([first, lab.ids(length=5, seed=3)], dim=1)
        return model.generate(second, cache, attention_mask=mask)

    own, plain = (type(lab)(model_with(one, monkeypatch)) for one in (name, "sdpa"))
    assert torch.equal(two_turns(own, own.cache("full", prompt_length=30)), two_turns(plain, DynamicCache()))
    caches = [one.cache("snapkv", prompt_length=30, recompress=True) for one in (own, plain)]
    assert torch.equal(*map(two_turns, (own, plain), caches))
    assert torch.equal(*(torch.stack(cache.budgets()) for cache in caches))
    assert own.model.config._attn_implementation == name


def test_flash_attention_serves_the_prompt_and_every_call_without_the_cache(lab, monkeypatch):
    flash = type(lab)(model_with("flash_attention_2", monkeypatch))
    cache = flash.cache()
    flash.run(cache, lab.ids())
    assert CALLS == [(30, 30)] * LAYERS
    flash.run(cache, lab.ids(length=1))
    flash.run(cache, lab.ids(length=3))
    assert CALLS == [(30, 30)] * LAYERS
    flash.run(DynamicCache(), lab.ids())
    flash.run(None, lab.ids(length=5))
    assert CALLS[LAYERS:] == [(30, 30)] * LAYERS + [(5, 5)] * LAYERS


def test_eager_attention_gives_its_weights(lab, monkeypatch):
    model, tokens = model_with("eager", monkeypatch), lab.ids()
    cache = type(lab)(model).cache()
    with torch.no_grad():
        got = model(tokens, past_key_values=cache, output_attentions=True).attentions
        want = model(tokens, output_attentions=True).attentions
    assert len(got) == LAYERS and all(map(torch.equal, got, want))


def test_another_attention_may_be_chosen_at_any_time(lab, monkeypatch):
    model = type(lab)(model_with("sdpa", monkeypatch))
    cache = model.cache()
    for name in ("eager", "sdpa", "eager"):
        model.model.set_attn_implementation(name)
        model.run(cache, lab.ids(length=9))
        assert model.model.config._attn_implementation == name


def attributes(model):
    """What a cache could change of a model."""
    modules = list(model.modules())
    configs = [module.config for module in modules if "config" in vars(module)]
    return (
        [type(config._attn_implementation) for config in configs],
        [(sorted(vars(module)), *module._forward_pre_hooks, *module._forward_hooks) for module in modules],
        copy.deepcopy(vars(model.config)),
    )


@pytest.mark.parametrize("name", ["sdpa", "eager", "flash_attention_2"])
def test_a_model_is_at_rest_as_it_was(lab, monkeypatch, name):
    own = type(lab)(model_with(name, monkeypatch))
    before = attributes(own.model)
    cache = own.cache()
    assert attributes(own.model) == before
    own.generate(padded(lab), cache)
    assert attributes(own.model) == before
    with pytest.raises(CacheError, match="batch of 1"):
        own.run(cache, lab.ids(1, 1))
    assert attributes(own.model) == before
    right = lab.ids()
    mask = torch.ones_like(right)
    mask[0, -3:] = 0
    with pytest.raises(CacheError, match="padding"):
        own.run(own.cache(), right, mask)
    with pytest.raises(CacheError, match="another model"):
        type(lab)(model_with("sdpa", monkeypatch)).run(own.cache(), right)
    assert attributes(own.model) == before


def gemma2():
    sizes = SIZES | {"eos_token_id": 1, "layer_types": ["sliding_attention", "full_attention"] * 2}
    return Gemma2ForCausalLM(Gemma2Config(**sizes, head_dim=8, query_pre_attn_scalar=8, sliding_window=7))


def gpt_oss():
    sizes = SIZES | {"eos_token_id": 1, "layer_types": ["sliding_attention", "full_attention"] * 2}
    return GptOssForCausalLM(GptOssConfig(**sizes, head_dim=8, num_local_experts=4, sliding_window=7))


REFUSED = {
    "softcap": gemma2,
    "s_aux": gpt_oss,
    "changed after the cache": lambda: DogeForCausalLM(DogeConfig(**SIZES)),
    "keys and values": lambda: DiffLlamaForCausalLM(DiffLlamaConfig(**SIZES | {"num_key_value_heads": 2})),
}


@pytest.mark.parametrize("feature", REFUSED)
def test_what_is_not_supported_is_refused_before_anything_is_touched(lab, feature):
    torch.manual_seed(0)
    model = REFUSED[feature]().eval().float()
    before, want = attributes(model), type(lab)(model).generate(lab.ids(), None)
    for method in ("full", "snapkv"):
        with pytest.raises(CacheError, match=feature):
            sparsemm.compressed_cache(model, method, 9, window=4)
    assert attributes(model) == before
    assert torch.equal(type(lab)(model).generate(lab.ids(), None), want)


def test_gemma2_without_its_soft_cap_is_served(lab):
    torch.manual_seed(0)
    model = gemma2().eval()
    for layer in model.model.layers:
        layer.self_attn.attn_logit_softcapping = None
    want = type(lab)(model).generate(lab.ids(), None)
    assert torch.equal(type(lab)(model).generate(lab.ids(), sparsemm.compressed_cache(model, "full")), want)


@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_continuous_batching_works_afterwards(lab, monkeypatch, name):
    own = type(lab)(model_with(name, monkeypatch))
    own.generate(lab.ids(), own.cache())
    prompts = lab.ids().tolist()
    settings = own.model.generation_config
    settings.max_new_tokens, settings.do_sample, settings.eos_token_id = 4, False, -1
    batching = ContinuousBatchingConfig(num_blocks=16, block_size=32, max_batch_tokens=64)
    results = own.model.generate_batch(prompts, settings, continuous_batching_config=batching, progress_bar=False)
    want = own.generate(lab.ids(), None, new=4, eos_token_id=None)[:, 30:].tolist()
    assert sorted(one.generated_tokens for one in results.values()) == sorted(want)
    assert torch.equal(own.generate(lab.ids(), own.cache("full"), new=4, eos_token_id=None)[:, 30:], torch.tensor(want))


# What a user does who stores a whole model; the file is one that this test has just written.
READ = """
import sys
from sparsemm import compressed_cache  # torchvision may need it
import transformers.image_utils
for name in [one for one in sys.modules if one.split(".")[0] == "sparsemm"]:
    sys.modules[name] = None
import torch
model = torch.load(sys.argv[1], weights_only=False)
assert type(model.config._attn_implementation) is str
print(model.generate(torch.arange(3, 20)[None], max_new_tokens=4, do_sample=False).tolist())
"""


def test_what_is_stored_meanwhile_needs_no_sparsemm(lab, monkeypatch, tmp_path):
    """Stored while an attention call is under way: at rest there is nothing of ours."""
    own, stored = type(lab)(model_with("sdpa", monkeypatch)), tmp_path / "model.pt"
    with torch.no_grad():
        want = own.model.generate(torch.arange(3, 20)[None], max_new_tokens=4, do_sample=False).tolist()

    def store(switch):
        begin(switch)
        if not stored.exists():
            config = own.model.config
            assert type(config._attn_implementation) is attention_probe.Detour
            assert type(copy.deepcopy(config)._attn_implementation) is str
            torch.save(own.model, stored)
            own.model.save_pretrained(tmp_path / "saved")

    begin = attention_probe.Switch.begin
    monkeypatch.setattr(attention_probe.Switch, "begin", store)
    own.run(own.cache(), lab.ids())
    out = subprocess.run([sys.executable, "-c", READ, str(stored)], capture_output=True, text=True, timeout=120)
    assert out.stdout.strip() == str(want), out.stderr
    assert "sparsemm" not in (tmp_path / "saved" / "config.json").read_text()


def test_other_threads_meet_the_own_attention_at_any_time(lab, monkeypatch):
    """Two threads answer with caches, one without, while the threads change at every few instructions."""
    own = type(lab)(model_with("flash_attention_2", monkeypatch))
    want = own.generate(lab.ids(), None), own.generate(lab.ids(), own.cache())
    failures = []

    def answer(number):
        torch.set_num_threads(1)
        try:
            for _ in range(6):
                cache = own.cache() if number else None
                assert torch.equal(own.generate(lab.ids(), cache), want[min(number, 1)])
        except BaseException as error:
            failures.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=answer, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not failures
    assert type(own.model.config._attn_implementation) is str


# peft 0.21 asks transformers by a name that is deprecated there.
OF_PEFT = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@OF_PEFT
def test_prefix_tuning_is_refused(lab, monkeypatch):
    peft = pytest.importorskip("peft")
    model = model_with("sdpa", monkeypatch)
    cache = type(lab)(model).cache()
    tuned = peft.get_peft_model(model, peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    with pytest.raises(CacheError, match="prefix tuning"):
        sparsemm.compressed_cache(tuned, "full")
    with pytest.raises(CacheError, match="prefix tuning"):
        tuned.generate(input_ids=lab.ids(), past_key_values=cache, max_new_tokens=2)


@OF_PEFT
def test_lora_is_served(lab, monkeypatch):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(model_with("sdpa", monkeypatch), peft.LoraConfig(target_modules=["q_proj"])).eval()
    want = type(lab)(model).generate(lab.ids(), None)
    assert torch.equal(type(lab)(model).generate(lab.ids(), sparsemm.compressed_cache(model, "full")), want)

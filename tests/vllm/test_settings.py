"""What the plug-in makes of additional_config, and what it refuses, on a stand-in for vLLM's config; needs no vLLM."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

from sparsemm.errors import BudgetError, CacheError, EngineError, ScoreTableError
from sparsemm.models import fingerprint
from sparsemm.registry import lookup
from sparsemm.scores import ScoreTable
from sparsemm.vllm.settings import KEY, TESTED, configure, plan_of
from tests.recipes import recipe

CONFIG = LlamaConfig(
    hidden_size=32,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    architectures=["LlamaForCausalLM"],
)
GOOD = {"method": "snapkv", "budget": 24, "window": 4}


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "0")  # what `configure` sets is gone after the test
    CONFIG.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def scores(tmp_path):
    values = np.arange(24, dtype=np.float64).reshape(1, 6, 4)
    header = {"model": "m", "revision": None, "fingerprint": fingerprint(CONFIG), "num_kv_heads": 2}
    ScoreTable.from_samples(values, np.zeros((6, 4), dtype=np.int64), header).save(tmp_path / "scores.safetensors")
    return str(tmp_path / "scores.safetensors")


def vllm_config(folder, options=None, **changes):
    """A stand-in for vLLM's config; `changes` are of the part that has such an attribute."""
    parts = {
        "model_config": dict(
            runner_type="generate",
            use_mla=False,
            dtype=torch.float32,
            hf_text_config=CONFIG,
            architecture="LlamaForCausalLM",
            model=str(folder),
            revision=None,
        ),
        "cache_config": dict(cache_dtype="auto", kv_sharing_fast_prefill=False, enable_prefix_caching=True),
        "parallel_config": dict(
            pipeline_parallel_size=1,
            decode_context_parallel_size=1,
            prefill_context_parallel_size=1,
            tensor_parallel_size=1,
            enable_dbo=False,
            worker_cls="auto",
        ),
        "scheduler_config": dict(disable_hybrid_kv_cache_manager=False),
    }
    whole = dict(kv_transfer_config=None, speculative_config=None, additional_config={KEY: options or GOOD})
    for name, value in changes.items():
        part = next((part for part in parts.values() if name in part), whole)
        assert name in part
        part[name] = value
    return SimpleNamespace(**{name: SimpleNamespace(**part) for name, part in parts.items()}, **whole)


def test_a_configured_engine_has_its_plan_and_our_worker(checkpoint, scores):
    config = vllm_config(checkpoint, {"budget": 48, "scores": scores})
    configure(config, TESTED[0], "cpu")
    plan = plan_of(config)
    assert (plan.method, plan.budget, plan.window, plan.copy, len(plan.buckets)) == ("sparsemm", 48, 32, True, 3)
    assert config.parallel_config.worker_cls == "sparsemm.vllm.cpu.CpuWorker"


def test_scores_are_those_of_the_table_once_and_for_all(checkpoint, scores):
    config = vllm_config(checkpoint, {"budget": 48, "scores": scores})
    configure(config, TESTED[0], "cpu")
    right = ScoreTable.load(scores).to_kv(2)
    assert (np.array(plan_of(config).scores) == right).all()
    assert len(config.additional_config[KEY]["digest"]) == 64
    before = config.additional_config
    configure(config, TESTED[0], "cpu")
    assert config.additional_config is before, "a second call resolves nothing anew"


def test_an_engine_without_our_options_is_left_alone(checkpoint):
    config = vllm_config(checkpoint)
    config.additional_config = {"other": 1}
    configure(config, "0.1", "tpu")
    assert config.additional_config == {"other": 1} and config.parallel_config.worker_cls == "auto"
    assert plan_of(config) is None


@pytest.mark.parametrize(
    "changes,what",
    [
        (dict(runner_type="pooling"), "runner pooling"),
        (dict(use_mla=True), "latent attention"),
        (dict(cache_dtype="fp8"), "kv_cache_dtype fp8"),
        (dict(kv_transfer_config=object()), "KV connector"),
        (dict(pipeline_parallel_size=2), "pipeline parallelism"),
        (dict(decode_context_parallel_size=2), "decode context parallelism"),
        (dict(prefill_context_parallel_size=2), "prefill context parallelism"),
        (dict(enable_dbo=True), "dual batch overlap"),
        (dict(worker_cls="other.Worker"), "worker_cls other.Worker"),
        (dict(speculative_config=SimpleNamespace(method="eagle")), "speculative method eagle"),
        (dict(kv_sharing_fast_prefill=True), "kv_sharing_fast_prefill"),
        (dict(disable_hybrid_kv_cache_manager=True), "disable_hybrid_kv_cache_manager"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_features_that_are_not_served_are_refused(checkpoint, changes, what):
    with pytest.raises(EngineError, match=what):
        configure(vllm_config(checkpoint, **changes), TESTED[0], "cpu")


def test_model_runner_v2_is_refused(checkpoint, monkeypatch):
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    with pytest.raises(EngineError, match="model runner V2"):
        configure(vllm_config(checkpoint), TESTED[0], "cpu")


def test_other_versions_and_platforms_are_refused(checkpoint):
    with pytest.raises(EngineError, match=r"vLLM 0\.31\.0 has not been tested.*0\.32\.0"):
        configure(vllm_config(checkpoint), "0.31.0", "cpu")
    with pytest.raises(EngineError, match="tpu platform"):
        configure(vllm_config(checkpoint), TESTED[0], "tpu")


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ("adakv", "its split follows the prompt's content"),
        ("h2o", "it rates by every row"),
        ("sparsemm-adaptive", "its split follows the prompt's content"),
        ("sparsemm+accumulated", "it rates by every row"),
        ("sparsemm+critical", "its selector has not been compared"),
        ("adakv+unpooled", "its split follows the prompt's content"),
    ],
)
def test_methods_that_the_scheduler_or_the_worker_cannot_serve_are_refused(checkpoint, method, why):
    what = f"method {re.escape(method)} is not served by vLLM: {why}.*use one of full, sparsemm"
    with pytest.raises(EngineError, match=what):
        configure(vllm_config(checkpoint, GOOD | {"method": method}), TESTED[0], "cpu")


@pytest.mark.parametrize(
    "options,error,what",
    [
        ({"method": "snapkv"}, BudgetError, "SnapKV needs a budget"),
        ({"budget": 64}, BudgetError, "sparsemm needs head scores"),
        (GOOD | {"budget": 3}, BudgetError, "budget 3 with window 4"),
        (GOOD | {"method": "nothing"}, BudgetError, "method 'nothing' is unknown"),
        (GOOD | {"pooling_kernel": 4}, BudgetError, "pooling_kernel is 4"),
        (GOOD | {"hold_budget": True}, BudgetError, "snapkv has no option hold_budget"),
        (GOOD | {"groups": 4}, EngineError, "6 layers cannot be split into 4 groups"),
        (GOOD | {"groups": 0}, EngineError, "6 layers cannot be split into 0 groups"),
        ([1], EngineError, r"sparsemm of additional_config is \[1\]"),
    ],
)
def test_impossible_options_are_refused(checkpoint, options, error, what):
    with pytest.raises(error, match=what):
        configure(vllm_config(checkpoint, options), TESTED[0], "cpu")


def test_a_maximum_over_all_rows_turns_prefix_caching_off(checkpoint, scores):
    config = vllm_config(checkpoint, {"method": "sparsemm+peak", "budget": 48, "scores": scores})
    configure(config, TESTED[0], "cpu")
    assert not config.cache_config.enable_prefix_caching and not plan_of(config).copy
    for name, value in (("rows", 64), ("pool", 3)):
        options = {"method": "snapkv+peak", "budget": 48, name: value}
        with pytest.raises(EngineError, match=f"{name} of snapkv.peak is not served"):
            configure(vllm_config(checkpoint, options), TESTED[0], "cpu")


@pytest.fixture
def champion(scores, monkeypatch):
    """Makes `scores` a registered table whose recipe has a method."""

    def register(method):
        table = ScoreTable.load(scores)
        table = table.with_recipe(recipe(table, method=method))
        monkeypatch.setattr(lookup, "look_up", lambda source: lookup.VersionedTable(table, Path(scores), None))

    return register


def test_auto_is_the_method_of_the_recipe_with_its_options(checkpoint, champion):
    champion("sparsemm+peak")
    options = {"method": "auto", "budget": 24, "scores": "models:/visual-heads.m@champion"}
    config = vllm_config(checkpoint, options)
    configure(config, TESTED[0], "cpu")
    plan = plan_of(config)
    assert (plan.method, plan.window, plan.options) == ("sparsemm+peak", 4, (("rho", 0.4),))
    assert not config.cache_config.enable_prefix_caching
    config = vllm_config(checkpoint, options | {"scenario": "later"})
    configure(config, TESTED[0], "cpu")
    assert (plan_of(config).method, plan_of(config).window) == ("snapkv", 8)
    with pytest.raises(EngineError, match="scenario long is not served"):
        configure(vllm_config(checkpoint, options | {"scenario": "long"}), TESTED[0], "cpu")


def test_auto_is_refused_where_the_recipes_method_is_not_served(checkpoint, champion):
    champion("sparsemm+echo")
    with pytest.raises(EngineError, match=r"method sparsemm\+echo is not served by vLLM"):
        configure(vllm_config(checkpoint, {"method": "auto", "budget": 24, "scores": "m"}), TESTED[0], "cpu")
    with pytest.raises(BudgetError, match="auto needs head scores"):
        configure(vllm_config(checkpoint, {"method": "auto", "budget": 24}), TESTED[0], "cpu")


def test_another_models_scores_are_refused(checkpoint, scores):
    LlamaConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=2).save_pretrained(checkpoint)
    with pytest.raises(ScoreTableError, match="another config"):
        configure(vllm_config(checkpoint, {"budget": 64, "scores": scores}), TESTED[0], "cpu")


def test_scores_that_are_not_there_are_refused(checkpoint, tmp_path):
    with pytest.raises(ScoreTableError, match="no such file"):
        configure(vllm_config(checkpoint, {"budget": 64, "scores": str(tmp_path / "none")}), TESTED[0], "cpu")


def test_layers_of_other_kinds_are_refused(checkpoint):
    text = LlamaConfig(num_hidden_layers=2, layer_types=["chunked_attention"] * 2, attention_chunk_size=8)
    with pytest.raises(CacheError):
        configure(vllm_config(checkpoint, hf_text_config=text), TESTED[0], "cpu")


def test_nothing_is_silently_uncompressed(checkpoint):
    config = vllm_config(checkpoint, architecture="OtherForCausalLM")
    with pytest.raises(EngineError, match="OtherForCausalLM is not served with compressed caches"):
        plan_of(config)

"""Turns `additional_config={"sparsemm": {...}}` into a plan, and refuses settings that are not supported."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sparsemm.errors import BudgetError, EngineError
from sparsemm.recipes import automatic
from sparsemm.vllm import methods
from sparsemm.vllm.plan import Plan, like_layers, policy_of

if TYPE_CHECKING:
    from sparsemm.registry.lookup import VersionedTable

log = logging.getLogger("vllm.sparsemm")  # shown as vLLM's own lines are

KEY = "sparsemm"  # in additional_config
TESTED = ("0.32.0",)
# Architectures whose answers were compared with those of transformers and our cache.
ARCHITECTURES = (
    "LlavaNextForConditionalGeneration",
    "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
)
WORKERS = {"cpu": "sparsemm.vllm.cpu.CpuWorker", "cuda": "sparsemm.vllm.cuda.CudaWorker"}


def options_of(vllm_config: Any) -> dict[str, Any] | None:
    """Returns this plug-in's options in additional_config; None for an engine that does not use it.

    Raises:
        EngineError: if it is not an object.
    """
    additional = vllm_config.additional_config
    options = additional.get(KEY) if isinstance(additional, dict) else None
    if options is not None and not isinstance(options, dict):
        raise EngineError(f"{KEY} of additional_config is {options!r}", hint='use {"method": ..., "budget": ...}')
    return options


def plan_of(vllm_config: Any) -> Plan | None:
    """Returns the plan of a configured engine; None for an engine that does not use this plug-in.

    Raises:
        EngineError: if the plug-in did not configure the engine, so that nothing would be compressed.
    """
    options = options_of(vllm_config)
    if options is None:
        return None
    if "plan" not in options:
        architecture = vllm_config.model_config.architecture
        what = f"{architecture} is not served with compressed caches"
        raise EngineError(what, hint=f"served are {', '.join(ARCHITECTURES)}")
    return Plan.from_json(options["plan"])


def configure(vllm_config: Any, version: str, platform: str) -> None:
    """Prepares an engine whose additional_config asks for compression: its plan, worker and model runner.

    Called once for an engine, before anything of it is built. Afterwards additional_config holds the plan itself, so
    that all processes use the same scores, even if another version is promoted meanwhile.

    Args:
        vllm_config: of vLLM.
        version: of vLLM.
        platform: "cpu", "cuda", or another name that vLLM gives a platform.

    Raises:
        BudgetError: if method, budget, window or scores are impossible.
        EngineError: if a setting of the engine or of the plug-in is not served.
        RegistryError: if the scores cannot be found.
        ScoreTableError: if the scores are another model's.
    """
    options = options_of(vllm_config)
    if options is None or "plan" in options:
        return
    if version not in TESTED:
        what = f"vLLM {version} has not been tested with this plug-in"
        raise EngineError(what, hint=f"install {' or '.join(TESTED)}")
    if platform not in WORKERS:
        what = f"compressed caches are not served on vLLM's {platform} platform"
        raise EngineError(what, hint=f"use one of {', '.join(WORKERS)}, or transformers with sparsemm.compressed_cache")
    refuse(vllm_config)
    plan, digest = resolve(vllm_config, options)
    vllm_config.additional_config = {
        **vllm_config.additional_config,
        KEY: {"plan": plan.to_json(), "scores": options.get("scores"), "digest": digest},
    }
    vllm_config.parallel_config.worker_cls = WORKERS[platform]
    os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")
    kept = f"method {plan.method}, budget {plan.budget}, window {plan.window}, {len(plan.buckets)} groups of layers"
    log.info("sparsemm: KV caches are compressed: %s, scores %s", kept, digest or "not needed")
    if platform == "cuda":
        log.warning("sparsemm: the code for CUDA has not been run on a GPU yet, see docs/vllm.md")


def refuse(vllm_config: Any) -> None:
    """Refuses the features of an engine that a compressed cache does not support.

    Raises:
        EngineError: naming the first one and what to use instead.
    """
    model, cache, parallel = vllm_config.model_config, vllm_config.cache_config, vllm_config.parallel_config
    speculative = vllm_config.speculative_config
    drafts = None if speculative is None else speculative.method
    stated = os.environ.get("VLLM_USE_V2_MODEL_RUNNER", "0")
    asked = [
        (model.runner_type != "generate", f"runner {model.runner_type}", "only generating models have a prompt to cut"),
        (model.use_mla, "multi-head latent attention", "its cache has no heads to tell apart"),
        (cache.cache_dtype not in ("auto", str(model.dtype).removeprefix("torch.")),
         f"kv_cache_dtype {cache.cache_dtype}", "use auto"),
        (vllm_config.kv_transfer_config is not None, "a KV connector", "its blocks would be other rows than it thinks"),
        (parallel.pipeline_parallel_size > 1, "pipeline parallelism", "use tensor parallelism"),
        (parallel.decode_context_parallel_size > 1, "decode context parallelism", "use tensor parallelism"),
        (parallel.prefill_context_parallel_size > 1, "prefill context parallelism", "use tensor parallelism"),
        (parallel.enable_dbo, "dual batch overlap", "leave enable_dbo out"),
        (parallel.worker_cls != "auto", f"worker_cls {parallel.worker_cls}", "the plug-in brings its own worker"),
        (drafts not in (None, "ngram"), f"speculative method {drafts}", "use ngram"),
        (cache.kv_sharing_fast_prefill, "kv_sharing_fast_prefill", "leave it out"),
        (bool(vllm_config.scheduler_config.disable_hybrid_kv_cache_manager),
         "disable_hybrid_kv_cache_manager", "groups of layers need the hybrid manager"),
        (stated not in ("0", "false", "False"), "model runner V2", "unset VLLM_USE_V2_MODEL_RUNNER"),
    ]  # fmt: skip
    for unsupported, what, hint in asked:
        if unsupported:
            raise EngineError(f"{what} is not served with a compressed cache", hint=hint)


def resolve(vllm_config: Any, options: dict[str, Any]) -> tuple[Plan, str | None]:
    """Returns the plan that the options describe, and the SHA-256 of the score table if one is used.

    Raises the errors of `configure`.
    """
    of_method = dict(options)
    method, budget, source, groups = (
        of_method.pop(name, default)
        for name, default in (("method", "sparsemm"), ("budget", None), ("scores", None), ("groups", None))
    )
    version = None
    if method == "auto":
        version, scenario = _look_up(source, method), of_method.pop("scenario", "known")
        if scenario == "long":
            hint = "use known or later, or transformers with sparsemm.compressed_cache"
            raise EngineError("vLLM keeps all tokens of an answer, so scenario long is not served", hint=hint)
        method, of_method = automatic(version.table, scenario, of_method)
    if why := methods.why_not(method):
        served = f"use one of {', '.join(methods.STATIC)}, alone or with a selector of {', '.join(methods.RATES)}"
        hint = f"{served}, or transformers with sparsemm.compressed_cache"
        raise EngineError(f"method {method} is not served by vLLM: {why}", hint=hint)
    text = vllm_config.model_config.hf_text_config
    if methods.rates_every_row(method):
        odd = sorted(name for name in ("rows", "pool") if name in of_method)
        if odd:
            hint = "leave it out, or use transformers with sparsemm.compressed_cache"
            raise EngineError(f"{', '.join(odd)} of {method} is not served by vLLM", hint=hint)
        if vllm_config.cache_config.enable_prefix_caching:
            log.info("sparsemm: prefix caching is off, since %s needs the queries of the whole prompt", method)
            vllm_config.cache_config.enable_prefix_caching = False
    layers = methods.full_layers(text, vllm_config.model_config.architecture)
    scores, digest = None, None
    if methods.needs_scores(method):
        version = version or _look_up(source, method)
        matrix, digest = methods.read_scores(version, _config(vllm_config.model_config), layers)
        scores = tuple(tuple(float(score) for score in row) for row in matrix)
    window = methods.window_of(method, budget, scores, of_method)
    of_method.pop("window", None)
    plan = Plan(
        method=method,
        num_kv_heads=text.num_key_value_heads,
        layers=layers,
        budget=budget or 0,
        window=window,
        options=tuple(sorted(of_method.items())),
        scores=scores,
        copy=bool(vllm_config.cache_config.enable_prefix_caching),
        ranks=vllm_config.parallel_config.tensor_parallel_size,
    )
    policy_of(plan)  # raises for invalid scores
    if groups is not None and (type(groups) is not int or groups < 1 or len(layers) % groups):
        raise EngineError(f"{len(layers)} layers cannot be split into {groups!r} groups", hint="use a divisor")
    return replace(plan, buckets=like_layers(plan, groups)), digest


def _look_up(source: Any, method: str) -> VersionedTable:
    """The score table that the options name, with its recipe if it comes from a registry."""
    from sparsemm.registry.lookup import look_up

    if not isinstance(source, str):
        hint = "scores: a path, or models:/visual-heads.<key>@champion"
        raise BudgetError(f"{method} needs head scores", where=f"additional_config[{KEY!r}]", hint=hint)
    return look_up(source)


def _config(model_config: Any) -> Any:
    """The model's config as transformers reads it, which score tables name by its fingerprint."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(model_config.model, revision=model_config.revision, trust_remote_code=False)

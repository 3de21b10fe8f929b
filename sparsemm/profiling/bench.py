"""Benches of the cache and its operations: `sparsemm bench <name> --json` prints one JSON object."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F
from transformers import DynamicCache, StaticCache

from sparsemm.cache import backends, compressed_cache, library, ops, twins
from sparsemm.cache.layer import RaggedLayer
from sparsemm.cache.slab import Slab
from sparsemm.errors import SparseMMError
from sparsemm.profiling import clock
from sparsemm.profiling.baselines import CopyingAppend, StaticAppend
from sparsemm.profiling.shapes import SHAPES, Shape, random_model

Stretches = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]  # keys, values, starts, lengths
BUDGET, WINDOW, POOLING = 256, 32, 5
LENGTHS = (1024, 8192, 32768)  # rows of a cache; ratios are named after the last two


@dataclass(frozen=True)
class Setting:
    """What a bench runs with: the sizes of one layer, its dtype and device, timed turns, and cache lengths."""

    shape: Shape
    dtype: torch.dtype
    device: torch.device
    repeats: int
    lengths: tuple[int, int, int]

    @property
    def prompts(self) -> tuple[int, ...]:
        """Lengths of whole models' prompts: on a CPU the longest one would take minutes."""
        return self.lengths[1:] if self.device.type == "cuda" else self.lengths[1:2]

    def normal(self, *sizes: int, seed: int = 0) -> torch.Tensor:
        """Normally distributed numbers, the same at every call."""
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(*sizes, generator=generator, device=self.device).to(self.dtype)

    def layer(self, batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Full keys and values (B, Hkv, S, D)."""
        sizes = batch, self.shape.num_key_value_heads, length, self.shape.head_dim
        return self.normal(*sizes), self.normal(*sizes, seed=1)

    def keep(self, batch: int, length: int, budget: int) -> torch.Tensor:
        """(B, Hkv, S) bool: random positions, `budget` on average, up to 16 times as many in some heads."""
        heads = batch * self.shape.num_key_value_heads
        generator = torch.Generator().manual_seed(2)
        share = torch.exp2(4 * torch.rand(heads, generator=generator))
        slots = (share / share.mean() * budget).long().clamp(1, length) if budget < length else None
        keep = torch.ones(heads, length, dtype=torch.bool)
        if slots is not None:
            keep = torch.rand(heads, length, generator=generator).argsort(-1).argsort(-1) < slots[:, None]
        return keep.view(batch, -1, length).to(self.device)


def _size(*tensors: torch.Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def append(setting: Setting) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """One new token behind caches of different length, nothing evicted."""
    short, _, long = setting.lengths
    new = setting.normal(1, setting.shape.num_key_value_heads, 1, setting.shape.head_dim)
    one = new.view(-1, setting.shape.head_dim)
    functions: clock.Functions = {}
    moved: dict[str, int] = {}
    for length in (short, long):
        keys, values = setting.layer(1, length)
        keep = torch.ones(keys.shape[:3], dtype=torch.bool, device=setting.device)
        slab, lengths = Slab(keys, values, keep), torch.full((len(one),), length, device=setting.device)
        held = keys.reshape(-1, keys.shape[-1]), values.reshape(-1, keys.shape[-1])
        dynamic = DynamicCache()
        dynamic.update(keys, values, 0)
        (layer,) = dynamic.layers
        functions |= {
            f"append_{length}": _appending(slab, new),
            f"copy_{length}": partial(CopyingAppend(*held, lengths), one, one),
            f"dynamic_{length}": _dynamic(layer, keys, values, new),
            f"static_{length}": partial(StaticAppend(keys.clone(), values.clone()), new, new),
        }
        moved |= {f"append_{length}": 4 * _size(new), f"static_{length}": 4 * _size(new)}
        moved |= {f"{name}_{length}": 2 * _size(keys, values) + 4 * _size(new) for name in ("copy", "dynamic")}
    functions["copy"], moved["copy"] = clock.copies(setting.device)
    times = clock.alternating(functions, setting.repeats, setting.device)
    rows = [{"lengths": [short, long], "times": clock.summary(times, moved)}]
    return rows, {
        "append_32k_over_1k": clock.ratio(times, f"append_{long}", f"append_{short}"),
        "copy_append_32k_over_1k": clock.ratio(times, f"copy_{long}", f"copy_{short}"),
        "copy_append_over_append_32k": clock.ratio(times, f"copy_{long}", f"append_{long}"),
        "dynamic_append_over_append_32k": clock.ratio(times, f"dynamic_{long}", f"append_{long}"),
        "static_append_over_append_32k": clock.ratio(times, f"static_{long}", f"append_{long}"),
    }


def _appending(slab: Slab, new: torch.Tensor) -> Callable[[], Any]:
    rows = new.reshape(-1, new.shape[-1])

    def run() -> None:  # the row and the new lengths, which are forgotten: every call is alike, and none grows the slab
        ops.append_row(slab.keys, slab.values, rows, rows, slab.starts, slab.lengths)
        slab.lengths + 1

    return run


def _dynamic(layer: Any, keys: torch.Tensor, values: torch.Tensor, new: torch.Tensor) -> Callable[[], Any]:
    def run() -> None:
        layer.update(new, new)
        layer.keys, layer.values = keys, values

    return run


def _gather(keys: torch.Tensor, values: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return keys.gather(2, index), values.gather(2, index)


def compact(setting: Setting) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The kept positions of one layer's prompt, into the slab."""
    rows, ratios = [], {}
    for length in setting.lengths[1:]:
        keys, values = setting.layer(1, length)
        keep = setting.keep(1, length, min(BUDGET, length // 2))
        slab = Slab(keys, values, keep)
        index = (
            keep.float()
            .topk(slab.longest, dim=-1)
            .indices.sort(-1)
            .values[..., None]
            .expand(-1, -1, -1, keys.shape[-1])
        )
        kept = 2 * int(keep.sum()) * keys.shape[-1] * keys.element_size()
        given = slab.keys, slab.values, keys, values, keep, slab.starts
        functions: clock.Functions = {
            "compact": partial(ops.compact, *given),
            "twin": partial(twins.compact, *given),
            # Every head as long as the longest: what a cache without ragged storage would do.
            "gather": partial(_gather, keys, values, index),
        }
        functions["copy"], copied = clock.copies(setting.device)
        times = clock.alternating(functions, setting.repeats, setting.device)
        moved = {"compact": 2 * kept + _size(keep), "copy": copied}
        rows.append({"length": length, "kept": int(keep.sum()), "times": clock.summary(times, moved)})
        name = "32k" if length == setting.lengths[2] else "8k"
        ratios[f"twin_over_compact_{name}"] = clock.ratio(times, "twin", "compact")
        ratios[f"gather_over_compact_{name}"] = clock.ratio(times, "gather", "compact")
    return rows, ratios


def observe(setting: Setting) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Observation scores of one layer's prompt."""
    rows, ratios = [], {}
    for length in setting.lengths[:2]:
        keys, _ = setting.layer(1, length)
        query = setting.normal(1, setting.shape.num_attention_heads, WINDOW, setting.shape.head_dim, seed=3)
        valid = torch.ones(1, length, dtype=torch.bool, device=setting.device)
        given = query, keys, valid, POOLING, setting.shape.head_dim**-0.5
        functions: clock.Functions = {
            "observe": partial(ops.observe, *given),
            "twin": partial(twins.observe, *given),
        }
        functions["copy"], copied = clock.copies(setting.device)
        times = clock.alternating(functions, setting.repeats, setting.device)
        moved = {"observe": 2 * _size(keys), "copy": copied}  # the keys are read twice
        rows.append({"length": length, "window": WINDOW, "times": clock.summary(times, moved)})
        name = "8k" if length == setting.lengths[1] else "1k"
        ratios[f"twin_over_observe_{name}"] = clock.ratio(times, "twin", "observe")
    return rows, ratios


def decode(setting: Setting) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Attention of one new token over a layer's kept rows; many layers in turn, so that no cache holds them."""
    shape, (_, middle, long) = setting.shape, setting.lengths
    # Long heads: as many as fill the machine, none evicted. Short ones: the budget of a compressed prompt.
    many = max(1, -(-128 // shape.num_key_value_heads)) if setting.device.type == "cuda" else 1
    cases = {"long": (many, middle, middle), "8k_b256": (1, middle, BUDGET), "32k_b256": (1, long, BUDGET)}
    rows, ratios = [], {}
    for case, (batch, length, budget) in cases.items():
        budget = min(budget, length)
        keys, values = setting.layer(batch, length)
        keep = setting.keep(batch, length, budget)
        layers = _layers(setting, keys, values, keep)
        query = setting.normal(batch, shape.num_attention_heads, shape.head_dim, seed=3)
        grouped = query.view(batch, shape.num_key_value_heads, shape.group, shape.head_dim)
        factor = shape.head_dim**-0.5
        full = partial(F.scaled_dot_product_attention, grouped, keys, values, scale=factor)
        functions: clock.Functions = {"full": full, "ragged_decode": _each(layers, ops.ragged_decode, query, factor)}
        if setting.device.type == "cuda":
            names = backends.usable(query, layers[0][0], layers[0][1])
            functions |= {name: _each(layers, backends.BACKENDS[name], query, factor) for name in names}
        else:
            functions["twin"] = _each(layers, twins.ragged_decode, query, factor)
        functions["copy"], copied = clock.copies(setting.device)
        times = clock.alternating(functions, setting.repeats, setting.device)
        kept = 2 * int(layers[0][3].sum()) * shape.head_dim * keys.element_size()
        moved = {other: kept for other in functions if other not in ("copy", "full", "twin")}
        moved |= {"full": _size(keys, values), "copy": copied}
        result = clock.summary(times, moved)
        row = {"case": case, "batch": batch, "length": length, "budget": budget, "longest": int(layers[0][3].max())}
        rows.append(row | {"layers": len(layers), "times": result})
        ratios[f"full_over_ragged_decode_{case}"] = clock.ratio(times, "full", "ragged_decode")
        if case == "long":
            ratios["decode_bandwidth_share"] = result["ragged_decode"]["copy_share"]
    return rows, ratios


def _layers(setting: Setting, keys: torch.Tensor, values: torch.Tensor, keep: torch.Tensor) -> list[Stretches]:
    """(keys, values, starts, lengths) of slabs with the same rows, together more than the machine's caches hold."""
    slab = Slab(keys, values, keep)
    count = max(1, min(64, clock.COPIED[setting.device.type] // 2 // max(1, _size(slab.keys, slab.values))))
    first = (slab.keys, slab.values, slab.starts, slab.lengths)
    return [first] + [(slab.keys.clone(), slab.values.clone(), slab.starts, slab.lengths) for _ in range(count - 1)]


def _each(layers: list[Stretches], call: backends.Decode, query: torch.Tensor, factor: float) -> Callable[[], Any]:
    at = 0

    def run() -> None:
        nonlocal at
        at = (at + 1) % len(layers)
        call(query, *layers[at], factor)

    return run


def _caches(model: Any, setting: Setting, length: int, steps: int) -> dict[str, Callable[[], Any]]:
    shape = setting.shape
    generator = torch.Generator().manual_seed(4)
    scores = (
        torch.rand(shape.num_hidden_layers, shape.num_attention_heads, generator=generator, dtype=torch.float64) ** 8
    )

    def ours() -> Any:
        return compressed_cache(model, "sparsemm", min(BUDGET, length), scores, window=WINDOW)

    def plain(make: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            model.set_attn_implementation("sdpa")
            return make()

        return run

    return {
        "sparsemm": ours,
        "dynamic": plain(DynamicCache),
        "static": plain(lambda: StaticCache(config=model.config, max_cache_len=length + steps)),
    }


@torch.inference_mode()
def step(setting: Setting) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Prefill and decode steps of a whole model with random weights, cache by cache, in turns, without CUDA graphs."""
    rows, ratios, device = [], {}, setting.device
    steps = 8
    model = random_model(setting.shape, setting.dtype, device, max(setting.lengths) + 2 * steps)
    weights = _size(*(p for n, p in model.named_parameters() if "embed_tokens" not in n))
    for length in setting.prompts:
        prompt = torch.randint(setting.shape.vocab_size, (1, length), device=device)
        times: dict[str, list[float]] = {}
        for turn in range(max(2, setting.repeats // 3) + 1):
            for name, make in _caches(model, setting, length, steps + 1).items():
                spent: list[float] = []
                cache = make()
                with _timing_compression(spent, device):
                    began = clock.now(device)
                    token = model(prompt, past_key_values=cache, logits_to_keep=1).logits.argmax(-1)
                    prefill = clock.now(device) - began
                seconds = []
                for _ in range(steps):
                    began = clock.now(device)
                    token = model(token, past_key_values=cache).logits.argmax(-1)
                    seconds.append(clock.now(device) - began)
                if turn == 0:
                    continue  # warms up
                times.setdefault(f"{name}_prefill", []).append(prefill)
                times.setdefault(f"{name}_step", []).extend(seconds[1:])
                if name == "sparsemm":
                    times.setdefault("compression", []).append(sum(spent))
        label = "32k" if length == setting.lengths[2] else "8k"
        rows.append({"length": length, "weight_bytes": weights, "times": clock.summary(times, {})})
        ratios[f"compression_share_of_prefill_{label}"] = clock.ratio(times, "compression", "sparsemm_prefill")
        for other in ("dynamic", "static"):
            ratios[f"{other}_over_sparsemm_step_{label}"] = clock.ratio(times, f"{other}_step", "sparsemm_step")
    return rows, ratios


@contextmanager
def _timing_compression(spent: list[float], device: torch.device) -> Iterator[None]:
    """Seconds of every `RaggedLayer.compress` are added to `spent`."""
    before = RaggedLayer.compress

    def timed(*given: Any, **named: Any) -> None:
        began = clock.now(device)
        before(*given, **named)
        spent.append(clock.now(device) - began)

    RaggedLayer.compress = timed  # type: ignore[method-assign]
    try:
        yield
    finally:
        RaggedLayer.compress = before  # type: ignore[method-assign]


@torch.inference_mode()
def memory(setting: Setting) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Bytes that a cache holds after a prompt, and on a CUDA device the most that were allocated."""
    rows, ratios, device = [], {}, setting.device
    model = random_model(setting.shape, setting.dtype, device, max(setting.lengths) + 2)
    weights = _size(*model.parameters())
    for length in (setting.lengths[0], *setting.prompts):
        prompt = torch.randint(setting.shape.vocab_size, (1, length), device=device)
        row: dict[str, Any] = {"length": length, "weight_bytes": weights}
        for name, make in _caches(model, setting, length, 1).items():
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(device)
            cache = make()
            model(prompt, past_key_values=cache, logits_to_keep=1)
            if name == "sparsemm":
                row |= {"kept_bytes": cache.kept_bytes(), "slab_bytes": cache.slab_bytes()}
                row["slots"] = int(cache.kept_slots().sum())
            else:
                row[f"{name}_bytes"] = sum(_size(layer.keys, layer.values) for layer in cache.layers)
            if device.type == "cuda":
                row[f"{name}_peak_bytes"] = torch.cuda.max_memory_allocated(device)
            del cache
        rows.append(row)
    last = rows[-1]
    ratios["slack_share"] = round(last["slab_bytes"] / last["kept_bytes"] - 1, 4)
    ratios["full_over_kept_bytes"] = round(last["dynamic_bytes"] / last["kept_bytes"], 2)
    return rows, ratios


BENCHES = {
    "append": append,
    "compact": compact,
    "observe": observe,
    "decode": decode,
    "step": step,
    "memory": memory,
}
WHOLE_MODEL = ("step", "memory")


def run(
    name: str, shape: str | None = None, dtype: str | None = None, device: str | None = None, repeats: int = 9
) -> dict[str, Any]:
    """One bench: {bench, shape, dtype, device, versions, rows, ratios}.

    Args:
        name: of `BENCHES`.
        shape: of `SHAPES`; mistral-7b, but "small" for a whole model on a CPU.
        dtype: float32, float16 or bfloat16; on a CUDA device bfloat16, elsewhere float32.
        device: cpu or cuda; cuda where there is one.
        repeats: timed turns, at least 2.

    Raises:
        SparseMMError: if one of them is unknown.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    shape = shape or ("small" if where.type == "cpu" and name in WHOLE_MODEL else "mistral-7b")
    dtype = dtype or ("bfloat16" if where.type == "cuda" else "float32")
    dtypes = {str(t).removeprefix("torch."): t for t in library.DTYPES}
    for what, given, known in (("bench", name, BENCHES), ("shape", shape, SHAPES), ("dtype", dtype, dtypes)):
        if given not in known:
            raise SparseMMError(f"no {what} is called {given!r}", hint=f"one of {', '.join(known)}")
    if repeats < 2:
        raise SparseMMError(f"{repeats} turns have no spread", hint="at least 2")
    setting = Setting(SHAPES[shape], dtypes[dtype], where, repeats, LENGTHS)
    with torch.inference_mode():
        rows, ratios = BENCHES[name](setting)
    words, versions = clock.machine(where)
    head = {"bench": name, "shape": shape, "dtype": dtype, "device": words, "versions": versions}
    return head | {"rows": rows, "ratios": ratios}

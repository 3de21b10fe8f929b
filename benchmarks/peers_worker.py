"""Times decode steps of a language model with the caches of one environment; `benchmarks.peers` starts it there.

It needs torch and transformers; the caches of SparseMM and of kvpress need their packages. Commands are lines of JSON
on stdin, each with one line of JSON as its answer: {"prompt": tokens} runs a prompt and fills the caches,
{"steps": count, "cache": name} decodes that many tokens.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import suppress
from importlib.metadata import version
from typing import Any

import torch

with suppress(ModuleNotFoundError):  # the other environment has no SparseMM
    from sparsemm.compat import define_missing_torchvision_operators

    define_missing_torchvision_operators()
from transformers import DynamicCache, LlamaForCausalLM, StaticCache  # noqa: E402

Made = dict[str, tuple[Any, float]]  # name -> cache after the prompt, and the CPU seconds of making it from the prompt


def held_bytes(cache: Any) -> int:
    """Returns the bytes that a cache has allocated for keys and values."""
    if hasattr(cache, "slab_bytes"):
        return int(cache.slab_bytes())
    tensors: list[torch.Tensor] = []

    def add(value: Any) -> None:
        if hasattr(value, "__tensor_flatten__"):  # a quantised tensor
            for name in value.__tensor_flatten__()[0]:
                add(getattr(value, name))
        elif isinstance(value, torch.Tensor):
            tensors.append(value)

    for layer in cache.layers:
        for name in ("keys", "values", "_quantized_keys", "_quantized_values"):
            add(getattr(layer, name, None))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def filled(cache: Any, full: Any) -> Any:
    """Returns a cache of transformers with the keys and values of another one."""
    for index, layer in enumerate(full.layers):
        cache.update(layer.keys, layer.values, index)
    return cache


class Worker:
    """A model and its caches after one prompt.

    Attributes:
        kind: "ours" for those of SparseMM and of its transformers, "kvpress" for those of kvpress and of its.
        budget, window: slots per KV head of the compressed caches, and newest tokens among them.
        scores: visual scores of the heads, (L, Hq), for our caches.
    """

    def __init__(self, kind: str, folder: str, budget: int, window: int, scores: list[list[float]], room: int) -> None:
        self.kind, self.budget, self.window, self.scores, self.room = kind, budget, window, scores, room
        self.model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.caches: dict[str, Any] = {}
        self.next: dict[str, tuple[torch.Tensor, int]] = {}  # name -> newest token (1, 1), and its position
        self.masks: list[Any] = []

    @torch.inference_mode()
    def prompt(self, length: int) -> dict[str, Any]:
        """Runs a random prompt and fills every cache; returns the bytes of each, and the CPU seconds it took."""
        self.caches, self.next = {}, {}
        generator = torch.Generator(self.model.device).manual_seed(length)
        ids = torch.randint(3, 49000, (1, length), generator=generator, dtype=torch.int64, device=self.model.device)
        caches = self.ours(ids) if self.kind == "ours" else self.kvpress(ids)
        for name, (cache, _) in caches.items():
            self.caches[name], self.next[name] = cache, (ids[:, -1:], length)
        return {
            name: {"bytes": held_bytes(cache), "prompt_cpu_seconds": round(seconds, 3)}
            for name, (cache, seconds) in caches.items()
        }

    def ours(self, ids: torch.Tensor) -> Made:
        """Returns the caches of this package and of its transformers, all made from one forward pass."""
        from sparsemm.cache.prefill import prefill
        from sparsemm.policies import make_policy_from

        began = time.process_time()
        prompt = prefill(self.model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, self.window)
        forward = time.process_time() - began
        full: Any = DynamicCache()
        for index, layer in enumerate(prompt._cache.layers):
            full.update(layer.arguments[1], layer.arguments[2], index)
        caches: Made = {"dynamic": (full, forward)}
        caches["static"] = (
            filled(StaticCache(config=self.model.config, max_cache_len=ids.shape[1] + self.room), full),
            forward,
        )
        for method in ("sparsemm", "snapkv"):
            options = {"window": self.window, "rho": 0.1, "mode": "exact", "pooling_kernel": 5}
            scores = torch.tensor(self.scores, dtype=torch.float64, device="cpu")
            began = time.process_time()
            cache = prompt.compress(make_policy_from(method, min(self.budget, ids.shape[1]), scores, options))
            caches[method] = (cache, forward + time.process_time() - began)
        return caches

    def kvpress(self, ids: torch.Tensor) -> Made:
        """Returns the caches of kvpress and of its transformers; each press needs a forward pass of its own."""
        from kvpress import AdaKVPress, SnapKVPress
        from transformers import QuantizedCache

        began = time.process_time()
        full: Any = DynamicCache()
        self.model(ids, past_key_values=full, logits_to_keep=1)
        forward = time.process_time() - began
        caches: Made = {"dynamic": (full, forward)}
        began = time.process_time()
        quantized = filled(QuantizedCache("quanto", config=self.model.config, nbits=4), full)
        caches["quantized"] = (quantized, forward + time.process_time() - began)
        ratio = 1.0 - min(self.budget, ids.shape[1]) / ids.shape[1]
        for name, press in (
            ("snapkv", SnapKVPress(ratio, self.window)),
            ("adakv", AdaKVPress(SnapKVPress(ratio, self.window))),
        ):
            cache, began = DynamicCache(), time.process_time()
            with press(self.model):
                self.model(ids, past_key_values=cache, logits_to_keep=1)
            caches[name] = (cache, time.process_time() - began)
        self.masks = [layer.self_attn.masked_key_indices for layer in self.model.model.layers]  # of AdaKV, the last one
        return caches

    @torch.inference_mode()
    def steps(self, name: str, count: int) -> dict[str, Any]:
        """Decodes `count` greedy tokens; returns wall-clock and CPU seconds of each step after the first."""
        cache, (token, position) = self.caches[name], self.next[name]
        if self.kind == "kvpress":  # it masks what AdaKV dropped at every step of every cache, if a layer says so
            for layer, mask in zip(self.model.model.layers, self.masks, strict=True):
                layer.self_attn.masked_key_indices = mask if name == "adakv" else None
        wall, work = [], []
        for _ in range(count):
            at = torch.tensor([[position]], dtype=torch.int64, device=self.model.device)
            before = time.perf_counter(), time.process_time()
            options = {} if self.kind == "ours" else {"cache_position": at[0]}
            logits = self.model(token, past_key_values=cache, position_ids=at, **options).logits
            wall.append(time.perf_counter() - before[0])
            work.append(time.process_time() - before[1])
            token, position = logits[:, -1:].argmax(-1), position + 1
        self.next[name] = (token, position)
        return {"wall": wall[1:], "cpu": work[1:]}


def main() -> None:
    """Answers commands until stdin ends; the first line has the arguments of `Worker`."""
    torch.set_num_threads(1)
    worker = Worker(**json.loads(sys.stdin.readline()))
    packages = ["torch", "transformers", *(["kvpress", "optimum-quanto"] if worker.kind == "kvpress" else [])]
    print(json.dumps({name: version(name) for name in packages}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        result = (
            worker.prompt(command["prompt"])
            if "prompt" in command
            else worker.steps(command["cache"], command["steps"])
        )
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()

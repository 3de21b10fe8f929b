"""Prints the Python calls of one decode step per layer, as JSON: `python -m benchmarks.calls`.

Counted are calls of functions of this package while a small model with a compressed cache decodes one token of an
unpadded batch, divided by its layers. The time of such a step is compared with transformers' own cache, in turns: on
random weights, and on the checkpoints named on the command line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import torch

from sparsemm.compat import define_missing_torchvision_operators

define_missing_torchvision_operators()
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM  # noqa: E402

import sparsemm  # noqa: E402
from sparsemm.models import load_model, new_entry  # noqa: E402

PACKAGE = str(Path(sparsemm.__file__).parent)
LAYERS, HEADS, HEAD_DIM = 6, 16, 16


def small_model() -> Any:
    """A text model of random weights with the sizes of the tiny checkpoints; weights do not matter to time."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": 4}
    hidden = HEADS * HEAD_DIM
    config = LlamaConfig(vocab_size=256, hidden_size=hidden, intermediate_size=2 * hidden, eos_token_id=None, **sizes)
    return LlamaForCausalLM._from_config(config, dtype=torch.float32).eval()


@torch.inference_mode()
def filled(model: Any, cache: Any, length: int) -> Any:
    """The cache after a prompt of so many tokens and two steps that warm up."""
    tokens = torch.ones(1, length, dtype=torch.int64, device="cpu")
    model(tokens, past_key_values=cache, logits_to_keep=1)
    for _ in range(2):
        model(tokens[:, :1], past_key_values=cache)
    return cache


@torch.inference_mode()
def calls(model: Any, cache: Any) -> Counter[str]:
    """Calls of one decode step by function, `file.py:name`."""
    counted: Counter[str] = Counter()

    def count(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            counted[f"{Path(frame.f_code.co_filename).relative_to(PACKAGE)}:{frame.f_code.co_qualname}"] += 1

    tokens = torch.ones(1, 1, dtype=torch.int64, device="cpu")
    sys.setprofile(count)
    try:
        model(tokens, past_key_values=cache)
    finally:
        sys.setprofile(None)
    return counted


@torch.inference_mode()
def ratio(model: Any, length: int, steps: int, turns: int) -> float:
    """Median over turns of the processor time of steps over that with DynamicCache; either is first in every other."""
    tokens = torch.ones(1, 1, dtype=torch.int64, device="cpu")
    ratios = []
    for turn in range(turns):
        caches = [sparsemm.compressed_cache(model, "snapkv", 24, window=8), DynamicCache(config=model.config)]
        seconds = [0.0, 0.0]
        for which in (turn % 2, 1 - turn % 2):
            filled(model, caches[which], length)
            began = time.process_time()
            for _ in range(steps):
                model(tokens, past_key_values=caches[which])
            seconds[which] = time.process_time() - began
        ratios.append(seconds[0] / seconds[1])
    return median(ratios)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoints", type=Path, nargs="*", help="folders of models to time too")
    parser.add_argument("--length", type=int, default=128, help="tokens of the prompt (128)")
    parser.add_argument("--steps", type=int, default=32, help="decode steps of a turn (32)")
    parser.add_argument("--turns", type=int, default=15, help="turns (15)")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    model = small_model()
    counted = calls(model, filled(model, sparsemm.compressed_cache(model, "snapkv", 24, window=8), chosen.length))
    per_layer = {name: count / LAYERS for name, count in counted.most_common() if count >= LAYERS}
    sizes = chosen.length, chosen.steps, chosen.turns
    ratios = {"random weights": ratio(model, *sizes)}
    for path in chosen.checkpoints:
        ratios[path.name] = ratio(load_model(new_entry(str(path), dtype="float32"))[0], *sizes)
    figures = {
        "calls_per_layer": round(sum(per_layer.values()), 2),
        "files": len({name.partition(":")[0] for name in per_layer}),
        "calls_per_step_besides": sum(count for name, count in counted.items() if count < LAYERS),
        "decode_ratio_to_dynamic_cache": {name: round(value, 3) for name, value in ratios.items()},
        "calls": per_layer,
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()

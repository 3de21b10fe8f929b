"""Compares an engine's tokens with those of transformers and our cache: `python -m sparsemm.vllm.check CHECKPOINT`.

It is the first thing to run on a new machine, in the environment of vLLM. Pages and a text go to transformers one at a
time, and to engines all at once: on a GPU in fp32, where PyTorch computes attention, and in bf16 with FlashAttention,
without and with CUDA graphs; on a CPU in fp32. JSON says what was equal. The exit status is 1 if a token differs where
transformers was sure of it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from sparsemm.vllm.trial import engine

# Names of engines: their dtype, whether every step is run eagerly, and a difference of logits that may be rounding.
ENGINES = {
    "float32": ("float32", True, 1e-3),
    "bfloat16": ("bfloat16", True, 0.25),
    "bfloat16-graphs": ("bfloat16", False, 0.25),
}


@dataclass(frozen=True)
class Answer:
    """The right answer of a request.

    Attributes:
        tokens: ids.
        margins: how far the logit of each was ahead of the next one.
    """

    tokens: list[int]
    margins: list[float]


@dataclass(frozen=True)
class Result:
    """An engine's answers, compared.

    Attributes:
        kernel: what computed attention.
        graphs: vLLM's name of what was captured.
        requests, equal: answers, and those equal to the last token.
        margins: transformers' margin at the first different token of each other answer.
        ok: whether all of these may be rounding.
    """

    kernel: str
    graphs: str
    requests: int
    equal: int
    margins: list[float]
    ok: bool
    seconds: float


def compare(right: Sequence[Answer], answers: Sequence[Sequence[int]], rounding: float) -> dict[str, Any]:
    """What `Result` says of answers that should be the right ones."""
    margins = []
    for one, tokens in zip(right, answers, strict=True):
        both = zip(one.tokens, tokens, one.margins, strict=True)
        margins += [margin for expected, token, margin in both if expected != token][:1]
    equal, ok = len(right) - len(margins), all(margin < rounding for margin in margins)
    return {"requests": len(right), "equal": equal, "margins": margins, "ok": ok}


def requests_of(processor: Any, count: int) -> list[dict[str, Any]]:
    """`count` requests with a page and one without, as vLLM takes them."""
    from sparsemm.datasets.synthetic import PageStyle, draw_record
    from sparsemm.prompts import chat_prompt

    style = PageStyle(3, 12, (20, 30))
    pages = [draw_record("calibration", 3, number, style).image for number in range(count)]
    prompts = [(chat_prompt(processor, [page], "Read the page."), [page]) for page in pages]
    prompts.append((chat_prompt(processor, [], "What is written on a page? " * 4), []))
    return [{"prompt": text} | ({"multi_modal_data": {"image": images}} if images else {}) for text, images in prompts]


@torch.no_grad()
def right_answers(
    checkpoint: str, dtype: str, count: int, new: int, cache: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[Answer], int]:
    """Requests, the answers of transformers with our cache, and the tokens of the longest with its answer."""
    from sparsemm import compressed_cache, load_scores
    from sparsemm.compat import cache_argument
    from sparsemm.models import load_model, new_entry
    from sparsemm.prompts import encode, move_inputs

    model, processor = load_model(new_entry(checkpoint, dtype=dtype))
    if "scores" in cache:
        cache = cache | {"scores": load_scores(cache["scores"], model.config)}
    requests, answers, longest = requests_of(processor, count), [], 0
    for request in requests:
        images = request.get("multi_modal_data", {}).get("image", [])
        inputs = move_inputs(encode(processor, [images], [request["prompt"]]), model)
        length = inputs["input_ids"].shape[1]
        out = model.generate(
            **inputs,
            **cache_argument(compressed_cache(model, **cache)),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        best = torch.cat(out.logits).float().topk(2).values
        answers.append(Answer(out.sequences[0, length:].tolist(), (best[:, 0] - best[:, 1]).tolist()))
        longest = max(longest, length + new)
    del model
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return requests, answers, longest


def check(checkpoint: str, name: str, count: int, new: int, cache: dict[str, Any]) -> Result:
    """Compares the engine of this name in `ENGINES` with transformers; `cache` are options of both."""
    from vllm import SamplingParams

    dtype, eager, rounding = ENGINES[name]
    requests, right, longest = right_answers(checkpoint, dtype, count, new, cache)
    since = time.perf_counter()
    options = dict(dtype=dtype, enforce_eager=eager, max_model_len=longest + 1, max_num_seqs=8)
    with engine(checkpoint, cache, 1, **options) as llm:
        greedy = SamplingParams(temperature=0, max_tokens=new, min_tokens=new)
        outputs = llm.generate(requests, greedy, use_tqdm=False)
        worker = llm.llm_engine.model_executor.driver_worker.worker
        builders = getattr(worker, "builders", None) or worker.model_runner.builders
        kernel = type(builders[0].kernel).__name__
        graphs = llm.llm_engine.vllm_config.compilation_config.cudagraph_mode.name
    compared = compare(right, [list(output.outputs[0].token_ids) for output in outputs], rounding)
    return Result(kernel=kernel, graphs=graphs, seconds=time.perf_counter() - since, **compared)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints what was equal; returns 1 if an engine's answers are wrong, else 0."""
    default = list(ENGINES) if torch.cuda.is_available() else ["float32"]
    parser = argparse.ArgumentParser(
        prog="python -m sparsemm.vllm.check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="folder or hub id of a model that reads images")
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=default, help=f"default: {default}")
    parser.add_argument("--method", default="snapkv", help="of compression, default snapkv")
    parser.add_argument("--scores", help="score table, for sparsemm")
    parser.add_argument("--budget", type=int, default=48, help="mean slots per KV head, default 48")
    parser.add_argument("--window", type=int, default=8, help="observation window, default 8")
    parser.add_argument("--pages", type=int, default=6, help="requests with a page, default 6")
    parser.add_argument("--new", type=int, default=40, help="tokens of an answer, default 40")
    options = parser.parse_args(arguments)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # one process, whose kernel can be named
    cache = {"method": options.method, "budget": options.budget, "window": options.window}
    if options.scores:
        cache["scores"] = options.scores
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    report: dict[str, Any] = {"checkpoint": options.checkpoint, "device": device, "torch": torch.__version__}
    results = {name: check(options.checkpoint, name, options.pages, options.new, cache) for name in options.engines}
    print(json.dumps(report | {"engines": {name: asdict(result) for name, result in results.items()}}, indent=1))
    return 0 if all(result.ok for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

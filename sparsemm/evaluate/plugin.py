"""A model class for lmms-eval that answers through the compressed cache."""

from __future__ import annotations

from typing import Any

import torch
from lmms_eval.api.model import lmms

from sparsemm.cache import compressed_cache
from sparsemm.errors import DataError
from sparsemm.prompts import build_inputs
from sparsemm.scores import ScoreTable


class CompressedModel(lmms):
    """Greedy answers of one model under one method and budget; `use` switches to another.

    After `generate_until`, `kept` holds the slots each request kept after prefill, summed over layers and KV heads.
    """

    def __init__(self, model: Any, processor: Any, scores: ScoreTable | None, *, batch_size: int, **cache: Any) -> None:
        super().__init__()
        self.model, self.processor, self.scores = model, processor, scores
        self.batch_size, self.cache_options = batch_size, cache
        self.method, self.budget = "full", 0
        self.max_new_tokens = 128
        self.kept: list[int] = []

    def use(self, method: str, budget: int) -> None:
        """Choose the method and the mean slots per KV head of the requests that follow."""
        self.method, self.budget, self.kept = method, budget, []

    def slot_bytes(self) -> int:
        """Bytes of K and V of one token in one KV head."""
        config = self.model.config.get_text_config()
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return 2 * head_dim * self.model.dtype.itemsize

    @torch.inference_mode()
    def answer(self, images: list[list[Any]], prompts: list[str]) -> list[str]:
        """Greedy answers to one batch; one list of images and one prompt per row."""
        inputs = build_inputs(self.processor, images, prompts).to(self.model.device)
        inputs = {k: v.to(self.model.dtype) if v.is_floating_point() else v for k, v in inputs.items()}
        cache = compressed_cache(self.model, self.method, self.budget, self.scores, **self.cache_options)
        out = self.model.generate(
            **inputs, past_key_values=cache, do_sample=False, max_new_tokens=self.max_new_tokens, use_cache=True
        )
        kept = torch.stack([slots.sum(dim=-1) for slots in cache.budgets()]).sum(dim=0)
        self.kept += kept.tolist()
        new = out[:, inputs["input_ids"].shape[1] :]
        return list(self.processor.tokenizer.batch_decode(new, skip_special_tokens=True))

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Answers in the order of the requests; computed in batches of similar prompt and image size."""
        rows = []
        for request in requests:
            context, options, doc_to_visual, doc_id, task, split = request.args
            images = doc_to_visual(self.task_dict[task][split][doc_id])
            rows.append((context, images, tuple(options.get("until", ()))))
        order = sorted(range(len(rows)), key=lambda i: ([image.size for image in rows[i][1]], len(rows[i][0]), i))
        answers, kept = [""] * len(rows), [0] * len(rows)
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            self.kept = []
            texts = self.answer([rows[i][1] for i in chosen], [rows[i][0] for i in chosen])
            for i, text, slots in zip(chosen, texts, self.kept, strict=True):
                for stop in rows[i][2]:
                    text = text.split(stop)[0]
                answers[i], kept[i] = text.strip(), slots
        self.kept = kept
        return answers

    def clean(self) -> None:
        """Keep the model: lmms-eval calls this after every run, and many runs share it."""

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Refused: no local task asks for it.

        Raises:
            DataError: always.
        """
        raise DataError("log-likelihood tasks are not supported", where="CompressedModel", hint="use generate_until")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Refused: no local task asks for it.

        Raises:
            DataError: always.
        """
        raise DataError("multi-round tasks are not supported", where="CompressedModel", hint="use generate_until")

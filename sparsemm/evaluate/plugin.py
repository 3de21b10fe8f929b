"""The plug-in `python -m lmms_eval --model sparsemm`, a model of lmms-eval with a compressed cache."""

from __future__ import annotations

import inspect
import os
from difflib import get_close_matches
from typing import Any

import torch
from lmms_eval.api.model import lmms
from lmms_eval.utils import simple_parse_args_string
from tqdm import tqdm

from sparsemm.cache.served import shape_of
from sparsemm.errors import DataError, ModelError, PromptTooLong
from sparsemm.evaluate.answers import Variant, answer, make_batch
from sparsemm.evaluate.questions import batches, question
from sparsemm.models import load_model, new_entry
from sparsemm.policies import every_option, make_policy_from
from sparsemm.recipes import automatic
from sparsemm.registry.lookup import load_scores

OPTIONS = sorted(every_option() - {"selector"})  # options of the methods that a command line can set


class SparseMM(lmms):
    """Answers greedily with one checkpoint, method and budget.

    The arguments are given in --model_args, device and batch_size as --device and --batch_size:
        pretrained: local folder or hub id of a checkpoint of a supported family.
        revision: revision on the hub, or the content hash of the folder.
        method, budget: as in `sparsemm.compressed_cache`; "auto" is the method of the recipe for known questions.
        scores: path of a score table, or models:/visual-heads.<key>@champion.
        dtype: float32, float16 or bfloat16; by default the dtype in the checkpoint's config.
        device: by default the GPU of this process if there is one, else the CPU.
        batch_size: number of requests that run together.
        max_new_tokens: used if a task does not set it.
        trust_remote_code: must be off.
        options: as in `sparsemm.compressed_cache`; options of other methods are ignored.

    Raises:
        LayoutError, ModelError, FetchError: if the checkpoint is unsupported or not available.
        ScoreTableError, RegistryError: if the table is not available, is damaged, or is of another model.
        BudgetError: if method, budget, window or scores are invalid.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        revision: str | None = None,
        method: str = "full",
        budget: int | None = None,
        scores: str | None = None,
        dtype: str | None = None,
        device: str | None = None,
        batch_size: int | str = 1,
        max_new_tokens: int = 128,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if unknown := sorted(set(options) - set(OPTIONS)):
            raise DataError(f"no method has an option {', '.join(unknown)}", hint=f"options: {', '.join(OPTIONS)}")
        if trust_remote_code:
            raise ModelError("remote code is never run", where=pretrained, hint="leave trust_remote_code out")
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise DataError(f"batch_size is {batch_size!r}", hint="give a number; there is no automatic one")
        if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise DataError(f"max_new_tokens is {max_new_tokens!r}", hint="give a number of tokens")
        if device in (None, "cuda") and torch.cuda.is_available():
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        self.batch_size, self.max_new_tokens = int(batch_size), max_new_tokens
        entry = new_entry(pretrained, None if revision is None else str(revision), dtype)
        self.model, self.processor = load_model(entry, device)
        table = None if scores is None else load_scores(scores, self.model.config)
        if method == "auto":
            method, options = automatic(table, "known", options)
        self.policy = make_policy_from(method, budget, table, options).for_model(shape_of(self.model))

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> SparseMM:
        """Returns the model that a command line describes; lmms-eval calls this.

        Args:
            arg_string: --model_args, as name=value,name=value.
            additional_config: --batch_size, --max_batch_size and --device; None if not set.

        Raises:
            DataError: if an argument is unknown, missing, given twice, or has no value.
        """
        known = [name for name in inspect.signature(cls).parameters if name != "options"] + OPTIONS
        every = f"arguments: {', '.join(known)}"
        try:
            arguments = simple_parse_args_string(arg_string)
        except ValueError as error:
            raise DataError("not name=value,name=value", where=f"--model_args {arg_string}", hint=every) from error
        own = {name: value for name, value in (additional_config or {}).items() if value is not None}
        for name in (*arguments, *own):
            if name not in known:
                near = "".join(f", did you mean {one}?" for one in get_close_matches(name, known, 1))
                raise DataError(f"unknown argument {name!r}{near}", where="--model sparsemm", hint=every)
            if name in arguments and name in own:
                raise DataError(f"{name} is given twice", where="--model_args", hint=f"use --{name} alone")
        if "pretrained" not in arguments:
            raise DataError("pretrained is missing: which checkpoint?", where="--model_args", hint=every)
        return cls(**arguments, **own)

    @property
    def device(self) -> torch.device:
        """Returns the device of the model."""
        return self.model.device

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Returns answers in the order of the requests.

        Raises:
            DataError: if a task wants sampling, beams, or other things than images.
            PromptTooLong: if the method cannot serve one of the prompts at its budget.
        """
        questions = [question(request, self.task_dict[request.args[4]], self.max_new_tokens) for request in requests]
        answers = [""] * len(questions)
        for chosen in tqdm(batches(questions, self.batch_size), desc="answers", disable=self.rank != 0):
            limit = questions[chosen[0]].max_new_tokens or self.max_new_tokens
            batch = make_batch(self.processor, questions, chosen)
            (reply,) = answer(self.model, batch, {"": Variant(self.policy)}, limit).values()
            if reply.refused:
                raise PromptTooLong(reply.refused)
            texts = self.processor.tokenizer.batch_decode(reply.tokens, skip_special_tokens=True)
            for at, text in zip(chosen, texts, strict=True):
                answers[at] = questions[at].trim(text)
        return answers

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Refuses log-likelihood tasks, because a compressed cache exists only while an answer is generated.

        Raises:
            DataError: always.
        """
        raise DataError("log-likelihood tasks are not supported", where="sparsemm", hint="use generate_until tasks")

    def generate_until_multi_round(self, requests: list[Any]) -> list[str]:
        """Refuses tasks of several rounds.

        Raises:
            DataError: always.
        """
        raise DataError("multi-round tasks are not supported", where="sparsemm", hint="use generate_until tasks")

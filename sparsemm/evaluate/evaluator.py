"""The evaluator: asks a model questions with many variants of its cache, stores every answer, and scores them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from sparsemm.dependencies import identity
from sparsemm.errors import DataError
from sparsemm.evaluate.answers import Batch, Reading, Reply, Variant, answer, make_batch
from sparsemm.evaluate.questions import Question, batches
from sparsemm.evaluate.rows import Arm, Outcome, over_seeds
from sparsemm.evaluate.store import Answer, Store
from sparsemm.evaluate.tasks import Scored
from sparsemm.files import sha256_file
from sparsemm.models import load_model
from sparsemm.params import Params
from sparsemm.policies import make_policy_from
from sparsemm.progress import progress
from sparsemm.scores import ScoreTable
from sparsemm.statistics import page_numbers

Ask = Callable[[Any, Batch, Mapping[str, Any], int], Mapping[str, Reply]]  # as `sparsemm.evaluate.answers.answer`


class AnyTask(Protocol):
    """A task: questions, and how their answers are scored."""

    @property
    def metric(self) -> str:
        """Returns the name of a document's value in tables."""

    @property
    def questions(self) -> Sequence[Question]:
        """Returns one question per document."""

    def score(self, texts: list[str]) -> list[Scored]:
        """Returns the value of every document, from one answer per question."""


class Evaluator:
    """A model that is asked questions. It is loaded only if an answer is missing.

    Attributes:
        params, key, root: params.yaml, the model's key, and the folder with artifacts/.
        name: name of this evaluation, such as "evaluate", and of its folder in artifacts/work.
        scores: the model's score table.
        settings: options that all methods share, such as window, rho, mode and seed.
        store: the answers so far.
        refused: arm -> why its method cannot serve one of the prompts.

    Raises:
        DataError: if one of the inputs is missing.
        ScoreTableError: if the score table is missing or damaged.
    """

    def __init__(
        self,
        params: Params,
        key: str,
        root: Path,
        name: str,
        settings: Mapping[str, Any],
        inputs: Sequence[Path],
        known: Any,
        *modules: str,
    ) -> None:
        """Prepares an evaluation and loads the score table, but not the model.

        Args:
            inputs: files that the answers depend on, besides the score table.
            known: JSON values that they depend on, besides the model's entry and the settings.
            modules: modules whose code they depend on, besides this one.
        """
        self.params, self.key, self.root, self.name = params, key, root, name
        shared = {"pooling_kernel": params.evaluate.pooling_kernel, "seed": params.evaluate.seed}
        self.settings = {**shared, **settings}
        self.refused: dict[Arm, str] = {}
        table = root / "artifacts" / "scores" / f"{key}.safetensors"
        self.scores = ScoreTable.load(table)
        missing = [str(path) for path in inputs if not path.is_file()]
        if missing:
            raise DataError("there is no such file", where=missing[0], hint="run the download stage first")
        digests = [sha256_file(path) for path in (table, *inputs)]
        parts = [params.model(key).identity(), params.chase.prompt, self.settings, known, digests]
        self.store = Store(root / "artifacts" / "work" / name / key / identity(parts, __name__, *modules))

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        model, processor = load_model(self.params.model(self.key))
        self.scores.check_model(model.config)
        return model, processor

    @property
    def model(self) -> Any:
        """Returns the model in eval mode, on its device."""
        return self._loaded[0]

    @property
    def processor(self) -> Any:
        """Returns the model's processor."""
        return self._loaded[1]

    @property
    def reading(self) -> Reading:
        """Returns how the model reads a page for selectors that need a replay: nothing of it is from the references."""
        return Reading(self.params.chase.prompt, self.params.evaluate.max_new_tokens)

    def variant(self, method: str, budget: int | None, scores: Any = None, **options: Any) -> Variant:
        """Returns a method at a budget with the shared settings, except for `options`.

        Args:
            method: name of the method.
            budget: mean slots per KV head; None for the full cache.
            scores: scores to use instead of the model's own.
            options: options of the method (others are ignored), or of the variant (`storage`, `hold_budget`).
        """
        own: dict[str, Any] = {name: options.pop(name) for name in ("storage", "hold_budget") if name in options}
        table = self.scores if scores is None else scores
        return Variant(make_policy_from(method, budget, table, self.settings | options), **own)

    def outcomes(
        self,
        tasks: Mapping[str, AnyTask],
        variants: Mapping[Arm, Any],
        ask: Ask = answer,
        make_batches: Callable[[], Iterable[Batch]] | None = None,
    ) -> dict[Arm, Outcome]:
        """Returns the outcome of every arm but those that are `refused`. Stored answers are not asked for again.

        Args:
            tasks: the tasks by their names in the arms.
            variants: what `ask` takes for each arm, by default a `Variant`; a list holds several random draws, whose
                mean counts.
            ask: function that lets the model answer a batch with several variants.
            make_batches: makes the batches of a task's questions; by default similar questions run together.
        """
        draws = {arm: one if isinstance(one, list) else [one] for arm, one in variants.items()}
        outcomes: dict[Arm, Outcome] = {}
        for name, task in tasks.items():
            arms = {arm: {_name(arm, i): one for i, one in enumerate(draws[arm])} for arm in draws if arm.task == name}
            named = {one: variant for own in arms.values() for one, variant in own.items()}
            answers, refused = self._ask(name, task.questions, named, ask, make_batches)
            for arm, own in arms.items():
                if reasons := [refused[one] for one in own if one in refused]:
                    self.refused[arm] = reasons[0]
                else:
                    outcomes[arm] = over_seeds(self._outcome(task, answers[one]) for one in own)
        return {arm: outcomes[arm] for arm in variants if arm in outcomes}

    def _outcome(self, task: AnyTask, answers: list[Answer]) -> Outcome:
        heads = self.scores.scores.shape[0] * int(self.scores.header["num_kv_heads"])
        return score_answers(task, answers, heads)

    @torch.inference_mode()
    def _ask(
        self,
        task: str,
        questions: Sequence[Question],
        variants: Mapping[str, Any],
        ask: Ask,
        make_batches: Callable[[], Iterable[Batch]] | None,
    ) -> tuple[dict[str, list[Answer]], dict[str, str]]:
        """Returns the answers of each variant, and why the others were refused, which are asked no further question."""
        known = {name: self.store.answers(task, name) for name in variants}
        refused: dict[str, str] = {}
        if any(len(one) < len(questions) for one in known.values()):
            size = self.params.evaluate.batch_size
            every: list[Any] = batches(questions, size) if make_batches is None else list(make_batches())
            jobs = []
            for batch in every:
                index = batch if make_batches is None else batch.index
                missing = [name for name in variants if not known[name].keys() >= set(index)]
                jobs += [(batch, index, missing)] if missing else []
            for batch, index, wanted in progress(jobs, len(jobs), f"{self.name} {self.key}: {task}"):
                missing = [name for name in wanted if name not in refused]
                if not missing:
                    continue
                ready = batch
                if make_batches is None:
                    ready = make_batch(self.processor, questions, index, self.reading)
                limit = questions[index[0]].max_new_tokens or longest_answer(
                    self.processor, questions, self.params.evaluate.max_new_tokens
                )
                ready = replace(ready, most_rows=self.params.evaluate.batch_size)
                replies = ask(self.model, ready, {name: variants[name] for name in missing}, limit)
                for name, reply in replies.items():
                    if reply.refused:
                        refused[name] = reply.refused
                        continue
                    texts = self.processor.tokenizer.batch_decode(reply.tokens, skip_special_tokens=True)
                    kept: Sequence[int | None] = reply.kept or [None] * len(texts)
                    each = [Answer(text, k, reply.slot_bytes) for text, k in zip(texts, kept, strict=True)]
                    self.store.put(task, name, index, each)
                    known[name] |= dict(zip(index, each, strict=True))
        whole = (name for name in variants if name not in refused)
        return {name: [known[name][at] for at in range(len(questions))] for name in whole}, refused


def _name(arm: Arm, draw: int) -> str:
    """Returns the name of an arm's folder in the store; the first draw is named like an arm without draws."""
    parts = [arm.condition, arm.setting, *(str(value) for value in (arm.level, arm.budget) if value is not None)]
    return ", ".join(part for part in parts if part) + (f", draw {draw}" if draw else "")


def score_answers(task: AnyTask, answers: Sequence[Answer], heads: int) -> Outcome:
    """Scores the answers to a task's questions, one each in their order.

    Args:
        heads: layers times KV heads of the model; `kept` of the outcome is a mean over them.
    """
    samples = task.score([q.trim(one.text) for q, one in zip(task.questions, answers, strict=True)])
    pages = [one.page for one in samples]
    slots = [one.kept for one in answers if one.kept is not None]
    kept = float(np.mean(slots)) if slots else None
    return Outcome(
        np.array([one.value for one in samples], dtype=np.float64),
        task.metric,
        None if kept is None else kept / heads,
        None if kept is None else kept * answers[0].slot_bytes,
        pages=page_numbers(pages) if all(pages) else None,
        samples=[samples],
    )


def longest_answer(processor: Any, questions: Sequence[Question], max_new_tokens: int) -> int:
    """Returns how many tokens an answer may have: those of the longest reference and 8 more, at most `max_new_tokens`.

    A model without its heads or its cache often does not stop; what it says so late is wrong anyway.
    """
    longest = max(len(processor.tokenizer(q.answer, add_special_tokens=False).input_ids) for q in questions)
    return min(longest + 8, max_new_tokens)

"""What studies share: the pages, the model, questions answered in batches, and units that are measured once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparsemm.datasets.records import Record, read_records
from sparsemm.dependencies import identity
from sparsemm.errors import DataError
from sparsemm.evaluate.tasks import METRICS
from sparsemm.evaluate.tasks.functions import SCORERS
from sparsemm.files import sha256_file, write_json
from sparsemm.models import load_model
from sparsemm.params import Params
from sparsemm.policies import make_policy_from
from sparsemm.progress import progress
from sparsemm.scores import ScoreTable
from sparsemm.studies.answers import Batch, Kept, Question, Reply, batches, compressed, questions
from sparsemm.studies.rows import Arm, Outcome, Row, tabulate

Answer = Callable[[Any, Batch], Mapping[str, Reply]]
Made = Callable[[], Iterable[Batch]]


class Bench:
    """One study of one model. The model is loaded when the first unit is measured, not when all are there.

    Attributes:
        params, study, key, root: what is studied, and the folder with artifacts/.
        given: the study's entry.
        scores: of the model's own chase.

    Raises:
        DataError: if the evaluation pages are missing, or fewer than the study wants.
        ScoreTableError: if the model has no score table.
    """

    def __init__(self, params: Params, study: str, key: str, root: Path) -> None:
        self.params, self.study, self.key, self.root = params, study, key, root
        self.given: Any = params.studies.made()[study]
        artifacts = root / "artifacts"
        pages, table = artifacts / "datasets" / f"{params.evaluate.dataset}.parquet", self._table(key)
        self.records: list[Record] = read_records(pages, limit=self.given.samples)
        if len(self.records) < self.given.samples:
            raise DataError(f"{len(self.records)} records, {self.given.samples} wanted", where=str(pages))
        self.scores = ScoreTable.load(table)
        known = [params.model(key), self.given, params.evaluate, params.allocate]
        parts = [one.model_dump() for one in known] + [params.chase.prompt, sha256_file(pages), sha256_file(table)]
        self.work = artifacts / "work" / "studies" / study / key / identity(parts, f"sparsemm.studies.{study}")

    def _table(self, key: str) -> Path:
        return self.root / "artifacts" / "scores" / f"{key}.safetensors"

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        model, processor = load_model(self.params.model(self.key))
        self.scores.check_model(model.config)
        return model, processor

    @property
    def model(self) -> Any:
        """In eval mode, on its device."""
        return self._loaded[0]

    @property
    def processor(self) -> Any:
        """Of the model."""
        return self._loaded[1]

    def questions(self, task: str) -> list[Question]:
        """The evaluate stage's questions about the first pages."""
        return questions(task, self.records, self.params.chase.prompt, self.params.evaluate.seed)

    def most(self, asked: list[Question]) -> int:
        """New tokens of an answer: what the longest reference has and 8 more, at most `evaluate.max_new_tokens`.

        A model without its heads or its cache often does not stop; what it says so late is wrong anyway.
        """
        longest = max(len(self.processor.tokenizer(q.answer, add_special_tokens=False).input_ids) for q in asked)
        return min(longest + 8, self.params.evaluate.max_new_tokens)

    def kept(self, method: str, budget: int | None, scores: Any = None, **options: Any) -> Kept:
        """A compressed cache with the settings of the allocate and evaluate stages, but for `options`.

        Args:
            scores: instead of the model's own.
            options: of the method, or of the cache (`storage`, `hold_budget`); those the method does not have are
                ignored.
        """
        given, asked = self.params.allocate, self.params.evaluate
        usual = {"window": given.window, "rho": given.rho, "mode": given.mode, "seed": asked.seed}
        usual["pooling_kernel"] = asked.pooling_kernel
        own: dict[str, Any] = {name: options.pop(name) for name in ("storage", "hold_budget") if name in options}
        table = self.scores if scores is None else scores
        return Kept(make_policy_from(method, budget, table, usual | options), own)

    def keep(self, unit: str, task: str, ways: Mapping[str, Kept], pages: slice = slice(None)) -> dict[str, Outcome]:
        """The answers of a task about some of the pages through compressed caches, all from one prefill."""
        asked = self.questions(task)[pages]

        def answer(model: Any, batch: Batch) -> dict[str, Reply]:
            return compressed(model, batch, self.most(asked), ways)

        return self.ask(unit, task, asked, answer)

    def batches(self, asked: list[Question]) -> Iterable[Batch]:
        """Questions as inputs of the model."""
        return batches(self.processor, asked, self.params.evaluate.batch_size)

    def ask(
        self,
        unit: str,
        task: str,
        asked: list[Question],
        answer: Answer,
        made: Callable[[], Iterable[Batch]] | None = None,
    ) -> dict[str, Outcome]:
        """Answers to questions in one or more ways, scored; a unit that was finished before is read.

        Args:
            unit: name, of this study and model alone.
            task: whose metric counts.
            asked: the questions.
            answer: what the model says to a batch, per way.
            made: makes batches of the questions; by default `batches`.
        """
        found = self.once(unit, lambda: self._measure(unit, task, asked, answer, made))
        heads = self.scores.scores.shape[0] * int(self.scores.header["num_kv_heads"])
        outcomes = {}
        for one in found["ways"]:
            kept = None if one["kept"] is None else float(np.mean(one["kept"]))
            size = None if kept is None else kept * one["row_bytes"]
            values = np.array(one["values"], dtype=np.float64)
            outcomes[one["name"]] = Outcome(values, METRICS[task], None if kept is None else kept / heads, size)
        return outcomes

    def once(self, unit: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `make` returns (plain JSON), kept until the study is finished: a stopped one goes on where it was."""
        path = self.work / f"{unit}.json"
        if not path.is_file():
            write_json(path, make())
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return result

    @torch.inference_mode()
    def _measure(
        self, unit: str, task: str, asked: list[Question], answer: Answer, made: Made | None
    ) -> dict[str, Any]:
        found: dict[str, Any] = {}
        given = list(self.batches(asked) if made is None else made())
        for batch in progress(given, len(given), f"{self.study} {self.key}: {unit}"):
            inputs = batch.inputs.to(self.model.device)
            inputs = {k: v.to(self.model.dtype) if v.is_floating_point() else v for k, v in inputs.items()}
            for way, reply in answer(self.model, Batch(batch.index, inputs, batch.cut)).items():
                one = found.setdefault(way, {"values": [0.0] * len(asked), "kept": [0] * len(asked)})
                one["row_bytes"] = reply.row_bytes
                texts = self.processor.tokenizer.batch_decode(reply.tokens, skip_special_tokens=True)
                for row, (i, text) in enumerate(zip(batch.index, texts, strict=True)):
                    one["values"][i] = SCORERS[task](text.strip(), asked[i].answer)
                    if reply.kept is not None:
                        one["kept"][i] = reply.kept[row]
                if reply.kept is None:
                    one["kept"] = None
        return {"ways": [{"name": way, **one} for way, one in found.items()]}  # a list keeps its order

    def rows(self, outcomes: Mapping[Arm, Outcome], against: Callable[[Arm], Iterable[Arm]]) -> list[Row]:
        """`tabulate`, with this study's settings."""
        asked = self.params.evaluate
        options = {"resamples": asked.bootstrap, "seed": asked.seed, "precision": self.given.precision}
        return tabulate({"model": self.key, "study": self.study}, outcomes, against, **options)

    def clear(self) -> None:
        """Remove the units, also those of other settings."""
        shutil.rmtree(self.work.parent, ignore_errors=True)

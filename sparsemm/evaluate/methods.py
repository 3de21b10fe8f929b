"""Compares methods on a model's own pages in one call, for notebooks and scripts: no params.yaml, nothing on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from sparsemm.cache.served import shape_of
from sparsemm.datasets.records import Record
from sparsemm.errors import BudgetError, DataError
from sparsemm.evaluate.answers import Reading, Variant, answer, make_batch
from sparsemm.evaluate.evaluator import longest_answer, score_answers
from sparsemm.evaluate.questions import batches
from sparsemm.evaluate.rows import FULL, Row, measured, rounded
from sparsemm.evaluate.store import Answer
from sparsemm.evaluate.tasks.pages import PageTask
from sparsemm.policies import budgets_of, make_policy_from, method_options
from sparsemm.progress import progress
from sparsemm.scores import ScoreTable
from sparsemm.statistics import difference, estimate


@dataclass(frozen=True)
class Comparison:
    """What `evaluate_methods` measured.

    Attributes:
        rows: one per task, method and budget: `kept_slots` and `bytes` after the prompt (means), `value` with its 95 %
            interval (`ci_low`, `ci_high`) over `n` pages, and, where "full" was among the methods, the paired
            difference `diff_vs_full` with `diff_full_ci_low` and `diff_full_ci_high`. A method for whose budget a
            prompt is too long has a row with the reason as `refused` instead. `pandas.DataFrame(rows)` takes them as
            they are.
    """

    rows: list[Row]

    def __repr__(self) -> str:
        """Returns a table of text: accuracy in per cent with its interval, and the size of the cache."""
        lines = [f"{'task':<6} {'method':<20} {'budget':>6} {'slots':>8} {'MiB':>8}  accuracy, 95 % interval"]
        for row in self.rows:
            if "refused" in row:
                lines.append(f"{row['task']:<6} {row['method']:<20} {row['budget']!s:>6} refused: {row['refused']}")
                continue
            value, low, high = (100 * row[name] for name in ("value", "ci_low", "ci_high"))
            size, budget = f"{row['bytes'] / 2**20:.2f}", str(row["budget"]) or "-"
            lines.append(
                f"{row['task']:<6} {row['method']:<20} {budget:>6} {row['kept_slots']:8.1f} {size:>8}  "
                f"{value:.1f} % [{low:.1f}, {high:.1f}]"
            )
        return "\n".join(lines)


def evaluate_methods(
    model: Any,
    processor: Any,
    records: Sequence[Record],
    *,
    scores: ScoreTable | None = None,
    budgets: Sequence[int],
    methods: Sequence[str] = ("full", "sparsemm", "snapkv"),
    tasks: Sequence[Literal["read", "qa"]] = ("read",),
    prompt: str = "Read the page.",
    batch_size: int = 8,
    max_new_tokens: int = 256,
    resamples: int = 2000,
    seed: int = 0,
    **options: Any,
) -> Comparison:
    """Lets a model read pages with its cache compressed by several methods, and compares the answers with the pages.

    All methods start from one prefill per batch. The stage `evaluate` does the same for a model of params.yaml, over
    more tasks, and keeps what is done when it is stopped. Use other pages than those the heads were scored on.

    Args:
        model: a Hugging Face image-text-to-text model in eval mode.
        processor: the model's.
        records: pages with the words on them; each is validated.
        scores: of the model's heads, for the methods that need them; a table of another model is refused.
        budgets: mean slots per KV head, window included.
        methods: names such as "snapkv" or "sparsemm+peak"; "full" has no budget. "random" draws heads once per page.
        tasks: "read" asks for all words of a page (word accuracy); "qa", a question about it (exact match), needs
            synthetic pages.
        prompt: of "read", and of the reading that the selector "kvzip" needs.
        batch_size: pages that go through the model together.
        max_new_tokens: of an answer; it also ends 8 tokens after the longest reference.
        resamples: of the bootstrap of intervals.
        seed: of the bootstrap, of the questions and of random heads.
        options: options of the methods, such as `window` (32) and `rho` (0.1); each method takes those it has.

    Raises:
        BudgetError: if a method, a budget or an option is invalid.
        DataError: if there are no records, or a record is not valid or has nothing to ask about.
        ScoreTableError: if the scores belong to another model.
    """
    if not records:
        raise DataError("there is no record to evaluate", hint="read_pdfs(folder) makes records of your own PDFs")
    unknown = set(options).difference(*map(method_options, methods))
    if unknown:
        known = ", ".join(sorted(set().union(*map(method_options, methods)) - {"seed"}))
        raise BudgetError(f"none of the methods has an option {', '.join(sorted(unknown))}", hint=f"known: {known}")
    if scores is not None:
        scores.check_model(model.config)
    shape, pages = shape_of(model), [record.validate() for record in records]
    variants = {
        (method, budget): Variant(make_policy_from(method, budget, scores, {"seed": seed, **options}))
        for method in methods
        for budget in budgets_of(method, budgets)
    }
    heads = shape.num_hidden_layers * shape.num_kv_heads
    names = {f"{method} {budget}": (method, budget) for method, budget in variants}
    rows: list[Row] = []
    for name in tasks:
        task = PageTask(name, pages, prompt, seed)
        questions = task.questions
        limit = longest_answer(processor, questions, max_new_tokens)
        answers: dict[str, dict[int, Answer]] = {one: {} for one in names}
        refused: dict[str, str] = {}
        index = batches(questions, batch_size)
        for rows_of_batch in progress(index, len(index), f"evaluate {name}"):
            batch = make_batch(processor, questions, rows_of_batch, Reading(prompt, max_new_tokens))
            batch = replace(batch, most_rows=batch_size)
            left = {one: variants[way] for one, way in names.items() if one not in refused}
            for one, reply in answer(model, batch, left, limit).items():
                if reply.refused:
                    refused[one] = reply.refused
                    continue
                texts = processor.tokenizer.batch_decode(reply.tokens, skip_special_tokens=True)
                kept: Sequence[int | None] = reply.kept or [None] * len(texts)
                answers[one] |= {
                    at: Answer(text, slots, reply.slot_bytes)
                    for at, text, slots in zip(rows_of_batch, texts, kept, strict=True)
                }
        outcomes = {
            names[one]: score_answers(task, [replies[at] for at in range(len(questions))], heads)
            for one, replies in answers.items()
            if one not in refused
        }
        full = outcomes.get((FULL, None))
        for (method, budget), outcome in outcomes.items():
            row: Row = {"task": name, "method": method, "budget": "" if budget is None else budget}
            row |= measured(outcome, estimate(outcome.values, resamples, seed))
            if full is not None and full is not outcome:
                row |= rounded(difference(outcome.values, full.values, resamples, seed), "diff_vs_full", "diff_full_ci")
            rows.append(row)
        for one, reason in refused.items():
            method, budget = names[one]
            rows.append({"task": name, "method": method, "budget": budget, "refused": reason})
    return Comparison(rows)

"""Study: what switching off the visual heads costs on text alone, in prose and in lists that are repeated."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from sparsemm.errors import DataError
from sparsemm.evaluate.rows import Arm, Outcome, Row, over_seeds
from sparsemm.params.strict import Count
from sparsemm.params.studies import StudyParams
from sparsemm.studies import Rows, Study, compared, sentence
from sparsemm.studies.common.heads import LAYERS, NONE, RANDOM, TOP, Heads, Off, best_heads, heads_off, random_heads_in

if TYPE_CHECKING:
    from sparsemm.studies.common.experiment import Experiment

PROSE, COPY = "prose", "copy"
BEFORE = "none, before tuning"
METRIC = "1 / perplexity"
SOURCE = "sklearn.datasets.descr"  # descriptions of data sets in English; no checkpoint here was trained on them


class LanguageParams(StudyParams):
    """The texts, and how many heads are switched off."""

    fractions: tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...] = Field(min_length=1, description="of all heads")
    seeds: int = Field(3, ge=1, description="random draws per text for each control")
    windows: Count = Field(24, description="passages of prose")
    tokens: Annotated[int, Field(ge=2)] = Field(128, description="tokens of a passage")
    copies: Count = Field(12, description="lists of words that are repeated")
    words: Count = Field(40, description="words of a list")


Text = tuple[list[int], int]  # token ids, and the first of them that is predicted


def conclusion(rows: Rows) -> str:
    """Returns what the best heads and as many random ones cost on either kind of text."""
    top = [row for row in rows if row.setting == TOP]
    parts = []
    for task in (PROSE, COPY):
        verdicts = compared(row for row in top if row.task == task and row.against == LAYERS)
        parts.append(
            f"{task}, best heads off against random heads of the same layers off: {verdicts}" if verdicts else ""
        )
        tuning = compared(row for row in rows if row.task == task and row.setting == NONE and row.against == BEFORE)
        parts += [f"{task}, all heads on, against the language model before tuning: {tuning}"] if tuning else []
    return sentence("", parts)


def run(experiment: Experiment, options: LanguageParams) -> list[Row]:
    """Returns rows of the tasks "prose" and "copy": the probability per token (geometric mean) of every text.

    An assembled checkpoint is also compared with its language model before tuning.

    Raises:
        DataError: if there is less prose than needed.
        ModelError: if the language model before tuning cannot be read.
    """
    from sparsemm.assemble.stage import language_model_before

    tokenizer = experiment.processor.tokenizer
    tasks = {
        PROSE: prose(tokenizer, options.windows, options.tokens),
        COPY: repeated(tokenizer, options.copies, options.words),
    }
    layers = experiment.scores.layers_with_heads()
    before = language_model_before(experiment.params, experiment.key, experiment.root)
    outcomes: dict[Arm, Outcome] = {}
    for task, texts in tasks.items():
        measure = partial(_measure, experiment.model, texts)
        outcomes[Arm(task, "", NONE, 0.0)] = measure([None] * len(texts))
        if before is not None:
            outcomes[Arm(task, "", BEFORE, 0.0)] = _measure(before, texts, [None] * len(texts))
        for fraction in options.fractions:
            top, arm = best_heads(experiment.scores, fraction), Arm(task, "output zeroed", TOP, fraction)
            outcomes[arm] = measure([top] * len(texts))
            for kind in (RANDOM, LAYERS):
                numbers = list(range(len(texts)))
                draws = (random_heads_in(layers, top, seed, kind == LAYERS, numbers) for seed in range(options.seeds))
                outcomes[arm._replace(setting=kind)] = over_seeds(measure(list(draw)) for draw in draws)
    return experiment.rows(outcomes, _against)


def prose(tokenizer: Any, count: int, length: int) -> list[Text]:
    """Returns `count` passages of `length` tokens, spread evenly over the prose that scikit-learn ships.

    Raises:
        DataError: if scikit-learn is missing, or there is too little of it.
    """
    from importlib.resources import files

    try:
        paths = sorted((path for path in files(SOURCE).iterdir() if path.name.endswith(".rst")), key=lambda p: p.name)
    except ModuleNotFoundError as error:
        raise DataError("the prose of scikit-learn is missing", where=SOURCE, hint="make setup") from error
    lines = [" ".join(line.split()) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    words = " ".join(line for line in lines if sum(map(str.isalpha, line)) > len(line) / 2)
    ids = tokenizer(words, add_special_tokens=False).input_ids
    if len(ids) < count * length:
        what = f"{len(ids)} tokens of prose, {count} passages of {length} needed"
        raise DataError(what, where=SOURCE, hint="ask for fewer or shorter passages")
    starts = np.linspace(0, len(ids) - length, count).astype(int)
    return [(ids[start : start + length], 1) for start in starts]


def repeated(tokenizer: Any, count: int, words: int) -> list[Text]:
    """Returns `count` lists of random words that are written twice; the second time is predicted."""
    import random

    from sparsemm.datasets.synthetic import draw_words

    texts = []
    for index in range(count):
        once = " ".join(draw_words(random.Random(f"sparsemm/language/{index}"), words)) + "\n"
        ids = tokenizer(once, add_special_tokens=False).input_ids
        texts.append((ids * 2, len(ids)))
    return texts


def probability(model: Any, text: Text, heads: Heads | None) -> float:
    """Returns exp of the mean log-likelihood of the predicted tokens of a text, with these heads (L, Hq) off."""
    import torch

    ids, first = text

    def forward(model: Any) -> float:
        inputs = torch.tensor([ids], dtype=torch.int64, device=model.device)
        with torch.inference_mode():
            logits = model(input_ids=inputs, use_cache=False).logits[0, first - 1 : -1].float()
        targets = inputs[0, first:].to(logits.device)
        return float((-torch.nn.functional.cross_entropy(logits, targets)).exp())

    return heads_off(forward, None if heads is None else Off(heads, "output"), model)


def _measure(model: Any, texts: Sequence[Text], heads: Sequence[Heads | None]) -> Outcome:
    values = [probability(model, text, off) for text, off in zip(texts, heads, strict=True)]
    return Outcome(np.array(values, dtype=np.float64), METRIC)


def _against(arm: Arm) -> list[Arm]:
    nothing = Arm(arm.task, "", NONE, 0.0)
    controls = [arm._replace(setting=RANDOM), arm._replace(setting=LAYERS)]
    if arm == nothing:
        return [arm._replace(setting=BEFORE)]
    return [*controls, nothing] if arm.setting == TOP else [nothing]


STUDY = Study(
    params=LanguageParams,
    run=run,
    title="Language without visual heads",
    question="The heads that are best at looking at the image are switched off while the model reads text alone: prose "
    "that it continues, and lists of words that it repeats. Below zero, they cost more than as many random heads. "
    "Where they matter to pages and not to text, the model has heads of its own for looking.",
    conclusion=conclusion,
    headline=lambda row: row.setting == TOP and row.against in (RANDOM, LAYERS),
    level="share of heads switched off",
)

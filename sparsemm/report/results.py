"""Reads the files of all stages into typed rows, from which the report is made."""

from __future__ import annotations

import csv
import platform
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, model_validator

from sparsemm.errors import DataError
from sparsemm.files import result_path
from sparsemm.params import Params
from sparsemm.recipes import Recipe
from sparsemm.scores import rank_correlation, top_count, top_set
from sparsemm.statistics import Estimate
from sparsemm.studies import Study, StudyRow, load, read_study
from sparsemm.tables import HINT, Row, check_interval, read_json, read_rows

PAPER = Path(__file__).with_name("paper_efficiency.csv")
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]
Size = Annotated[int, Field(ge=0)]


class Accuracy(Row):
    """One row of artifacts/evaluate/<key>.csv: a method at a budget on a task."""

    model: str
    task: str
    method: str
    budget: Count | None
    kept_slots: Positive
    bytes: Size
    metric: str
    value: float
    n: Count
    pages: Count | None = None
    draws: Count | None = None
    ci_low: float | None
    ci_high: float | None
    diff_vs_sparsemm: float | None
    diff_ci_low: float | None
    diff_ci_high: float | None
    diff_vs_full: float | None
    diff_full_ci_low: float | None
    diff_full_ci_high: float | None

    @model_validator(mode="after")
    def _check(self) -> Accuracy:
        for name in ("ci", "diff_ci", "diff_full_ci"):
            check_interval(getattr(self, f"{name}_low"), getattr(self, f"{name}_high"), name)
        return self

    def _estimate(self, value: float | None, name: str) -> Estimate | None:
        """Returns a value with its interval. A single page has none, because resampling cannot change it."""
        if value is None:
            return None
        if (self.pages or self.n) < 2:
            return Estimate(value)
        return Estimate(value, getattr(self, f"{name}_low"), getattr(self, f"{name}_high"))

    @property
    def accuracy(self) -> Estimate:
        """Returns the metric's mean."""
        return self._estimate(self.value, "ci") or Estimate(self.value)

    @property
    def gain(self) -> Estimate | None:
        """Returns the paired difference of sparsemm and this method; None if they are not compared."""
        difference = self._estimate(self.diff_vs_sparsemm, "diff_ci")
        return difference and difference.reversed()

    @property
    def against_full(self) -> Estimate | None:
        """Returns the paired difference of this method and the full cache; None if they are not compared."""
        return self._estimate(self.diff_vs_full, "diff_full_ci")


class Refusal(NamedTuple):
    """A row of the evaluation or of a study that was not measured, because its method cannot serve a prompt so long."""

    task: str
    method: str
    level: str  # of a study; else empty
    budget: str  # mean slots per KV head, or empty
    reason: str

    @property
    def place(self) -> str:
        """Returns what was refused: "B = 12", or "level 0.1" of a study."""
        return ", ".join([f"level {self.level}"] * bool(self.level) + [f"B = {self.budget}"] * bool(self.budget))


class Timing(Row):
    """One row of artifacts/profile/<key>.csv: a method at a prompt length. Times are medians."""

    model: str
    method: str
    budget: Count | None
    prompt_length: Count
    prefill_ms: float
    compression_share: float
    decode_ms_per_token: Positive
    decode_ratio_to_full: float
    tokens_per_second: float
    roofline_ms: float
    peak_bytes: Count
    kept_bytes: Size
    full_bytes: Count


class HeadShare(Row):
    """One row of artifacts/scores/<key>.csv."""

    layer: Size
    head: Size
    share: Annotated[float, Field(ge=0)]


class HitRate(Row):
    """One row of artifacts/scores/<key>.covariates.csv: how often heads attend to text of one kind."""

    covariate: str
    bin: str
    samples: Count
    tokens: Size
    top_heads: float
    ci_low: float
    ci_high: float
    all_heads: float

    @property
    def name(self) -> str:
        """Describes the kind of text."""
        return f"{self.covariate.replace('_', ' ')} {self.bin}"


class PaperPoint(Row):
    """One of the paper's efficiency numbers: a speed-up, or the peak memory in GB."""

    shape: str
    quantity: str
    method: str
    budget: Count | None
    prompt_length: Count
    value: float


class ChaseMetrics(BaseModel):
    """artifacts/scores/<key>.json."""

    samples: int = 0
    split_half: float | None = None
    top_head_hit_rate: float | None = None


class AlignMetrics(BaseModel):
    """artifacts/align/<key>.json."""

    share_found: float | None = None


class Machine(BaseModel):
    """The machine in artifacts/profile/<key>.json."""

    device: str = "an unknown device"
    threads: int | None = None
    torch: str | None = None
    transformers: str | None = None


class HeldOut(BaseModel, strict=True):
    """How well a small checkpoint reads one style of held-out pages, from its card."""

    word_accuracy: float
    exact_match: float


@dataclass(frozen=True, eq=False)
class Heads:
    """The visual scores of a model's heads over one data set."""

    shares: NDArray[np.float64]  # (L, Hq) float64, every head's share of the score
    metrics: ChaseMetrics  # number of samples and stability of the scores
    words_read: float | None = None  # share of the words on the pages that the model reads; None if unknown
    rates: list[HitRate] = field(default_factory=list)  # hit rates by kind of text

    @cached_property
    def ranked(self) -> list[tuple[int, int, float]]:
        """Returns (layer, head, share) of every head, the best first."""
        order = np.argsort(-self.shares.ravel(), kind="stable")
        layers, heads = np.unravel_index(order, self.shares.shape)
        return [(int(i), int(h), float(self.shares[i, h])) for i, h in zip(layers, heads, strict=True)]

    def top_share(self, fraction: float) -> float:
        """Returns the share of the score that the best `fraction` of the heads hold; at least one head counts."""
        return min(sum(share for *_, share in self.ranked[: top_count(self.shares.size, fraction)]), 1.0)

    def correlation(self, other: Heads) -> float:
        """Returns Spearman's rank correlation over all heads; NaN if one table is constant."""
        return rank_correlation(self.shares, other.shares)

    def overlap(self, other: Heads, fraction: float) -> float:
        """Returns the share of the best `fraction` of the heads that both tables have in common."""
        top, other_top = top_set(self.shares, fraction), top_set(other.shares, fraction)
        return len(top & other_top) / len(top)


@dataclass(frozen=True, eq=False)
class Model:
    """The results of one model."""

    key: str  # key in params.yaml
    note: str  # declares a test model, which never counts as evidence
    number: int  # index among all models, which determines the colour
    heads: Heads  # scores over the calibration set
    others: dict[str, Heads] = field(default_factory=dict)  # scores over the data sets of `robustness`
    accuracy: list[Accuracy] = field(default_factory=list)  # empty if the evaluate stage has not run
    refused: list[Refusal] = field(default_factory=list)  # what the evaluate stage could not measure
    timings: list[Timing] = field(default_factory=list)  # empty if the profile stage has not run
    machine: Machine = field(default_factory=Machine)  # machine of the timings
    # contents of artifacts/explorer/<key>.json; empty if the explore stage has not run
    explorer: dict[str, Any] = field(default_factory=dict)
    small: bool = False  # whether it was trained in this repository, so that it has a card
    base: str = ""  # the pretrained language model that it was tuned from, by its card; empty if there is none
    # how well it reads held-out pages of each style, from its card
    held_out: dict[str, HeldOut] = field(default_factory=dict)
    recipe: Recipe | None = None  # what the tune stage found, or None if it has not run

    @property
    def label(self) -> str:
        """Returns the key, marked if the model is a declared test model."""
        return f"{self.key} *" if self.note else self.key

    @property
    def tasks(self) -> list[str]:
        """Returns the tasks in the order of their evaluation."""
        return list(dict.fromkeys(row.task for row in self.accuracy))

    @property
    def methods(self) -> list[str]:
        """Returns the methods in the order of their evaluation."""
        return list(dict.fromkeys(row.method for row in self.accuracy))

    @property
    def budgets(self) -> list[int]:
        """Returns the evaluated budgets in increasing order."""
        return sorted({row.budget for row in self.accuracy if row.budget is not None})

    def row(self, task: str, method: str, budget: int | None = None) -> Accuracy | None:
        """Returns one row of the evaluation, or None; the full cache has no budget."""
        key = (task, method, budget)
        return next((row for row in self.accuracy if (row.task, row.method, row.budget) == key), None)

    def rows(self, task: str, method: str) -> list[Accuracy]:
        """Returns a method's rows, budgets increasing."""
        return [row for budget in self.budgets if (row := self.row(task, method, budget)) is not None]


@dataclass(frozen=True)
class Shape:
    """A 7B configuration with random weights that was timed."""

    name: str
    timings: list[Timing]
    machine: Machine


@dataclass(frozen=True)
class StudyResults:
    """One study: its declaration, its rows by model key, and by model key what it could not measure."""

    name: str
    study: Study
    rows: dict[str, list[StudyRow]]
    refused: dict[str, list[Refusal]] = field(default_factory=dict)


@dataclass(frozen=True)
class Results:
    """All results that the report shows."""

    params: Params
    models: list[Model]
    shapes: list[Shape] = field(default_factory=list)
    studies: list[StudyResults] = field(default_factory=list)

    @property
    def evidence(self) -> list[Model]:
        """Returns the models without a note, which alone count as evidence."""
        return [model for model in self.models if not model.note]

    def study(self, name: str) -> list[StudyRow]:
        """Returns the rows of one study over all models that count as evidence."""
        results = [result for result in self.studies if result.name == name]
        return [row for result in results for model in self.evidence for row in result.rows.get(model.key, ())]


def read_results(params: Params, root: Path) -> Results:
    """Reads the results of all stages. Everything but the scores may be missing.

    Raises DataError if a model has no scores, or a file is malformed.
    """
    models = [_model(params, key, number, root) for number, key in enumerate(params.models)]
    # artifacts/<key>/heads.csv of models that are not in params.yaml
    folders = (path.parent for path in sorted((root / "artifacts").glob("*/heads.csv")))
    kept = [folder for folder in folders if folder.name not in params.models]
    models += [_kept(folder, len(models) + number) for number, folder in enumerate(kept)]
    folder = root / "artifacts" / "profile" / "shapes"
    shapes = (Shape(name, *_timings(folder, name)) for name in params.profile.shapes)
    return Results(params, models, [shape for shape in shapes if shape.timings], list(_studies(params, root)))


def _model(params: Params, key: str, number: int, root: Path) -> Model:
    entry = params.models[key]
    evaluation = result_path(root, "evaluate", key, ".csv")
    timings, machine = _timings(root / "artifacts" / "profile", key)
    explorer = result_path(root, "explorer", key, ".json")
    folder = params.assembled[key].updates if key in params.assembled else entry.checkpoint
    card = root / folder / "card.json"
    about = read_json(card, _Card) if card.is_file() else _Card()
    recipe = result_path(root, "recipes", key, ".json")
    others = {name: heads for name in params.robustness if (heads := _heads(root, key, name)) is not None}
    if (heads := _heads(root, key)) is None:
        where = result_path(root, "scores", key, ".csv")
        raise DataError("no scores", where=str(where), hint="run the chase stage first")
    return Model(
        key=key,
        note=entry.note,
        number=number,
        heads=heads,
        others=others,
        accuracy=read_rows(evaluation, Accuracy, {"model": key}) if evaluation.is_file() else [],
        refused=read_refusals(evaluation) if evaluation.is_file() else [],
        timings=timings,
        machine=machine,
        explorer=read_json(explorer, _Plain).model_dump() if explorer.is_file() else {},
        small=card.is_file(),
        base=about.base.model,
        held_out={style: value for style, value in about.held_out.items() if isinstance(value, HeldOut)},
        recipe=Recipe.load(recipe) if recipe.is_file() else None,
    )


class _Plain(BaseModel, extra="allow"):
    """A JSON object whose contents another program checks."""


class _Base(BaseModel):
    model: str = ""


class _Card(BaseModel):
    """The card.json beside a checkpoint."""

    base: _Base = _Base()
    # Beside the numbers of each style of pages it holds other values.
    held_out: dict[str, Annotated[HeldOut | Any, Field(union_mode="left_to_right")]] = {}


def _heads(root: Path, key: str, dataset: str | None = None) -> Heads | None:
    shares, metrics, rates = (
        result_path(root, "scores", key, suffix, dataset) for suffix in (".csv", ".json", ".covariates.csv")
    )
    align = result_path(root, "align", key, ".json", dataset)
    if not shares.is_file():
        return None
    return Heads(
        read_shares(shares),
        _or_default(metrics, ChaseMetrics),
        _or_default(align, AlignMetrics).share_found,
        read_rows(rates, HitRate) if rates.is_file() else [],
    )


def read_shares(path: Path) -> NDArray[np.float64]:
    """Reads every head's share of the score, (L, Hq) float64.

    Raises DataError if the file is malformed, or does not list every head once.
    """
    rows = read_rows(path, HeadShare)
    shape = max((row.layer for row in rows), default=-1) + 1, max((row.head for row in rows), default=-1) + 1
    if len({(row.layer, row.head) for row in rows}) != len(rows) or len(rows) != shape[0] * shape[1] or not rows:
        raise DataError(f"its {len(rows)} rows do not list every head once", where=str(path), hint=HINT)
    shares = np.zeros(shape, dtype=np.float64)
    for row in rows:
        shares[row.layer, row.head] = row.share
    return shares


def read_refusals(path: Path) -> list[Refusal]:
    """Reads the rows that `read_rows` leaves out: those that say in a column `refused` why nothing was measured."""
    with open(path, newline="", encoding="utf-8") as handle:
        rows = [row for row in csv.DictReader(handle) if row.get("refused")]
    return [
        Refusal(row["task"], row.get("method") or row["setting"], row.get("level", ""), row["budget"], row["refused"])
        for row in rows
    ]


def _timings(folder: Path, key: str) -> tuple[list[Timing], Machine]:
    path = folder / f"{key}.csv"
    rows = read_rows(path, Timing, {"model": key}) if path.is_file() else []
    return rows, _or_default(folder / f"{key}.json", Machine)


def _or_default(path: Path, kind: type[Any]) -> Any:
    return read_json(path, kind) if path.is_file() else kind()


def _studies(params: Params, root: Path) -> Iterable[StudyResults]:
    for name in params.studies.enabled():
        paths = {key: result_path(root, f"studies/{name}", key, ".csv") for key in params.models}
        rows = {key: read_study(path, name, key) for key, path in paths.items() if path.is_file()}
        if rows:
            yield StudyResults(name, load(name), rows, {key: read_refusals(paths[key]) for key in rows})


def _kept(folder: Path, number: int) -> Model:
    evaluation = folder / "evaluate.csv"
    return Model(
        key=folder.name,
        note="",
        number=number,
        heads=Heads(read_shares(folder / "heads.csv"), _or_default(folder / "scores.json", ChaseMetrics)),
        accuracy=read_rows(evaluation, Accuracy, {"model": folder.name}) if evaluation.is_file() else [],
        small=True,
    )


def paper_points(shape: Shape) -> list[PaperPoint]:
    """Returns the paper's numbers for a 7B shape profiled on a GPU, at the lengths and budgets that were measured."""
    if shape.machine.device in (platform.machine(), Machine().device):
        return []
    measured = {(row.method, row.budget, row.prompt_length) for row in shape.timings}
    points = [point for point in read_rows(PAPER, PaperPoint) if point.shape == shape.name]
    return [point for point in points if (point.method, point.budget, point.prompt_length) in measured]

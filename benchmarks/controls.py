"""Trains a pretrained language model to see again, in short runs, and compares heads: `python -m benchmarks.controls`.

A run of benchmarks/controls.yaml is trained, then scored and measured by the stages as a model of a pipeline of its
own, below build/controls. A command that was stopped resumes where it was. Figures are written to artifacts/controls:
for each run a JSON file and the curve of its scores, and how alike the runs rank the heads.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import Field, ValidationError, field_validator

from benchmarks import controls_tables
from benchmarks.controls_tables import (
    BEFORE,
    COMMITTED,
    DIFFERENCE,
    NAME,
    RANKS,
    Agreement,
    curve_table,
    shared_metric,
)
from sparsemm.align import stage as align_stage
from sparsemm.assemble import stage as assemble_stage
from sparsemm.assemble.updates import UPDATES
from sparsemm.chase import stage as chase_stage
from sparsemm.chase.text import chase_text
from sparsemm.datasets import download
from sparsemm.datasets.synthetic import PageStyle
from sparsemm.errors import AlignError, ModelError, ParamsError, ScoreTableError, SparseMMError
from sparsemm.files import atomic_path, sha256_file, write_csv, write_json
from sparsemm.models import load_model, new_entry
from sparsemm.params import Params, load_params, parse_params
from sparsemm.params.strict import Count, Strict, check_key
from sparsemm.scores import ScoreTable, top_count
from sparsemm.statistics import Estimate, interval
from sparsemm.studies import read_study
from sparsemm.studies.common import stage as study_stage
from sparsemm.studies.common.heads import LAYERS, TOP
from sparsemm.tables import read_rows
from sparsemm.training.card import FEW_WINDOWS, held_out
from sparsemm.training.parts import Parts
from sparsemm.training.prose import FOLDERS, Prose, held_out_loss, read_prose
from sparsemm.training.state import load_state
from sparsemm.training.train import train
from sparsemm.training.tuning import BASES, LITTLE_PROSE, RANK, TOWER, Tuning

HERE = Path(__file__).parents[1]
ARTIFACTS, WORK = HERE / "artifacts" / "controls", HERE / "build" / "controls"
MASKED = 0.1  # share of the heads that are switched off
RESAMPLES = 1000  # each ranks all heads again
SAVE_STEPS = 25
TEXTS: dict[str, Any] = {"prompts": 16, "words": 40}  # as in the study `retrieval`
_ONE, _TWO = PageStyle(1, 6, (3, 6)), PageStyle(2, 6, (6, 12))
# The curriculum of a short run: it leaves the short pages earlier than `sparsemm.training.tuning.STAGES`.
STAGES = (((PageStyle(1, 6, (1, 2)),), 0.60, 0.0), ((_ONE,), 0.65, 0.0), ((_ONE, _TWO), 2.0, 2.0))


class Continued(Strict):
    """What a run starts from, and the real pages that it reads."""

    start: str = Field(description="folder of updates to start from, in the curriculum's last stage")
    records: str = Field(description="real pages at 84 dpi, as `sparsemm download` writes them")
    share: float = Field(0.8, gt=0.0, lt=1.0, description="their share of the steps on pages")


class Run(Strict):
    """The settings of one run."""

    seed: int = Field(ge=0, description="seed of the projector, the updates, and the pages and their order")
    rank: int = Field(RANK, ge=0, description="rank of the updates; 0 trains the weights themselves")
    prose_share: float = Field(0.1, ge=0.0, lt=1.0, description="share of the steps on prose")
    precision: Literal["bf16", "fp32"] = Field("bf16", description="of the products; bf16 is slow without instructions")
    tower: str | None = Field(str(TOWER), description="checkpoint with the initial vision tower; null: random weights")
    continued: Continued | None = Field(None, description="null: the run starts from the language model")
    architecture: str = Field(NAME, description="the classes around the language model")

    def written(self) -> dict[str, Any]:
        """Returns the settings as the files of a run have them, without those that came later and are the default."""
        later = {"continued": None, "architecture": NAME}
        return self.model_dump(exclude={key for key, value in later.items() if getattr(self, key) == value})


class Settings(Strict):
    """The runs, and what is the same in all of them."""

    steps: Count = Field(description="steps of a run")
    batch_size: Count = Field(description="pages of a step")
    calibration: int = Field(ge=2, description="pages that heads are scored on")
    evaluation: int = Field(
        ge=2, description="pages to read with heads off, and pages of each style to read and answer"
    )
    runs: dict[str, Run] = Field(min_length=1)

    @field_validator("runs")
    @classmethod
    def _keys(cls, value: dict[str, Run]) -> dict[str, Run]:
        for name in value:
            if check_key(name) in (NAME, BEFORE, "agreement"):
                raise ValueError(f"{name!r} is the name of something else")
        return value


def load_settings(path: Path) -> Settings:
    """Reads the settings of the runs.

    Raises:
        ParamsError: if the file cannot be read, or holds an unknown key, a wrong type or an impossible value.
    """
    try:
        return Settings.model_validate_json(json.dumps(yaml.safe_load(path.read_text(encoding="utf-8"))))
    except ValidationError as error:
        reasons = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        raise ParamsError("; ".join(reasons), where=str(path)) from error
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise ParamsError(f"cannot be read as YAML: {error}", where=str(path)) from error


def train_run(
    name: str, settings: Settings, prose: Prose, work: Path, unfinished: bool = False
) -> tuple[Path, int] | None:
    """Trains a run, unless that is done; returns the folder of its updates, and its steps.

    Args:
        name, settings: name of the run, and all settings.
        prose: text for steps on prose.
        work: folder of the runs.
        unfinished: do not train, but take the last saved state of a run that is not done; None if there is no state.

    Raises:
        ModelError: if the run was begun with other settings, or base or tower cannot be read.
    """
    run, folder, about = settings.runs[name], work / name, work / f"{name}.json"
    known = run.written() | {"steps": settings.steps, "batch_size": settings.batch_size}
    if about.is_file() and json.loads(about.read_text(encoding="utf-8")) != known:
        hint = "give it another name, or delete what is there under this one"
        raise ModelError(f"the run {name!r} was begun with other settings", where=str(about), hint=hint)
    write_json(about, known)
    if (folder / UPDATES).is_file():
        return folder, settings.steps
    options: dict[str, Any] = {"tower": run.tower and HERE / run.tower, "rank": run.rank}
    options |= {"precision": run.precision, "stages": STAGES}
    more = run.continued
    if more is not None:
        options["initial"] = HERE / more.start
    if not unfinished:
        options |= {"prose": prose if run.prose_share else None, "prose_share": run.prose_share}
        options |= {"save_every": SAVE_STEPS, "every": 5}
        if more is not None:
            options |= {"parts": Parts(HERE / more.records, run.seed), "parts_share": more.share}
        train(run.architecture, folder, steps=settings.steps, batch_size=settings.batch_size, seed=run.seed, **options)
        return folder, settings.steps
    state = work / f".{name}.state.safetensors"
    if not state.is_file():
        return None
    recipe = Tuning(run.architecture, run.seed, "cpu", **options)
    steps = load_state(state, recipe.parameters(), recipe.optimizers)["step"]
    recipe.save(work / "unfinished" / name)
    return work / "unfinished" / name, steps


def pipeline_params(name: str, settings: Settings, work: Path) -> Params:
    """Returns params.yaml with a single model, few pages, and one study."""
    raw = load_params(HERE / "params.yaml").model_dump(mode="json", exclude_unset=True)
    for dataset, samples in (("calibration", settings.calibration), ("evaluation", settings.evaluation)):
        raw["datasets"][dataset]["samples"] = samples
    entry = new_entry(str(work / "artifacts" / "checkpoints" / name), dtype="float32")
    raw["models"] = {name: entry.model_dump(mode="json", exclude_unset=True)}
    raw["evaluate"]["samples"] = settings.evaluation
    masking = {"samples": settings.evaluation, "tasks": ["read"], "fractions": [MASKED], "zero": ["output"]}
    raw["studies"] = {"measured": {"masking": masking}}
    for unused in ("assembled", "tune", "robustness"):
        raw.pop(unused, None)
    return parse_params(yaml.safe_dump(raw))


def score(name: str, params: Params, work: Path) -> dict[str, Any] | None:
    """Scores the heads of a run; returns the metrics of the chase, or None if the run reads nothing.

    The score table is `work`/artifacts/scores/<name>.safetensors.
    """
    try:
        align_stage.run(params, name, work)
        chase_stage.run(params, name, work)
    except (AlignError, ScoreTableError) as error:
        print(f"{name}: {error}")
        return None
    metrics: dict[str, Any] = json.loads((work / "artifacts" / "scores" / f"{name}.json").read_text(encoding="utf-8"))
    return metrics


def mask(name: str, params: Params, work: Path) -> dict[str, Estimate]:
    """Returns the words read with all heads, without the best ones, and without random ones of the same layers.

    `DIFFERENCE` is that of the last two, paired by page. All have 95 % intervals over the pages.
    """
    study_stage.run(params, "masking", name, work)
    rows = read_study(work / "artifacts" / "studies" / "masking" / f"{name}.csv", "masking", name)
    values = {row.setting: row.estimate for row in rows}
    compared = {(row.setting, row.against): row.difference for row in rows if row.difference is not None}
    return values | {DIFFERENCE: compared[TOP, LAYERS]}


def compare(one: ScoreTable, other: ScoreTable, seed: int = 0) -> list[dict[str, Any]]:
    """Returns how alike two tables rank the heads: the best 5 and 10 % that both have, and the rank correlation.

    Intervals are those of `sparsemm.studies.common.agreement`: over resampled pages of both tables, shifted so that
    their median is the value. A table without pages stays as it is. `chance` is how many would be shared by random
    heads of the same layers.
    """
    counts = [top_count(one.scores.size, share) for share in (0.05, 0.10)]

    def values(a: ScoreTable, b: ScoreTable) -> list[float]:
        shared = [len(top_heads(a, count) & top_heads(b, count)) for count in counts]
        return [*map(float, shared), a.rank_correlation(b)]

    def resampled(table: ScoreTable) -> ScoreTable:
        n = len(table.per_sample)
        return ScoreTable.from_samples(table.per_sample[rng.integers(0, n, n)], np.zeros_like(table.hits), table.header)

    rng = np.random.default_rng(seed)
    draws = np.array([values(resampled(one), resampled(other)) for _ in range(RESAMPLES)])
    rows = []
    for i, (metric, value) in enumerate(zip((*map(shared_metric, counts), RANKS), values(one, other), strict=True)):
        low, high = interval(draws[:, i] - np.median(draws[:, i]) + value)
        most = 1.0 if metric == RANKS else float(counts[i])
        chance = None if metric == RANKS else round(expected_shared(one, other, counts[i]), 2)
        rows.append({"metric": metric, "value": value, "ci_low": low, "ci_high": min(high, most), "chance": chance})
    return rows


def top_heads(table: ScoreTable, count: int) -> set[tuple[int, int]]:
    """Returns the best `count` heads of a table as (layer, head)."""
    return {(layer, head) for layer, head, _ in table.top_heads(count)}


def expected_shared(one: ScoreTable, other: ScoreTable, count: int) -> float:
    """Returns how many of their best heads two tables would share if these were random ones of the same layers."""
    layers, heads = one.scores.shape
    per_layer = [np.bincount([layer for layer, _ in top_heads(t, count)], minlength=layers) for t in (one, other)]
    return float(per_layer[0] @ per_layer[1]) / heads


def run(
    settings: Settings, names: list[str], work: Path = WORK, artifacts: Path = ARTIFACTS, unfinished: bool = False
) -> None:
    """Trains and measures runs, unless that is done, and writes what they show.

    Args:
        settings, names: all settings, and the runs to look at now.
        work, artifacts: folders of what is half done, and of the figures.
        unfinished: measure runs that are not done as they are.

    Raises:
        ModelError: see `train_run`.
    """
    tokenizer = BASES[NAME].base().tokenizer()
    prose = read_prose([folder for folder in FOLDERS if folder.is_dir()], tokenizer, *LITTLE_PROSE)
    for name in names:
        trained = train_run(name, settings, prose, work, unfinished)
        if trained is None:
            print(f"{name}: not begun")
        else:
            measure(name, *trained, settings, prose, work, artifacts)
            write_agreement(settings, work, artifacts)
    before, table = artifacts / f"{BEFORE}.json", work / "artifacts" / "scores" / f"{BEFORE}.safetensors"
    if not (before.is_file() and table.is_file()):
        model = BASES[NAME].base().model()
        chase_text(model, tokenizer, **TEXTS).save(table)
        write_json(before, {"prose": round(held_out_loss(model, tokenizer, prose, FEW_WINDOWS), 4), "texts": TEXTS})
    write_agreement(settings, work, artifacts)


def measure(
    name: str, updates: Path, steps: int, settings: Settings, prose: Prose, work: Path, artifacts: Path
) -> None:
    """Measures a run, part by part, and writes artifacts/controls/<name>.json: `about` and these parts.

    `scores` are metrics of the chase, `masking` is explained at `mask`; both are null if the run reads nothing.
    `held_out` is as in a card, `prose` is the loss on held-out prose in nats per character.
    """
    table, path = work / "artifacts" / "scores" / f"{name}.safetensors", artifacts / f"{name}.json"
    about = settings.runs[name].written() | settings.model_dump(exclude={"runs", "steps"})
    about |= {"steps": steps, "of_steps": settings.steps, "updates_sha256": sha256_file(updates / UPDATES)}
    figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if figures.get("about") != about:
        figures = {"about": about}
    if figures.keys() >= {"scores", "masking", "held_out", "prose"} and table.is_file() == bool(figures["scores"]):
        return
    assemble_stage.assemble(updates, work / "artifacts" / "checkpoints" / name)
    params = pipeline_params(name, settings, work)
    for dataset in ("calibration", "evaluation"):
        download.run(params, dataset, work)
    if "scores" not in figures or table.is_file() != bool(figures["scores"]):
        table.unlink(missing_ok=True)  # of other updates
        figures["scores"] = score(name, params, work)
        write_json(path, figures)
    if figures["scores"]:
        with atomic_path(artifacts / f"{name}.csv") as temporary:
            shutil.copyfile(table.with_suffix(".csv"), temporary)
    if "masking" not in figures:
        figures["masking"] = mask(name, params, work) if figures["scores"] else None
        write_json(path, figures)
    model, processor = load_model(params.model(name))
    if "held_out" not in figures:
        figures["held_out"] = held_out(model, processor, settings.evaluation)
        write_json(path, figures)
    if "prose" not in figures:
        figures["prose"] = round(held_out_loss(model, processor.tokenizer, prose, FEW_WINDOWS), 4)
        write_json(path, figures)


def write_agreement(settings: Settings, work: Path, artifacts: Path) -> None:
    """Writes agreement.csv: `compare` of the committed scores and those in `work`. Rows of other pairs stay.

    A run that was measured on another machine has its curve in `artifacts` alone, so its pages cannot be resampled; it
    is compared where it has not been compared yet.
    """
    tables, elsewhere = {NAME: curve_table(COMMITTED)}, set()
    for name in (BEFORE, *settings.runs):
        table, curve = work / "artifacts" / "scores" / f"{name}.safetensors", artifacts / f"{name}.csv"
        if table.is_file():
            tables[name] = ScoreTable.load(table)
        elif curve.is_file():
            tables[name] = curve_table(curve)
            elsewhere.add(name)
    path = artifacts / "agreement.csv"
    pairs: dict[tuple[str, str], list[Agreement]] = {}
    for row in read_rows(path, Agreement) if path.is_file() else ():
        pairs.setdefault((row.one, row.other), []).append(row)
    for one, other in combinations(tables, 2):
        if (one, other) not in pairs or not elsewhere & {one, other}:
            alike = compare(tables[one], tables[other])
            pairs[one, other] = [Agreement(one=one, other=other, **cells) for cells in alike]
    cells = (row.model_dump() for rows in pairs.values() for row in rows)
    rounded = ({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()} for row in cells)
    write_csv(path, list(Agreement.model_fields), rounded)


def main(arguments: list[str] | None = None) -> int:
    """Runs what is not done and prints the tables; returns 0, or 1 after printing what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="runs to train or measure now; default: all")
    parser.add_argument("--settings", type=Path, default=Path(__file__).with_suffix(".yaml"), help="file of the runs")
    parser.add_argument("--artifacts", type=Path, default=ARTIFACTS, help="folder of the figures")
    parser.add_argument("--unfinished", action="store_true", help="measure runs that are not done as they are")
    args = parser.parse_args(arguments)
    try:
        settings = load_settings(args.settings)
        unknown = [name for name in args.runs if name not in settings.runs]
        if unknown:
            hint = f"known: {', '.join(settings.runs)}"
            raise ParamsError(f"no run {unknown[0]!r}", where=str(args.settings), hint=hint)
        names = args.runs or list(settings.runs)
        run(settings, names, artifacts=args.artifacts, unfinished=args.unfinished)
    except SparseMMError as error:
        print(f"controls: {error}", file=sys.stderr)
        return 1
    print(controls_tables.table(args.artifacts))
    return 0


if __name__ == "__main__":
    sys.exit(main())

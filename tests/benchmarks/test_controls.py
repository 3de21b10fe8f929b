"""Controls of the training: runs that are stopped and resumed, what is measured of them, and their tables."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

from benchmarks import controls, controls_tables
from sparsemm.assemble.updates import UPDATES
from sparsemm.chase.stage import metrics, write_curve
from sparsemm.datasets.records import write_records
from sparsemm.datasets.synthetic import PageStyle, draw_record
from sparsemm.errors import ModelError, ParamsError
from sparsemm.files import write_json
from sparsemm.models import fingerprint, load_model
from sparsemm.scores import ScoreTable
from sparsemm.tables import read_rows
from sparsemm.training import train, tuning
from sparsemm.training.tuning import Tuning
from tests import tiny_base
from tests.training.runs import write_prose

ROOT = Path(__file__).parents[2]
SMALL = {"steps": 3, "batch_size": 2, "calibration": 4, "evaluation": 2}
RUNS = {"first": {"seed": 2, "rank": 2, "prose_share": 0.4}, "full": {"seed": 2, "rank": 0, "prose_share": 0.0}}


def write_settings(folder, **changes):
    path = folder / "controls.yaml"
    path.write_text(yaml.safe_dump(SMALL | {"runs": RUNS} | changes), encoding="utf-8")
    return path


def score_table(seed, header=None, shape=(4, 4), pages=6):
    """A table of random scores, most of them small."""
    per_sample = np.random.default_rng(seed).random((pages, *shape)) ** 4
    known = {"model": "m", "revision": None, "fingerprint": "f", "num_kv_heads": 1} | (header or {})
    return ScoreTable.from_samples(per_sample, np.ones(shape, np.int64), known)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """(settings, work, artifacts): a tiny language model in the place of the real one, and committed scores."""
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setitem(tuning.BASES, controls_tables.NAME, tiny_base.install(tmp_path / "site"))
    monkeypatch.setattr(controls, "FOLDERS", (write_prose(tmp_path / "prose"),))
    monkeypatch.setattr(controls, "SAVE_STEPS", 1)
    monkeypatch.setattr(controls, "RESAMPLES", 20)
    for module in (controls, controls_tables):
        monkeypatch.setattr(module, "COMMITTED", tmp_path / "committed.csv")
    write_curve(controls_tables.COMMITTED, score_table(8))
    # A random model copies nothing, so the scores on text are crafted too.
    monkeypatch.setattr(controls, "chase_text", lambda model, tokenizer, **options: score_table(9))
    return controls.load_settings(write_settings(tmp_path)), tmp_path / "work", tmp_path / "artifacts"


def crafted_chase(monkeypatch):
    """Random scores instead of those of a random model, which has none."""

    def chase(params, name, work):
        model, _ = load_model(params.model(name))
        table = score_table(len(name), {"model": name, "fingerprint": fingerprint(model.config)})
        folder = work / "artifacts" / "scores"
        table.save(folder / f"{name}.safetensors")
        write_curve(folder / f"{name}.csv", table)
        write_json(folder / f"{name}.json", metrics(table, np.ones((6, 3), np.int64)))

    monkeypatch.setattr(controls.align_stage, "run", lambda *arguments: None)
    monkeypatch.setattr(controls.chase_stage, "run", chase)


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_run_that_was_stopped_is_measured_as_it_is_and_then_resumed(place, monkeypatch, capsys):
    settings, work, artifacts = place
    controls.run(settings, ["first"], work, artifacts, unfinished=True)
    assert "first: not begun" in capsys.readouterr().out and not (artifacts / "first.json").exists()
    rate_at = Tuning.rate_at

    def stop(self, progress, step):
        if step == 2:
            raise KeyboardInterrupt
        return rate_at(self, progress, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Tuning, "rate_at", stop)
        controls.run(settings, ["first"], work, artifacts)
    controls.run(settings, ["first"], work, artifacts, unfinished=True)
    about = read(artifacts / "first.json")["about"]
    assert (about["steps"], about["of_steps"]) == (2, 3) and "| 2 of 3 |" in controls_tables.table(artifacts)
    assert "resumed" not in capsys.readouterr().out
    controls.run(settings, ["first"], work, artifacts)
    assert "resumed at step 2" in capsys.readouterr().out
    whole = read(artifacts / "first.json")["about"]
    assert whole["steps"] == 3 and whole["updates_sha256"] != about["updates_sha256"]
    first = load_file(work / "first" / UPDATES)
    train.train(controls_tables.NAME, work / "again", **training_of(settings, "first"))
    assert all((first[name] == value).all() for name, value in load_file(work / "again" / UPDATES).items())


def training_of(settings, name):
    """What a run is trained with, all in one go."""
    one = settings.runs[name]
    tokenizer = tuning.BASES[controls_tables.NAME].base().tokenizer()
    options = {"prose": controls.read_prose([*controls.FOLDERS], tokenizer), "prose_share": one.prose_share}
    options |= {"tower": ROOT / one.tower, "rank": one.rank, "precision": "bf16", "stages": controls.STAGES}
    return options | {"steps": settings.steps, "batch_size": settings.batch_size, "seed": one.seed}


def test_a_run_goes_on_from_updates_with_real_pages(place, monkeypatch, tmp_path):
    _, work, artifacts = place
    crafted_chase(monkeypatch)
    start, records = tmp_path / "start", tmp_path / "pages.parquet"
    train.train(controls_tables.NAME, start, steps=1, batch_size=2, rank=2, tower=ROOT / tuning.TOWER)
    write_json(start / "card.json", {"training": {"steps": 1}})
    write_records(records, [draw_record("train", 9, i, PageStyle(8, 12, (48, 60))) for i in range(2)])
    more = {"start": str(start), "records": str(records), "share": 0.5}
    runs = {"more": {"seed": 2, "rank": 2, "prose_share": 0.0, "continued": more}}
    controls.run(controls.load_settings(write_settings(tmp_path, runs=runs)), ["more"], work, artifacts)
    assert read(artifacts / "more.json")["about"]["continued"] == more
    before, after = (load_file(folder / UPDATES) for folder in (start, work / "more"))
    assert before.keys() == after.keys()
    moved = max((after[name].float() - value.float()).abs().max() for name, value in before.items())
    assert 0.0 < moved < 0.1  # three steps of the warm-up, from there


def test_what_is_measured_is_kept_and_not_measured_again(place, monkeypatch):
    settings, work, artifacts = place
    crafted_chase(monkeypatch)
    controls.run(settings, [*RUNS], work, artifacts)
    full = load_file(work / "full" / UPDATES)
    assert any(name.endswith("q_proj.weight") for name in full) and not any(name.endswith(".up") for name in full)
    figures = read(artifacts / "first.json")
    assert figures["about"]["rank"] == 2 and figures["held_out"]["one column"]["n"] == SMALL["evaluation"]
    for value, low, high in figures["masking"].values():
        assert low <= value <= high
    assert {"none", "top", controls_tables.DIFFERENCE} <= figures["masking"].keys()
    assert set(read(artifacts / f"{controls_tables.BEFORE}.json")) == {"prose", "texts"}
    names = [controls_tables.NAME, controls_tables.BEFORE, *RUNS]
    rows = read_rows(artifacts / "agreement.csv", controls_tables.Agreement)
    assert Counter((row.one, row.other) for row in rows) == {
        (one, other): 3 for i, one in enumerate(names) for other in names[i + 1 :]
    }
    before = {path.name: path.read_bytes() for path in artifacts.iterdir()}
    for name in ("train", "score", "mask", "held_out", "held_out_loss", "chase_text"):
        monkeypatch.setattr(controls, name, None)
    controls.run(settings, ["full"], work, artifacts)
    assert {path.name: path.read_bytes() for path in artifacts.iterdir()} == before
    shutil.rmtree(work / "artifacts" / "scores")
    controls.write_agreement(settings, work, artifacts)  # without the tables the rows stay
    assert (artifacts / "agreement.csv").read_bytes() == before["agreement.csv"]
    assert controls_tables.curve_table(controls_tables.COMMITTED).rank_correlation(score_table(8)) == pytest.approx(1.0)
    text = controls_tables.table(artifacts)
    assert text.count("\n| `first` |") == 2 and f"| {100 * figures['scores']['top_share']['5%']:.0f} / " in text


def test_a_measurement_that_was_stopped_goes_on_with_the_next_part(place, monkeypatch):
    settings, work, artifacts = place
    crafted_chase(monkeypatch)

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(controls, "held_out", stop)
        controls.run(settings, ["full"], work, artifacts)
    assert read(artifacts / "full.json").keys() == {"about", "scores", "masking"}
    for name in ("train", "score", "mask"):
        monkeypatch.setattr(controls, name, None)
    controls.run(settings, ["full"], work, artifacts)
    assert {"held_out", "prose"} <= read(artifacts / "full.json").keys()


def test_a_run_that_reads_nothing_is_shown_without_scores(place, capsys):
    settings, work, artifacts = place
    controls.run(settings, ["first"], work, artifacts)
    figures = read(artifacts / "first.json")
    assert figures["held_out"]["two columns"]["word_accuracy"] == 0.0
    assert figures["scores"] is None and figures["masking"] is None and figures["prose"] > 0.0
    assert "no answer token belongs to any word" in capsys.readouterr().out
    assert "| `first` | 3 | 0 / 0 | - | - | - | " in controls_tables.table(artifacts)
    rows = read_rows(artifacts / "agreement.csv", controls_tables.Agreement)
    assert {(row.one, row.other) for row in rows} == {(controls_tables.NAME, controls_tables.BEFORE)}


def test_agreement_is_that_of_plain_loops():
    one, other = score_table(0, shape=(30, 9)), score_table(1, shape=(30, 9))
    best = []
    for table in (one, other):
        order = sorted(((-score, layer, head) for (layer, head), score in np.ndenumerate(table.scores)))
        best.append([(layer, head) for _, layer, head in order[:14]])
    chance = sum(1 / 9 for layer, _ in best[0] for other_layer, _ in best[1] if layer == other_layer)
    five, ten, ranks = controls.compare(one, other)
    assert five["metric"] == "best 14 shared" and five["value"] == len({*best[0]} & {*best[1]})
    assert five["chance"] == pytest.approx(chance, abs=0.005) and ten["metric"] == "best 27 shared"
    assert ranks["value"] == pytest.approx(one.rank_correlation(other)) and ranks["chance"] is None
    assert all(row["ci_low"] <= row["value"] <= row["ci_high"] for row in (five, ten, ranks))
    assert [row["value"] for row in controls.compare(one, one)] == [14.0, 27.0, pytest.approx(1.0)]


def test_committed_agreement_is_that_of_the_committed_curves():
    curves = {path.stem: path for path in controls.ARTIFACTS.glob("*.csv") if path.stem != "agreement"}
    tables = {name: controls_tables.curve_table(path) for name, path in curves.items()}
    tables[controls_tables.NAME] = controls_tables.curve_table(controls_tables.COMMITTED)
    rows = read_rows(controls.ARTIFACTS / "agreement.csv", controls_tables.Agreement)
    pairs = {(row.one, row.other) for row in rows if {row.one, row.other} <= tables.keys()}
    assert len(pairs) == len(tables) * (len(tables) - 1) / 2 > 0
    for one, other in pairs:
        five, ten, ranks = (row for row in rows if (row.one, row.other) == (one, other))
        for row, share in ((five, 0.05), (ten, 0.10)):
            count = int(row.metric.split()[1])
            assert row.value == count * tables[one].top_overlap(tables[other], share)
            assert row.chance == pytest.approx(controls.expected_shared(tables[one], tables[other], count), abs=0.005)
        assert ranks.value == pytest.approx(tables[one].rank_correlation(tables[other]), abs=1e-3)


def test_settings_that_do_not_fit_are_refused(place, tmp_path, capsys):
    settings, work, artifacts = place
    assert controls.load_settings(ROOT / "benchmarks" / "controls.yaml").runs["seed-2"].rank == tuning.RANK
    for changes, reason in (
        ({"steps": 0}, "steps"),
        ({"stepps": 3}, "stepps"),
        ({"runs": {}}, "runs"),
        ({"runs": {"a": {"seed": -1}}}, "runs.a.seed"),
        ({"runs": {"a": {"seed": 1, "prose_share": 1.0}}}, "runs.a.prose_share"),
        ({"runs": {"a": {"seed": "1"}}}, "runs.a.seed"),
        ({"runs": {"a": {"seed": 1, "continued": {"start": "x"}}}}, "runs.a.continued.records"),
        ({"runs": {"a/b": {"seed": 1}}}, "may hold only"),
        ({"runs": {controls_tables.NAME: {"seed": 1}}}, "name of something else"),
    ):
        with pytest.raises(ParamsError, match=reason):
            controls.load_settings(write_settings(tmp_path, **changes))
    for text in ("", "runs: [", "- 1"):
        (tmp_path / "controls.yaml").write_text(text)
        with pytest.raises(ParamsError, match="controls.yaml"):
            controls.load_settings(tmp_path / "controls.yaml")
    with pytest.raises(ParamsError, match="cannot be read"):
        controls.load_settings(tmp_path / "none.yaml")
    assert controls.main(["nobody"]) == 1 and "no run 'nobody'" in capsys.readouterr().err
    write_json(work / "first.json", {"seed": 1})
    with pytest.raises(ModelError, match="begun with other settings"):
        controls.train_run("first", settings, None, work)
    assert controls_tables.table(artifacts) == "No run has been measured yet.\n"


def test_runs_of_other_machines_are_compared_once_by_their_curves(tmp_path, monkeypatch):
    monkeypatch.setattr(controls, "RESAMPLES", 4)
    for name in ("seed-2", "seed-3"):
        shutil.copy(controls.ARTIFACTS / f"{name}.csv", tmp_path)
    settings = controls.load_settings(ROOT / "benchmarks" / "controls.yaml")
    for _ in range(2):  # the second time nothing is new
        controls.write_agreement(settings, tmp_path / "work", tmp_path)
        rows = read_rows(tmp_path / "agreement.csv", controls_tables.Agreement)
        pairs = [(controls_tables.NAME, "seed-2"), (controls_tables.NAME, "seed-3"), ("seed-2", "seed-3")]
        assert list(dict.fromkeys((row.one, row.other) for row in rows)) == pairs and len(rows) == 9
        monkeypatch.setattr(controls, "compare", None)

"""The chase stage: what it writes, that it resumes, and what it refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from sparsemm.chase import scoring
from sparsemm.chase.aligned_answers import AlignedAnswer
from sparsemm.chase.stage import run
from sparsemm.chase.strongest_keys import strongest_keys
from sparsemm.datasets.records import read_records, write_records
from sparsemm.datasets.synthetic import PageStyle, draw_record
from sparsemm.errors import ParamsError, ScoreTableError
from sparsemm.layouts import box_positions, get_layout
from sparsemm.params import ModelParams, Params, load_params
from sparsemm.params.stages import ChaseParams, RobustnessParams, StopParams
from sparsemm.prompts import append_answers, build_inputs
from sparsemm.scores import ScoreTable

NAME = "tiny-qwen2-vl"
STYLE = PageStyle(columns=1, rows=4, filled=(2, 4))


def saved(tiny: Any, name: str, folder: Path) -> Path:
    for part in tiny(name):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tiny, NAME, tmp_path_factory.mktemp("checkpoint"))


def params(checkpoint: Path, family: Literal["llava_next", "qwen2_vl"] = "qwen2_vl", **chase: Any) -> Params:
    base = load_params(Path(__file__).parent.parent.parent / "params.yaml")
    values = {"dataset": "calibration", "batch_size": 2, "shard_size": 3, **chase}
    entry = ModelParams(checkpoint=str(checkpoint), revision=None, family=family, dtype="float32")
    return base.model_copy(update={"models": {"m": entry}, "chase": ChaseParams(**values)})


def write_align(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    lists = pa.list_(pa.int64())
    schema = pa.schema(
        [("sample_id", pa.string()), *((n, lists) for n in ("answer_ids", "token_index", "entry_index"))]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def inputs(root: Path, processor: Any, count: int = 7) -> list[dict[str, Any]]:
    """A data set and a made-up alignment: every entry spelled out, one sample with no aligned token."""
    records = [draw_record("calibration", 0, i, STYLE) for i in range(count)]
    write_records(root / "artifacts" / "datasets" / "calibration.parquet", records)
    rows = []
    for number, record in enumerate(records):
        ids: list[int] = []
        tokens: list[int] = []
        owners: list[int] = []
        for j, entry in enumerate(record.entries if number != 2 else ()):
            piece = processor.tokenizer(entry.text, add_special_tokens=False).input_ids
            tokens += range(len(ids), len(ids) + len(piece))
            owners += [j] * len(piece)
            ids += [*piece, processor.tokenizer.convert_tokens_to_ids(" ")]
        rows.append({"sample_id": record.id, "answer_ids": ids, "token_index": tokens, "entry_index": owners})
    write_align(root / "artifacts" / "align" / "m.parquet", rows)
    return rows


def outputs(root: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((root / "artifacts" / "scores").iterdir())}


@pytest.mark.parametrize(("name", "family"), [(NAME, "qwen2_vl"), ("tiny-llava-next-mistral", "llava_next")])
def test_the_stage_writes_what_each_sample_gives_alone(tiny: Any, tmp_path: Path, name: str, family: Any) -> None:
    model, processor = tiny(name)
    checkpoint = saved(tiny, name, tmp_path / "checkpoint")
    rows = inputs(tmp_path, processor)
    given = params(checkpoint, family)
    run(given, "m", tmp_path)
    table = ScoreTable.load(tmp_path / "artifacts" / "scores" / "m.safetensors")
    table.check_model(model.config)
    records = read_records(tmp_path / "artifacts" / "datasets" / "calibration.parquet")
    wanted = np.zeros_like(table.per_sample)
    hits, tokens = np.zeros_like(table.hits), 0
    for n, (record, row) in enumerate(zip(records, rows, strict=True)):
        prompt = build_inputs(processor, [[record.image]], [given.chase.prompt])
        forced = append_answers(prompt, [row["answer_ids"]], 0)
        (grid,) = get_layout(family).image_tokens(model.config, prompt, 0, [record.image.size])
        rows_of_answer = [[prompt["input_ids"].shape[1] + t - 1 for t in row["token_index"]]]
        (keys,) = strongest_keys(model, forced.inputs, rows_of_answer)
        for t, entry in enumerate(row["entry_index"]):
            inside = np.isin(keys.positions[:, :, t], box_positions(grid, record.entries[entry].box))
            wanted[n] += inside / len(box_positions(grid, record.entries[entry].box))
            hits += inside
            tokens += 1
    # Untrained heads attend almost evenly: rounding may move a rare argmax between batch sizes.
    assert hits.sum() > 100
    assert np.abs(table.hits - hits).sum() <= 0.01 * hits.sum()
    assert (np.abs(table.per_sample - wanted) > 1e-9).mean() < 0.01
    assert not table.per_sample[2].any()
    header = table.header
    assert (header["samples"], header["tokens"], header["num_kv_heads"]) == (7, tokens, 4)
    assert header["model"] == str(checkpoint) and header["prompt"] == "Read the page." and header["mode"] == "greedy"
    summary = json.loads((tmp_path / "artifacts" / "scores" / "m.json").read_text())
    assert summary["tokens_scored"] == summary["tokens_aligned"] == tokens and summary["samples"] == 7
    assert summary["hit_rate_max"] == pytest.approx(table.hits.max() / tokens, abs=1e-6)
    assert summary["top_share"]["5%"] == pytest.approx(table.top_share(0.05), abs=1e-6)
    lines = (tmp_path / "artifacts" / "scores" / "m.csv").read_text().splitlines()
    assert lines[0].startswith("rank,share,cumulative") and len(lines) == 97
    assert lines[-1].split(",")[2] == "1.00000000"
    assert not (tmp_path / "artifacts" / "work" / "chase" / "m").exists()


@pytest.mark.skipif("CUDA_STAND_IN" in os.environ, reason="bitsandbytes brings CUDA code of its own")
def test_a_table_of_quantised_weights_says_so_and_finds_the_same_heads(
    tiny: Any, checkpoint: Path, tmp_path: Path
) -> None:
    model, processor = tiny(NAME)
    given, tables = params(checkpoint), []
    for width in (None, "8bit", "4bit"):
        entry = given.models["m"].model_copy(update={"load_in": width})
        root = tmp_path / str(width)
        inputs(root, processor)
        run(given.model_copy(update={"models": {"m": entry}}), "m", root)
        tables.append(ScoreTable.load(root / "artifacts" / "scores" / "m.safetensors"))
        tables[-1].check_model(model.config)
        assert tables[-1].header["quantization"] == width
    whole, *quantised = tables
    correlations = [whole.rank_correlation(table) for table in quantised]
    assert 0.9 < correlations[1] < correlations[0]


def test_a_stopped_run_goes_on_and_ends_in_the_same_bytes(
    tiny: Any, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "MOST_PADDING", 1.0)  # batches of two
    given = params(checkpoint)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for root in (whole, stopped):
        inputs(root, tiny(NAME)[1])
    run(given, "m", whole)
    original, calls = scoring.chase_batch, []

    def batch(*args: Any) -> Any:
        calls.append(len(args[2]))
        if len(calls) == 3:  # in the second shard: the first has one batch, as its last sample has no aligned token
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(scoring, "chase_batch", batch)
    with pytest.raises(KeyboardInterrupt):
        run(given, "m", stopped)
    shards = sorted((stopped / "artifacts" / "work" / "chase" / "m").rglob("*"))
    assert [p.name for p in shards if p.is_file()] == ["0000.safetensors"]
    assert not (stopped / "artifacts" / "scores").exists()
    calls.clear()
    calls += [0] * 10
    run(given, "m", stopped)
    assert calls[10:] == [2, 1, 1]  # the first shard of three was not made again
    assert outputs(stopped) == outputs(whole)


def test_ground_truth_counts_only_rows_that_say_the_target(tiny: Any, checkpoint: Path, tmp_path: Path) -> None:
    model, processor = tiny(NAME)
    record = draw_record("calibration", 0, 0, STYLE)
    prompt = build_inputs(processor, [[record.image]], ["Read"])
    ids = [30, 31, 32, 33]
    forced = append_answers(prompt, [ids], 0)
    (seen,) = strongest_keys(model, forced.inputs, [[forced.first_rows[0]]])
    ids[0] = int(seen.predicted[0])  # said by the model itself
    forced = append_answers(prompt, [ids], 0)
    (seen,) = strongest_keys(model, forced.inputs, [[forced.first_rows[0] + i for i in range(4)]])
    said = [int(p) == i for p, i in zip(seen.predicted, ids, strict=True)]
    assert said[0] and not all(said)
    answer = AlignedAnswer(record.id, ids, [0, 1, 2, 3], [0, 0, 1, 1])
    batch = scoring.prepare_batch(model, processor, get_layout("qwen2_vl"), [record], [answer], "Read")
    for ground_truth, count in ((True, sum(said)), (False, 4)):
        (shard,) = scoring.chase_batch(model, batch, [answer], ground_truth)
        assert shard.counts.tolist() == [[4, sum(said), count]]
        assert shard.hits.max() <= count


def test_nothing_to_score_is_an_error_and_writes_nothing(tiny: Any, checkpoint: Path, tmp_path: Path) -> None:
    rows = inputs(tmp_path, tiny(NAME)[1], count=2)
    empty = [{**row, "token_index": [], "entry_index": []} for row in rows]
    write_align(tmp_path / "artifacts" / "align" / "m.parquet", empty)
    with pytest.raises(ScoreTableError, match="no answer token could be scored"):
        run(params(checkpoint), "m", tmp_path)
    assert not (tmp_path / "artifacts" / "scores").exists()


def test_an_early_stop_uses_the_first_shards_and_says_so(tiny: Any, checkpoint: Path, tmp_path: Path) -> None:
    stop = StopParams(min_samples=4, top_overlap=0.0, rank_correlation=-1.0, patience=1)
    inputs(tmp_path, tiny(NAME)[1])
    run(params(checkpoint, stop=stop), "m", tmp_path)
    scores = tmp_path / "artifacts" / "scores"
    table, summary = ScoreTable.load(scores / "m.safetensors"), json.loads((scores / "m.json").read_text())
    assert table.per_sample.shape[0] == table.header["samples"] == summary["samples"] == 6  # two shards of three
    assert table.header["samples_available"] == summary["samples_available"] == 7
    run(params(checkpoint), "m", tmp_path)
    whole = ScoreTable.load(scores / "m.safetensors")
    assert whole.header["samples"] == 7 and np.array_equal(whole.per_sample[:6], table.per_sample)


def test_another_data_set_has_files_and_a_prompt_of_its_own(tiny: Any, checkpoint: Path, tmp_path: Path) -> None:
    inputs(tmp_path, tiny(NAME)[1], count=3)
    folder = tmp_path / "artifacts"
    (folder / "datasets" / "calibration.parquet").rename(folder / "datasets" / "evaluation.parquet")
    (folder / "align" / "also" / "m").mkdir(parents=True)
    (folder / "align" / "m.parquet").rename(folder / "align" / "also" / "m" / "evaluation.parquet")
    given = params(checkpoint).model_copy(update={"robustness": {"evaluation": RobustnessParams(prompt="Read")}})
    run(given, "m", tmp_path, "evaluation")
    table = ScoreTable.load(folder / "scores" / "also" / "m" / "evaluation.safetensors")
    assert (table.header["dataset"], table.header["prompt"]) == ("evaluation", "Read")
    assert not (folder / "scores" / "m.safetensors").exists()
    assert not list((folder / "work").rglob("*.safetensors"))
    with pytest.raises(ParamsError, match="no data set 'coco'.*known: evaluation"):
        run(given, "m", tmp_path, "coco")

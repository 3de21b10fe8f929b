"""Score tables: round trips, refusals, statistics against the slow way, the published form."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from sparsemm.errors import ScoreTableError
from sparsemm.scores import ScoreTable, diff, export_published, import_published, show, top_count
from sparsemm.studies.common.heads import random_heads_in
from sparsemm.studies.looking import groups

HEADER: dict[str, Any] = {"model": "m", "revision": "r", "fingerprint": "f", "num_kv_heads": 2}


def table(seed: int = 0, samples: int = 6, layers: int = 3, heads: int = 4, **header: Any) -> ScoreTable:
    rng = np.random.default_rng(seed)
    per_sample = rng.exponential(size=(samples, layers, heads)) * rng.exponential(size=(layers, heads))
    return ScoreTable.from_samples(per_sample, rng.integers(0, 9, (layers, heads)), {**HEADER, **header})


def of(scores: Any, kv: int = 1) -> ScoreTable:
    scores = np.asarray(scores, dtype=np.float64)
    return ScoreTable.from_samples(scores[None], np.zeros(scores.shape, np.int64), {**HEADER, "num_kv_heads": kv})


def test_round_trip_and_equal_bytes(tmp_path: Path) -> None:
    one = table(params={"b": [1, 2], "a": None}, prompt="Read the page: “é”")
    one.save(tmp_path / "a.safetensors")
    header = dict(reversed(one.header.items()))  # the order of keys is not content
    ScoreTable(one.scores, one.hits, np.asfortranarray(one.per_sample), header).save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    back = ScoreTable.load(tmp_path / "a.safetensors")
    assert back.header == one.header
    for name in ("scores", "hits", "per_sample"):
        assert np.array_equal(getattr(back, name), getattr(one, name))
        assert getattr(back, name).dtype == getattr(one, name).dtype
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    with pytest.raises(ScoreTableError, match="run the chase stage first"):
        ScoreTable.load(path)
    table().save(path)
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[-3] ^= 1
    for data in (b"", b"{}", good[: len(good) // 2], good[:-1], bytes(flipped), good + b"x", b"\xff" * 64):
        path.write_bytes(data)
        with pytest.raises(ScoreTableError):
            ScoreTable.load(path)
    save_file({"weight": np.zeros(3)}, path)
    with pytest.raises(ScoreTableError, match="not a score table"):
        ScoreTable.load(path)
    tensors = table()._tensors()
    for text, reason in [
        ("[]", "not a score table"),
        ("{", "damaged"),
        ('{"format": 2, "header": {}}', "format version 2"),
        ('{"format": 1, "header": {}, "content": "0"}', "do not match their checksum"),
    ]:
        save_file(tensors, path, metadata={"sparsemm": text})
        with pytest.raises(ScoreTableError, match=reason):
            ScoreTable.load(path)


def test_impossible_tables_are_refused(tmp_path: Path) -> None:
    good = np.ones((2, 3, 4))
    hits = np.zeros((3, 4), np.int64)
    for per_sample, header, reason in [
        (good, {}, "the header lacks model, revision, fingerprint, num_kv_heads"),
        (good, {**HEADER, "num_kv_heads": 3}, "cannot share"),
        (good, {**HEADER, "num_kv_heads": 0}, "cannot share"),
        (good, {**HEADER, "num_kv_heads": "2"}, "cannot share"),
        (good * np.nan, HEADER, "NaN"),
        (-good, HEADER, "negative"),
        (good, {**HEADER, "sliding_layers": [0, 1, 2]}, "no full-attention layer of 3"),
        (good, {**HEADER, "sliding_layers": ["0"]}, "sliding_layers"),
        (good, {**HEADER, "sliding_layers": 1}, "sliding_layers"),
        (np.ones((2, 3, 5)), HEADER, "shapes do not match"),
        (np.ones((2, 0, 4)), HEADER, "shapes do not match"),
    ]:
        with pytest.raises(ScoreTableError, match=reason):
            ScoreTable.from_samples(per_sample, hits, header)
    with pytest.raises(ScoreTableError, match="not the sum"):
        ScoreTable(good.sum(axis=0) + 1, hits, good, HEADER).validate()
    with pytest.raises(ScoreTableError, match="dtypes"):
        ScoreTable(good.sum(axis=0), hits.astype(np.int32), good, HEADER).validate()
    with pytest.raises(ScoreTableError, match="not plain JSON"):
        ScoreTable.from_samples(good, hits, {**HEADER, "path": tmp_path}).save(tmp_path / "x")
    with pytest.raises(ScoreTableError, match="not plain JSON"):
        ScoreTable.from_samples(good, hits, {**HEADER, "rate": math.nan}).save(tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_another_models_table_is_refused(tiny: Any) -> None:
    from sparsemm.models import fingerprint

    config, other = (tiny(name)[0].config for name in ("tiny-llava-next-vicuna", "tiny-qwen2-vl"))
    mine = table(fingerprint=fingerprint(config))
    mine.check_model(config)
    mine.check_model(fingerprint(config))
    for wrong in (other, "0" * 64, ""):
        with pytest.raises(ScoreTableError, match="another config"):
            mine.check_model(wrong)


def test_shares_and_top_heads() -> None:
    one = of([[1, 5, 0, 2], [5, 3, 4, 0]])
    assert one.normalised().sum() == pytest.approx(1)
    assert one.top_heads(3) == [(0, 1, 0.25), (1, 0, 0.25), (1, 2, 0.2)]
    assert one.top_heads(0) == [] and len(one.top_heads(99)) == 8
    tied = of(np.tile([1.0, 2.0], (40, 8))).top_heads(640)
    assert [head[:2] for head in tied] == sorted((head[:2] for head in tied), key=lambda h: (-(h[1] % 2), h))
    assert one.top_share(0.0) == one.top_share(0.01) == 0.25  # at least one head
    assert one.top_share(0.1875) == 0.5  # 1.5 heads round up
    assert one.top_share(1.0) == pytest.approx(1)
    assert [top_count(96, f) for f in (0.01, 0.02, 0.05, 0.1)] == [1, 2, 5, 10]
    for fraction in (-0.1, 1.1, math.nan):
        with pytest.raises(ScoreTableError, match="outside"):
            one.top_share(fraction)
    empty = of(np.zeros((2, 4)))
    for method in (empty.normalised, lambda: empty.top_heads(1), lambda: empty.top_share(0.1)):
        with pytest.raises(ScoreTableError, match="every score is zero"):
            method()


def test_kv_scores_are_sums_over_the_group() -> None:
    one = of([[1, 5, 0, 2], [5, 3, 4, 0]], kv=2)
    assert one.to_kv(2).tolist() == [[6, 2], [8, 4]]
    assert np.array_equal(one.to_kv(4), one.scores)
    for wrong in (3, 0, -1, 8):
        with pytest.raises(ScoreTableError, match="cannot share"):
            one.to_kv(wrong)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=20))
def test_rank_correlation_is_pearson_of_mean_ranks(pairs: list[tuple[int, int]]) -> None:
    a, b = (np.array(values, dtype=float) for values in zip(*pairs, strict=True))

    def ranks(values: np.ndarray) -> list[float]:
        return [sum(v < x for v in values) + (sum(v == x for v in values) - 1) / 2 for x in values]

    found = of(a[None]).rank_correlation(of(b[None]))
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(np.corrcoef(ranks(a), ranks(b))[0, 1], abs=1e-12)


def test_split_half_compares_even_with_odd_samples() -> None:
    one = table(samples=7)
    even, odd = one.per_sample[[0, 2, 4, 6]].sum(0).ravel(), one.per_sample[[1, 3, 5]].sum(0).ravel()
    assert one.split_half() == pytest.approx(np.corrcoef(even, odd)[0, 1])
    assert one.split_half() != pytest.approx(table(seed=1, samples=7).split_half())
    assert math.isnan(table(samples=1).split_half())


def test_overlap() -> None:
    a, b = of([[9, 8, 7, 6, 0, 0, 0, 1]]), of([[0, 8, 9, 0, 0, 7, 6, 1]])
    assert a.top_overlap(a, 0.5) == 1.0
    assert a.top_overlap(b, 0.5) == 0.5
    assert a.top_overlap(b) == 0.0
    for method in (a.top_overlap, a.rank_correlation):
        with pytest.raises(ScoreTableError, match="cannot be compared"):
            method(of([[1, 2]]))


def test_published_form_round_trips(tmp_path: Path) -> None:
    one = table()
    export_published(one, tmp_path / "p.json")
    value = json.loads((tmp_path / "p.json").read_text())
    assert len(value) == 12 and value["2-3"] == one.per_sample[:, 2, 3].tolist()
    back = import_published(tmp_path / "p.json", HEADER)
    assert np.array_equal(back.per_sample, one.per_sample) and np.array_equal(back.scores, one.scores)
    assert back.header["tokens"] is None and back.header["samples"] == 6 and not back.hits.any()
    for text in (repr(back), show(back), diff(one, back)):
        assert "None" not in text and re.search(r"(: |, )-( |$)", text, re.MULTILINE), text
    back.save(tmp_path / "t.safetensors")
    ScoreTable.load(tmp_path / "t.safetensors")
    with pytest.raises(ScoreTableError, match="do not fill 4 layers"):
        import_published(tmp_path / "p.json", {**HEADER, "num_layers": 4, "num_heads": 4})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", "not an object"),
        ("{}", "not an object"),
        ('{"0-0": [1], "0-0": [2]}', "appears twice"),
        ('{"0_0": [1]}', "not layer-head"),
        ('{"00-0": [1]}', "not layer-head"),
        ('{"-1-0": [1]}', "not layer-head"),
        ('{"0-0\\n": [1]}', "not layer-head"),
        ('{"9999999-0": [1]}', "not layer-head"),
        ('{"999999-999999": [1]}', "do not fill"),
        ('{"0-0": [1], "1-1": [1]}', "do not fill"),
        ('{"0-0": [1], "0-1": [1, 2]}', "must have equally many"),
        ('{"0-0": [], "0-1": []}', "must have equally many"),
        ('{"0-0": 1, "0-1": 1}', "not a list"),
        ('{"0-0": ["1"], "0-1": [1]}', "not a list"),
        ('{"0-0": [true], "0-1": [1]}', "not a list"),
        ('{"0-0": [NaN], "0-1": [1]}', "not a list"),
        ('{"0-0": [Infinity], "0-1": [1]}', "not a list"),
        ('{"0-0": [-1], "0-1": [1]}', "not a list"),
        ('{"0-0": [1], "0-1": [1], "0-2": [1]}', "cannot share"),
    ],
)
def test_malformed_published_files_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(ScoreTableError, match=reason):
        import_published(tmp_path / "p.json", HEADER)


def test_published_file_that_is_missing_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ScoreTableError, match="cannot be read"):
        import_published(tmp_path / "p.json", HEADER)
    (tmp_path / "p.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(ScoreTableError, match="cannot be read"):
        import_published(tmp_path / "p.json", HEADER)


def test_show_and_diff_say_what_the_table_holds() -> None:
    one, other = table(tokens=40), table(seed=1, tokens=50)
    text = show(one)
    layer, head, share = one.top_heads(1)[0]
    assert f"{layer:5d} {head:5d}  {share:6.2%} {one.hits[layer, head]:6d}" in text
    assert f"split-half correlation: {one.split_half():.4f}" in text
    assert "top 10% (1 of 12 heads)" in text and "tokens: 40" in text
    assert "every score is zero" in show(of(np.zeros((2, 4))))
    text = diff(one, other)
    assert "tokens: 40 | 50" in text and "model" not in text
    assert f"rank correlation: {one.rank_correlation(other):.4f}" in text
    assert "overlap of the top 5%: " in text
    assert "overlap of the top 5%: 100.0%" in diff(one, one)


def test_linear_layers_have_no_heads_and_no_scores() -> None:
    with pytest.raises(ScoreTableError, match="a layer with linear attention has scores"):
        table(linear_layers=[1])
    whole = table()
    per_sample = whole.per_sample.copy()
    per_sample[:, 1] = 0
    mixed = ScoreTable.from_samples(per_sample, whole.hits, whole.header | {"linear_layers": [1]})
    assert mixed.full_layers() == mixed.layers_with_heads() == [0, 2] and mixed.layers_without_heads() == [1]
    assert "their scores are zero" in show(mixed) and "sliding" not in show(mixed)
    with pytest.raises(ScoreTableError, match=r"linear_layers \[0\] leave no full-attention layer of 3"):
        ScoreTable.from_samples(per_sample, whole.hits, whole.header | {"linear_layers": [0], "sliding_layers": [1, 2]})
    # Studies of heads rank and draw those that exist.
    flat = np.concatenate(list(groups(mixed, 0.25).values()))
    assert flat.max() < 2 * 4 and len(set(flat)) == len(flat) == 6
    heads = random_heads_in(mixed.layers_with_heads(), np.ones((3, 4), bool), 0, False, [0, 1])
    assert heads.shape == (2, 3, 4) and heads[:, [0, 2]].all() and not heads[:, 1].any()


def test_sliding_layers_are_named() -> None:
    assert table().full_layers() == [0, 1, 2] and "sliding" not in show(table())
    mixed = table(sliding_layers=[0, 2], sliding_window=24)
    assert mixed.full_layers() == [1]
    assert "heads of the sliding layers see 24 tokens" in show(mixed) and "sliding_layers: [0, 2]" in show(mixed)


def test_a_table_describes_itself_in_five_lines():
    header = {"model": "m", "revision": "r", "fingerprint": "f", "num_kv_heads": 1}
    table = ScoreTable.from_samples(np.array([[[3.0, 1.0]]]), np.array([[3, 1]]), header)
    text = repr(table)
    assert len(text.splitlines()) == 5 and "1 layers x 2 query heads" in text and "0-0 (75.0%)" in text
    assert "scored on: -, - samples, - tokens" in text
    assert "every score is zero" in repr(ScoreTable.from_samples(np.zeros((1, 1, 2)), np.zeros((1, 2), int), header))
    imported = ScoreTable.from_samples(np.array([[[3.0, 1.0]]]), np.zeros((1, 2), int), header)
    assert "split-half correlation: -" in show(imported) and show(imported).splitlines()[-2].split()[-1] == "-"

"""Tables of the docs come from stored benches, and only what lies between markers is touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import tables
from sparsemm.errors import DataError

ROOT = Path(__file__).parents[2]
HEAD = {"device": "a processor, 1 threads", "load": 0.5, "date": "2026-01-02", "shape": "small", "rows": []}


@pytest.fixture
def results():
    timed = {"seconds": [0.001, 0.002, 0.003], "bytes": 4096, "copy_share": 0.25}
    found = {bench: HEAD | {"ratios": {}} for bench, _ in tables.FIGURES}
    for bench, name in tables.FIGURES:
        found[bench]["ratios"][name] = 1.5
    found["step"] = found["step"] | {"rows": [{"length": 8192, "times": {"int8_step": timed, "copy": timed}}]}
    row = {"model": "m", "method": "snapkv", "storage": "int8", "tokens": 384, "share": 0.9896}
    ratios = {"chase_over_forward": 1.1, "loop_over_chase": 11.4, "loop_over_forward": 12.5}
    found["chase-m"] = HEAD | {"model": "m", "dtype": "bfloat16", "positions": 4096, "ratios": ratios}
    prompt = {"prompt_length": 4096, "prefill_ms": 1500.0, "compression_share": 0.0125}
    full = {"method": "transformers", "decode_ms_per_token": 4.0, "slab_bytes": 1000, "peak_bytes": 400}
    ours = {"method": "sparsemm", "decode_ms_per_token": 1.0, "slab_bytes": 30, "peak_bytes": 100}
    found["lengths"] = HEAD | {"rows": [prompt | full, prompt | ours], "ratios": {}}
    shares = {f"{name}_{case}_peak_over_rows": 1.438 for name in tables.READS for case in ("even", "one")}
    found["skew"] = HEAD | {"ratios": shares | {"turn_one_peak_over_rows": 1.046}}
    return found | {"agreement": HEAD | {"rows": [{"op": "append"}, row], "ratios": {}}}


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("kernels", "| append, 32K against 1K rows in the cache | 1.5 |"),
        ("steps", "| int8 | 8,192 | 2.00 (1.00 to 3.00) | 4,096 | 0.25 |"),
        ("chases", "| m | bfloat16 | 4,096 | 1.1 | 11.4 | 12.5 | - | - |"),
        ("lengths", "| 4,096 | 1.50 | 1.2% | 4.00 | 1.00 | 0.250 | 0.030 | 0.250 |"),
        ("skew", "| a turn of 8 tokens | 1.44 | 1.05 |"),
        ("agreement", "| m | snapkv | int8 | 384 | 99.0% |"),
    ],
)
def test_between_markers_stands_what_was_measured_and_nothing_else_changes(results, kind, line):
    text = f"before\n<!-- table: {kind} -->\nold\n<!-- end -->\nafter\n"
    made = tables.rewritten(text, results, "d")
    lines = made.splitlines()
    assert line in lines and "old" not in lines and lines[0] == "before" and lines[-1] == "after"
    assert "Measured on a processor, 1 threads, load 0.5 before the benches, 2026-01-02." in lines
    assert tables.rewritten(made, results, "d") == made


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<!-- table: wrong -->\n<!-- end -->", "unknown"),
        ("<!-- table: steps -->\n", "no <!-- end -->"),
        ("<!-- table: steps -->\n<!-- table: steps -->", "inside another"),
    ],
)
def test_wrong_markers_are_refused(results, text, said):
    with pytest.raises(DataError, match=said):
        tables.rewritten(text, results, "d")


def test_a_bench_that_is_not_stored_is_named(results):
    del results["step"]
    with pytest.raises(DataError, match="sparsemm bench step --json"):
        tables.rewritten("<!-- table: steps -->\n<!-- end -->", results, "d")
    del results["agreement"]
    with pytest.raises(DataError, match="python -m benchmarks agreement --json"):
        tables.rewritten("<!-- table: agreement -->\n<!-- end -->", results, "d")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"bench": "step"}', "half {"])
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / "step-cpu.json").write_text(content)
    with pytest.raises(DataError, match="not what a bench prints"):
        tables.read(tmp_path)


def test_a_failure_leaves_the_documents_alone(tmp_path, monkeypatch, capsys, results):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "artifacts/benchmarks").mkdir(parents=True)
    texts = {"cache.md": "<!-- table: agreement -->\n<!-- end -->\n", "kernels.md": "<!-- table: steps -->\n"}
    texts["chase.md"] = "no table\n"
    for name, text in texts.items():
        (tmp_path / "docs" / name).write_text(text)
    for bench, value in results.items():
        (tmp_path / "artifacts/benchmarks" / f"{bench}-cpu.json").write_text(json.dumps(value | {"bench": bench}))
    assert tables.main() == 1 and "kernels.md" in capsys.readouterr().err
    assert {path.name: path.read_text() for path in (tmp_path / "docs").iterdir()} == texts
    (tmp_path / "docs/kernels.md").write_text("no table\n")
    assert tables.main() == 0 and "99.0%" in (tmp_path / "docs/cache.md").read_text()


def test_the_docs_say_what_is_stored():
    results = tables.read(ROOT / "artifacts/benchmarks")
    for path in tables.DOCS:
        text = (ROOT / path).read_text(encoding="utf-8")
        assert "<!-- table: " in text and tables.rewritten(text, results, str(path)) == text

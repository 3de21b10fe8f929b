"""Rewrite the tables of the docs from stored benches: `python -m benchmarks.tables`.

A bench is stored by `sparsemm bench NAME --json > artifacts/benchmarks/NAME-cpu.json`, or the same of
`python -m benchmarks NAME`; those of the chase as chase-WHAT-cpu.json. In a document, `<!-- table: KIND -->` and
`<!-- end -->`, each a line of its own, enclose what is rewritten.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparsemm.errors import DataError, SparseMMError
from sparsemm.files import atomic_path
from sparsemm.profiling.bench import BENCHES

FOLDER = Path("artifacts/benchmarks")
DOCS = tuple(Path("docs") / name for name in ("cache.md", "chase.md", "kernels.md"))
KEYS = ("device", "load", "date", "rows", "ratios")  # of what a bench prints
Results = dict[str, dict[str, Any]]  # name of the file, without -cpu.json -> what the bench printed
# Bench and name of a ratio, and the words for it.
FIGURES = {
    ("append", "append_32k_over_1k"): "append, 32K against 1K rows in the cache",
    ("append", "copy_append_32k_over_1k"): "the same, copying everything",
    ("append", "copy_append_over_append_32k"): "append of the public codes (copies everything) over ours, 32K rows",
    ("append", "dynamic_append_over_append_32k"): "the same for transformers' growing cache",
    ("append", "static_append_over_append_32k"): "the same for transformers' static cache, which overwrites a row",
    ("decode", "decode_bandwidth_share"): "decode, 8K rows in every head: share of the copy's bandwidth",
    (
        "decode",
        "full_over_ragged_decode_32k_b256",
    ): "decode, 32K prompt: full static cache with SDPA over 256 rows a head",
    ("compact", "twin_over_compact_8k"): "compact, 8K, 256 rows a head: twin over ours",
    ("compact", "twin_over_compact_32k"): "the same, 32K",
    ("observe", "twin_over_observe_8k"): "observe, 8K: twin over ours",
    (
        "attention",
        "sdpa_over_causal_attention_padded",
    ): "causal attention, eight padded prompts of 256: torch's sdpa over ours",
    ("attention", "sdpa_over_causal_attention_8k"): "the same, one of 8K",
    ("step", "compression_share_of_prefill_8k"): "compression's share of the prefill of 8K tokens",
    ("step", "copying_over_sparsemm_step_8k"): "decode step of a whole model after 8K tokens: copying append over ours",
    ("memory", "slack_share"): "slack of the slabs at 256 rows a head",
}

CHASES = {
    "chase_over_forward": "time over a plain forward pass",
    "loop_over_chase": "time of the loop over ours",
    "loop_over_forward": "loop over a plain forward pass",
    "loop_over_arithmetic": "loop over the pass's matrix products at full rate",
    "chase_extra_over_kv": "peak memory beyond a forward pass, over K and V",
}


def read(folder: Path) -> Results:
    """Every stored bench of a CPU.

    Raises:
        DataError: if a file is not what a bench prints.
    """
    results: Results = {}
    for path in sorted(folder.glob("*-cpu.json")):
        name = path.name.removesuffix("-cpu.json")
        try:
            results[name] = value = json.loads(path.read_text(encoding="utf-8"))
            missing = [key for key in KEYS if key not in value]
        except (ValueError, TypeError) as error:
            raise DataError(f"not what a bench prints: {error!r}", where=str(path), hint=f"run bench {name}") from error
        if missing:
            what = f"not what a bench prints: no {', '.join(missing)}"
            raise DataError(what, where=str(path), hint=f"run bench {name}")
    return results


def _one(results: Results, bench: str) -> dict[str, Any]:
    if bench not in results:
        command = "sparsemm bench" if bench in (*BENCHES, "chase-WHAT") else "python -m benchmarks"
        hint = f"{command} {bench} --json > artifacts/benchmarks/{bench}-cpu.json"
        raise DataError(f"no stored bench {bench}", where=str(FOLDER), hint=hint)
    return results[bench]


def _when(*results: dict[str, Any]) -> str:
    """Machine, load before the bench and day, of one or several benches."""
    devices = " and ".join(dict.fromkeys(r["device"] for r in results))
    days = " and ".join(dict.fromkeys(r["date"] for r in results))
    loads = [r["load"] for r in results]
    load = f"load {min(loads)}" if min(loads) == max(loads) else f"load {min(loads)} to {max(loads)}"
    return f"Measured on {devices}, {load} before the benches, {days}."


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def kernels(results: Results) -> list[str]:
    """The ratios of `FIGURES`."""
    used = [_one(results, bench) for bench in dict.fromkeys(bench for bench, _ in FIGURES)]
    lines = [_when(*used), "", "| figure | measured |", "|---|---|"]
    return lines + [
        f"| {words} | {_number(_one(results, b)['ratios'][name])} |" for (b, name), words in FIGURES.items()
    ]


def steps(results: Results) -> list[str]:
    """Milliseconds of a decode step, cache by cache."""
    result = _one(results, "step")
    lines = [
        _when(result),
        "",
        "| cache | prompt | ms a step, quartiles | bytes moved | share of the copy's bandwidth |",
    ]
    lines += ["|---|---|---|---|---|"]
    for row in result["rows"]:
        for name, timed in row["times"].items():
            if name.endswith("_step"):
                low, middle, high = (1e3 * seconds for seconds in timed["seconds"])
                spread = f"{middle:.2f} ({low:.2f} to {high:.2f})"
                moved = f"{timed['bytes']:,} | {timed['copy_share']:.2f}"
                lines.append(f"| {name.removesuffix('_step')} | {row['length']:,} | {spread} | {moved} |")
    return lines


def agreement(results: Results) -> list[str]:
    """Share of tokens that 8-bit storage leaves as they are."""
    result = _one(results, "agreement")
    lines = [_when(result), "", "| checkpoint | method | storage | tokens | the same |", "|---|---|---|---|---|"]
    rows = [row for row in result["rows"] if "storage" in row]
    return lines + [
        f"| {r['model']} | {r['method']} | {r['storage']} | {r['tokens']} | {r['share']:.1%} |" for r in rows
    ]


def chases(results: Results) -> list[str]:
    """Ratios of every stored bench of the chase; what was left out is a dash."""
    used = [result for name, result in results.items() if name.startswith("chase-")]
    if not used:
        _one(results, "chase-WHAT")
    heads = ["model", "dtype", "positions", *CHASES.values()]
    lines = [_when(*used), "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for result in used:
        ratios = [f"{result['ratios'][name]:.3g}" if name in result["ratios"] else "-" for name in CHASES]
        lines.append(f"| {result['model']} | {result['dtype']} | {result['positions']:,} | {' | '.join(ratios)} |")
    return lines


def lengths(results: Results) -> list[str]:
    """A model's prompts of growing length: prefill, and decoding with the full cache and with a budget."""
    result = _one(results, "lengths")
    by_case = {(row["prompt_length"], row["method"]): row for row in result["rows"]}
    heads = ["prompt", "prefill, s", "share of it that compresses", "full cache, ms a token", "ours, ms a token"]
    heads += ["ours over full", "its bytes over full", "peak memory over full"]
    lines = [_when(result), "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for length in dict.fromkeys(length for length, _ in by_case):
        full, ours = by_case[length, "transformers"], by_case[length, "sparsemm"]
        cells = [f"{length:,}", f"{ours['prefill_ms'] / 1e3:.2f}", f"{ours['compression_share']:.1%}"]
        cells += [f"{row['decode_ms_per_token']:.2f}" for row in (full, ours)]
        shares = [ours[name] / full[name] for name in ("decode_ms_per_token", "slab_bytes", "peak_bytes")]
        lines.append(f"| {' | '.join(cells + [f'{share:.3f}' for share in shares])} |")
    return lines


READS = {
    "model": "one token",
    "int8": "one token, int8",
    "fp8": "one token, fp8",
    "hold_budget": "one token, `hold_budget`",
    "turn": "a turn of 8 tokens",
}


def skew(results: Results) -> list[str]:
    """What a read of one layer allocates over the bytes of its rows, for even heads and for one that has most rows."""
    result = _one(results, "skew")
    lines = [_when(result), "", "| read | 256 rows in every head | 7,200 in one, 32 in the others |", "|---|---|---|"]
    shares = {name: [result["ratios"][f"{name}_{case}_peak_over_rows"] for case in ("even", "one")] for name in READS}
    return lines + [f"| {READS[name]} | {even:.3g} | {one:.3g} |" for name, (even, one) in shares.items()]


KINDS: dict[str, Callable[[Results], list[str]]] = {
    "kernels": kernels,
    "steps": steps,
    "agreement": agreement,
    "chases": chases,
    "lengths": lengths,
    "skew": skew,
}


def rewritten(text: str, results: Results, where: str) -> str:
    """A document with its tables made anew.

    Raises:
        DataError: if a marker is unknown or has no end, or a bench is not stored.
    """
    out: list[str] = []
    inside = False
    for line in text.splitlines():
        if line.startswith("<!-- table: "):
            kind = line.removeprefix("<!-- table: ").removesuffix(" -->")
            if inside or kind not in KINDS:
                raise DataError(f"marker {line!r} is unknown or inside another", where=where)
            out += [line, *KINDS[kind](results)]
            inside = True
        elif line == "<!-- end -->":
            inside = False
            out.append(line)
        elif not inside:
            out.append(line)
    if inside:
        raise DataError("a table has no <!-- end -->", where=where)
    return "\n".join(out) + "\n"


def main() -> int:
    """Rewrite the tables of docs/ in place; 0, or 1 after printing what was wrong."""
    try:
        results = read(FOLDER)
        texts = {path: rewritten(path.read_text(encoding="utf-8"), results, str(path)) for path in DOCS}
    except (SparseMMError, OSError) as error:
        print(f"sparsemm: {error}", file=sys.stderr)
        return 1
    for path, text in texts.items():
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

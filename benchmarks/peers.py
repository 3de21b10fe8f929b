"""Times decode steps of the pretrained model beside other caches: `python -m benchmarks.peers --kvpress PYTHON`.

Text prompts of the language model alone, without an image. Our caches and those of our transformers run in one process,
kvpress and the quantised cache of its transformers in another one, because kvpress needs an older transformers: PYTHON
is the interpreter of an environment with kvpress and optimum-quanto. Both have one thread and the same weights, and all
caches take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import torch
from transformers import LlamaForCausalLM

from benchmarks.controls import COMMITTED, NAME, curve_table
from benchmarks.unseen import UPDATES
from benchmarks.unseen_tables import STORED as UNSEEN
from sparsemm.errors import ModelError, SparseMMError
from sparsemm.files import write_json
from sparsemm.profiling.clock import heading
from sparsemm.training.card import loaded

STORED = UNSEEN.with_name(f"peers-{NAME}.json")
WORKER = Path(__file__).with_name("peers_worker.py")
LENGTHS = (512, 2048, 8192, 16384)  # tokens; the model knows 8,192 positions, and a step takes no less time beyond
BUDGET, WINDOW = 256, 32
TURNS, STEPS = 5, 9  # bursts of each cache, and steps of a burst, the first of which is not counted
NAMES = {  # (process, cache) -> what the table calls it
    ("ours", "dynamic"): "transformers, `DynamicCache`",
    ("ours", "static"): "transformers, `StaticCache`",
    ("ours", "sparsemm"): "ours, `sparsemm`",
    ("ours", "snapkv"): "ours, `snapkv`",
    ("kvpress", "dynamic"): "older transformers, `DynamicCache`",
    ("kvpress", "quantized"): "older transformers, `QuantizedCache`, 4 bits",
    ("kvpress", "snapkv"): "kvpress, `SnapKVPress`",
    ("kvpress", "adakv"): "kvpress, `AdaKVPress`",
}


def export(folder: Path) -> None:
    """Writes the language model of the assembled checkpoint as a Llama checkpoint, fp32."""
    with loaded(UPDATES) as (model, _):
        text = LlamaForCausalLM(model.config.get_text_config())
        text.model.load_state_dict(model.model.language_model.state_dict())
        text.tie_weights()
        text.save_pretrained(folder)


class Process:
    """A worker in another interpreter.

    Raises:
        ModelError: if it ends, with the last line of what it wrote to stderr.
    """

    def __init__(self, python: str, **arguments: Any) -> None:
        command, pipe = [python, str(WORKER)], subprocess.PIPE
        self.errors = TemporaryFile("w+")  # not a pipe, which progress bars would fill
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self.errors, text=True)
        self.versions = self.ask(**arguments)

    def ask(self, **command: Any) -> dict[str, Any]:
        """Sends a command and returns the answer."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            print(json.dumps(command), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.end()
            lines = self.written.strip().splitlines() or ["nothing was written"]
            raise ModelError(f"the worker ended: {lines[-1]}", where=str(self.process.args))
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        """Lets the worker end, and keeps what it wrote to stderr."""
        self.process.communicate()
        with self.errors:
            self.errors.seek(0)
            self.written = self.errors.read()


def run(pythons: dict[str, str], folder: Path, lengths: Sequence[int], turns: int, steps: int) -> dict[str, Any]:
    """Measures every cache at every length, in turns.

    Args:
        pythons: interpreter for each kind of worker, "ours" and "kvpress" (may be missing).
        folder: the language model.
        lengths: tokens of the prompts.
        turns, steps: as `TURNS` and `STEPS`.

    Returns:
        {bench, model, device, load, date, versions, workers, budget, window, rows}; a row is a cache at a length:
        bytes, CPU seconds of the prompt, medians of CPU and wall-clock seconds of a step, and the median over the
        turns of the ratio of its CPU seconds to those of the `DynamicCache` of the same process, with the least and
        the largest.
    """
    head = heading("peers", torch.device("cpu"), model=NAME)
    scores = curve_table(COMMITTED).scores.tolist()
    options = {"folder": str(folder), "budget": BUDGET, "window": WINDOW, "scores": scores}
    options["room"] = turns * steps + 1
    workers = {kind: Process(python, kind=kind, **options) for kind, python in pythons.items()}
    rows = []
    for length in lengths:
        by_kind = {kind: worker.ask(prompt=length) for kind, worker in workers.items()}
        names = [(kind, name) for kind, caches in by_kind.items() for name in caches]
        bursts: dict[tuple[str, str], list[dict[str, Any]]] = {name: [] for name in names}
        for turn in range(turns):
            first = turn % len(names)
            for kind, name in names[first:] + names[:first]:
                bursts[kind, name].append(workers[kind].ask(cache=name, steps=steps))
        for kind, name in names:
            medians = {
                clock: [statistics.median(burst[clock]) for burst in bursts[kind, name]] for clock in ("cpu", "wall")
            }
            full = [statistics.median(burst["cpu"]) for burst in bursts[kind, "dynamic"]]
            ratios = sorted(one / other for one, other in zip(medians["cpu"], full, strict=True))
            row = {"length": length, "process": kind, "cache": name} | by_kind[kind][name]
            row |= {f"{clock}_seconds": round(statistics.median(values), 5) for clock, values in medians.items()}
            ends = (statistics.median(ratios), ratios[0], ratios[-1])
            rows.append(row | {"ratio_to_dynamic": [round(end, 3) for end in ends]})
    for worker in workers.values():
        worker.end()
    versions = {kind: worker.versions for kind, worker in workers.items()}
    return head | {"workers": versions, "budget": BUDGET, "window": WINDOW, "rows": rows}


def table(stored: Path = STORED) -> str:
    """Returns a row per cache and two columns per length: time of a step over that of the full cache, and bytes."""
    if not stored.is_file():
        return "Not measured yet.\n"
    result = json.loads(stored.read_text(encoding="utf-8"))
    rows = {(row["process"], row["cache"], row["length"]): row for row in result["rows"]}
    lengths = list(dict.fromkeys(length for *_, length in rows))
    heads = (f"{length:,}: step | MB" for length in lengths)
    lines = [f"| cache | {' | '.join(heads)} |", "|---" * (2 * len(lengths) + 1) + "|"]
    for (kind, name), words in NAMES.items():
        cells = []
        for row in (rows[kind, name, length] for length in lengths if (kind, name, length) in rows):
            middle, low, high = row["ratio_to_dynamic"]
            step = (
                f"{1e3 * row['cpu_seconds']:.0f} ms" if name == "dynamic" else f"{middle:.2f} [{low:.2f}, {high:.2f}]"
            )
            cells += [step, f"{row['bytes'] / 1e6:.1f}"]
        if cells:
            lines.append(f"| {words} | {' | '.join(cells)} |")
    used = ", ".join(
        f"{name} {number}" for kind in result["workers"].values() for name, number in kind.items() if name != "torch"
    )
    lines += ["", f"Measured on {result['device']}, load {result['load']} before it, {result['date']}; {used}."]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, stores and prints the table; returns 0, or 1 after printing what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kvpress", metavar="PYTHON", help="interpreter of the other environment; none: ours alone")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="tokens of the prompts")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)  # as in the workers, for what the result says of the machine
    pythons = {"ours": sys.executable} | ({"kvpress": args.kvpress} if args.kvpress else {})
    try:
        with TemporaryDirectory() as folder:
            export(Path(folder))
            write_json(STORED, run(pythons, Path(folder), args.lengths, TURNS, STEPS))
    except SparseMMError as error:
        print(f"peers: {error}", file=sys.stderr)
        return 1
    print(table())
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Times one operation or cache against others: `python -m benchmarks NAME`, with the options of `sparsemm bench`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks import agreement, append, attention, compact, graph, memory, observe, skew
from sparsemm.commands.bench import add_options, show
from sparsemm.errors import SparseMMError
from sparsemm.profiling import bench
from sparsemm.profiling.bench.setting import Bench

BENCHES = {
    "append": Bench(append.run),
    "compact": Bench(compact.run),
    "observe": Bench(observe.run),
    "attention": Bench(attention.run),
    "skew": Bench(skew.run),
    "graph": Bench(graph.run, whole_model=True, beside=graph.other_rows, longest=lambda setting: setting.lengths[-1]),
    "memory": Bench(memory.run, whole_model=True, unused=("repeats",)),
    "agreement": Bench(agreement.run, unused=("shape", "dtype", "repeats")),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the ratios of one bench, or with --json everything. Returns 0, or 1 after printing what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add_options(parser, ", ".join(BENCHES))
    args = parser.parse_args(arguments)
    try:
        options = args.shape, args.dtype, args.device, args.repeats
        show(bench.run(args.name, *options, benches=BENCHES), args.json)
    except SparseMMError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

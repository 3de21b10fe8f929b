"""Damaged copies of real files, read by the product: no traceback, no crash, no hang, bounded memory.

`python tests/datasets/fuzz.py FOLDER... [--count 2000] [--seed 0]` reads that many of the PDF files there, and that
many of the images, each damaged at random, and says what went wrong. `test_fuzz.py` does the same with few files.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from threading import Timer

ROOT = Path(__file__).parent.parent.parent
LONGEST = 20  # seconds of processor time that one file may take, however busy the machine is
SILENT = 600  # seconds after which a child that says nothing is ended
MEMORY = 3 * 2**30  # bytes of address space that one file may take beside the interpreter's
LARGEST = 400_000  # bytes of a file that is damaged: of a large one, damage is seldom seen
IMAGES = (
    ".png .jpg .jpeg .gif .tif .tiff .bmp .webp .tga .dds .sgi .rgb .jp2 .j2k .blp .psd .ico .icns .mpo .ppm .pgm .pbm "
    ".pcx .fli .flc .xbm .xpm .msp .im .spider .fits .cur .ras .eps .dcx .mic .avif .qoi"
).split()
NUMBERS = (b"0", b"-1", b"1e30", b"2147483648", b"4294967295", b"99999999999999999999", b"nan")


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A copy with one to four changes: bits, runs, cuts, repeats, numbers."""
    copy = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        # Half of the damage is where most formats have their headers.
        top = len(copy) if rng.random() < 0.5 else min(len(copy), 512)
        at = rng.randrange(max(top, 1))
        length = rng.choice((1, 2, 4, 16, 256))
        kind = rng.randrange(8)
        if kind == 0 and copy:
            copy[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            copy[at : at + length] = rng.randbytes(length)
        elif kind == 2:
            copy[at : at + length] = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * length
        elif kind == 3:
            del copy[rng.randrange(max(len(copy), 1)) :]
        elif kind == 4:
            del copy[at : at + length]
        elif kind == 5:
            copy[at:at] = copy[at : at + 64 * length]
        elif kind == 6:
            copy[at : at + 4] = rng.choice((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 65536)).to_bytes(
                4, rng.choice(("little", "big"))
            )
        else:  # a number in the text of a PDF
            start = next((i for i in range(at, min(at + 2000, len(copy))) if 48 <= copy[i] < 58), None)
            if start is not None:
                stop = start
                while stop < len(copy) and 48 <= copy[stop] < 58:
                    stop += 1
                copy[start:stop] = rng.choice(NUMBERS)
    return bytes(copy)


def damaged_inside(data: bytes, rng: random.Random) -> bytes:
    """A copy of a PDF with damage in what one of its packed streams holds, packed again."""
    found = list(re.finditer(rb"stream\r?\n(.*?)\r?\nendstream", data, re.DOTALL))
    rng.shuffle(found)
    for one in found[:20]:
        try:
            inside = zlib.decompress(one.group(1))
        except zlib.error:
            continue
        return data[: one.start(1)] + zlib.compress(damaged(inside, rng)) + data[one.end(1) :]
    return damaged(data, rng)


def read(name: str, data: bytes) -> Counter[str]:
    """Read one file as a data set of its own; how many rows were kept, empty, and bad.

    Raises:
        SparseMMError: that no row became a record, or too many are bad.
    """
    from sparsemm.datasets.download import Tally, external_records
    from sparsemm.errors import DataError
    from sparsemm.fetch.place import File, Place
    from sparsemm.params.datasets import FolderParams, PdfParams

    contents = {name: data}
    given: FolderParams | PdfParams
    if name.endswith(".pdf"):
        given = PdfParams(source="pdf", path="x", licence="x", samples=1, dpi=48, max_bad=1.0)
    else:
        line = {"image": name, "entries": [{"text": "word", "box": [0, 0, 1e9, 1e9]}]}
        contents["all.jsonl"] = json.dumps(line).encode()
        given = FolderParams(source="folder", path="x", format="records_jsonl", licence="x", samples=3, max_bad=1.0)
    files = {key: File(key, len(one), lambda one=one: io.BytesIO(one), lambda _: None) for key, one in contents.items()}
    tally = Tally()
    try:
        for _ in external_records(given, Place("fuzz", "1", None, files), tally):
            pass
    except DataError:
        if tally.kept:
            raise
    return Counter(kept=tally.kept, empty=len(tally.empty), bad=len(tally.bad))


def peak_memory() -> int:
    """MiB this process held at most. `ru_maxrss` would begin with those of the process that started it."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) // 1024


def main_of_child(numbers: range, paths: Sequence[Path], seed: int) -> None:
    """Read the damaged copies with these numbers; a line of JSON before and after each."""
    limit = MEMORY + int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    warnings.simplefilter("error")
    for number in numbers:
        path = paths[number % len(paths)]
        print(json.dumps({"number": number}), flush=True)
        start, problem, result = time.process_time(), "", Counter[str]()
        resource.setrlimit(resource.RLIMIT_CPU, (int(start) + 1 + LONGEST, resource.RLIM_INFINITY))
        try:
            name, data = content(path)
            rng = random.Random(f"{seed}/{number}")
            inside = name.endswith(".pdf") and rng.random() < 0.5
            result = read(name, damaged_inside(data, rng) if inside else damaged(data, rng))
        except BaseException as error:
            import traceback

            at = traceback.extract_tb(error.__traceback__)[-1]
            problem = f"{type(error).__name__}: {str(error)[:100]} ({Path(at.filename).name}:{at.lineno})"
        peak = peak_memory()
        took = round(time.process_time() - start, 2)
        print(json.dumps({"took": took, "problem": problem, "peak": peak, "result": result}), flush=True)


def content(path: Path) -> tuple[str, bytes]:
    """Name and bytes of a file, unpacked if it is gzip's."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        return path.stem.lower(), gzip.decompress(data)
    return path.name.lower(), data


def fuzz(paths: Sequence[Path], count: int, seed: int = 0) -> tuple[dict[int, str], dict[str, float]]:
    """What went wrong by number of the damaged copy, and {"kept", "empty", "bad": rows, "took": s, "peak": MiB}."""
    problems: dict[int, str] = {}
    totals: dict[str, float] = Counter()
    first = 0
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    while first < count:
        command = [sys.executable, __file__, "--child", f"{first}:{count}", "--seed", str(seed)]
        with tempfile.TemporaryFile("w+") as said:  # libtiff has much to say
            child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True, env=environment
            )
            assert child.stdin
            child.stdin.write("\n".join(map(str, paths)))
            child.stdin.close()
            first = _watch(child, first, problems, totals)
            if child.returncode and first < count + 1:
                said.seek(0)
                problems[first - 1] = f"ended with {child.returncode}: {said.read()[-300:]}"
    return problems, totals


def _watch(child: subprocess.Popen[str], first: int, problems: dict[int, str], totals: dict[str, float]) -> int:
    """Follow a child until it ends; the number that the next one begins with."""
    assert child.stdout
    number = first
    while True:
        timer = Timer(SILENT, child.kill)
        timer.start()
        line = child.stdout.readline()
        timer.cancel()
        if not line:
            break
        value = json.loads(line)
        if "number" in value:
            number = value["number"]
            if number % 250 == 0:
                print(f"{number}, {len(problems)} problems, {dict(totals)}", file=sys.stderr, flush=True)
            continue
        if value["problem"]:
            problems[number] = value["problem"]
        totals["took"], totals["peak"] = max(totals["took"], value["took"]), max(totals["peak"], value["peak"])
        for key, rows in value["result"].items():
            totals[key] += rows
    child.wait()
    child.stdout.close()
    return number + 1


def real_files(folders: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """PDF files and images below the folders, in an order that mixes them."""
    everything = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    everything = [path for path in everything if 0 < path.stat().st_size <= LARGEST]
    random.Random(0).shuffle(everything)
    pdfs = [path for path in everything if path.name.lower().endswith((".pdf", ".pdf.gz"))]
    by_format = {ending: [path for path in everything if path.suffix.lower() == ending] for ending in IMAGES}
    turns = zip_longest(*by_format.values())  # as many of the rare formats as of PNG, as long as there are any
    return pdfs, [path for turn in turns for path in turn if path]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("PDF files", "images"))
    parser.add_argument("--child")
    options = parser.parse_args()
    if options.child:
        paths = [Path(line) for line in sys.stdin.read().splitlines()]
        main_of_child(range(*map(int, options.child.split(":"))), paths, options.seed)
        return
    for kind, paths in zip(("PDF files", "images"), real_files(options.folders), strict=True):
        if not paths or options.only not in (None, kind):
            continue
        problems, totals = fuzz(paths, options.count, options.seed)
        print(f"{kind}: {options.count} damaged copies of {len(paths)}: {dict(totals)}; {len(problems)} problems")
        for number, problem in sorted(problems.items()):
            print(f"  {number}, {paths[number % len(paths)]}: {problem}", flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()

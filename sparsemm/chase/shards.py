"""What some samples gave: hits of every head, and a file that holds them; merged in the order of the samples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sparsemm.chase.hits import Positions
from sparsemm.files import atomic_path


@dataclass(frozen=True)
class Shard:
    """What N samples gave, T answer tokens of which were scored.

    Attributes:
        hits: (N, L, Hq) int64.
        weighted: (N, L, Hq) float64.
        counts: (N, 3) int64: answer tokens on the page, those of them the model itself would have said, and scored.
        tokens: (T, 3) int64: sample, entry of its record, and visual tokens under that entry's box.
        looked: (T, ceil(L * Hq / 8)) uint8, a bit for every head: whether it looked at the box.
    """

    hits: NDArray[np.int64]
    weighted: NDArray[np.float64]
    counts: NDArray[np.int64]
    tokens: NDArray[np.int64]
    looked: NDArray[np.uint8]

    def tensors(self) -> dict[str, np.ndarray]:
        """The arrays by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def one_sample(
    inside: NDArray[np.bool_], targets: Sequence[Positions], entries: Sequence[int], counts: Sequence[int]
) -> Shard:
    """A single sample.

    Args:
        inside: (L, Hq, T) bool, `sparsemm.chase.hits.inside` of the scored tokens.
        targets: their visual positions.
        entries: their entries in the record.
        counts: a row of `Shard.counts`.
    """
    sizes = np.array([len(target) for target in targets], dtype=np.int64)
    tokens = np.stack([np.zeros_like(sizes), np.array(entries, dtype=np.int64), sizes], axis=1)
    layers, heads, count = inside.shape
    looked = np.packbits(np.ascontiguousarray(inside.reshape(layers * heads, count).T), axis=1)
    hits, weighted = inside.sum(axis=2, dtype=np.int64), (inside / sizes).sum(axis=2, dtype=np.float64)
    return Shard(hits[None], weighted[None], np.array([counts], dtype=np.int64), tokens, looked)


def nothing_aligned(shape: tuple[int, int]) -> Shard:
    """A sample of a model with (L, Hq) heads whose answer has no token on the page."""
    return one_sample(np.zeros((*shape, 0), dtype=bool), [], [], [0, 0, 0])


def joined(parts: Sequence[Shard]) -> Shard:
    """Parts behind each other; the sum over samples comes out the same however they were cut."""
    first = 0
    tokens = []
    for part in parts:
        tokens.append(part.tokens + [first, 0, 0])
        first += len(part.counts)
    arrays = {f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Shard)}
    return Shard(**{**arrays, "tokens": np.concatenate(tokens)})


def save_shard(path: Path, shard: Shard, ids: list[str]) -> None:
    """Write a shard atomically."""
    with atomic_path(path) as temporary:
        # safetensors writes memory as it lies, whatever the strides say.
        arrays = {name: np.ascontiguousarray(values) for name, values in shard.tensors().items()}
        save_file(arrays, temporary, metadata={"sparsemm": json.dumps(ids)})


def load_shard(path: Path, ids: list[str], shape: tuple[int, int]) -> Shard | None:
    """A finished shard, or None if it is missing, damaged, of other samples, or of another (L, Hq)."""
    try:
        with safe_open(str(path), framework="np") as file:
            known = json.loads((file.metadata() or {})["sparsemm"])
            shard = Shard(**{field.name: file.get_tensor(field.name) for field in fields(Shard)})
    except (SafetensorError, OSError, KeyError, ValueError):
        return None
    n, scored, size = len(ids), len(shard.tokens), shape[0] * shape[1]
    wanted = {"hits": (n, *shape), "weighted": (n, *shape), "counts": (n, 3)}
    wanted |= {"tokens": (scored, 3), "looked": (scored, -(-size // 8))}
    fits = known == ids and {name: values.shape for name, values in shard.tensors().items()} == wanted
    return shard if fits and int(shard.counts[:, 2].sum()) == scored else None

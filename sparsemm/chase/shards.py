"""The hits of a part of the samples, and the files that hold them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from sparsemm.chase.strongest_keys import NO_KEY
from sparsemm.errors import AlignError
from sparsemm.files import atomic_path

Positions = NDArray[np.int64]


def find_hits(keys: Any, targets: Sequence[Positions]) -> NDArray[np.bool_]:
    """Returns which heads hit the target of which answer token, (L, Hq, T) bool.

    Args:
        keys: (L, Hq, T) int64, the strongest key of each head, a tensor on the CPU or an array; `NO_KEY` hits nothing.
        targets: R_t of each of the T answer tokens: its visual tokens, by the same positions, without repeats.

    Raises:
        AlignError: if there is not one target per answer token, or one is empty.
    """
    keys = np.asarray(keys)
    if keys.ndim != 3 or keys.shape[2] != len(targets):
        raise AlignError(f"{len(targets)} targets for keys of shape {keys.shape}")
    for t, target in enumerate(targets):
        if len(target) == 0:
            raise AlignError("no visual token belongs to the answer token", where=f"token {t}")
    if not targets:
        return np.zeros(keys.shape, dtype=bool)
    # A single search for all tokens: each token's positions are shifted to a range of their own.
    step = max(int(keys.max(initial=0)), *(int(target.max()) for target in targets)) + 1
    shifted = np.concatenate([target + t * step for t, target in enumerate(targets)])
    return np.isin(keys + np.arange(len(targets)) * step, shifted) & (keys != NO_KEY)


@dataclass(frozen=True)
class Shard:
    """The hits of N samples with T scored answer tokens."""

    hits: NDArray[np.int64]  # (N, L, Hq) int64
    weighted: NDArray[np.float64]  # (N, L, Hq) float64, the visual score: a hit counts 1 / |R_t|
    # (N, 3) int64: answer tokens on the page; those of them that the model itself predicts; scored ones
    counts: NDArray[np.int64]
    # (T, 3) int64: sample, entry of its record, and number of visual tokens under that entry's box
    tokens: NDArray[np.int64]
    hit_bits: NDArray[np.uint8]  # (T, ceil(L * Hq / 8)) uint8, one bit per head: whether it hit

    def tensors(self) -> dict[str, np.ndarray]:
        """Returns the arrays by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def shard_of_sample(
    hits: NDArray[np.bool_], targets: Sequence[Positions], entries: Sequence[int], counts: Sequence[int]
) -> Shard:
    """Returns the shard of a single sample.

    Args:
        hits: (L, Hq, T) bool, `find_hits` of the scored tokens.
        targets: their visual tokens.
        entries: their entries in the record.
        counts: the sample's row of `Shard.counts`.
    """
    sizes = np.array([len(target) for target in targets], dtype=np.int64)
    tokens = np.stack([np.zeros_like(sizes), np.array(entries, dtype=np.int64), sizes], axis=1)
    layers, heads, count = hits.shape
    hit_bits = np.packbits(np.ascontiguousarray(hits.reshape(layers * heads, count).T), axis=1)
    totals, weighted = hits.sum(axis=2, dtype=np.int64), (hits / sizes).sum(axis=2, dtype=np.float64)
    return Shard(totals[None], weighted[None], np.array([counts], dtype=np.int64), tokens, hit_bits)


def join_shards(parts: Sequence[Shard]) -> Shard:
    """Concatenates shards; sums over samples do not depend on how the samples were divided."""
    firsts = np.cumsum([0, *(len(part.counts) for part in parts)])
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in parts[0].tensors()}
    arrays["tokens"] = np.concatenate([part.tokens + [n, 0, 0] for n, part in zip(firsts, parts, strict=False)])
    return Shard(**arrays)


def save_shard(path: Path, shard: Shard, ids: list[str]) -> None:
    """Writes a shard and the ids of its samples, atomically."""
    with atomic_path(path) as temporary:
        # safetensors writes memory in its order, whatever the strides are.
        arrays = {name: np.ascontiguousarray(values) for name, values in shard.tensors().items()}
        save_file(arrays, temporary, metadata={"sparsemm": json.dumps(ids)})


def load_shard(path: Path, ids: list[str], shape: tuple[int, int]) -> Shard | None:
    """Loads a shard; returns None if it is missing, damaged, of other samples, or of another (L, Hq)."""
    try:
        with safe_open(str(path), framework="np") as file:
            stored_ids = json.loads((file.metadata() or {})["sparsemm"])
            shard = Shard(**{field.name: file.get_tensor(field.name) for field in fields(Shard)})
    except (SafetensorError, OSError, KeyError, ValueError):
        return None
    n, scored, heads = len(ids), len(shard.tokens), shape[0] * shape[1]
    shapes = {"hits": (n, *shape), "weighted": (n, *shape), "counts": (n, 3)}
    shapes |= {"tokens": (scored, 3), "hit_bits": (scored, -(-heads // 8))}
    fits = stored_ids == ids and {name: values.shape for name, values in shard.tensors().items()} == shapes
    return shard if fits and int(shard.counts[:, 2].sum()) == scored else None

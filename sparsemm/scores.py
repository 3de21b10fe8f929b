"""The score table: how often each attention head attends to the words that the model is reading."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from sparsemm.errors import ScoreTableError
from sparsemm.files import atomic_path, write_json
from sparsemm.recipes import Recipe

Scores = NDArray[np.float64]
FORMAT = 1
REQUIRED = ("model", "revision", "fingerprint", "num_kv_heads")  # header keys that identify the model
MIXED = ("sliding_layers", "linear_layers")  # header keys of layers whose caches are not compressed
SHARES = (0.01, 0.02, 0.05, 0.10)


@dataclass(frozen=True, eq=False)
class ScoreTable:
    """Visual scores of the heads of one model (section 1 of the paper), and their origin.

    Attributes:
        scores: (L, Hq) float64, weighted hits, summed over samples.
        hits: (L, Hq) int64, answer tokens whose largest attention logit is on their own word; zeros if unknown
            (imported tables).
        per_sample: (N, L, Hq) float64, weighted hits of every sample: the sum of 1 / |R_t| over its hits.
        header: plain JSON values: the `REQUIRED` keys; dataset, samples, tokens, prompt, mode and params if known;
            sliding_layers and linear_layers if the model has any, which get no budget. A head of a sliding-window layer
            attends only to the newest tokens, so it can only hit words that are near enough; a linear-attention layer
            has no attention heads, so its scores are zero.
        recipe: the method that was found for this checkpoint, if it is known (`with_recipe`); no part of the file.
    """

    scores: Scores
    hits: NDArray[np.int64]
    per_sample: Scores
    header: dict[str, Any]
    recipe: Recipe | None = None

    def __repr__(self) -> str:
        """Returns five lines for a notebook: whose scores, of what, how concentrated and how reliable."""
        layers, heads = self.scores.shape
        known = {name: shown(self.header.get(name)) for name in ("model", "revision", "dataset", "samples", "tokens")}
        lines = [
            f"ScoreTable of {known['model']}, revision {known['revision']}",
            f"heads: {layers} layers x {heads} query heads, {self.header['num_kv_heads']} KV heads each",
            f"scored on: {known['dataset']}, {known['samples']} samples, {known['tokens']} tokens",
        ]
        if not self.scores.any():
            return "\n".join([*lines, "every score is zero"])
        shares = ", ".join(f"top {fraction:.0%}: {self.top_share(fraction):.0%}" for fraction in SHARES)
        best = ", ".join(f"{layer}-{head} ({share:.1%})" for layer, head, share in self.top_heads(3))
        return "\n".join([*lines, f"share of the score in the {shares}", f"best heads (layer-head): {best}"])

    @classmethod
    def from_samples(cls, per_sample: Scores, hits: NDArray[np.int64], header: Mapping[str, Any]) -> ScoreTable:
        """Sums the weighted hits (N, L, Hq) of samples into a validated table.

        Raises:
            ScoreTableError: if shapes, values or header are invalid.
        """
        per_sample = np.array(per_sample, dtype=np.float64)
        return cls(per_sample.sum(axis=0), np.array(hits, dtype=np.int64), per_sample, dict(header)).validate()

    def validate(self, where: str | None = None) -> ScoreTable:
        """Validates the table and returns it.

        Raises:
            ScoreTableError: naming what is invalid.
        """
        missing = [key for key in REQUIRED if key not in self.header]
        if missing:
            raise ScoreTableError(f"the header lacks {', '.join(missing)}", where=where)
        dtypes = (self.scores.dtype, self.hits.dtype, self.per_sample.dtype)
        if dtypes != (np.float64, np.int64, np.float64):
            raise ScoreTableError(f"dtypes are {[str(d) for d in dtypes]}", where=where)
        shape = self.scores.shape
        if len(shape) != 2 or 0 in shape or self.hits.shape != shape or self.per_sample.shape[1:] != shape:
            shapes = f"scores {shape}, hits {self.hits.shape}, per_sample {self.per_sample.shape}"
            raise ScoreTableError(f"shapes do not match: {shapes}", where=where)
        for name, values in (("scores", self.scores), ("hits", self.hits), ("per_sample", self.per_sample)):
            if not np.isfinite(values).all() or (values < 0).any():
                raise ScoreTableError(f"{name} holds negative values or NaN", where=where)
        if not np.allclose(self.per_sample.sum(axis=0), self.scores, rtol=1e-9, atol=1e-12):
            raise ScoreTableError("scores are not the sum over samples", where=where)
        kv = self.header["num_kv_heads"]
        if type(kv) is not int or kv < 1 or shape[1] % kv:
            raise ScoreTableError(f"{shape[1]} query heads cannot share {kv!r} KV heads", where=where)
        for kind in MIXED:
            layers = self.header.get(kind, [])
            if type(layers) is not list or not all(type(i) is int for i in layers):
                raise ScoreTableError(f"{kind} {layers!r} is not a list of layers", where=where)
        if not self.full_layers():
            mixed = ", ".join(f"{kind} {self.header[kind]}" for kind in MIXED if kind in self.header)
            raise ScoreTableError(f"{mixed} leave no full-attention layer of {shape[0]}", where=where)
        if self.scores[self.layers_without_heads()].any():
            raise ScoreTableError("a layer with linear attention has scores", where=where)
        return self

    def full_layers(self) -> list[int]:
        """Returns the numbers of the full-attention layers, rising: those whose caches are compressed."""
        mixed = {i for kind in MIXED for i in self.header.get(kind, [])}
        return [i for i in range(len(self.scores)) if i not in mixed]

    def layers_without_heads(self) -> list[int]:
        """Returns the numbers of the linear-attention layers, rising, which have no heads that attend to tokens."""
        return sorted(i for i in self.header.get("linear_layers", []) if 0 <= i < len(self.scores))

    def layers_with_heads(self) -> list[int]:
        """Returns the numbers of the other layers, rising."""
        return [i for i in range(len(self.scores)) if i not in self.layers_without_heads()]

    def save(self, path: str | Path) -> None:
        """Writes the table as safetensors with a JSON header, atomically; equal tables have equal bytes."""
        self.validate(str(path))
        tensors = self._tensors()
        header = {"content": _digest(tensors), "format": FORMAT, "header": self.header}
        try:
            text = json.dumps(header, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ScoreTableError(f"the header is not plain JSON: {error}", where=str(path)) from error
        with atomic_path(path) as temporary:
            # A single metadata key: the order of several is not fixed.
            temporary.write_bytes(save(tensors, metadata={"sparsemm": text}))

    @classmethod
    def load(cls, path: str | Path) -> ScoreTable:
        """Reads and validates a table.

        Raises:
            ScoreTableError: if the file is missing, damaged, not a score table, or of another format version.
        """
        where = str(path)
        if not Path(path).is_file():
            raise ScoreTableError("no such file", where=where, hint="run the chase stage first")
        try:
            with safe_open(where, framework="np") as file:
                text = (file.metadata() or {}).get("sparsemm")
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            value = json.loads(text) if text is not None else None
        except (SafetensorError, OSError, ValueError, TypeError) as error:
            raise ScoreTableError(f"damaged or not safetensors: {error}", where=where) from error
        if not isinstance(value, dict) or set(tensors) != {"scores", "hits", "per_sample"}:
            raise ScoreTableError("not a score table", where=where)
        if value.get("format") != FORMAT or not isinstance(value.get("header"), dict):
            raise ScoreTableError(
                f"format version {value.get('format')!r} is not supported, only {FORMAT}", where=where
            )
        if value.get("content") != _digest(tensors):
            what = "the values do not match their checksum"
            raise ScoreTableError(what, where=where, hint="run the chase stage again")
        return cls(tensors["scores"], tensors["hits"], tensors["per_sample"], value["header"]).validate(where)

    def digest(self) -> str:
        """Returns the hex SHA-256 of the table's values, without its header."""
        return _digest(self._tensors())

    def with_recipe(self, recipe: Recipe | str | Path) -> ScoreTable:
        """Returns the same table with the recipe that was found from it, which `compressed_cache(model, "auto")` uses.

        Args:
            recipe: a recipe, or its file: artifacts/recipes/<key>.json.

        Raises:
            DataError: if the file is not a recipe.
            ScoreTableError: if it is the recipe of another table.
        """
        if not isinstance(recipe, Recipe):
            recipe = Recipe.load(Path(recipe))
        if (recipe.fingerprint, recipe.scores) != (self.header["fingerprint"], self.digest()):
            what = f"the recipe was found with other scores, of {recipe.model}"
            raise ScoreTableError(what, hint="run the tune stage again, or load the table that it used")
        return replace(self, recipe=recipe)

    def _tensors(self) -> dict[str, np.ndarray]:
        named = {"scores": self.scores, "hits": self.hits, "per_sample": self.per_sample}
        return {name: np.ascontiguousarray(values) for name, values in named.items()}

    def check_model(self, model: Any) -> None:
        """Checks that the table belongs to a model.

        Args:
            model: config of the model, or its fingerprint (`sparsemm.models.fingerprint`).

        Raises:
            ScoreTableError: if the fingerprints differ.
        """
        if not isinstance(model, str):
            from sparsemm.models import fingerprint

            model = fingerprint(model)
        if model != self.header["fingerprint"]:
            raise ScoreTableError(
                f"the table belongs to a model with another config ({self.header['model']})",
                hint="chase this model, or load its own table",
            )

    def normalised(self) -> Scores:
        """Returns the scores divided by their sum, (L, Hq) float64.

        Raises:
            ScoreTableError: if no head has any score.
        """
        total = float(self.scores.sum())
        if total <= 0:
            raise ScoreTableError("every score is zero", hint="did the model read anything in the calibration set?")
        return self.scores / total

    def to_kv(self, num_kv_heads: int) -> Scores:
        """Returns the scores of KV heads, (L, Hkv) float64: the sums over their query groups.

        Raises:
            ScoreTableError: if the query heads cannot be split evenly.
        """
        layers, heads = self.scores.shape
        if num_kv_heads < 1 or heads % num_kv_heads:
            raise ScoreTableError(f"{heads} query heads cannot share {num_kv_heads} KV heads")
        return self.scores.reshape(layers, num_kv_heads, heads // num_kv_heads).sum(axis=2)

    def top_heads(self, count: int) -> list[tuple[int, int, float]]:
        """Returns (layer, query head, share of all scores) of the best heads; ties in order of layer and head."""
        share = self.normalised().ravel()
        best = np.argsort(-share, kind="stable")[: max(count, 0)]
        heads = self.scores.shape[1]
        return [(int(i) // heads, int(i) % heads, float(share[i])) for i in best]

    def top_share(self, fraction: float) -> float:
        """Returns the share of all scores that the best `fraction` (0 to 1) of the heads have; at least one head."""
        share = np.sort(self.normalised().ravel())[::-1]
        return min(float(share[: top_count(share.size, fraction)].sum()), 1.0)

    def split_half(self) -> float:
        """Returns the Pearson correlation of the scores of even and odd samples; NaN if a half is empty or constant."""
        return _pearson(self.per_sample[0::2].sum(axis=0).ravel(), self.per_sample[1::2].sum(axis=0).ravel())

    def rank_correlation(self, other: ScoreTable) -> float:
        """Returns the Spearman correlation over heads; tied heads share their mean rank, NaN if a table is constant.

        Raises:
            ScoreTableError: if the tables have different shapes.
        """
        self._same_shape(other)
        return rank_correlation(self.scores, other.scores)

    def top_overlap(self, other: ScoreTable, fraction: float = 0.05) -> float:
        """Returns the share of the best `fraction` of heads that both tables have in common.

        Raises:
            ScoreTableError: if the tables have different shapes, or all scores of one are zero.
        """
        self._same_shape(other)
        count = top_count(self.scores.size, fraction)
        first, second = ({head[:2] for head in table.top_heads(count)} for table in (self, other))
        return len(first & second) / count

    def _same_shape(self, other: ScoreTable) -> None:
        if self.scores.shape != other.scores.shape:
            raise ScoreTableError(f"tables of {self.scores.shape} and {other.scores.shape} heads cannot be compared")


def rank_correlation(a: Scores, b: Scores) -> float:
    """Returns the Spearman correlation of two (L, Hq) scores; tied heads share their mean rank, NaN if one is flat."""
    return _pearson(_ranks(a.ravel()), _ranks(b.ravel()))


def top_set(scores: Scores, fraction: float) -> set[int]:
    """Returns the flat indices of the best `fraction` of heads; among equal heads the first ones."""
    return set(np.argsort(-scores.ravel(), kind="stable")[: top_count(scores.size, fraction)].tolist())


def top_count(heads: int, fraction: float) -> int:
    """Returns the number of heads in the top `fraction` of `heads`, rounded half up, at least 1.

    Raises ScoreTableError if the fraction is outside 0..1.
    """
    if not 0.0 <= fraction <= 1.0:
        raise ScoreTableError(f"fraction {fraction} is outside 0..1")
    return max(1, int(np.floor(fraction * heads + 0.5)))


def _digest(tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {values.dtype.str} {values.shape}\n".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def _pearson(a: Scores, b: Scores) -> float:
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(np.clip((a @ b) / norm, -1.0, 1.0)) if norm > 0 else float("nan")


def _ranks(values: Scores) -> Scores:
    """Returns ranks from 0; ties share their mean rank."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    first = np.cumsum(counts) - counts
    return (first + (counts - 1) / 2.0)[group]


def export_published(table: ScoreTable, path: str | Path) -> None:
    """Writes the published JSON format {"layer-head": [weighted hits of every image]}."""
    layers, heads = table.scores.shape
    write_json(path, {f"{i}-{h}": table.per_sample[:, i, h].tolist() for i in range(layers) for h in range(heads)})


def import_published(path: str | Path, header: Mapping[str, Any]) -> ScoreTable:
    """Reads the published JSON format.

    Args:
        path: a file {"layer-head": [one float per image]}.
        header: the `REQUIRED` keys of the model that it belongs to; num_layers and num_heads, if present, are the shape
            that the file must have.

    Raises:
        ScoreTableError: if a key or value is malformed, a head is missing, or lists differ in length.
    """
    where = str(path)
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_no_repeats)
    except (OSError, ValueError, RecursionError) as error:
        raise ScoreTableError(f"cannot be read: {error}", where=where) from error
    if not isinstance(value, dict) or not value:
        raise ScoreTableError('not an object of {"layer-head": [..]}', where=where)
    lists: dict[tuple[int, int], list[float]] = {}
    for key, numbers in value.items():
        match = re.fullmatch(r"(0|[1-9][0-9]{0,5})-(0|[1-9][0-9]{0,5})", key)
        if not match:
            raise ScoreTableError(f"key {key!r} is not layer-head", where=where)
        if not isinstance(numbers, list) or not all(type(n) in (int, float) and 0 <= n < 1e300 for n in numbers):
            raise ScoreTableError("not a list of numbers from 0 up", where=f"{where}: {key}")
        lists[int(match[1]), int(match[2])] = numbers
    layers = header.get("num_layers", 1 + max(layer for layer, _ in lists))
    heads = header.get("num_heads", 1 + max(head for _, head in lists))
    if len(lists) != layers * heads or any(layer >= layers or head >= heads for layer, head in lists):
        raise ScoreTableError(f"{len(lists)} heads do not fill {layers} layers x {heads}", where=where)
    lengths = {len(numbers) for numbers in lists.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise ScoreTableError(f"lists have {sorted(lengths)} images, but all must have equally many", where=where)
    images = lengths.pop()
    flat = np.array([lists[i, h] for i in range(layers) for h in range(heads)], dtype=np.float64)
    per_sample = np.ascontiguousarray(flat.T.reshape(images, layers, heads))
    origin = {"source": "published JSON", "samples": images, "tokens": None}
    return ScoreTable.from_samples(per_sample, np.zeros((layers, heads), np.int64), {**origin, **header})


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key appears twice")
    return value


def shown(value: Any) -> str:
    """Returns a value of a header as text; what is unknown, as in imported tables, is a dash."""
    return "-" if value is None else str(value)


def show(table: ScoreTable) -> str:
    """Describes a table in text: its origin, how concentrated and reliable its scores are, and its best heads."""
    layers, heads = table.scores.shape
    kv = table.header["num_kv_heads"]
    lines = [f"{key}: {shown(table.header[key])}" for key in sorted(table.header) if key != "params"]
    lines.append(f"heads: {layers} layers x {heads} query heads, {kv} KV heads each")
    if table.header.get("linear_layers"):
        lines.append("linear-attention layers have no heads that look at a token; their scores are zero")
    if table.header.get("sliding_layers"):
        window = table.header.get("sliding_window")
        lines.append(f"heads of the sliding layers see {window} tokens; a word further back cannot be a hit of theirs")
    half, counted = table.split_half(), table.hits.any()  # an imported table has no samples and no hits
    lines.append(f"split-half correlation: {'-' if np.isnan(half) else f'{half:.4f}'}")
    if not table.scores.any():
        return "\n".join([*lines, "every score is zero"])
    for fraction in SHARES:
        count = top_count(table.scores.size, fraction)
        lines.append(
            f"top {fraction:.0%} ({count} of {layers * heads} heads): {table.top_share(fraction):.1%} of the score"
        )
    lines.append("layer  head   share   hits")
    for layer, head, share in table.top_heads(10):
        lines.append(f"{layer:5d} {head:5d}  {share:6.2%} {table.hits[layer, head] if counted else '-':>6}")
    return "\n".join(lines)


def diff(a: ScoreTable, b: ScoreTable) -> str:
    """Compares two tables in text: header keys that differ, rank correlation, overlap of the best heads.

    Raises ScoreTableError if the tables have different shapes, or all scores of one are zero.
    """
    keys = sorted(set(a.header) | set(b.header))
    differing = [key for key in keys if a.header.get(key) != b.header.get(key)]
    lines = [f"{key}: {shown(a.header.get(key))} | {shown(b.header.get(key))}" for key in differing]
    lines.append(f"rank correlation: {a.rank_correlation(b):.4f}")
    lines += [f"overlap of the top {f:.0%}: {a.top_overlap(b, f):.1%}" for f in (0.05, 0.10)]
    lines.append(f"largest difference of a head's share: {np.abs(a.normalised() - b.normalised()).max():.2%}")
    return "\n".join(lines)

"""Compares every operation with its reference implementation on random ragged inputs, on any device."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from sparsemm.ops import append, argmax_rows, causal_attention, compact, library, observe, ragged_decode

TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}


class Draw:
    """Random sizes and tensors on a device; the same ones for the same seed."""

    def __init__(self, device: torch.device, seed: int) -> None:
        self.device, self.host = device, torch.Generator().manual_seed(seed)
        self.generator = torch.Generator(device).manual_seed(seed)
        self.dtype = self.pick(*library.DTYPES)
        self.dim = 8 * self.whole(1, 32)

    def whole(self, low: int, high: int) -> int:
        """Draws an integer from low to high, both included."""
        return int(torch.randint(low, high + 1, (1,), generator=self.host, dtype=torch.int64, device="cpu"))

    def pick(self, *choices: Any) -> Any:
        """Draws one of the choices."""
        return choices[self.whole(0, len(choices) - 1)]

    def normal(self, *sizes: int) -> torch.Tensor:
        """Draws normally distributed numbers."""
        return torch.randn(*sizes, generator=self.generator, dtype=torch.float32, device=self.device).to(self.dtype)

    def slab(self, batch: int, heads: int, least_gap: int) -> tuple[torch.Tensor, ...]:
        """Draws keys, values, starts and lengths of a slab in which one head is much longer than the others."""
        lengths = torch.randint(
            0, self.pick(2, 70, 300, 2000), (batch * heads,), generator=self.host, dtype=torch.int64, device="cpu"
        )
        lengths[self.whole(0, len(lengths) - 1)] *= self.pick(0, 1, 20)
        gaps = torch.randint(least_gap, 40, lengths.shape, generator=self.host, dtype=torch.int64, device="cpu")
        ends = (lengths + gaps).cumsum(0)
        rows = int(ends[-1])
        starts, lengths = (ends - lengths - gaps).to(self.device), lengths.to(self.device)
        return self.normal(rows, self.dim), self.normal(rows, self.dim), starts, lengths


def _close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> float:
    """Returns the largest difference in units of the tolerance."""
    if actual.shape != expected.shape:
        return float("inf")
    if actual.numel() == 0:
        return 0.0
    actual, expected = actual.double(), expected.double()
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    excess = ((actual - expected).abs() / (tolerance * (1 + expected.abs()))).masked_fill(same, 0.0)
    return float(excess.nan_to_num(float("inf")).max())


def _decode(draw: Draw, call: Callable[..., torch.Tensor]) -> float:
    batch, heads, group = draw.whole(1, 4), draw.whole(1, 32), draw.pick(1, 2, 4, 7, 8, 12)
    keys, values, starts, lengths = draw.slab(batch, heads, 0)
    query, scaling = draw.normal(batch, heads * group, draw.dim), draw.pick(0.05, draw.dim**-0.5, 0.5)
    actual = call(query, keys, values, starts, lengths, scaling)
    # Head by head, because the reference pads all heads to the longest in fp64, which could exceed the memory.
    expected = torch.empty(len(starts), group, draw.dim, dtype=torch.float64, device=draw.device)
    for s in range(len(starts)):
        rows = query.view(len(starts), 1, group, draw.dim)[s].double()
        first, count = int(starts[s]), lengths[s : s + 1]
        own = slice(first, first + int(count))
        expected[s] = ragged_decode.reference(
            rows, keys[own].double(), values[own].double(), count * 0, count, scaling
        )[0]
    return _close(actual.view(expected.shape), expected, TOLERANCE[draw.dtype] * (1 + scaling * draw.dim**0.5))


def _append(draw: Draw) -> float:
    keys, values, starts, lengths = draw.slab(draw.whole(1, 4), draw.whole(1, 64), 1)
    new_keys, new_values = draw.normal(len(starts), draw.dim), draw.normal(len(starts), draw.dim)
    expected = keys.clone(), values.clone()
    append.reference(*expected, new_keys, new_values, starts, lengths)
    append.append(keys, values, new_keys, new_values, starts, lengths)
    return max(_close(keys, expected[0], 1e-30), _close(values, expected[1], 1e-30))


def _compact(draw: Draw) -> float:
    batch, heads, length = draw.whole(1, 3), draw.whole(1, 8), draw.pick(1, 31, 1024, 1500, 4096)
    full_keys, full_values = (draw.normal(batch, length, heads, draw.dim).transpose(1, 2) for _ in range(2))
    share = draw.pick(0.0, 0.03, 0.5, 1.0)
    keep = torch.rand(batch, heads, length, generator=draw.generator, dtype=torch.float32, device=draw.device) < share
    room = keep.flatten(0, 1).sum(-1) + 2
    starts = room.cumsum(0) - room
    keys = torch.zeros(int(room.sum()), draw.dim, dtype=draw.dtype, device=draw.device)
    values, expected = keys.clone(), (keys.clone(), keys.clone())
    compact.compact(keys, values, full_keys, full_values, keep, starts)
    compact.reference(*expected, full_keys, full_values, keep, starts)
    return max(_close(keys, expected[0], 1e-30), _close(values, expected[1], 1e-30))


def _observe(draw: Draw) -> float:
    batch, heads, group, window = draw.whole(1, 2), draw.whole(1, 8), draw.pick(1, 4, 7), draw.pick(1, 8, 32, 64)
    length = window + draw.pick(0, 1, 100, 1000, 3000)
    query = draw.normal(batch, window, heads * group, draw.dim).transpose(1, 2)
    keys = draw.normal(batch, length, heads, draw.dim).transpose(1, 2)
    valid = torch.arange(length, dtype=torch.int64, device=draw.device) >= draw.whole(0, length - 1)
    valid = valid.expand(batch, -1)
    inputs = query, keys, valid, draw.pick(1, 5, 7), draw.dim**-0.5
    return _close(observe.observe(*inputs), observe.reference(*inputs), 1e-5)


def _argmax_rows(draw: Draw) -> float:
    heads, group, rows, length = draw.whole(1, 8), draw.pick(1, 4, 7), draw.whole(0, 60), draw.pick(1, 100, 1000, 3000)
    query = draw.normal(rows, heads * group, draw.dim).transpose(0, 1)
    keys = draw.normal(heads, length, draw.dim)
    begins, ends = (
        torch.randint(0, length + 1, (rows,), generator=draw.generator, dtype=torch.int64, device=draw.device)
        for _ in range(2)
    )
    return _close(
        argmax_rows.argmax_rows(query, keys, begins, ends), argmax_rows.reference(query, keys, begins, ends), 1e-30
    )


def _causal_attention(draw: Draw) -> float:
    batch, heads, group = draw.whole(1, 4), draw.whole(1, 8), draw.pick(1, 4, 7)
    length = draw.pick(1, 40, 300, 700)
    query = draw.normal(batch, length, heads * group, draw.dim).transpose(1, 2)
    keys, values = (draw.normal(batch, length, heads, draw.dim).transpose(1, 2) for _ in range(2))
    ends = torch.randint(0, length + 1, (2, batch), generator=draw.generator, dtype=torch.int64, device=draw.device)
    firsts, stops = ends.amin(dim=0), ends.amax(dim=0)
    scaling = draw.pick(0.05, draw.dim**-0.5, 0.5)
    actual = causal_attention.causal_attention(query, keys, values, firsts, stops, scaling)
    expected = causal_attention.reference(query.double(), keys.double(), values.double(), firsts, stops, scaling)
    return _close(actual, expected, TOLERANCE[draw.dtype] * (1 + scaling * draw.dim**0.5))


def check(op: str, device: torch.device, seconds: float, rounds: int) -> dict[str, Any]:
    """Returns {op, rounds, worst, failed, failures} of one operation or decode backend ("decode/<backend>").

    worst is the largest difference in units of the tolerance; a failure names its seed, dtype and head dimension.
    """
    checks: dict[str, Callable[[Draw], float]] = {
        "ragged_decode": lambda draw: _decode(draw, ragged_decode.ragged_decode),
        "append": _append,
        "compact": _compact,
        "observe": _observe,
        "argmax_rows": _argmax_rows,
        "causal_attention": _causal_attention,
    }
    for name, call in ragged_decode.BACKENDS[device.type].items():
        checks[f"decode/{name}"] = lambda draw, call=call: _decode(draw, call)  # type: ignore[misc]
    failures, worst, done, began = [], 0.0, 0, time.monotonic()
    while done < rounds and time.monotonic() - began < seconds:
        draw = Draw(device, done)
        if op in ("decode/varlen", "decode/flash"):  # these accept 16-bit dtypes only
            draw.dtype = draw.pick(torch.float16, torch.bfloat16)
        done += 1
        try:
            difference = checks[op](draw)
            what = f"{difference:.3g} times the tolerance"
        except Exception as error:  # any error counts as a failure, and the other rounds still run
            difference, what = float("inf"), f"{type(error).__name__}: {error}"
        if difference > 1:
            failures.append(f"seed {draw.host.initial_seed()}, {draw.dtype}, head dimension {draw.dim}: {what}")
        else:
            worst = max(worst, difference)
    return {"op": op, "rounds": done, "worst": round(worst, 4), "failed": len(failures), "failures": failures[:5]}

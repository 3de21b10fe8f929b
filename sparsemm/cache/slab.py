"""Ragged storage of one layer: each (batch row, KV head) owns a segment of one buffer, with slack to grow into."""

from __future__ import annotations

from typing import ClassVar

import torch

from sparsemm.errors import CacheError
from sparsemm.ops.append import append_row
from sparsemm.ops.compact import compact
from sparsemm.ops.decode_step import decode_step, serves_steps

BLOCK, SHARE = 16, 32  # a segment grows by BLOCK rows, or by 1 / SHARE of the layer's mean length if that is more
PIECES, PIECE = 8, 1 << 18  # most pieces, and least numbers of a piece: see `pieces`
MOST_ROWS = 1 << 15  # most padded rows at once


def _block(rows: int, segments: int) -> int:
    return max(BLOCK, rows // max(segments, 1) // SHARE)


def rows_of(starts: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Returns the row numbers of all segments, one segment after the other: (lengths.sum(),) int64."""
    total = int(lengths.sum())
    before = (starts - lengths.cumsum(0) + lengths).repeat_interleave(lengths, output_size=total)
    return torch.arange(total, dtype=torch.int64, device=starts.device) + before


def pieces(count: int, numbers: int) -> list[slice]:
    """Cuts `count` items of `numbers` numbers each into slices, so that a copy of a slice is small beside all items.

    There are at most `PIECES` slices, as each costs kernel launches, and none has fewer than `PIECE` numbers.
    """
    step = max(1, PIECE // max(numbers, 1), -(-count // PIECES))
    return [slice(start, start + step) for start in range(0, count, step)]


def bucket_by_length(lengths: list[int]) -> list[tuple[list[int], int]]:
    """Groups segments so that the longest of a group has at most twice the rows of the shortest.

    Padded to its longest segment, a group of several has at most `MOST_ROWS` rows. Empty segments are left out.

    Returns:
        The segments of each group, and the rows of its longest one.
    """
    groups: list[list[int]] = []
    for i in sorted((i for i, length in enumerate(lengths) if length), key=lambda i: -lengths[i]):
        longest = lengths[groups[-1][0]] if groups else 0
        if not groups or longest > 2 * lengths[i] or longest * (len(groups[-1]) + 1) > MOST_ROWS:
            groups.append([])
        groups[-1].append(i)
    return [(sorted(group), lengths[group[0]]) for group in groups]


class Slab:
    """Keys and values of one layer.

    Attributes:
        keys, values: (rows, D), the buffers; segment i = b * Hkv + h starts at `starts[i]`.
        lengths: (B * Hkv,) int64 on the device, the rows in use of each segment; changed in place.
        starts: (B * Hkv,) int64 on the device.
        slack: free rows that every segment has at least; on the host, so that appending needs no device sync. With a
            fixed `room` it is the rest of that room, even where eviction freed rows.
        longest: upper bound of the rows of the longest segment; on the host too.
        fixed: whether `longest` is a capacity that appending does not change.
        dtype: dtype of the rows that are appended and read.
        steps: whether `append_and_attend` supports this slab.
    """

    BUFFERS: ClassVar[tuple[str, ...]] = ("keys", "values")

    def __init__(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        keep: torch.Tensor,
        room: int | None = None,
        capacity: torch.Tensor | None = None,
        slack: int | None = None,
    ) -> None:
        """Copies the selected positions of full keys and values, in order.

        Args:
            keys, values: (B, Hkv, S, D).
            keep: (B, Hkv, S) bool.
            room: most rows that will ever be added to a segment, rows that are evicted later included; appending then
                never moves the buffers. None lets them grow in blocks.
            capacity: (B * Hkv,) int64 rows of each segment, at least one more than it uses; None means length + slack.
            slack: free rows of each segment at first; None means `room`, or a block.

        Raises:
            CacheError: if the shapes do not match.
        """
        if keys.shape != values.shape or keep.shape != keys.shape[:-1] or keep.dtype != torch.bool:
            raise CacheError(f"keys {keys.shape}, values {values.shape}, {keep.dtype} keep {keep.shape} do not match")
        self.batch, self.num_kv_heads = keys.shape[:2]
        self.room, self.dtype = room, keys.dtype
        self._lay_out(
            keep.flatten(0, 1).sum(dim=-1),
            keys.new_empty(0, keys.shape[-1]),
            room if slack is None else slack,
            capacity,
        )
        self._fill(keys, values, keep)

    def _lay_out(
        self, lengths: torch.Tensor, like: torch.Tensor, slack: int | None, capacity: torch.Tensor | None = None
    ) -> None:
        self.fixed = self.room is not None or capacity is not None
        used, longest = torch.stack([lengths.sum(), lengths.max()]).tolist() if len(lengths) else (0, 0)
        if capacity is not None:
            slack = 1
        elif slack is None:
            slack = _block(used, len(lengths))
        with torch.inference_mode(False):  # so that rows can be appended outside of the inference mode of a prefill
            self.lengths = lengths.clone()
            ends = (self.lengths + slack if capacity is None else capacity).cumsum(0)
            self.starts = torch.cat([ends.new_zeros(1), ends])[:-1]
            self._allocate(int(ends[-1]) if capacity is not None else used + slack * len(lengths), like)
        self.steps = type(self) is Slab and serves_steps(self.keys, self.values)
        self.slack = slack
        if capacity is not None:
            longest = int(capacity.max())
        self.longest = longest + slack if self.room is not None else longest

    def _allocate(self, rows: int, like: torch.Tensor) -> None:
        self.keys, self.values = like.new_zeros(rows, like.shape[-1]), like.new_zeros(rows, like.shape[-1])

    def _fill(self, keys: torch.Tensor, values: torch.Tensor, keep: torch.Tensor) -> None:
        if keys.stride(-1) != 1 or values.stride(-1) != 1:
            keys, values = keys.contiguous(), values.contiguous()
        compact(self.keys, self.values, keys, values, keep.contiguous(), self.starts)

    def _write(self, rows: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys[rows], self.values[rows] = keys, values

    def read_keys(self, rows: torch.Tensor | slice) -> torch.Tensor:
        """Returns the keys (..., D) of row numbers (...)."""
        return self.keys[rows]

    def read_values(self, rows: torch.Tensor | slice) -> torch.Tensor:
        """Returns the values (..., D) of row numbers (...)."""
        return self.values[rows]

    def append(self, keys: torch.Tensor, values: torch.Tensor, valid: torch.Tensor | None = None) -> None:
        """Appends rows (B, Hkv, T, D) to every segment, in place; with `valid` (B, T) bool only the true ones.

        Raises:
            CacheError: if a fixed room is used up.
        """
        new = keys.shape[2]
        if new > self.slack:
            self._make_room(new)
        self.reserve(new)
        if valid is not None and valid.device.type == "cpu" and bool(valid.all()):  # waits for the device elsewhere
            valid = None
        if new == 1 and self.keys.dtype == keys.dtype:
            append_row(self.keys, self.values, keys, values, self.starts, self.lengths)
            if valid is None:
                self.lengths += 1
            else:  # padding is written after the real rows, into slack that the next token overwrites
                self.lengths.view(self.batch, -1).add_(valid)
            return
        offset = torch.arange(new, dtype=torch.int64, device=keys.device).expand(self.batch, new)
        count: torch.Tensor | int = new
        if valid is not None:
            # As above, padding goes after the real rows, so that their number need not be read from the device.
            real = valid.cumsum(-1)
            offset = torch.where(valid, real - 1, real[:, -1:] + (~valid).cumsum(-1) - 1)
            count = real[:, -1].repeat_interleave(self.num_kv_heads)
        offset = offset[:, None].expand(-1, self.num_kv_heads, -1).reshape(-1, new)
        rows = (self.starts + self.lengths)[:, None] + offset
        self._write(rows.flatten(), keys.reshape(-1, keys.shape[-1]), values.reshape(-1, values.shape[-1]))
        self.lengths += count

    def _make_room(self, count: int) -> None:
        if self.room is not None:
            self.reserve(count)  # raises
        self.rearrange(rows_of(self.starts, self.lengths), self.lengths, count)

    def append_and_attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float | None
    ) -> torch.Tensor | None:
        """Appends one token (B, Hkv, 1, D) without padding and computes its attention, where `decode_step` supports it.

        Args:
            query: (B, Hq, 1, D).
            scaling: factor of the logits; None means 1 / sqrt(D).

        Returns:
            (B, 1, Hq, D), or None, with nothing changed, where append and attention need separate calls.

        Raises:
            CacheError: if a fixed room is used up.
        """
        if not self.steps or query.shape[2] != 1:
            return None
        if self.slack < 1:
            self._make_room(1)
        factor = self.keys.shape[1] ** -0.5 if scaling is None else scaling
        output = decode_step(self.keys, self.values, self.starts, self.lengths, query, keys, values, factor)
        if output is not None:
            self.slack -= 1
            if not self.fixed:
                self.longest += 1
        return output

    def move(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Copies the rows with numbers `source` (N,) over those with numbers `target` (N,)."""
        for name in self.BUFFERS:
            buffer = getattr(self, name)
            buffer[target] = buffer[source]

    def reserve(self, count: int) -> None:
        """Counts `count` more rows in every segment, on the host; a negative count frees rows.

        Raises:
            CacheError: if the room is used up.
        """
        if count > self.slack:
            what = f"the room for {self.room} tokens after the prompt is used up"
            hint = "make the cache with a larger max_new_tokens; prompt lookup needs room for its candidates too"
            raise CacheError(what, hint=hint)
        self.slack -= count
        if not self.fixed:
            self.longest += count

    def rearrange(
        self, source: torch.Tensor, lengths: torch.Tensor, slack: int = 0, capacity: torch.Tensor | None = None
    ) -> None:
        """Allocates new buffers: the rows `source` (N,) int64 become segments of `lengths`, which sum to N.

        Each segment has at least `slack` free rows, or `capacity` (B * Hkv,) rows in all; a fixed room stays.
        """
        old = [getattr(self, name) for name in self.BUFFERS]
        block = self.slack if self.room is not None else max(slack, _block(len(source), len(lengths)))
        self._lay_out(lengths, self.read_keys(source[:0]), block, capacity)
        target = rows_of(self.starts, self.lengths)
        for name, buffer in zip(self.BUFFERS, old, strict=True):
            getattr(self, name)[target] = buffer[source]

    def owners(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the segment of each row, and its number within that segment, slack included: int64."""
        rows, segments = len(self.keys), torch.arange(len(self.starts), dtype=torch.int64, device=self.starts.device)
        ends = torch.cat([self.starts[1:], self.starts.new_full((min(len(self.starts), 1),), rows)])
        owner = segments.repeat_interleave(ends - self.starts, output_size=rows)
        return owner, torch.arange(rows, dtype=torch.int64, device=self.starts.device) - self.starts[owner]

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns all keys and values, (rows, D) in the model's dtype, slack included: here the buffers themselves."""
        return self.keys, self.values

    def rows_in(self, segments: torch.Tensor | slice, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns row numbers (n, longest) int64 of some segments, padded at the end, and which are in use, bool."""
        at = torch.arange(longest, dtype=torch.int64, device=self.starts.device)
        first = self.starts[segments][:, None]
        valid = at < self.lengths[segments][:, None]
        # Padding repeats the head's own first row: a NaN in another head's row would survive a weight of zero.
        return torch.where(valid, first + at, first.clamp(max=len(self.keys) - 1)), valid

    def padded_rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns row numbers (B, Hkv, longest) int64 of all segments, and which are in use, bool."""
        rows, valid = self.rows_in(slice(None), self.longest)
        shape = self.batch, self.num_kv_heads, self.longest
        return rows.view(shape), valid.view(shape)

    def select_rows(self, index: torch.Tensor, capacity: torch.Tensor | None = None) -> None:
        """Keeps the batch rows `index` (N,) int64, in that order; rows may repeat or be left out."""
        starts, lengths = (t.view(self.batch, -1)[index].flatten() for t in (self.starts, self.lengths))
        self.batch = len(index)
        self.rearrange(rows_of(starts, lengths), lengths, capacity=capacity)

    def add_rows(self, *others: Slab) -> None:
        """Adds the batch rows of other slabs, of the same kind and room, after its own; copies all buffers."""
        slabs = (self, *others)
        sizes = [len(slab.keys) for slab in slabs]
        with torch.inference_mode(False):  # as in `_lay_out`
            for name in self.BUFFERS:
                setattr(self, name, torch.cat([getattr(slab, name) for slab in slabs]))
            before = [sum(sizes[:i]) for i in range(len(sizes))]
            self.starts = torch.cat([slab.starts + rows for slab, rows in zip(slabs, before, strict=True)])
            self.lengths = torch.cat([slab.lengths for slab in slabs])
        self.batch = sum(slab.batch for slab in slabs)
        self.slack, self.longest = min(slab.slack for slab in slabs), max(slab.longest for slab in slabs)

    def drop_newest(self, count: int) -> None:
        """Removes the newest `count` rows of every segment; their room becomes slack again."""
        self.lengths -= count
        self.reserve(-count)

    def row_bytes(self) -> int:
        """Returns the bytes of one row: its key and value, and their scales in 8 bits."""
        return sum(b.element_size() * b.shape[1:].numel() for b in (getattr(self, name) for name in self.BUFFERS))

    def allocated_bytes(self) -> int:
        """Returns the bytes of the buffers, slack included."""
        return sum(b.element_size() * b.numel() for b in (getattr(self, name) for name in self.BUFFERS))

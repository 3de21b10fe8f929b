"""Ragged storage of one layer: every (batch row, KV head) owns a stretch of one buffer, with slack to grow into."""

from __future__ import annotations

from typing import ClassVar

import torch

from sparsemm.errors import CacheError
from sparsemm.ops.append import append_row
from sparsemm.ops.compact import compact
from sparsemm.ops.decode_step import decode_step, serves_steps

BLOCK, SHARE = 16, 32  # rows a stretch grows by: at least BLOCK, or 1 / SHARE of the layer's mean length
PIECES, PIECE = 8, 1 << 18  # pieces at most, and numbers of a piece at least: see `pieces`
MOST_ROWS = 1 << 15  # of padded heads at once


def _block(rows: int, stretches: int) -> int:
    return max(BLOCK, rows // max(stretches, 1) // SHARE)


def rows_of(starts: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Row numbers of all stretches, one after the other: (lengths.sum(),) int64."""
    total = int(lengths.sum())
    before = (starts - lengths.cumsum(0) + lengths).repeat_interleave(lengths, output_size=total)
    return torch.arange(total, dtype=torch.int64, device=starts.device) + before


def pieces(count: int, numbers: int) -> list[slice]:
    """`count` things of `numbers` numbers each, cut so that a copy of a piece is small beside all of them.

    At most `PIECES`, as each costs launches on a device, and none of fewer than `PIECE` numbers.
    """
    step = max(1, PIECE // max(numbers, 1), -(-count // PIECES))
    return [slice(start, start + step) for start in range(0, count, step)]


def alike(lengths: list[int]) -> list[tuple[list[int], int]]:
    """Stretches in groups, each with its longest one's rows, which are at most twice those of its shortest.

    No group has more than `MOST_ROWS` rows once padded, but for a single stretch; empty stretches are left out.
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
        keys, values: (rows, D), the buffers; stretch i = b * Hkv + h starts at `starts[i]`.
        lengths: (B * Hkv,) int64 on the device, rows in use of each stretch; changed in place.
        starts: (B * Hkv,) int64 on the device.
        slack: rows every stretch has left, at least; on the host, so that appending needs no device sync. Of a fixed
            room it is what is left, whatever happens to the rows.
        longest: rows of the longest stretch, at most; on the host too.
        fixed: whether `longest` is a capacity that appending does not change.
        dtype: of the rows that come and go.
        steps: whether `append_and_attend` may serve.
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
        """Copy the selected positions of full keys and values, in order.

        Args:
            keys, values: (B, Hkv, S, D).
            keep: (B, Hkv, S) bool.
            room: rows that may ever be added to a stretch, those included that are evicted later: appending then leaves
                the buffers where they are. None lets them grow in blocks.
            capacity: (B * Hkv,) int64 rows each stretch gets, at least one more than it uses; None: length and slack.
            slack: rows of room behind each stretch at first; None means `room`, or a block.

        Raises:
            CacheError: if the shapes do not fit.
        """
        if keys.shape != values.shape or keep.shape != keys.shape[:-1] or keep.dtype != torch.bool:
            raise CacheError(f"keys {keys.shape}, values {values.shape}, keep {keep.shape} do not fit")
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
        with torch.inference_mode(False):  # or nothing could be appended outside of the inference mode of a prefill
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
        """Keys (..., D) of row numbers (...)."""
        return self.keys[rows]

    def read_values(self, rows: torch.Tensor | slice) -> torch.Tensor:
        """Values (..., D) of row numbers (...)."""
        return self.values[rows]

    def append(self, keys: torch.Tensor, values: torch.Tensor, valid: torch.Tensor | None = None) -> None:
        """Add rows (B, Hkv, T, D) to every stretch, in place; with `valid` (B, T) bool only the true ones.

        Raises:
            CacheError: if a fixed room is used up.
        """
        new = keys.shape[2]
        if new > self.slack:
            self._make_room(new)
        self.reserve(new)
        if valid is not None and valid.device.type == "cpu" and bool(valid.all()):  # elsewhere that waits
            valid = None
        if new == 1 and self.keys.dtype == keys.dtype:
            append_row(self.keys, self.values, keys, values, self.starts, self.lengths)
            if valid is None:
                self.lengths += 1
            else:  # padding lies behind the real rows, in slack that the next token overwrites
                self.lengths.view(self.batch, -1).add_(valid)
            return
        offset = torch.arange(new, dtype=torch.int64, device=keys.device).expand(self.batch, new)
        count: torch.Tensor | int = new
        if valid is not None:
            # As above: behind the real rows, so that nobody has to ask the device how many there are.
            real = valid.cumsum(-1)
            offset = torch.where(valid, real - 1, real[:, -1:] + (~valid).cumsum(-1) - 1)
            count = real[:, -1].repeat_interleave(self.num_kv_heads)
        offset = offset[:, None].expand(-1, self.num_kv_heads, -1).reshape(-1, new)
        rows = (self.starts + self.lengths)[:, None] + offset
        self._write(rows.flatten(), keys.reshape(-1, keys.shape[-1]), values.reshape(-1, values.shape[-1]))
        self.lengths += count

    def _make_room(self, count: int) -> None:
        if self.room is not None:
            self.reserve(count)  # says that it is used up
        self.rearrange(rows_of(self.starts, self.lengths), self.lengths, count)

    def append_and_attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float | None
    ) -> torch.Tensor | None:
        """`append` of one token (B, Hkv, 1, D) without padding, and its attention, where one call does both.

        Args:
            query: (B, Hq, 1, D).
            scaling: factor of the logits; None means 1 / sqrt(D).

        Returns:
            (B, 1, Hq, D), or None, with nothing changed, where the two have to be called by themselves.

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
        """Copy the rows `source` (N,) over the rows `target` (N,), both row numbers."""
        for name in self.BUFFERS:
            buffer = getattr(self, name)
            buffer[target] = buffer[source]

    def reserve(self, count: int) -> None:
        """Count `count` more rows in every stretch, on the host; negative ones give room back.

        Raises:
            CacheError: if there is not so much room.
        """
        if count > self.slack:
            what = f"room for {self.room} tokens after the prompt is used up"
            hint = "make the cache with a larger max_new_tokens; prompt lookup takes room for its candidates too"
            raise CacheError(what, hint=hint)
        self.slack -= count
        if not self.fixed:
            self.longest += count

    def rearrange(
        self, source: torch.Tensor, lengths: torch.Tensor, slack: int = 0, capacity: torch.Tensor | None = None
    ) -> None:
        """Lay the buffers out anew: their rows `source` (N,) int64 become stretches of `lengths`, which sum to N.

        At least `slack` rows are left behind each stretch, or as many as `capacity` (B * Hkv,) holds; of a fixed room
        what was left.
        """
        old = [getattr(self, name) for name in self.BUFFERS]
        block = self.slack if self.room is not None else max(slack, _block(len(source), len(lengths)))
        self._lay_out(lengths, self.read_keys(source[:0]), block, capacity)
        target = rows_of(self.starts, self.lengths)
        for name, buffer in zip(self.BUFFERS, old, strict=True):
            getattr(self, name)[target] = buffer[source]

    def owners(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of every row of the buffers its stretch, and which of that stretch's rows it is, slack included: int64."""
        rows, stretches = len(self.keys), torch.arange(len(self.starts), dtype=torch.int64, device=self.starts.device)
        ends = torch.cat([self.starts[1:], self.starts.new_full((min(len(self.starts), 1),), rows)])
        owner = stretches.repeat_interleave(ends - self.starts, output_size=rows)
        return owner, torch.arange(rows, dtype=torch.int64, device=self.starts.device) - self.starts[owner]

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (rows, D) in the model's dtype, slack included: here the buffers themselves."""
        return self.keys, self.values

    def rows_in(self, stretches: torch.Tensor | slice, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Row numbers (n, longest) int64 of such stretches, padded behind, and which of them are in use, bool."""
        at = torch.arange(longest, dtype=torch.int64, device=self.starts.device)
        first = self.starts[stretches][:, None]
        valid = at < self.lengths[stretches][:, None]
        # Padding is the head's own first row: a NaN of another's would get through a weight of zero.
        return torch.where(valid, first + at, first.clamp(max=len(self.keys) - 1)), valid

    def padded_rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Row numbers (B, Hkv, longest) int64 of every stretch, and which of them are in use, bool."""
        rows, valid = self.rows_in(slice(None), self.longest)
        shape = self.batch, self.num_kv_heads, self.longest
        return rows.view(shape), valid.view(shape)

    def select_rows(self, index: torch.Tensor, capacity: torch.Tensor | None = None) -> None:
        """Keep the batch rows `index` (N,) int64, in that order; rows may repeat or drop out."""
        starts, lengths = (t.view(self.batch, -1)[index].flatten() for t in (self.starts, self.lengths))
        self.batch = len(index)
        self.rearrange(rows_of(starts, lengths), lengths, capacity=capacity)

    def drop_newest(self, count: int) -> None:
        """Forget the newest `count` rows of every stretch; their room becomes slack again."""
        self.lengths -= count
        self.reserve(-count)

    def row_bytes(self) -> int:
        """Bytes of one token in one head: its key and value, and what storing them takes."""
        return sum(b.element_size() * b.shape[1:].numel() for b in (getattr(self, name) for name in self.BUFFERS))

    def allocated_bytes(self) -> int:
        """Bytes of the buffers, slack included."""
        return sum(b.element_size() * b.numel() for b in (getattr(self, name) for name in self.BUFFERS))

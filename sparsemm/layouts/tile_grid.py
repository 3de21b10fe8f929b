"""Images cut into tiles, each a square grid of cells of its own (InternVL, Idefics3, Gemma 3's crops)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparsemm.layouts.tokens import ImageTokens, Positions, tile


@dataclass(frozen=True)
class Tile:
    """What the vision tower makes of its square input.

    Attributes:
        pixels: side of the input.
        cell: side of the pixels under one visual token.
        side: visual tokens along either axis; `side * cell` may be a little less than `pixels`.
    """

    pixels: int
    cell: int
    side: int

    @property
    def tokens(self) -> int:
        """Visual tokens of a tile."""
        return self.side**2

    def edges(self, length: int, count: int = 1) -> np.ndarray:
        """Cell edges of an image stretched over `count` tiles, (count * side + 1,) float64 in its own pixels.

        What no patch covers at the end of a tile goes to its last cell. Each edge is divided once.
        """
        number, inside = np.divmod(np.arange(count * self.side + 1), self.side)
        return (number * self.pixels + inside * self.cell) * length / (count * self.pixels)

    def crop_edges(self, length: int, count: int) -> np.ndarray:
        """The same of an image cut into `count` crops, each stretched over a tile of its own; the last is shorter."""
        crop = -(-length // count)
        starts = np.arange(count)[:, None] * crop
        lengths = np.minimum(crop, length - starts)
        edges = (starts * self.pixels + np.arange(self.side) * self.cell * lengths) / self.pixels
        return np.append(edges.ravel(), length)

    def join(
        self,
        size: tuple[int, int],
        y_edges: np.ndarray,
        x_edges: np.ndarray,
        positions: Positions | Sequence[Positions],
        thumbnail: ImageTokens | None = None,
    ) -> ImageTokens:
        """Tokens of an image from the positions of its tiles, tile after tile, in the raster order of its cells."""
        rows, columns = len(y_edges) - 1, len(x_edges) - 1
        tiles = np.asarray(positions, dtype=np.int64).reshape(rows // self.side, columns // self.side, self.side, -1)
        cells = tiles.transpose(0, 2, 1, 3).ravel()
        return ImageTokens(cells, tile(y_edges, x_edges), (rows, columns), size, thumbnail)

    def whole(self, size: tuple[int, int], positions: Positions) -> ImageTokens:
        """Tokens of an image stretched over one tile."""
        return self.join(size, self.edges(size[1]), self.edges(size[0]), positions)


def runs(positions: Positions) -> list[Positions]:
    """Rising positions, cut wherever other tokens stand between them."""
    return np.split(positions, np.flatnonzero(np.diff(positions) > 1) + 1) if len(positions) else []

"""The geometry of images cut into tiles, each with its own square grid of cells (InternVL, Idefics3, Gemma 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsemm.errors import LayoutError
from sparsemm.layouts.tokens import ImageTokens, Positions, image_positions, tile


@dataclass(frozen=True)
class Tile:
    """The square input of the vision tower, and its visual tokens."""

    pixels: int  # side of the input
    cell: int  # pixels of one visual token along either axis
    side: int  # visual tokens along either axis; `side * cell` may be a little less than `pixels`

    @property
    def tokens(self) -> int:
        """Number of visual tokens of a tile."""
        return self.side**2

    def edges(self, length: int, count: int = 1) -> np.ndarray:
        """Returns the cell edges of an image stretched over `count` tiles, (count * side + 1,) float64 original pixels.

        Pixels that no patch covers, at the end of a tile, belong to its last cell. Each edge is divided once.
        """
        number, inside = np.divmod(np.arange(count * self.side + 1), self.side)
        return (number * self.pixels + inside * self.cell) * length / (count * self.pixels)

    def crop_edges(self, length: int, count: int) -> np.ndarray:
        """Returns the cell edges of an image cut into `count` crops, one per tile; the last crop is shorter."""
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
        """Returns the tokens of an image, in raster order of its cells, from the positions tile after tile."""
        rows, columns = len(y_edges) - 1, len(x_edges) - 1
        tiles = np.asarray(positions, dtype=np.int64).reshape(rows // self.side, columns // self.side, self.side, -1)
        cells = tiles.transpose(0, 2, 1, 3).ravel()
        return ImageTokens(cells, tile(y_edges, x_edges), (rows, columns), size, thumbnail)

    def whole(self, size: tuple[int, int], positions: Positions) -> ImageTokens:
        """Returns the tokens of an image stretched over one tile."""
        return self.join(size, self.edges(size[1]), self.edges(size[0]), positions)


def tile_views(inputs: Any, row: int, token_id: int, tile: Tile) -> list[Positions]:
    """Returns the positions of every view of a row's images, where each view is a run of the tokens of one tile.

    Raises LayoutError if a run has another length.
    """
    views = runs(image_positions(inputs, row, token_id))
    if any(len(view) != tile.tokens for view in views):
        raise LayoutError(f"a view of an image does not have {tile.tokens} visual tokens", where=f"row {row}")
    return views


def runs(positions: Positions) -> list[Positions]:
    """Splits rising positions into runs of consecutive ones."""
    return np.split(positions, np.flatnonzero(np.diff(positions) > 1) + 1) if len(positions) else []

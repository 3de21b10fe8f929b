// The schedule of a ragged decode step: the tiles of all heads in one line, split evenly among the blocks of threads.
// It depends on the lengths alone, which are on the device.
#pragma once

#include "common.h"

namespace sparsemm {

constexpr int64_t kTileRows = 64;  // rows of a tile

SPARSEMM_BOTH inline int64_t tiles_of(int64_t length) { return (length + kTileRows - 1) / kTileRows; }

// Number of blocks with work: at most one for each tile.
SPARSEMM_BOTH inline int64_t busy_blocks(int64_t tiles, int64_t blocks) { return tiles < blocks ? tiles : blocks; }

// Block b of `busy` takes tiles [first_tile(b), first_tile(b + 1)).
SPARSEMM_BOTH inline int64_t first_tile(int64_t block, int64_t tiles, int64_t busy) { return tiles * block / busy; }
SPARSEMM_BOTH inline int64_t block_of(int64_t tile, int64_t tiles, int64_t busy) {
    return ((tile + 1) * busy - 1) / tiles;
}

// A block has at most two incomplete results: of a head that began in an earlier block, and of one that ends in a
// later one. They have a slot each.
SPARSEMM_BOTH inline int64_t slot_of(int64_t block, bool began_here) { return 2 * block + (began_here ? 1 : 0); }

}  // namespace sparsemm

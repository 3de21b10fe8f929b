// Copies the selected positions of full keys and values to the slab, in order.
#include <algorithm>
#include <new>
#include <vector>

#include "common.h"

namespace {

constexpr int64_t kBlock = 1024;  // positions of one task: a head that keeps everything is split among threads

int64_t run(char* keys, char* values, const char* full_keys, const char* full_values, const uint8_t* keep,
            const int64_t* starts, int64_t batch, int64_t heads, int64_t length, int64_t bytes, int64_t rows,
            const int64_t* key_strides, const int64_t* value_strides, int threads) {
    const int64_t segments = batch * heads, blocks = (length + kBlock - 1) / kBlock;
    std::vector<int64_t> row(segments * blocks);  // where the first kept position of a block goes
    int64_t kept = 0;
    for (int64_t s = 0; s < segments; ++s) {
        const int64_t end = s + 1 < segments ? starts[s + 1] : rows;
        if (starts[s] < 0 || end > rows || starts[s] > end) return s;
        int64_t at = starts[s];
        for (int64_t b = 0; b < blocks; ++b) {
            row[s * blocks + b] = at;
            const uint8_t* flags = keep + s * length;
            int64_t count = 0;
            for (int64_t i = b * kBlock; i < std::min(length, (b + 1) * kBlock); ++i) count += flags[i] != 0;
            at += count;
        }
        if (at > end) return s;
        kept += at - starts[s];
    }
    if (kept * bytes * 2 < sparsemm::kSerialBytes) threads = 1;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads) if (threads > 1)
    for (int64_t task = 0; task < segments * blocks; ++task) {
        const int64_t s = task / blocks, first = (task % blocks) * kBlock;
        const char* k = full_keys + (s / heads) * key_strides[0] + (s % heads) * key_strides[1];
        const char* v = full_values + (s / heads) * value_strides[0] + (s % heads) * value_strides[1];
        const int64_t stop = std::min(length, first + kBlock);
        const uint8_t* flags = keep + s * length;
        int64_t to = row[task] * bytes;
        for (int64_t i = first; i < stop; ++i) {
            uint64_t eight = 1;  // so little is kept of a long prompt that usually all eight are zero
            if (i + 8 <= stop) std::memcpy(&eight, flags + i, 8);
            if (eight == 0) {
                i += 7;
                continue;
            }
            if (!flags[i]) continue;
            std::memcpy(keys + to, k + i * key_strides[2], bytes);
            std::memcpy(values + to, v + i * value_strides[2], bytes);
            to += bytes;
        }
    }
    return sparsemm::kDone;
}

}  // namespace

// keys, values: (rows) of `bytes` bytes; full_keys, full_values: (batch, heads, length) of such rows with strides in
// bytes; keep: (batch, heads, length). Nothing is written before all segments are known to have room.
SPARSEMM_EXPORT int64_t sparsemm_compact(char* keys, char* values, const char* full_keys, const char* full_values,
                                         const uint8_t* keep, const int64_t* starts, int64_t batch, int64_t heads,
                                         int64_t length, int64_t bytes, int64_t rows, const int64_t* key_strides,
                                         const int64_t* value_strides, int threads) {
    try {
        return run(keys, values, full_keys, full_values, keep, starts, batch, heads, length, bytes, rows, key_strides,
                   value_strides, threads);
    } catch (const std::bad_alloc&) {
        return sparsemm::kNoMemory;
    }
}

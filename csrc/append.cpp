// Appends one new row of keys and values to every segment, in place.
#include "common.h"

// keys, values: rows of `bytes` bytes; new_keys, new_values: one such row per segment. Segments are in order and a
// segment may grow up to the next one. Nothing is written before all of them are known to have room.
SPARSEMM_EXPORT int64_t sparsemm_append(char* keys, char* values, const char* new_keys, const char* new_values,
                                        const int64_t* starts, const int64_t* lengths, int64_t segments,
                                        int64_t bytes, int64_t rows) {
    for (int64_t s = 0; s < segments; ++s) {
        const int64_t end = s + 1 < segments ? starts[s + 1] : rows;
        if (starts[s] < 0 || lengths[s] < 0 || end > rows || starts[s] >= end || lengths[s] >= end - starts[s])
            return s;
    }
    for (int64_t s = 0; s < segments; ++s) {
        const int64_t to = (starts[s] + lengths[s]) * bytes;
        std::memcpy(keys + to, new_keys + s * bytes, bytes);
        std::memcpy(values + to, new_values + s * bytes, bytes);
    }
    return sparsemm::kDone;
}

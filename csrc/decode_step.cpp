// One decode step of one layer: a new row in every segment, then attention over all rows of each.
#include "common.h"

SPARSEMM_EXPORT int64_t sparsemm_append(char* keys, char* values, const char* new_keys, const char* new_values,
                                        const int64_t* starts, const int64_t* lengths, int64_t segments,
                                        int64_t bytes, int64_t rows);
SPARSEMM_EXPORT int64_t sparsemm_ragged_decode(int dtype, const void* query, const void* keys, const void* values,
                                               const int64_t* starts, const int64_t* lengths, void* out,
                                               int64_t segments, int64_t group, int64_t dim, int64_t rows,
                                               float scaling, int threads);

// The arguments are those of the two; lengths grow by 1. A segment without room is returned, and nothing is written.
SPARSEMM_EXPORT int64_t sparsemm_decode_step(int dtype, const void* query, char* keys, char* values,
                                             const char* new_keys, const char* new_values, const int64_t* starts,
                                             int64_t* lengths, void* out, int64_t segments, int64_t group,
                                             int64_t dim, int64_t bytes, int64_t rows, float scaling, int threads) {
    const int64_t code = sparsemm_append(keys, values, new_keys, new_values, starts, lengths, segments, bytes, rows);
    if (code != sparsemm::kDone) return code;
    for (int64_t s = 0; s < segments; ++s) ++lengths[s];
    return sparsemm_ragged_decode(dtype, query, keys, values, starts, lengths, out, segments, group, dim, rows,
                                  scaling, threads);
}

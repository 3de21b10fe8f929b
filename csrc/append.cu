// Appends one new row of keys and values to every segment, in place, without waiting for the host.
#include "device.h"

namespace sparsemm {
namespace {

// A warp copies one row of keys or of values.
template <class V>
__global__ void append_rows(V* keys, V* values, const V* new_keys, const V* new_values, const int64_t* starts,
                            const int64_t* lengths, int64_t segments, int64_t vectors, int64_t rows, int64_t* fault) {
    const int64_t warp = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32, s = warp / 2;
    if (s >= segments) return;
    const int64_t start = starts[s], length = lengths[s], end = s + 1 < segments ? starts[s + 1] : rows;
    if (start < 0 || length < 0 || end > rows || start >= end || length >= end - start) {
        if (threadIdx.x % 32 == 0) report(fault, kAppend, s);
        return;
    }
    V* to = (warp % 2 ? values : keys) + (start + length) * vectors;
    const V* from = (warp % 2 ? new_values : new_keys) + s * vectors;
    for (int64_t i = threadIdx.x % 32; i < vectors; i += 32) to[i] = from[i];
}

template <class V>
int64_t append_as(void* keys, void* values, const void* new_keys, const void* new_values, const int64_t* starts,
                  const int64_t* lengths, int64_t segments, int64_t bytes, int64_t rows, int64_t* fault,
                  void* stream) {
    launch(append_rows<V>, (2 * segments + kWarps - 1) / kWarps, kThreads, stream, static_cast<V*>(keys),
           static_cast<V*>(values), static_cast<const V*>(new_keys), static_cast<const V*>(new_values), starts, lengths,
           segments, bytes / int64_t(sizeof(V)), rows, fault);
    return outcome();
}

}  // namespace
}  // namespace sparsemm

// sparsemm_append on the device; a segment without room stays unchanged and is reported.
SPARSEMM_EXPORT int64_t sparsemm_cuda_append(void* keys, void* values, const void* new_keys, const void* new_values,
                                             const int64_t* starts, const int64_t* lengths, int64_t segments,
                                             int64_t bytes, int64_t rows, int64_t* fault, void* stream) {
    using namespace sparsemm;
    const uint64_t all = uint64_t(keys) | uint64_t(values) | uint64_t(new_keys) | uint64_t(new_values) | bytes;
    const auto as = all % 16 ? append_as<uint16_t> : append_as<Words>;
    return as(keys, values, new_keys, new_values, starts, lengths, segments, bytes, rows, fault, stream);
}

// Copies the selected positions of full keys and values to the slab, in order, with one launch per layer.
#include "device.h"

namespace sparsemm {
namespace {

constexpr int kBlock = 1024;  // positions of one block of threads
constexpr int kCopiers = 256;

struct Strides { int64_t row, head, position; };  // in bytes

template <class V>
__global__ void compact_rows(char* keys, char* values, const char* full_keys, const char* full_values,
                             const uint8_t* keep, const int64_t* starts, int64_t segments, int64_t heads,
                             int64_t length, int64_t bytes, int64_t rows, Strides k, Strides v, int64_t* fault) {
    __shared__ int64_t before[kCopiers / 32];
    __shared__ int kept[kCopiers / 32];
    __shared__ int positions[kBlock];
    const int64_t blocks = (length + kBlock - 1) / kBlock, s = blockIdx.x / blocks, b = blockIdx.x % blocks;
    const int64_t first = b * kBlock, start = starts[s], end = s + 1 < segments ? starts[s + 1] : rows;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint8_t* flags = keep + s * length;

    // Positions kept before this block: every block counts them itself, so that one launch is enough.
    int64_t count = 0;
    if (uint64_t(flags) % 16 == 0) {
        for (int64_t i = threadIdx.x; i < first / 16; i += kCopiers) {  // first is a multiple of 16
            const Words words = reinterpret_cast<const Words*>(flags)[i];
            for (int j = 0; j < 4; ++j) count += __popc(words.at[j] & 0x01010101u);
        }
    } else {
        for (int64_t i = threadIdx.x; i < first; i += kCopiers) count += flags[i] & 1;
    }
    for (int step = 16; step; step /= 2) count += __shfl_xor_sync(kAll, count, step);
    if (lane == 0) before[warp] = count;

    int listed = 0;
    for (int64_t at = first; at < first + kBlock; at += kCopiers) {
        const int64_t i = at + threadIdx.x;
        const bool keeps = i < length && flags[i] & 1;
        const unsigned votes = __ballot_sync(kAll, keeps);
        __syncthreads();  // no thread reads the counts of the last iteration any more
        if (lane == 0) kept[warp] = __popc(votes);
        __syncthreads();
        int rank = listed + __popc(votes & ((1u << lane) - 1));
        for (int w = 0; w < kCopiers / 32; ++w) {
            if (w < warp) rank += kept[w];
            listed += kept[w];
        }
        if (keeps) positions[rank] = int(i - first);
    }
    __syncthreads();
    int64_t base = 0;
    for (int w = 0; w < kCopiers / 32; ++w) base += before[w];
    const bool fits = start >= 0 && end <= rows && start <= end && base + listed <= end - start;
    if (!fits && threadIdx.x == 0) report(fault, kCompact, s);
    if (!fits) return;

    const char* from_k = full_keys + s / heads * k.row + s % heads * k.head;
    const char* from_v = full_values + s / heads * v.row + s % heads * v.head;
    const int vectors = int(bytes / int64_t(sizeof(V)));
    const int64_t to = (start + base) * bytes;
    for (int i = threadIdx.x; i < listed * vectors; i += kCopiers) {
        const int row = i / vectors, vector = i % vectors;
        const int64_t position = first + positions[row];
        reinterpret_cast<V*>(keys + to)[i] = reinterpret_cast<const V*>(from_k + position * k.position)[vector];
        reinterpret_cast<V*>(values + to)[i] = reinterpret_cast<const V*>(from_v + position * v.position)[vector];
    }
}

}  // namespace
}  // namespace sparsemm

// sparsemm_compact on the device; strides are in host memory. A block of positions without room is left out and
// reported.
SPARSEMM_EXPORT int64_t sparsemm_cuda_compact(char* keys, char* values, const char* full_keys, const char* full_values,
                                              const uint8_t* keep, const int64_t* starts, int64_t batch, int64_t heads,
                                              int64_t length, int64_t bytes, int64_t rows, const int64_t* key_strides,
                                              const int64_t* value_strides, int64_t* fault, void* stream) {
    using namespace sparsemm;
    const Strides k = {key_strides[0], key_strides[1], key_strides[2]};
    const Strides v = {value_strides[0], value_strides[1], value_strides[2]};
    const uint64_t all = uint64_t(keys) | uint64_t(values) | uint64_t(full_keys) | uint64_t(full_values) | bytes |
                         k.row | k.head | k.position | v.row | v.head | v.position;
    const auto kernel = all % 16 ? compact_rows<uint16_t> : compact_rows<Words>;
    launch(kernel, batch * heads * ((length + kBlock - 1) / kBlock), kCopiers, stream, keys, values, full_keys,
           full_values, keep, starts, batch * heads, heads, length, bytes, rows, k, v, fault);
    return outcome();
}

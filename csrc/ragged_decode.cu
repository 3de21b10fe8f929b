// Attention of one query token per head over that head's own rows of the slab: one launch with evenly split work.
//
// The queries of a group are the columns of tensor-core products, so that a key or value is read once for all of them,
// straight from memory into registers. Products are in the stored type and summed in fp32; the weights are split
// into a rounded part and its remainder. Partial results merge by log-sum-exp in the block that finishes last.
#include "device.h"
#include "plan.h"

namespace sparsemm {
namespace {

constexpr int kMostPerUnit = 4;  // blocks of threads on one multiprocessor at once; more do not help

struct Step {
    const void *query, *keys, *values;
    const int64_t *starts, *lengths;
    void* out;
    int64_t segments, group, dim, rows;
    float scaling;
    float* partial;
    int* counters;
    int64_t* fault;
};

// Number of tiles of a segment; 0 for one that leaves the slab.
__device__ inline int64_t tiles_at(const Step& p, int64_t s, int64_t* length) {
    const int64_t start = p.starts[s];
    *length = p.lengths[s];
    const bool inside = start >= 0 && *length >= 0 && *length <= p.rows && start <= p.rows - *length;
    return inside ? tiles_of(*length) : 0;
}

// 16 rows of one warp's share of a tile. Lane 4 i + c holds, of query i and rows 2c, 2c + 1, 8 + 2c and 9 + 2c,
// the logits; of dimensions 64 s + 8 i + 2 j and the next and of queries 2c and 2c + 1, the sums at acc[4 (4 s + j)].
template <class T, int D>
struct Warp {
    static constexpr bool kHalf = sizeof(T) == 2;
    Words q[kHalf ? D / 32 : 1];
    const T* q_row;
    float acc[D / 64 * 16], maximum, sum;
    int i, c, dim;

    __device__ void begin(const T* query, int count, int dimension) {
        const int lane = threadIdx.x % 32;
        i = lane / 4, c = lane % 4, dim = dimension;
        q_row = i < count ? query + i * dim : nullptr;
        if constexpr (kHalf) {
#pragma unroll
            for (int s = 0; s < D / 32; ++s) {
                const int d = 32 * s + 8 * c;
                q[s] = load_cached(q_row && d < dim, q_row + d);
            }
        }
#pragma unroll
        for (int n = 0; n < D / 64 * 16; ++n) acc[n] = 0.0f;
        maximum = minus_infinity(), sum = 0.0f;
    }

    // logits[2 h + e] of rows 8 h + 2 c + e.
    __device__ void products(const T* keys, int size, float* logits) {
        if constexpr (kHalf) {
            Words k[2][D / 32];
#pragma unroll
            for (int h = 0; h < 2; ++h)
#pragma unroll
                for (int s = 0; s < D / 32; ++s) {
                    const int d = 32 * s + 8 * c;
                    k[h][s] = load_if(8 * h + i < size && d < dim, keys + int64_t(8 * h + i) * dim + d);
                }
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
                for (int s = 0; s < D / 32; ++s) {
                    mma(sums, q[s].at[0], 0u, q[s].at[1], 0u, k[h][s].at[0], k[h][s].at[1], T());
                    mma(sums, q[s].at[2], 0u, q[s].at[3], 0u, k[h][s].at[2], k[h][s].at[3], T());
                }
                logits[2 * h] = sums[0], logits[2 * h + 1] = sums[1];
            }
        } else {
            const T* rows[4];
#pragma unroll
            for (int n = 0; n < 4; ++n) {
                const int row = 8 * (n / 2) + 2 * c + n % 2;
                rows[n] = keys + int64_t(row < size ? row : 0) * dim;
                logits[n] = 0.0f;
            }
            for (int d = 0; q_row && d < dim; d += 4) {
                const Words a = load_cached(true, q_row + d);
#pragma unroll
                for (int n = 0; n < 4; ++n) {
                    const Words b = load_cached(true, rows[n] + d);
#pragma unroll
                    for (int e = 0; e < 4; ++e) logits[n] += float_of(a.at[e]) * float_of(b.at[e]);
                }
            }
        }
    }

    // size: number of rows, at most 16; factor: scaling * log2(e).
    __device__ void attend(const T* keys, const T* values, int size, float factor) {
        Words v[kHalf ? 4 : 1][kHalf ? D / 64 : 1];
        // Values are loaded while the logits are computed, as far as there are registers for them.
        if constexpr (kHalf && D <= 128) load_values(values, size, v);
        float p[4];
        products(keys, size, p);
        float top = maximum;
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            p[n] = 8 * (n / 2) + 2 * c + n % 2 < size ? p[n] * factor : minus_infinity();
            top = p[n] > top ? p[n] : top;
        }
        top = fmaxf(top, __shfl_xor_sync(kAll, top, 1));
        top = fmaxf(top, __shfl_xor_sync(kAll, top, 2));
        const float old = rescale(maximum, top), shift = top == minus_infinity() ? 0.0f : top;
        if (__any_sync(kAll, top > maximum)) {
            const float first = __shfl_sync(kAll, old, 8 * c), second = __shfl_sync(kAll, old, 8 * c + 4);
#pragma unroll
            for (int n = 0; n < D / 64 * 16; ++n) acc[n] *= n % 2 ? second : first;
            sum *= old;
        }
        maximum = top;
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            p[n] = exp2_of(p[n] - shift);
            sum += p[n];
        }
        if constexpr (kHalf) {
            if constexpr (D > 128) load_values(values, size, v);
            const uint32_t b0 = pack(p[0], p[1], T()), b1 = pack(p[2], p[3], T());
            const uint32_t r0 = pack(p[0] - low_of<T>(b0), p[1] - high_of<T>(b0), T());
            const uint32_t r1 = pack(p[2] - low_of<T>(b1), p[3] - high_of<T>(b1), T());
#pragma unroll
            for (int s = 0; s < D / 64; ++s)
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    const uint32_t a0 = low_halves(v[0][s].at[j], v[1][s].at[j]);
                    const uint32_t a1 = high_halves(v[0][s].at[j], v[1][s].at[j]);
                    const uint32_t a2 = low_halves(v[2][s].at[j], v[3][s].at[j]);
                    const uint32_t a3 = high_halves(v[2][s].at[j], v[3][s].at[j]);
                    mma(acc + 4 * (4 * s + j), a0, a1, a2, a3, b0, b1, T());
                    mma(acc + 4 * (4 * s + j), a0, a1, a2, a3, r0, r1, T());
                }
        } else {
#pragma unroll
            for (int n = 0; n < 4; ++n)
                for (int other = 0; other < 4; ++other) {  // the lanes that hold the weights of rows 2 other, ...
                    const float first = __shfl_sync(kAll, p[n], 8 * c + other);
                    const float second = __shfl_sync(kAll, p[n], 8 * c + 4 + other);
                    const int row = 8 * (n / 2) + 2 * other + n % 2;
                    if (row >= size) continue;
#pragma unroll
                    for (int s = 0; s < D / 64; ++s) {
                        const int d = 64 * s + 8 * i;
                        const T* at = values + int64_t(row) * dim + d;
#pragma unroll
                        for (int half = 0; half < 2; ++half) {
                            const Words w = load_cached(d < dim, at + 4 * half);
#pragma unroll
                            for (int e = 0; e < 4; ++e) {
                                acc[16 * s + 8 * half + 2 * e] += first * float_of(w.at[e]);
                                acc[16 * s + 8 * half + 2 * e + 1] += second * float_of(w.at[e]);
                            }
                        }
                    }
                }
        }
    }

    template <int R, int S>
    __device__ void load_values(const T* values, int size, Words (&v)[R][S]) {
#pragma unroll
        for (int n = 0; n < R; ++n)
#pragma unroll
            for (int s = 0; s < S; ++s) {
                const int row = 8 * (n / 2) + 2 * c + n % 2, d = 64 * s + 8 * i;
                v[n][s] = load_if(row < size && d < dim, values + int64_t(row) * dim + d);
            }
    }
};

template <class T, int D>
__global__ void __launch_bounds__(kThreads) decode(Step p) {
    __shared__ float sums[kWarps][kQueries][D];
    __shared__ float maxima[kWarps][kQueries], totals[kWarps][kQueries];
    __shared__ int64_t found[2], warp_tiles[kWarps];
    __shared__ int last;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, dim = int(p.dim);
    const int64_t parts = (p.group + kQueries - 1) / kQueries;  // parts of a query group, eight queries each
    T* out = static_cast<T*>(p.out);

    // Every thread adds up the tiles of some segments; then each knows how many come before its own.
    const int64_t each = (p.segments + kThreads - 1) / kThreads;
    const int64_t mine = threadIdx.x * each, end = mine + each < p.segments ? mine + each : p.segments;
    int64_t own = 0, length;
    for (int64_t s = mine; s < end; ++s) own += tiles_at(p, s, &length) * parts;
    int64_t until = own;
    for (int step = 1; step < 32; step *= 2) {
        const int64_t other = __shfl_up_sync(kAll, until, step);
        if (lane >= step) until += other;
    }
    if (lane == 31) warp_tiles[warp] = until;
    __syncthreads();
    int64_t tiles = 0;
    for (int w = 0; w < kWarps; ++w) {
        if (w < warp) until += warp_tiles[w];
        tiles += warp_tiles[w];
    }

    // The result is zeros for a head without rows, and NaN for one that leaves the slab.
    for (int64_t s = blockIdx.x; s < p.segments; s += gridDim.x) {
        if (tiles_at(p, s, &length)) continue;
        if (length && threadIdx.x == 0) report(p.fault, kDecode, s);
        for (int64_t n = threadIdx.x; n < p.group * dim; n += kThreads)
            narrow(length ? float_of(0x7FC00000u) : 0.0f, out + s * p.group * dim + n);
    }
    const int64_t busy = busy_blocks(tiles, gridDim.x);
    if (blockIdx.x >= busy) return;
    int64_t at = first_tile(blockIdx.x, tiles, busy);
    const int64_t stop = first_tile(blockIdx.x + 1, tiles, busy);
    if (until - own <= at && at < until) {
        int64_t base = until - own, s = mine;
        for (int64_t n; at >= base + (n = tiles_at(p, s, &length) * parts); ++s) base += n;
        found[0] = s, found[1] = base;
    }
    __syncthreads();
    int64_t s = found[0], base = found[1];  // base: tiles before segment s

    while (at < stop) {
        const int64_t count = tiles_at(p, s, &length);
        if (at >= base + count * parts) {
            base += count * parts, ++s;
            continue;
        }
        const int64_t part = (at - base) / count, unit = base + part * count;  // the unit's first tile
        const int64_t to = stop < unit + count ? stop : unit + count;
        const int queries = int(p.group - part * kQueries < kQueries ? p.group - part * kQueries : kQueries);
        const int64_t first_query = s * p.group + part * kQueries;
        Warp<T, D> own_rows;
        own_rows.begin(static_cast<const T*>(p.query) + first_query * dim, queries, dim);
        for (int64_t tile = at - unit; tile < to - unit; ++tile) {
            const int64_t row = tile * kTileRows + warp * 16;
            const int64_t size = length - row < 16 ? length - row : 16;
            if (size <= 0) break;
            const int64_t offset = (p.starts[s] + row) * dim;
            own_rows.attend(static_cast<const T*>(p.keys) + offset, static_cast<const T*>(p.values) + offset,
                            int(size), p.scaling * kLog2E);
        }

        // Merges the results of the four warps.
        const int i = own_rows.i, c = own_rows.c;
        float total = own_rows.sum + __shfl_xor_sync(kAll, own_rows.sum, 1);
        total += __shfl_xor_sync(kAll, total, 2);
        if (c == 0) maxima[warp][i] = own_rows.maximum, totals[warp][i] = total;
#pragma unroll
        for (int n = 0; n < D / 64 * 16; n += 4) {
            const int d = 64 * (n / 16) + 8 * i + n % 16 / 2;
            sums[warp][2 * c][d] = own_rows.acc[n];
            sums[warp][2 * c + 1][d] = own_rows.acc[n + 1];
            sums[warp][2 * c][d + 1] = own_rows.acc[n + 2];
            sums[warp][2 * c + 1][d + 1] = own_rows.acc[n + 3];
        }
        __syncthreads();
        const bool whole = at == unit && to == unit + count;
        const int64_t width = kQueries * (p.dim + 2);
        float* slot = p.partial + slot_of(blockIdx.x, at == unit) * width;
        for (int n = threadIdx.x; n < queries * dim; n += kThreads) {
            const int q = n / dim, d = n % dim;
            float top = minus_infinity(), all = 0.0f, value = 0.0f;
            for (int w = 0; w < kWarps; ++w) top = fmaxf(top, maxima[w][q]);
            for (int w = 0; w < kWarps; ++w) {
                const float weight = rescale(maxima[w][q], top);
                all += weight * totals[w][q];
                value += weight * sums[w][q][d];
            }
            if (whole) {
                narrow(value / all, out + first_query * dim + n);
                continue;
            }
            slot[n] = value;
            if (d == 0) slot[kQueries * dim + q] = top, slot[kQueries * (dim + 1) + q] = all;
        }
        if (!whole) {
            // Of the blocks that share this head, the last one to get here merges the results of all.
            const int64_t first_block = block_of(unit, tiles, busy), last_block = block_of(unit + count - 1, tiles, busy);
            int* counter = p.counters + s * parts + part;
            __syncthreads();
            if (threadIdx.x == 0) {  // for the whole block: its barriers are on both sides of the fences
                __threadfence();
                last = atomicAdd(counter, 1) == last_block - first_block;
                __threadfence();
            }
            __syncthreads();
            if (last) {
                for (int n = threadIdx.x; n < queries * dim; n += kThreads) {
                    const int q = n / dim;
                    float top = minus_infinity(), all = 0.0f, value = 0.0f;
                    for (int64_t b = first_block; b <= last_block; ++b)
                        top = fmaxf(top, __ldcg(p.partial + slot_of(b, b == first_block) * width + kQueries * dim + q));
#pragma unroll 4
                    for (int64_t b = first_block; b <= last_block; ++b) {
                        const float* from = p.partial + slot_of(b, b == first_block) * width;
                        const float weight = rescale(__ldcg(from + kQueries * dim + q), top);
                        all += weight * __ldcg(from + kQueries * (dim + 1) + q);
                        value += weight * __ldcg(from + n);
                    }
                    narrow(value / all, out + first_query * dim + n);
                }
                if (threadIdx.x == 0) *counter = 0;  // the next call expects zero
            }
        }
        __syncthreads();  // no thread reads this head's sums any more
        at = to;
    }
}

int multiprocessors() {
    static int held[64] = {};
    int device = 0;
    cudaGetDevice(&device);
    int& count = held[device % 64];
    if (!count) cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
    return count;
}

template <class T, int D>
int64_t run(const Step& p, void* stream) {
    static int resident = 0;  // depends on the kernel, and hardly on the device
    if (!resident) {
        if (cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, decode<T, D>, kThreads, 0)) return outcome();
        resident = resident < kMostPerUnit ? resident : kMostPerUnit;
    }
    // All blocks are resident at once, and no more than there can be tiles, a bound that needs no lengths.
    const int64_t parts = (p.group + kQueries - 1) / kQueries;
    const int64_t most = parts * (tiles_of(p.rows) + p.segments), all = int64_t(multiprocessors()) * resident;
    launch(decode<T, D>, most < all ? most : all, kThreads, stream, p);
    return outcome();
}

}  // namespace
}  // namespace sparsemm

// Floats of scratch memory for partial results that sparsemm_cuda_ragged_decode needs at any lengths.
SPARSEMM_EXPORT int64_t sparsemm_cuda_ragged_decode_room(int64_t, int64_t dim) {
    using namespace sparsemm;
    return 2 * int64_t(multiprocessors()) * kMostPerUnit * kQueries * (dim + 2);
}

// sparsemm_ragged_decode on the device. counters: one int for each segment and eight queries of its group, zero before
// and after. A segment that leaves the slab gives NaN and is reported.
SPARSEMM_EXPORT int64_t sparsemm_cuda_ragged_decode(int dtype, const void* query, const void* keys, const void* values,
                                                    const int64_t* starts, const int64_t* lengths, void* out,
                                                    int64_t segments, int64_t group, int64_t dim, int64_t rows,
                                                    float scaling, float* partial, int* counters, int64_t* fault,
                                                    void* stream) {
    using namespace sparsemm;
    const Step p = {query, keys, values, starts, lengths, out,      segments, group,
                    dim,   rows, scaling, partial, counters, fault};
#define SPARSEMM_CALL(T, D) run<T, D>(p, stream)
    return SPARSEMM_BY_TYPE_AND_DIM(dtype, dim, SPARSEMM_CALL);
#undef SPARSEMM_CALL
}

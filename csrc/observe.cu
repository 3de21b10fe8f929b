// Computes SnapKV's observation scores of a prompt's last rows without a matrix of weights.
//
// Logits are computed twice, with tensor cores, 16 query rows by 16 keys at a time: first for every row's maximum and
// sum over parts of the keys, then for the mean weight of every key.
#include "device.h"

namespace sparsemm {
namespace {

constexpr int kKeys = 16;            // keys of one product
constexpr int64_t kPartKeys = 128;   // keys of one partial sum, by one warp

struct Prompt {
    const char *query, *keys;
    const uint8_t* valid;
    float* out;
    int64_t heads, group, window, length, segments;
    int dim;
    int64_t query_row, query_head, query_position, key_row, key_head, key_position;  // strides in bytes
    int64_t pooling;
    float factor;       // scaling * log2(e)
    float* partial;     // (segments, parts, rows, 2): maximum and sum
    float* statistics;  // (segments, rows, 2): maximum and 1 / sum
    float* mean;        // (segments, length)
    __host__ __device__ int64_t rows() const { return group * window; }
    __host__ __device__ int64_t parts() const { return (length + kPartKeys - 1) / kPartKeys; }
};

// Query row n of a segment, all heads of its group one after the other; null beyond them.
template <class T>
__device__ inline const T* query_at(const Prompt& p, int64_t segment, int64_t n) {
    if (n >= p.rows()) return nullptr;
    const int64_t head = segment % p.heads * p.group + n / p.window;
    return reinterpret_cast<const T*>(p.query + segment / p.heads * p.query_row + head * p.query_head +
                                      n % p.window * p.query_position);
}
template <class T>
__device__ inline const T* key_at(const Prompt& p, int64_t segment, int64_t n) {
    if (n >= p.length) return nullptr;
    return reinterpret_cast<const T*>(p.keys + segment / p.heads * p.key_row + segment % p.heads * p.key_head +
                                      n * p.key_position);
}

// 16 rows or keys, as a lane holds them for a product: of row i and of row i + 8, 8 dimensions in every 32.
template <class T, int D>
struct Fragment {
    static constexpr bool kHalf = sizeof(T) == 2;
    Words words[kHalf ? 2 : 1][kHalf ? D / 32 : 1];
    __device__ void load(const T* first, const T* second, int dim) {
        if constexpr (kHalf) {
#pragma unroll
            for (int s = 0; s < D / 32; ++s) {
                const int d = 32 * s + threadIdx.x % 4 * 8;
                words[0][s] = load_cached(first && d < dim, first + d);
                words[1][s] = load_cached(second && d < dim, second + d);
            }
        }
    }
};

// logits[h][n] of query row first + i + 8 (n / 2) and key at + 8 h + 2 c + n % 2, in base 2; -inf for masked
// keys.
template <class T, int D>
__device__ inline void logits_of(const Prompt& p, int64_t segment, int64_t first, int64_t at, const Fragment<T, D>& q,
                                 const Fragment<T, D>& k, float (&logits)[2][4]) {
    const int i = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int n = 0; n < 4; ++n) logits[h][n] = 0.0f;
        if constexpr (sizeof(T) == 2) {
#pragma unroll
            for (int s = 0; s < D / 32; ++s) {
                const uint32_t *a = q.words[0][s].at, *b = q.words[1][s].at, *key = k.words[h][s].at;
                mma(logits[h], a[0], b[0], a[1], b[1], key[0], key[1], T());
                mma(logits[h], a[2], b[2], a[3], b[3], key[2], key[3], T());
            }
        } else {
            const T *a = query_at<T>(p, segment, first + i), *b = query_at<T>(p, segment, first + i + 8);
            const T* x = key_at<T>(p, segment, at + 8 * h + 2 * c);
            const T* y = key_at<T>(p, segment, at + 8 * h + 2 * c + 1);
            for (int d = 0; d < p.dim; d += 4) {
                const Words qa = load_cached(a, a + d), qb = load_cached(b, b + d);
                const Words kx = load_cached(x, x + d), ky = load_cached(y, y + d);
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    logits[h][0] += float_of(qa.at[e]) * float_of(kx.at[e]);
                    logits[h][1] += float_of(qa.at[e]) * float_of(ky.at[e]);
                    logits[h][2] += float_of(qb.at[e]) * float_of(kx.at[e]);
                    logits[h][3] += float_of(qb.at[e]) * float_of(ky.at[e]);
                }
            }
        }
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            const int64_t row = first + i + n / 2 * 8, key = at + 8 * h + 2 * c + n % 2;
            const bool seen = row < p.rows() && key <= p.length - p.window + row % p.window &&
                              key < p.length && p.valid[segment / p.heads * p.length + key];
            logits[h][n] = seen ? logits[h][n] * p.factor : minus_infinity();
        }
    }
}

template <class T, int D>
__global__ void __launch_bounds__(kThreads) partial_statistics(Prompt p) {
    const int i = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
    const int64_t warp = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32, parts = p.parts();
    const int64_t segment = warp / parts, part = warp % parts;
    if (segment >= p.segments) return;
    const int64_t until = (part + 1) * kPartKeys < p.length ? (part + 1) * kPartKeys : p.length;
    for (int64_t first = 0; first < p.rows(); first += 16) {
        Fragment<T, D> q, k;
        q.load(query_at<T>(p, segment, first + i), query_at<T>(p, segment, first + i + 8), p.dim);
        float maximum[2] = {minus_infinity(), minus_infinity()}, sum[2] = {0.0f, 0.0f};
        for (int64_t at = part * kPartKeys; at < until; at += kKeys) {
            k.load(key_at<T>(p, segment, at + i), key_at<T>(p, segment, at + 8 + i), p.dim);
            float x[2][4];
            logits_of<T, D>(p, segment, first, at, q, k, x);
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                float top = fmaxf(fmaxf(x[0][2 * r], x[0][2 * r + 1]), fmaxf(x[1][2 * r], x[1][2 * r + 1]));
                top = fmaxf(top, maximum[r]);
                const float shift = top == minus_infinity() ? 0.0f : top;
                sum[r] *= rescale(maximum[r], top);
                for (int h = 0; h < 2; ++h)
                    sum[r] += exp2_of(x[h][2 * r] - shift) + exp2_of(x[h][2 * r + 1] - shift);
                maximum[r] = top;
            }
        }
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float top = fmaxf(maximum[r], __shfl_xor_sync(kAll, maximum[r], 1));
            top = fmaxf(top, __shfl_xor_sync(kAll, top, 2));
            float total = sum[r] * rescale(maximum[r], top);
            total += __shfl_xor_sync(kAll, total, 1);
            total += __shfl_xor_sync(kAll, total, 2);
            const int64_t row = first + i + 8 * r;
            if (c || row >= p.rows()) continue;
            float* to = p.partial + ((segment * parts + part) * p.rows() + row) * 2;
            to[0] = top, to[1] = total;
        }
    }
}

__global__ void merge_statistics(Prompt p) {
    const int64_t n = int64_t(blockIdx.x) * kThreads + threadIdx.x, rows = p.rows();
    if (n >= p.segments * rows) return;
    const float* from = p.partial + (n / rows * p.parts() * rows + n % rows) * 2;
    float top = minus_infinity(), total = 0.0f;
    for (int64_t part = 0; part < p.parts(); ++part) top = fmaxf(top, from[part * rows * 2]);
    for (int64_t part = 0; part < p.parts(); ++part)
        total += from[part * rows * 2 + 1] * rescale(from[part * rows * 2], top);
    p.statistics[2 * n] = top == minus_infinity() ? 0.0f : top;
    p.statistics[2 * n + 1] = total > 0.0f && total < float_of(0x7F800000u) ? 1.0f / total : 0.0f;  // NaN or no keys: 0
}

template <class T, int D>
__global__ void __launch_bounds__(kThreads) mean_weights(Prompt p) {
    const int i = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
    const int64_t tiles = (p.length - p.window + kKeys - 1) / kKeys;
    const int64_t warp = int64_t(blockIdx.x) * kWarps + threadIdx.x / 32, segment = warp / tiles;
    if (segment >= p.segments) return;
    const int64_t at = warp % tiles * kKeys;
    Fragment<T, D> q, k;
    k.load(key_at<T>(p, segment, at + i), key_at<T>(p, segment, at + 8 + i), p.dim);
    float mean[2][2] = {};
    for (int64_t first = 0; first < p.rows(); first += 16) {
        q.load(query_at<T>(p, segment, first + i), query_at<T>(p, segment, first + i + 8), p.dim);
        float x[2][4];
        logits_of<T, D>(p, segment, first, at, q, k, x);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int64_t row = first + i + 8 * r;
            if (row >= p.rows()) continue;
            const float* statistics = p.statistics + (segment * p.rows() + row) * 2;
            const float top = statistics[0], share = statistics[1];
            if (share == 0.0f) continue;
            for (int h = 0; h < 2; ++h)
                for (int e = 0; e < 2; ++e) mean[h][e] += exp2_of(x[h][2 * r + e] - top) * share;
        }
    }
#pragma unroll
    for (int n = 0; n < 4; ++n) {
        float value = mean[n / 2][n % 2];
        for (int step = 4; step < 32; step *= 2) value += __shfl_xor_sync(kAll, value, step);
        const int64_t key = at + 8 * (n / 2) + 2 * c + n % 2;
        if (i == 0 && key < p.length) p.mean[segment * p.length + key] = value / float(p.rows());
    }
}

__global__ void pool(Prompt p) {
    const int64_t n = int64_t(blockIdx.x) * kThreads + threadIdx.x, segment = n / p.length, at = n % p.length;
    if (segment >= p.segments) return;
    const int64_t outside = p.length - p.window, reach = p.pooling / 2;
    float near = 0.0f;
    if (at < outside)
        for (int64_t j = at < reach ? 0 : at - reach; j <= at + reach && j < outside; ++j)
            near += p.mean[segment * p.length + j];
    const bool scored = at < outside && p.valid[segment / p.heads * p.length + at];
    p.out[n] = scored ? near / float(p.pooling) : minus_infinity();
}

template <class T, int D>
int64_t run(const Prompt& p, void* stream) {
    const auto blocks = [](int64_t count, int64_t each) { return (count + each - 1) / each; };
    const int64_t outside = p.length - p.window;
    if (outside > 0 && p.rows() > 0) {
        launch(partial_statistics<T, D>, blocks(p.segments * p.parts(), kWarps), kThreads, stream, p);
        launch(merge_statistics, blocks(p.segments * p.rows(), kThreads), kThreads, stream, p);
        launch(mean_weights<T, D>, blocks(p.segments * blocks(outside, kKeys), kWarps), kThreads, stream, p);
    }
    launch(pool, blocks(p.segments * p.length, kThreads), kThreads, stream, p);
    return outcome();
}

}  // namespace
}  // namespace sparsemm

// Floats of scratch memory that sparsemm_cuda_observe needs.
SPARSEMM_EXPORT int64_t sparsemm_cuda_observe_room(int64_t batch, int64_t heads, int64_t group, int64_t window,
                                                   int64_t length) {
    using namespace sparsemm;
    const int64_t parts = (length + kPartKeys - 1) / kPartKeys;
    return batch * heads * (2 * group * window * (parts + 1) + length);
}

// sparsemm_observe on the device; strides are in host memory.
SPARSEMM_EXPORT int64_t sparsemm_cuda_observe(int dtype, const char* query, const char* keys, const uint8_t* valid,
                                              float* out, int64_t batch, int64_t heads, int64_t group, int64_t window,
                                              int64_t length, int64_t dim, const int64_t* query_strides,
                                              const int64_t* key_strides, int64_t pooling, float scaling, float* room,
                                              int64_t* fault, void* stream) {
    using namespace sparsemm;
    (void)fault;  // no index can be out of range
    Prompt p = {query,
                keys,
                valid,
                out,
                heads,
                group,
                window,
                length,
                batch * heads,
                int(dim),
                query_strides[0],
                query_strides[1],
                query_strides[2],
                key_strides[0],
                key_strides[1],
                key_strides[2],
                pooling,
                scaling * kLog2E,
                room,
                nullptr,
                nullptr};
    p.statistics = p.partial + p.segments * p.parts() * p.rows() * 2;
    p.mean = p.statistics + p.segments * p.rows() * 2;
#define SPARSEMM_CALL(T, D) run<T, D>(p, stream)
    return SPARSEMM_BY_TYPE_AND_DIM(dtype, dim, SPARSEMM_CALL);
#undef SPARSEMM_CALL
}

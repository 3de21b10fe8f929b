// Finds the key with the largest dot product for each query row, in double as on the CPU.
#include "device.h"

namespace sparsemm {
namespace {

constexpr int kTogether = 8;  // query rows of one block of threads; each thread takes whole keys
constexpr int64_t kNone = int64_t(1) << 62;

// A NaN is the largest; among equal keys the first one wins.
__device__ inline bool better(double value, int64_t at, double best, int64_t best_at) {
    const bool nan = value != value, best_nan = best != best;
    if (nan || best_nan) return nan && (!best_nan || at < best_at);
    return value > best || (value == best && at < best_at);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
argmax_of(const char* query, const char* keys, const int64_t* begins, const int64_t* ends, int64_t* out,
          int64_t heads, int64_t group, int64_t rows, int64_t length, int dim, int64_t query_head, int64_t query_row,
          int64_t key_head, int64_t key_row, int64_t* fault) {
    __shared__ double q[256][kTogether];
    __shared__ double values[kThreads];
    __shared__ int64_t places[kThreads];
    __shared__ int64_t from[kTogether], to[kTogether];
    const int64_t each = group * rows, blocks = (each + kTogether - 1) / kTogether;
    const int64_t head = blockIdx.x / blocks, first = blockIdx.x % blocks * kTogether;
    const int count = int(each - first < kTogether ? each - first : kTogether);
    for (int i = threadIdx.x; i < kTogether * dim; i += kThreads) {
        const int row = i / dim, d = i % dim;
        const int64_t g = (first + row) / rows, t = (first + row) % rows;
        const T* at = reinterpret_cast<const T*>(query + (head * group + g) * query_head + t * query_row);
        q[d][row] = row < count ? double(widen(at[d])) : 0.0;
    }
    if (threadIdx.x < kTogether) {
        const int64_t t = (first + threadIdx.x) % rows;
        const bool wrong = begins[t] < 0 || ends[t] > length;
        if (wrong) report(fault, kArgmax, t);
        const bool there = int(threadIdx.x) < count && !wrong;
        from[threadIdx.x] = there ? begins[t] : kNone;
        to[threadIdx.x] = there ? ends[t] : 0;
    }
    __syncthreads();
    int64_t begin = kNone, end = 0;
    double best[kTogether];
    int64_t best_at[kTogether];
    for (int i = 0; i < kTogether; ++i) {
        begin = from[i] < begin ? from[i] : begin;
        end = to[i] > end ? to[i] : end;
        best[i] = double(minus_infinity());
        best_at[i] = kNone;
    }
    for (int64_t key = begin + threadIdx.x; key < end; key += kThreads) {
        const T* k = reinterpret_cast<const T*>(keys + head * key_head + key * key_row);
        double dot[kTogether] = {};
        for (int d = 0; d < dim; d += 16 / int(sizeof(T))) {  // rows are a multiple of 16 bytes
            const Words words = load_cached(true, k + d);
            T held[16 / sizeof(T)];
            memcpy(held, &words, 16);
#pragma unroll
            for (int e = 0; e < int(16 / sizeof(T)); ++e) {
                const double wide = double(widen(held[e]));
#pragma unroll
                for (int i = 0; i < kTogether; ++i) dot[i] += wide * q[d + e][i];
            }
        }
#pragma unroll
        for (int i = 0; i < kTogether; ++i)
            if (key >= from[i] && key < to[i] && dot[i] != double(minus_infinity()) &&
                better(dot[i], key, best[i], best_at[i])) {
                best[i] = dot[i];
                best_at[i] = key;
            }
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
        __syncthreads();
        values[threadIdx.x] = best[i];
        places[threadIdx.x] = best_at[i];
        for (int half = kThreads / 2; half; half /= 2) {
            __syncthreads();
            const int other = threadIdx.x + half;
            if (int(threadIdx.x) < half && places[other] != kNone &&
                better(values[other], places[other], values[threadIdx.x], places[threadIdx.x])) {
                values[threadIdx.x] = values[other];
                places[threadIdx.x] = places[other];
            }
        }
        if (threadIdx.x == 0 && i < count) {
            const int64_t g = (first + i) / rows, t = (first + i) % rows;
            out[(head * group + g) * rows + t] = places[0] == kNone ? 0 : places[0];
        }
    }
}

}  // namespace
}  // namespace sparsemm

// sparsemm_argmax_rows on the device; strides are in host memory. A row with keys out of range is reported.
SPARSEMM_EXPORT int64_t sparsemm_cuda_argmax_rows(int dtype, const char* query, const char* keys, const int64_t* begins,
                                                  const int64_t* ends, int64_t* out, int64_t heads, int64_t group,
                                                  int64_t rows, int64_t length, int64_t dim,
                                                  const int64_t* query_strides, const int64_t* key_strides,
                                                  int64_t* fault, void* stream) {
    using namespace sparsemm;
    const auto kernel = dtype == 0 ? argmax_of<float> : dtype == 1 ? argmax_of<Half> : argmax_of<BFloat>;
    launch(kernel, heads * ((group * rows + kTogether - 1) / kTogether), kThreads, stream, query, keys, begins, ends,
           out, heads, group, rows, length, int(dim), query_strides[0], query_strides[1], key_strides[0],
           key_strides[1], fault);
    return outcome();
}

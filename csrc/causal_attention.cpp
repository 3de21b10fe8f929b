// Causal attention of whole prompts, which may be padded to one length; nothing is computed for their padding.
#include <algorithm>

#include "rows.h"

namespace sparsemm {
namespace {

constexpr int64_t kQueries = 8;  // query rows that read keys and values together

struct Prompts {
    const char *query, *keys, *values;
    char* out;
    const int64_t *firsts, *stops;
    int64_t batch, heads, group, length, dim;
    const int64_t *query_strides, *key_strides, *value_strides;  // of batch row, head and position, in bytes
    float scaling;
};

// Scratch of one thread: keys as columns (dim, columns), values as rows (length, line), and a block's buffers. The
// padding after a row holds arbitrary numbers, which never reach a result.
struct Work {
    int64_t columns, line;
    float *keys, *values, *query, *weights, *sums;
    Work(int64_t length, int64_t dim, float* room)
        : columns(whole_lines(length)), line(whole_lines(dim)), keys(room), values(keys + dim * columns),
          query(values + length * line), weights(query + kQueries * line), sums(weights + kQueries * columns) {}
    static int64_t floats(int64_t length, int64_t dim) {
        const int64_t columns = whole_lines(length), line = whole_lines(dim);
        return dim * columns + length * line + kQueries * (2 * line + columns);
    }
};

template <class T>
const T* row_at(const char* from, const int64_t* strides, int64_t b, int64_t head, int64_t position) {
    return reinterpret_cast<const T*>(from + b * strides[0] + head * strides[1] + position * strides[2]);
}

// Keys and values of one KV head from position `first` on, as floats.
template <class T>
void pack(const Prompts& p, int64_t b, int64_t head, int64_t first, int64_t count, Work& work) {
    for (int64_t i = 0; i < count; ++i) {
        const T* key = row_at<T>(p.keys, p.key_strides, b, head, first + i);
        const T* value = row_at<T>(p.values, p.value_strides, b, head, first + i);
        for (int64_t d = 0; d < p.dim; ++d) {
            work.keys[d * work.columns + i] = widen(key[d]);
            work.values[i * work.line + d] = widen(value[d]);
        }
    }
}

// weights[r] = q_r . k for all keys before `count`, whole vectors of them.
template <int R>
void logits(const Work& work, int64_t dim, int64_t count) {
    for (int64_t at = 0; at < count; at += 2 * kLanes) {
        Vector sums[R][2] = {};
        const bool two = at + kLanes < count;
        for (int64_t d = 0; d < dim; ++d) {
            const float* k = work.keys + d * work.columns + at;
            const Vector k0 = load(k), k1 = load(two ? k + kLanes : k);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const float q = work.query[r * work.line + d];
                sums[r][0] += q * k0;
                sums[r][1] += q * k1;
            }
        }
        for (int r = 0; r < R; ++r) {
            store(work.weights + r * work.columns + at, sums[r][0]);
            if (two) store(work.weights + r * work.columns + at + kLanes, sums[r][1]);
        }
    }
}

// Logits of the first `count` keys -> their weights, zeros up to a whole vector; returns one over the weights' sum.
inline float soften(float* x, int64_t count, int64_t end) {
    for (int64_t i = count; i < end; ++i) x[i] = kLowest;
    float top = kLowest, total = 0;
#pragma omp simd reduction(max : top)
    for (int64_t i = 0; i < end; ++i) top = x[i] > top ? x[i] : top;
    const float shift = top == kLowest ? 0.0f : top;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < end; ++i) {
        x[i] = exp_nonpositive(x[i] - shift);
        total += x[i];
    }
    return 1.0f / total;
}

// sums[r] = sum over keys of weights[r][key] * values[key].
template <int R>
void blend(const Work& work, int64_t count) {
    for (int64_t d = 0; d < work.line; d += 2 * kLanes) {
        Vector sums[R][2] = {};
        const bool two = d + kLanes < work.line;
        for (int64_t i = 0; i < count; ++i) {
            const float* v = work.values + i * work.line + d;
            const Vector v0 = load(v), v1 = load(two ? v + kLanes : v);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const float w = work.weights[r * work.columns + i];
                sums[r][0] += w * v0;
                if (two) sums[r][1] += w * v1;
            }
        }
        for (int r = 0; r < R; ++r) {
            store(work.sums + r * work.line + d, sums[r][0]);
            if (two) store(work.sums + r * work.line + d + kLanes, sums[r][1]);
        }
    }
}

// Rows [begin, begin + R) of a sample whose tokens begin at `first`, of one query head.
template <int R, class T>
void rows(const Prompts& p, int64_t b, int64_t head, int64_t first, int64_t begin, Work& work) {
    for (int64_t r = 0; r < R; ++r) {
        const T* q = row_at<T>(p.query, p.query_strides, b, head, first + begin + r);
        for (int64_t d = 0; d < p.dim; ++d) work.query[r * work.line + d] = widen(q[d]) * p.scaling;
    }
    const int64_t seen = begin + R, end = (seen + kLanes - 1) / kLanes * kLanes;
    logits<R>(work, p.dim, seen);
    float factors[R];
    for (int64_t r = 0; r < R; ++r) factors[r] = soften(work.weights + r * work.columns, begin + r + 1, end);
    blend<R>(work, seen);
    for (int64_t r = 0; r < R; ++r) {
        T* to = reinterpret_cast<T*>(p.out) + ((b * p.length + first + begin + r) * p.heads * p.group + head) * p.dim;
        for (int64_t d = 0; d < p.dim; ++d) narrow(work.sums[r * work.line + d] * factors[r], to + d);
    }
}

template <class T>
int64_t run(const Prompts& p, float* room, int threads) {
    const int64_t segments = p.batch * p.heads, each = Work::floats(p.length, p.dim);
    int64_t next = 0;
#pragma omp parallel for schedule(static, 1) num_threads(threads) if (threads > 1)
    for (int slot = 0; slot < threads; ++slot) {
        Work work(p.length, p.dim, room + slot * each);
        for (;;) {
            int64_t at;
#pragma omp atomic capture
            at = next++;
            if (at >= segments) break;
            const int64_t b = at / p.heads, kv = at % p.heads, first = p.firsts[b], count = p.stops[b] - first;
            pack<T>(p, b, kv, first, count, work);
            for (int64_t head = kv * p.group; head < (kv + 1) * p.group; ++head) {
                int64_t begin = 0;
                for (; begin + kQueries <= count; begin += kQueries) rows<kQueries, T>(p, b, head, first, begin, work);
                for (; begin < count; ++begin) rows<1, T>(p, b, head, first, begin, work);
            }
        }
    }
    return kDone;
}

}  // namespace
}  // namespace sparsemm

// Floats of scratch memory that one thread needs.
SPARSEMM_EXPORT int64_t sparsemm_causal_attention_room(int64_t length, int64_t dim) {
    return sparsemm::Work::floats(length, dim);
}

// query: (batch, heads * group, length) rows of dim; keys, values: (batch, heads, length) of them; strides in bytes;
// firsts, stops: (batch), first token and end of a sample; out: (batch, length, heads * group, dim), zero on padding.
// room: scratch memory of all threads, aligned to a cache line. dtype as in ragged decode.
SPARSEMM_EXPORT int64_t sparsemm_causal_attention(int dtype, const char* query, const char* keys, const char* values,
                                                  char* out, const int64_t* firsts, const int64_t* stops,
                                                  int64_t batch, int64_t heads, int64_t group, int64_t length,
                                                  int64_t dim, const int64_t* query_strides,
                                                  const int64_t* key_strides, const int64_t* value_strides,
                                                  float scaling, float* room, int threads) {
    using namespace sparsemm;
    for (int64_t b = 0; b < batch; ++b)
        if (firsts[b] < 0 || firsts[b] > stops[b] || stops[b] > length) return b;
    const Prompts p{query, keys, values, out, firsts, stops, batch, heads, group, length, dim,
                    query_strides, key_strides, value_strides, scaling};
    return dtype == 0   ? run<float>(p, room, threads)
           : dtype == 1 ? run<Half>(p, room, threads)
                        : run<BFloat>(p, room, threads);
}

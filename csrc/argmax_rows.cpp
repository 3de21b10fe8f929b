// Where chosen query rows look: the key with the largest dot product among those each row may see.
#include <algorithm>
#include <limits>
#include <new>
#include <vector>

#include "rows.h"

namespace sparsemm {
namespace {

constexpr int64_t kRows = 16;  // query rows of one task, which read the keys together

// Products and sums are in double: those of fp32 numbers are exact, so that the winner depends neither on the order of
// a sum nor on the width of a vector or the number of threads.
typedef double Wide __attribute__((vector_size(4 * kLanes)));
constexpr int64_t kWide = kLanes / 2;

inline Wide load_wide(const double* from) { Wide v; std::memcpy(&v, from, sizeof v); return v; }

template <class T>
void to_doubles(const char* from, int64_t dim, double* out) {
    const T* row = reinterpret_cast<const T*>(from);
    for (int64_t d = 0; d < dim; ++d) out[d] = double(widen(row[d]));
}

// Four keys for one query; the room behind dim is zero up to a whole vector.
inline void dots_wide(const double* q, const double* k, int64_t line, double* out) {
    Wide sums[4] = {};
    for (int64_t d = 0; d < line; d += kWide) {
        const Wide at = load_wide(q + d);
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) sums[j] += at * load_wide(k + j * line + d);
    }
    for (int j = 0; j < 4; ++j) {
        out[j] = 0;
        for (int64_t i = 0; i < kWide; ++i) out[j] += sums[j][i];
    }
}

template <class T>
int64_t run(const char* query, const char* keys, const int64_t* begins, const int64_t* ends, int64_t* out,
            int64_t heads, int64_t group, int64_t rows, int64_t dim, const int64_t* query_strides,
            const int64_t* key_strides, int threads) {
    const int64_t line = (dim + kWide - 1) / kWide * kWide, each = group * rows;
    const int64_t blocks = (each + kRows - 1) / kRows, tasks = heads * blocks;
    std::vector<double> room(threads * (kRows + 4) * line);
    int64_t next = 0;
#pragma omp parallel for schedule(static, 1) num_threads(threads) if (threads > 1)
    for (int slot = 0; slot < threads; ++slot) {
        double *q = room.data() + slot * (kRows + 4) * line, *k = q + kRows * line;
        for (;;) {
            int64_t at;
#pragma omp atomic capture
            at = next++;
            if (at >= tasks) break;
            const int64_t head = at / blocks, first = at % blocks * kRows, count = std::min(kRows, each - first);
            double best[kRows];
            int64_t found[kRows] = {}, begin = std::numeric_limits<int64_t>::max(), end = 0;
            for (int64_t i = 0; i < count; ++i) {
                const int64_t g = (first + i) / rows, t = (first + i) % rows;
                to_doubles<T>(query + (head * group + g) * query_strides[0] + t * query_strides[1], dim, q + i * line);
                best[i] = -std::numeric_limits<double>::infinity();
                begin = std::min(begin, begins[t]);
                end = std::max(end, ends[t]);
            }
            for (int64_t key = begin; key < end; key += 4) {
                for (int64_t j = 0; j < 4; ++j)  // beyond the end the last key stands in, and is not looked at
                    to_doubles<T>(keys + head * key_strides[0] + std::min(key + j, end - 1) * key_strides[1], dim,
                                  k + j * line);
                for (int64_t i = 0; i < count; ++i) {
                    const int64_t t = (first + i) % rows;
                    if (key + 4 <= begins[t] || key >= ends[t]) continue;
                    double dot[4];
                    dots_wide(q + i * line, k, line, dot);
                    for (int64_t j = std::max<int64_t>(0, begins[t] - key); j < std::min<int64_t>(4, ends[t] - key); ++j)
                        // A NaN is the largest, as for torch; of equals the first stays.
                        if (dot[j] > best[i] || (dot[j] != dot[j] && best[i] == best[i])) {
                            best[i] = dot[j];
                            found[i] = key + j;
                        }
                }
            }
            for (int64_t i = 0; i < count; ++i)
                out[(head * group + (first + i) / rows) * rows + (first + i) % rows] = found[i];
        }
    }
    return kDone;
}

}  // namespace
}  // namespace sparsemm

// query: (heads * group, rows) of dim; keys: (heads, length) of dim; strides in bytes; begins, ends: (rows), row t sees
// keys begins[t] ... ends[t] - 1; out: (heads * group, rows), 0 for a row that sees none. dtype as in ragged decode.
SPARSEMM_EXPORT int64_t sparsemm_argmax_rows(int dtype, const char* query, const char* keys, const int64_t* begins,
                                             const int64_t* ends, int64_t* out, int64_t heads, int64_t group,
                                             int64_t rows, int64_t length, int64_t dim, const int64_t* query_strides,
                                             const int64_t* key_strides, int threads) {
    using namespace sparsemm;
    for (int64_t t = 0; t < rows; ++t)
        if (begins[t] < 0 || ends[t] > length) return t;
    const auto as = [&](auto type) {
        return run<decltype(type)>(query, keys, begins, ends, out, heads, group, rows, dim, query_strides, key_strides,
                                   threads);
    };
    try {
        return dtype == 0 ? as(float()) : dtype == 1 ? as(Half()) : as(BFloat());
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
}

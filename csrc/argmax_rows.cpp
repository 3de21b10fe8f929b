// Finds the key with the largest dot product for each query row, among the keys that the row attends to.
#include <algorithm>
#include <limits>
#include <new>
#include <vector>

#include "rows.h"

namespace sparsemm {
namespace {

// Products and sums are in double: those of fp32 numbers are exact, so that the winner depends neither on the order of
// a sum nor on the width of a vector or the number of threads.
constexpr int kWide = kLanes / 2;
typedef double Wide __attribute__((vector_size(8 * kWide)));
typedef int64_t Whole __attribute__((vector_size(8 * kWide)));

constexpr int64_t kRows = 8;          // query rows that read a tile of keys together
constexpr int64_t kKeys = 2 * kWide;  // keys of a tile
constexpr int64_t kTask = 64;         // query rows of one task, which read the keys together

inline Wide load_wide(const double* from) { Wide v; std::memcpy(&v, from, sizeof v); return v; }

// The best key of each lane so far; lane i of vector j compares keys i + j * kWide of every tile.
struct Best {
    Wide dot[2];
    Whole key[2];
};

// q: R rows of dim; k: (dim, kKeys), the tile whose keys begin at `first`; row r has keys begins[r] ... ends[r] - 1.
template <int R>
void look(const double* q, const double* k, int64_t dim, int64_t first, const int64_t* begins, const int64_t* ends,
          Best* best) {
    Wide sums[R][2] = {};
    for (int64_t d = 0; d < dim; ++d) {
        const Wide k0 = load_wide(k + d * kKeys), k1 = load_wide(k + d * kKeys + kWide);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            sums[r][0] += q[r * dim + d] * k0;
            sums[r][1] += q[r * dim + d] * k1;
        }
    }
    for (int r = 0; r < R; ++r)
        for (int j = 0; j < 2; ++j) {
            Whole at;
            for (int i = 0; i < kWide; ++i) at[i] = first + j * kWide + i;
            const Wide had = best[r].dot[j], got = sums[r][j];
            // A NaN is the largest, as in torch; among equal keys the first one wins.
            const Whole better = ~(got <= had) & (had == had) & (at >= begins[r]) & (at < ends[r]);
            best[r].dot[j] = better ? got : had;
            best[r].key[j] = better ? at : best[r].key[j];
        }
}

// The winner among the lanes: a NaN, else the largest, the first among equal keys.
inline int64_t winner(const Best& best) {
    double top = -std::numeric_limits<double>::infinity();
    int64_t key = 0;
    for (int j = 0; j < 2; ++j)
        for (int i = 0; i < kWide; ++i) {
            const double dot = best.dot[j][i];
            const int64_t at = best.key[j][i];
            if (at < 0) continue;  // this lane has no key above -inf
            const bool nan = dot != dot, had = top != top;
            if (nan != had ? nan : (nan || dot == top) ? at < key : dot > top) {
                top = dot;
                key = at;
            }
        }
    return key;
}

template <class T>
int64_t run(const char* query, const char* keys, const int64_t* begins, const int64_t* ends, int64_t* out,
            int64_t heads, int64_t group, int64_t rows, int64_t dim, const int64_t* query_strides,
            const int64_t* key_strides, int threads) {
    const int64_t each = group * rows, blocks = (each + kTask - 1) / kTask, tasks = heads * blocks;
    threads = int(std::max<int64_t>(1, std::min<int64_t>(threads, tasks)));
    std::vector<double> room(threads * (kTask + kKeys) * dim);
    int64_t next = 0;
#pragma omp parallel for schedule(static, 1) num_threads(threads) if (threads > 1)
    for (int slot = 0; slot < threads; ++slot) {
        double *q = room.data() + slot * (kTask + kKeys) * dim, *k = q + kTask * dim;
        for (;;) {
            int64_t at;
#pragma omp atomic capture
            at = next++;
            if (at >= tasks) break;
            const int64_t head = at / blocks, first = at % blocks * kTask, count = std::min(kTask, each - first);
            int64_t from[kTask], to[kTask], low = std::numeric_limits<int64_t>::max(), high = 0;
            Best best[kTask];
            for (int64_t i = 0; i < count; ++i) {
                const int64_t g = (first + i) / rows, t = (first + i) % rows;
                const T* row = reinterpret_cast<const T*>(query + (head * group + g) * query_strides[0] +
                                                          t * query_strides[1]);
                for (int64_t d = 0; d < dim; ++d) q[i * dim + d] = double(widen(row[d]));
                from[i] = begins[t];
                to[i] = ends[t];
                low = std::min(low, from[i]);
                high = std::max(high, to[i]);
                for (int j = 0; j < 2; ++j) {
                    best[i].dot[j] = Wide{} - std::numeric_limits<double>::infinity();
                    best[i].key[j] = Whole{} - 1;
                }
            }
            for (int64_t key = low; key < high; key += kKeys) {
                for (int64_t j = 0; j < kKeys; ++j) {  // beyond the end the last key is repeated and ignored
                    const T* row = reinterpret_cast<const T*>(keys + head * key_strides[0] +
                                                              std::min(key + j, high - 1) * key_strides[1]);
                    for (int64_t d = 0; d < dim; ++d) k[d * kKeys + j] = double(widen(row[d]));
                }
                int64_t i = 0;
                for (; i + kRows <= count; i += kRows)
                    look<kRows>(q + i * dim, k, dim, key, from + i, to + i, best + i);
                for (; i < count; ++i) look<1>(q + i * dim, k, dim, key, from + i, to + i, best + i);
            }
            for (int64_t i = 0; i < count; ++i)
                out[(head * group + (first + i) / rows) * rows + (first + i) % rows] = winner(best[i]);
        }
    }
    return kDone;
}

}  // namespace
}  // namespace sparsemm

// query: (heads * group, rows) of dim; keys: (heads, length) of dim; strides in bytes; begins, ends: (rows), row t
// attends to keys begins[t] ... ends[t] - 1; out: (heads * group, rows), 0 for a row without keys.
// dtype as in ragged decode.
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

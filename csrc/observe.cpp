// Computes SnapKV's observation scores of a prompt's last rows without a matrix of weights.
#include <algorithm>
#include <new>
#include <vector>

#include "rows.h"

namespace sparsemm {
namespace {

struct Prompt {
    const char *query, *keys;
    const uint8_t* valid;
    int64_t batch, heads, group, window, length, dim;
    const int64_t *query_strides, *key_strides;  // of batch row, head and position, in bytes
    float scaling;
};

constexpr int64_t kNarrow = 64;  // below this head dimension keys are turned into columns, which then costs little

// Scratch of one thread: the window's queries as floats, their logits over one tile of keys, and keys as floats: four
// rows and zeros, or the tile's columns.
struct Tile {
    Floats room;
    float *query, *logits, *wide, *zeros;
    explicit Tile(const Prompt& p)
        : room(whole_lines(p.window * p.dim) + p.window * kTile + std::max(5 * whole_lines(p.dim), columns(p))),
          query(room.at), logits(query + whole_lines(p.window * p.dim)), wide(logits + p.window * kTile),
          zeros(wide + 4 * whole_lines(p.dim)) {}
    static int64_t columns(const Prompt& p) { return p.dim < kNarrow ? p.dim * kTile : 0; }
};

// head counts query heads over all batch rows.
template <class T>
void load_queries(const Prompt& p, int64_t head, Tile& tile) {
    const int64_t per_row = p.heads * p.group;
    const char* from = p.query + head / per_row * p.query_strides[0] + head % per_row * p.query_strides[1];
    for (int64_t r = 0; r < p.window; ++r) {
        const T* q = reinterpret_cast<const T*>(from + r * p.query_strides[2]);
        for (int64_t d = 0; d < p.dim; ++d) tile.query[r * p.dim + d] = widen(q[d]) * p.scaling;
    }
}

// Logits of R rows, over the tile's keys: to[r * kTile + i] = q_r . k_i.
template <int R>
void outer(const float* query, const float* keys, int64_t dim, float* to) {
    for (int64_t at = 0; at < kTile; at += 2 * kLanes) {
        Vector sums[R][2] = {};
        for (int64_t d = 0; d < dim; ++d) {
            const Vector k0 = load(keys + d * kTile + at), k1 = load(keys + d * kTile + at + kLanes);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                sums[r][0] += query[r * dim + d] * k0;
                sums[r][1] += query[r * dim + d] * k1;
            }
        }
        for (int r = 0; r < R; ++r) {
            store(to + r * kTile + at, sums[r][0]);
            store(to + r * kTile + at + kLanes, sums[r][1]);
        }
    }
}

// Logits (window, kTile) of keys [begin, begin + size); -inf for masked keys and beyond the keys.
template <class T>
void tile_logits(const Prompt& p, int64_t segment, int64_t begin, int64_t size, Tile& tile) {
    const char* from = p.keys + segment / p.heads * p.key_strides[0] + segment % p.heads * p.key_strides[1];
    const auto key = [&](int64_t i) { return reinterpret_cast<const T*>(from + (begin + i) * p.key_strides[2]); };
    if (p.dim < kNarrow) {
        for (int64_t i = 0; i < kTile; ++i) {  // beyond the keys the last one is repeated and ignored
            const T* row = key(std::min(i, size - 1));
            for (int64_t d = 0; d < p.dim; ++d) tile.wide[d * kTile + i] = widen(row[d]);
        }
        int64_t r = 0;
        for (; r + 8 <= p.window; r += 8) outer<8>(tile.query + r * p.dim, tile.wide, p.dim, tile.logits + r * kTile);
        for (; r < p.window; ++r) outer<1>(tile.query + r * p.dim, tile.wide, p.dim, tile.logits + r * kTile);
    } else {
        const float* rows[4];
        for (int64_t i = 0; i < size; i += 4) {
            for (int64_t j = 0; j < 4; ++j)
                rows[j] = i + j < size ? row_of(key(i + j), tile.wide + j * whole_lines(p.dim), p.dim) : tile.zeros;
            for (int64_t r = 0; r < p.window; r += 4) {
                const float* q = tile.query + r * p.dim;
                float* to = tile.logits + r * kTile + i;
                switch (p.window - r) {
                    case 1: dots<1>(q, rows, p.dim, to); break;
                    case 2: dots<2>(q, rows, p.dim, to); break;
                    case 3: dots<3>(q, rows, p.dim, to); break;
                    default: dots<4>(q, rows, p.dim, to);
                }
            }
        }
    }
    const uint8_t* valid = p.valid + segment / p.heads * p.length + begin;
    bool all = size == kTile;
    for (int64_t i = 0; i < size; ++i) all &= valid[i] != 0;
    if (all && begin + size <= p.length - p.window) return;
    for (int64_t r = 0; r < p.window; ++r) {
        const int64_t seen = std::min(size, p.length - p.window + r + 1 - begin);  // causal
        float* to = tile.logits + r * kTile;
        for (int64_t i = 0; i < kTile; ++i)
            if (i >= seen || !valid[i]) to[i] = kLowest;
    }
}

// Maximum over all keys and sum of weights of every row of one query head: (window) each.
template <class T>
void statistics(const Prompt& p, int64_t head, Tile& tile, float* maximum, float* sum) {
    std::fill(maximum, maximum + p.window, kLowest);
    std::fill(sum, sum + p.window, 0.0f);
    load_queries<T>(p, head, tile);
    for (int64_t begin = 0; begin < p.length; begin += kTile) {
        tile_logits<T>(p, head / p.group, begin, std::min(kTile, p.length - begin), tile);
        for (int64_t r = 0; r < p.window; ++r) {
            const float* x = tile.logits + r * kTile;
            Vector tops = load(x);
            for (int64_t i = kLanes; i < kTile; i += kLanes) {
                const Vector other = load(x + i);
                tops = other > tops ? other : tops;
            }
            float top = maximum[r];
            for (int i = 0; i < kLanes; ++i) top = tops[i] > top ? tops[i] : top;
            const float shift = top == kLowest ? 0.0f : top;
            float total = 0;
#pragma omp simd reduction(+ : total)
            for (int64_t i = 0; i < kTile; ++i) total += exp_nonpositive(x[i] - shift);
            sum[r] = sum[r] * exp_nonpositive(maximum[r] - shift) + total;
            maximum[r] = top;
        }
    }
}

// Mean weight of keys [begin, begin + size) over the rows and heads of one query group.
template <class T>
void mean_weights(const Prompt& p, int64_t segment, int64_t begin, int64_t size, Tile& tile, const float* maximum,
                  const float* sum, float* out) {
    float mean[kTile] = {};
    for (int64_t g = 0; g < p.group; ++g) {
        const int64_t head = segment * p.group + g;
        load_queries<T>(p, head, tile);
        tile_logits<T>(p, segment, begin, size, tile);
        for (int64_t r = 0; r < p.window; ++r) {
            const float top = maximum[head * p.window + r], total = sum[head * p.window + r];
            if (!(total > 0.0f && total <= std::numeric_limits<float>::max())) continue;  // no keys, or NaN
            const float* x = tile.logits + r * kTile;
            const float factor = 1.0f / total;
#pragma omp simd
            for (int64_t i = 0; i < kTile; ++i) mean[i] += exp_nonpositive(x[i] - top) * factor;
        }
    }
    const float share = 1.0f / float(p.window * p.group);
    for (int64_t i = 0; i < size; ++i) out[i] = mean[i] * share;
}

constexpr int64_t kBlock = 512;  // keys of one task of the second pass: queries are converted once for it

template <class T>
int64_t run(const Prompt& p, int64_t pooling, float* out, int threads) {
    const int64_t segments = p.batch * p.heads, queries = segments * p.group, outside = p.length - p.window;
    const int64_t blocks = (outside + kBlock - 1) / kBlock;
    std::vector<float> maximum(queries * p.window), sum(queries * p.window), mean(segments * outside);
    std::vector<Tile> tiles;
    for (int t = 0; t < threads; ++t) tiles.emplace_back(p);

    const auto shared_out = [&](int64_t tasks, auto&& task) {
        int64_t next = 0;
#pragma omp parallel for schedule(static, 1) num_threads(threads) if (threads > 1)
        for (int slot = 0; slot < threads; ++slot) {
            for (;;) {
                int64_t at;
#pragma omp atomic capture
                at = next++;
                if (at >= tasks) break;
                task(at, tiles[slot]);
            }
        }
    };
    if (outside > 0) {
        shared_out(queries, [&](int64_t head, Tile& tile) {
            statistics<T>(p, head, tile, &maximum[head * p.window], &sum[head * p.window]);
        });
        shared_out(segments * blocks, [&](int64_t at, Tile& tile) {
            const int64_t segment = at / blocks, first = at % blocks * kBlock;
            for (int64_t begin = first; begin < std::min(outside, first + kBlock); begin += kTile)
                mean_weights<T>(p, segment, begin, std::min(kTile, outside - begin), tile, maximum.data(), sum.data(),
                                &mean[segment * outside + begin]);
        });
    }
    for (int64_t s = 0; s < segments; ++s) {
        const uint8_t* valid = p.valid + s / p.heads * p.length;
        const float* from = mean.data() + s * outside;
        for (int64_t i = 0; i < p.length; ++i) {
            float near = 0;
            for (int64_t j = std::max<int64_t>(0, i - pooling / 2); j <= std::min(outside - 1, i + pooling / 2); ++j)
                near += from[j];
            out[s * p.length + i] = i < outside && valid[i] ? near / float(pooling) : kLowest;
        }
    }
    return kDone;
}

}  // namespace
}  // namespace sparsemm

// query: (batch, heads * group, window) rows of dim; keys: (batch, heads, length) of them; strides in bytes; valid:
// (batch, length); out: (batch, heads, length). dtype as in ragged decode. window is at most length.
SPARSEMM_EXPORT int64_t sparsemm_observe(int dtype, const char* query, const char* keys, const uint8_t* valid,
                                         float* out, int64_t batch, int64_t heads, int64_t group, int64_t window,
                                         int64_t length, int64_t dim, const int64_t* query_strides,
                                         const int64_t* key_strides, int64_t pooling, float scaling, int threads) {
    using namespace sparsemm;
    const Prompt p{query, keys, valid, batch, heads, group, window, length, dim, query_strides, key_strides, scaling};
    try {
        return dtype == 0   ? run<float>(p, pooling, out, threads)
               : dtype == 1 ? run<Half>(p, pooling, out, threads)
                            : run<BFloat>(p, pooling, out, threads);
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
}

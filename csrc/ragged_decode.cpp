// Attention of one query token per head over that head's own rows of the slab.
#include <algorithm>
#include <cmath>
#include <limits>
#include <new>
#include <vector>

#include "common.h"

namespace sparsemm {
namespace {

constexpr int64_t kPiece = 256;  // rows of one task; fixed, so that the result does not depend on the thread count
constexpr int64_t kTile = 64;    // rows between two updates of the running maximum
constexpr float kLowest = -std::numeric_limits<float>::infinity();

// Zeros that start at a cache line, as everything in them should: a vector across two lines costs twice.
struct Floats {
    std::vector<float> held;
    float* at;
    explicit Floats(int64_t count) : held(count + 16) {
        at = held.data();
        while (reinterpret_cast<uintptr_t>(at) % 64) ++at;
    }
};

constexpr int64_t whole_lines(int64_t count) { return (count + 15) / 16 * 16; }

struct Piece { int64_t stretch, begin, end; };

// exp for x <= 0: below 1e-38 it is 0, NaN stays NaN. Cody-Waite reduction, so that a loop over it is vectorised.
inline float exp_nonpositive(float x) {
    const float magic = 12582912.0f;  // adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits
    const float shifted = x * 1.44269504f + magic;
    const float n = shifted - magic;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const float scaled = p * float_of((bits_of(shifted) << 23) + 0x3F800000u);
    return x < -87.0f ? 0.0f : scaled;
}

#ifdef __AVX512F__
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef float Four __attribute__((vector_size(16)));

inline Vector load(const float* from) { Vector v; std::memcpy(&v, from, sizeof v); return v; }
inline void store(float* to, const Vector& v) { std::memcpy(to, &v, sizeof v); }

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SPARSEMM_SHUFFLE 1
#endif
#endif

// The four sums over the lanes of a, b, c and d.
inline void lane_sums(const Vector& a, const Vector& b, const Vector& c, const Vector& d, float* out) {
#if defined(SPARSEMM_SHUFFLE) && defined(__AVX512F__)
#define SPARSEMM_PICK(x, y, i, j, k, l)                                                                          \
    __builtin_shufflevector(x, y, i, j, k, l, i + 4, j + 4, k + 4, l + 4, i + 8, j + 8, k + 8, l + 8, i + 12, j + 12, \
                            k + 12, l + 12)
#elif defined(SPARSEMM_SHUFFLE) && defined(__AVX__)
#define SPARSEMM_PICK(x, y, i, j, k, l) __builtin_shufflevector(x, y, i, j, k, l, i + 4, j + 4, k + 4, l + 4)
#elif defined(SPARSEMM_SHUFFLE)
#define SPARSEMM_PICK(x, y, i, j, k, l) __builtin_shufflevector(x, y, i, j, k, l)
#endif
#ifdef SPARSEMM_SHUFFLE
    constexpr int w = kLanes;  // lane w + i of a pair is lane i of its second vector
    const Vector ab = SPARSEMM_PICK(a, b, 0, w, 2, w + 2) + SPARSEMM_PICK(a, b, 1, w + 1, 3, w + 3);
    const Vector cd = SPARSEMM_PICK(c, d, 0, w, 2, w + 2) + SPARSEMM_PICK(c, d, 1, w + 1, 3, w + 3);
    const Vector all = SPARSEMM_PICK(ab, cd, 0, 1, w, w + 1) + SPARSEMM_PICK(ab, cd, 2, 3, w + 2, w + 3);
    Four part[kLanes / 4], sum;
    std::memcpy(part, &all, sizeof all);
    sum = part[0];
    for (int i = 1; i < kLanes / 4; ++i) sum += part[i];
    std::memcpy(out, &sum, sizeof sum);
#undef SPARSEMM_PICK
#else
    const Vector* each[4] = {&a, &b, &c, &d};
    for (int j = 0; j < 4; ++j) {
        out[j] = 0;
        for (int i = 0; i < kLanes; ++i) out[j] += (*each[j])[i];
    }
#endif
}

// Logits of four rows for Q queries: out[g * kTile + j] = q_g . k_j. Every load of a key serves all of them.
template <int Q>
inline void dots(const float* q, const float* const* k, int64_t dim, float* out) {
    Vector sums[Q][4] = {};
    int64_t d = 0;
    for (; d + kLanes <= dim; d += kLanes) {
        const Vector k0 = load(k[0] + d), k1 = load(k[1] + d), k2 = load(k[2] + d), k3 = load(k[3] + d);
#pragma GCC unroll 4
        for (int g = 0; g < Q; ++g) {
            const Vector at = load(q + g * dim + d);
            sums[g][0] += at * k0;
            sums[g][1] += at * k1;
            sums[g][2] += at * k2;
            sums[g][3] += at * k3;
        }
    }
#pragma GCC unroll 4
    for (int g = 0; g < Q; ++g) lane_sums(sums[g][0], sums[g][1], sums[g][2], sums[g][3], out + g * kTile);
    if (d == dim) return;
    for (int g = 0; g < Q; ++g)
        for (int64_t e = d; e < dim; ++e)
            for (int j = 0; j < 4; ++j) out[g * kTile + j] += q[g * dim + e] * k[j][e];
}

// acc_g += p_g0 v_0 + ... + p_g3 v_3 for Q queries, with p_gj at p[g * kTile + j].
template <int Q>
inline void add_rows(const float* p, const float* const* v, int64_t dim, float* acc) {
    float weight[Q][4];  // copied, because a store to acc might change p for all the compiler knows
    for (int g = 0; g < Q; ++g) std::memcpy(weight[g], p + g * kTile, sizeof weight[g]);
    int64_t d = 0;
    for (; d + kLanes <= dim; d += kLanes) {
        const Vector v0 = load(v[0] + d), v1 = load(v[1] + d), v2 = load(v[2] + d), v3 = load(v[3] + d);
#pragma GCC unroll 4
        for (int g = 0; g < Q; ++g) {
            const float* w = weight[g];
            Vector sum = load(acc + g * dim + d);
            sum += w[0] * v0;
            sum += w[1] * v1;
            sum += w[2] * v2;
            sum += w[3] * v3;
            store(acc + g * dim + d, sum);
        }
    }
    if (d == dim) return;
    for (int g = 0; g < Q; ++g)
        for (int64_t e = d; e < dim; ++e)
            for (int j = 0; j < 4; ++j) acc[g * dim + e] += weight[g][j] * v[j][e];
}

// Four rows on their way from memory while the tile before them is computed.
template <class T>
inline void fetch(const T* row, int64_t dim) {
    const char* from = reinterpret_cast<const char*>(row);
    for (int64_t at = 0; at < 4 * dim * int64_t(sizeof(T)); at += 64) __builtin_prefetch(from + at);
}

// Streaming softmax over rows [begin, end) for the `group` queries that share them. query (group, dim) is scaled
// already; out: maximum (group), sum of weights (group), weighted sum of values (group, dim).
template <class T>
void attend_piece(const float* query, const T* keys, const T* values, int64_t begin, int64_t end, int64_t group,
                  int64_t dim, const float* zeros, float* logits, float* room, float* maximum, float* sum,
                  float* acc) {
    std::fill(maximum, maximum + group, kLowest);
    std::fill(sum, sum + group, 0.0f);
    std::fill(acc, acc + group * dim, 0.0f);
    const float* rows[4];
    const int64_t line = whole_lines(dim);
    for (int64_t tile = begin; tile < end; tile += kTile) {
        const int64_t size = std::min(kTile, end - tile);
        for (int64_t i = 0; i < size; i += 4) {
            fetch(values + (tile + i) * dim, dim);
            for (int64_t j = 0; j < 4; ++j)
                rows[j] = i + j < size ? row_of(keys + (tile + i + j) * dim, room + j * line, dim) : zeros;
            for (int64_t g = 0; g < group; g += 4) {
                const float* q = query + g * dim;
                float* to = logits + g * kTile + i;
                switch (group - g) {
                    case 1: dots<1>(q, rows, dim, to); break;
                    case 2: dots<2>(q, rows, dim, to); break;
                    case 3: dots<3>(q, rows, dim, to); break;
                    default: dots<4>(q, rows, dim, to);
                }
            }
        }
        for (int64_t g = 0; g < group; ++g) {
            float* p = logits + g * kTile;
            // Beyond the rows there is -inf, whose weight is 0: only whole vectors, and whole fours below.
            const int64_t padded = (size + kLanes - 1) / kLanes * kLanes;
            std::fill(p + size, p + padded, kLowest);
            Vector tops = load(p);
            for (int64_t i = kLanes; i < padded; i += kLanes) {
                const Vector other = load(p + i);
                tops = other > tops ? other : tops;
            }
            float top = maximum[g];
            for (int i = 0; i < kLanes; ++i) top = tops[i] > top ? tops[i] : top;
            const float shift = top == kLowest ? 0.0f : top;  // or a tile of -inf would become NaN
            const float rescale = exp_nonpositive(maximum[g] - shift);
            float total = 0;
#pragma omp simd reduction(+ : total)
            for (int64_t i = 0; i < padded; ++i) {
                p[i] = exp_nonpositive(p[i] - shift);
                total += p[i];
            }
            sum[g] = sum[g] * rescale + total;
            if (rescale != 1.0f)
                for (int64_t d = 0; d < dim; ++d) acc[g * dim + d] *= rescale;
            maximum[g] = top;
        }
        for (int64_t i = 0; i < size; i += 4) {
            if (tile + kTile + i < end) fetch(keys + (tile + kTile + i) * dim, dim);
            for (int64_t j = 0; j < 4; ++j)
                rows[j] = i + j < size ? row_of(values + (tile + i + j) * dim, room + j * line, dim) : zeros;
            for (int64_t g = 0; g < group; g += 4) {
                const float* p = logits + g * kTile + i;
                float* to = acc + g * dim;
                switch (group - g) {
                    case 1: add_rows<1>(p, rows, dim, to); break;
                    case 2: add_rows<2>(p, rows, dim, to); break;
                    case 3: add_rows<3>(p, rows, dim, to); break;
                    default: add_rows<4>(p, rows, dim, to);
                }
            }
        }
    }
}

template <class T>
int64_t run(const T* query, const T* keys, const T* values, const int64_t* starts, const int64_t* lengths, T* out,
            int64_t stretches, int64_t group, int64_t dim, float scaling, int threads) {
    std::vector<Piece> pieces;
    std::vector<int64_t> first(stretches + 1);
    int64_t total = 0;
    for (int64_t s = 0; s < stretches; ++s) {
        first[s] = int64_t(pieces.size());
        for (int64_t at = 0; at < lengths[s]; at += kPiece)
            pieces.push_back({s, starts[s] + at, starts[s] + std::min(at + kPiece, lengths[s])});
        total += lengths[s];
    }
    first[stretches] = int64_t(pieces.size());
    const int64_t count = int64_t(pieces.size()), width = whole_lines(group * (dim + 2));
    const int64_t scratch = whole_lines(group * dim) + group * kTile + 5 * whole_lines(dim);
    if (total * dim * int64_t(2 * sizeof(T)) < kSerialBytes || count < 2) threads = 1;
    Floats partial(count * width);
    const int team = threads;
    Floats room(team * scratch);

    // Every piece costs about the same, so whoever is free takes the next one and no long head sets the pace.
    // Always the whole team, as torch's own operations: another size would make the runtime start threads anew.
    int64_t next = 0;
#pragma omp parallel for schedule(static, 1) num_threads(team) if (team > 1)
    for (int slot = 0; slot < team; ++slot) {
        float* own = room.at + slot * scratch;
        float *scaled = own, *logits = own + whole_lines(group * dim), *wide = logits + group * kTile;
        const float* zeros = wide + 4 * whole_lines(dim);
        for (;;) {
            int64_t at;
#pragma omp atomic capture
            at = next++;
            if (at >= count) break;
            const Piece& piece = pieces[at];
            const T* q = query + piece.stretch * group * dim;
            for (int64_t i = 0; i < group * dim; ++i) scaled[i] = widen(q[i]) * scaling;
            float *acc = partial.at + at * width, *maximum = acc + group * dim;
            attend_piece(scaled, keys, values, piece.begin, piece.end, group, dim, zeros, logits, wide, maximum,
                         maximum + group, acc);
        }
    }

    // Partial results (m_i, l_i, a_i) merge to sum_i e^(m_i - M) a_i / sum_i e^(m_i - M) l_i.
    std::vector<float> merged(dim);
    for (int64_t s = 0; s < stretches; ++s) {
        for (int64_t g = 0; g < group; ++g) {
            float top = kLowest, sum = 0;
            std::fill(merged.begin(), merged.end(), 0.0f);
            const float* maxima = partial.at + group * dim + g;
            for (int64_t i = first[s]; i < first[s + 1]; ++i) top = std::max(top, maxima[i * width]);
            const float shift = top == kLowest ? 0.0f : top;
            for (int64_t i = first[s]; i < first[s + 1]; ++i) {
                const float weight = exp_nonpositive(maxima[i * width] - shift);
                sum += weight * maxima[i * width + group];
                const float* acc = partial.at + i * width + g * dim;
                for (int64_t d = 0; d < dim; ++d) merged[d] += weight * acc[d];
            }
            const float factor = first[s] == first[s + 1] ? 0.0f : 1.0f / sum;  // no rows: zeros
            T* to = out + (s * group + g) * dim;
            for (int64_t d = 0; d < dim; ++d) narrow(merged[d] * factor, to + d);
        }
    }
    return kDone;
}

}  // namespace
}  // namespace sparsemm

// query, out: (stretches, group, dim); keys, values: (rows, dim); starts, lengths: (stretches). dtype 0 is float,
// 1 half, 2 bfloat16. Nothing is read before all stretches are known to lie inside the slab.
SPARSEMM_EXPORT int64_t sparsemm_ragged_decode(int dtype, const void* query, const void* keys, const void* values,
                                               const int64_t* starts, const int64_t* lengths, void* out,
                                               int64_t stretches, int64_t group, int64_t dim, int64_t rows,
                                               float scaling, int threads) {
    using namespace sparsemm;
    for (int64_t s = 0; s < stretches; ++s)
        if (starts[s] < 0 || lengths[s] < 0 || lengths[s] > rows || starts[s] > rows - lengths[s]) return s;
    const auto as = [&](auto type) {
        using T = decltype(type);
        return run(static_cast<const T*>(query), static_cast<const T*>(keys), static_cast<const T*>(values), starts,
                   lengths, static_cast<T*>(out), stretches, group, dim, scaling, threads);
    };
    try {
        return dtype == 0 ? as(float()) : dtype == 1 ? as(Half()) : as(BFloat());
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
}

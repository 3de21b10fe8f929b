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

// Logits of `count` (at most 4) rows; four at once give four independent sums.
inline void dots(const float* q, const float* const* k, int64_t count, int64_t dim, float* out) {
    if (count == 4) {
        const float *k0 = k[0], *k1 = k[1], *k2 = k[2], *k3 = k[3];
        float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
        for (int64_t d = 0; d < dim; ++d) {
            s0 += q[d] * k0[d];
            s1 += q[d] * k1[d];
            s2 += q[d] * k2[d];
            s3 += q[d] * k3[d];
        }
        out[0] = s0, out[1] = s1, out[2] = s2, out[3] = s3;
        return;
    }
    for (int64_t i = 0; i < count; ++i) {
        float s = 0;
#pragma omp simd reduction(+ : s)
        for (int64_t d = 0; d < dim; ++d) s += q[d] * k[i][d];
        out[i] = s;
    }
}

// acc += p[0] v[0] + ...; four rows at once touch the sum a quarter as often.
inline void add_rows(const float* p, const float* const* v, int64_t count, int64_t dim, float* acc) {
    if (count == 4) {
        const float *v0 = v[0], *v1 = v[1], *v2 = v[2], *v3 = v[3];
        const float p0 = p[0], p1 = p[1], p2 = p[2], p3 = p[3];
#pragma omp simd
        for (int64_t d = 0; d < dim; ++d) acc[d] += (p0 * v0[d] + p1 * v1[d]) + (p2 * v2[d] + p3 * v3[d]);
        return;
    }
    for (int64_t i = 0; i < count; ++i) {
#pragma omp simd
        for (int64_t d = 0; d < dim; ++d) acc[d] += p[i] * v[i][d];
    }
}

// Streaming softmax over rows [begin, end) for the `group` queries that share them. query (group, dim) is scaled
// already; out: maximum (group), sum of weights (group), weighted sum of values (group, dim).
template <class T>
void attend_piece(const float* query, const T* keys, const T* values, int64_t begin, int64_t end, int64_t group,
                  int64_t dim, float* logits, float* room, float* maximum, float* sum, float* acc) {
    std::fill(maximum, maximum + group, kLowest);
    std::fill(sum, sum + group, 0.0f);
    std::fill(acc, acc + group * dim, 0.0f);
    const float* rows[4];
    for (int64_t tile = begin; tile < end; tile += kTile) {
        const int64_t size = std::min(kTile, end - tile);
        for (int64_t i = 0; i < size; i += 4) {
            const int64_t count = std::min<int64_t>(4, size - i);
            for (int64_t j = 0; j < count; ++j) rows[j] = row_of(keys + (tile + i + j) * dim, room + j * dim, dim);
            for (int64_t g = 0; g < group; ++g) dots(query + g * dim, rows, count, dim, logits + g * kTile + i);
        }
        for (int64_t g = 0; g < group; ++g) {
            float* p = logits + g * kTile;
            float top = maximum[g];
            for (int64_t i = 0; i < size; ++i) top = p[i] > top ? p[i] : top;
            const float shift = top == kLowest ? 0.0f : top;  // or a tile of -inf would become NaN
            const float rescale = exp_nonpositive(maximum[g] - shift);
            float total = 0;
#pragma omp simd reduction(+ : total)
            for (int64_t i = 0; i < size; ++i) {
                p[i] = exp_nonpositive(p[i] - shift);
                total += p[i];
            }
            sum[g] = sum[g] * rescale + total;
            if (rescale != 1.0f)
                for (int64_t d = 0; d < dim; ++d) acc[g * dim + d] *= rescale;
            maximum[g] = top;
        }
        for (int64_t i = 0; i < size; i += 4) {
            const int64_t count = std::min<int64_t>(4, size - i);
            for (int64_t j = 0; j < count; ++j) rows[j] = row_of(values + (tile + i + j) * dim, room + j * dim, dim);
            for (int64_t g = 0; g < group; ++g) add_rows(logits + g * kTile + i, rows, count, dim, acc + g * dim);
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
    const int64_t count = int64_t(pieces.size()), width = group * (dim + 2);
    const int64_t scratch = group * dim + group * kTile + 4 * dim;
    if (total * dim * int64_t(2 * sizeof(T)) < kSerialBytes || count < 2) threads = 1;
    std::vector<float> partial(count * width);
    const int team = threads;
    std::vector<float> room(team * scratch);

    // Every piece costs about the same, so whoever is free takes the next one and no long head sets the pace.
    // Always the whole team, as torch's own operations: another size would make the runtime start threads anew.
    int64_t next = 0;
#pragma omp parallel for schedule(static, 1) num_threads(team) if (team > 1)
    for (int slot = 0; slot < team; ++slot) {
        float* own = room.data() + slot * scratch;
        float *scaled = own, *logits = own + group * dim, *wide = logits + group * kTile;
        for (;;) {
            int64_t at;
#pragma omp atomic capture
            at = next++;
            if (at >= count) break;
            const Piece& piece = pieces[at];
            const T* q = query + piece.stretch * group * dim;
            for (int64_t i = 0; i < group * dim; ++i) scaled[i] = widen(q[i]) * scaling;
            float* to = partial.data() + at * width;
            attend_piece(scaled, keys, values, piece.begin, piece.end, group, dim, logits, wide, to, to + group,
                         to + 2 * group);
        }
    }

    // Partial results (m_i, l_i, a_i) merge to sum_i e^(m_i - M) a_i / sum_i e^(m_i - M) l_i.
    std::vector<float> merged(dim);
    for (int64_t s = 0; s < stretches; ++s) {
        for (int64_t g = 0; g < group; ++g) {
            float top = kLowest, sum = 0;
            std::fill(merged.begin(), merged.end(), 0.0f);
            for (int64_t i = first[s]; i < first[s + 1]; ++i) top = std::max(top, partial[i * width + g]);
            const float shift = top == kLowest ? 0.0f : top;
            for (int64_t i = first[s]; i < first[s + 1]; ++i) {
                const float* from = partial.data() + i * width;
                const float weight = exp_nonpositive(from[g] - shift);
                sum += weight * from[group + g];
                const float* acc = from + 2 * group + g * dim;
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

// Attention of one query token per head over that head's own rows of the slab.
#include <algorithm>
#include <cmath>
#include <new>
#include <vector>

#include "rows.h"

namespace sparsemm {
namespace {

constexpr int64_t kPiece = 512;  // rows of one task; fixed, so that the result does not depend on the thread count

struct Piece { int64_t segment, begin, end; };

// Streaming softmax over rows [begin, end) for the `group` queries that share them. query (group, dim) is scaled
// already; out: maximum (group), sum of weights (group), weighted sum of values (group, dim).
template <class T>
void attend_piece(const float* query, const T* keys, const T* values, int64_t begin, int64_t end, int64_t group,
                  int64_t dim, const T* zeros, float* logits, float* maximum, float* sum, float* acc) {
    std::fill(maximum, maximum + group, kLowest);
    std::fill(sum, sum + group, 0.0f);
    std::fill(acc, acc + group * dim, 0.0f);
    const T* rows[4];
    for (int64_t tile = begin; tile < end; tile += kTile) {
        const int64_t size = std::min(kTile, end - tile);
        for (int64_t i = 0; i < size; i += 4) {
            fetch_behind(keys + (tile + i) * dim, dim);
            for (int64_t j = 0; j < 4; ++j) rows[j] = i + j < size ? keys + (tile + i + j) * dim : zeros;
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
            // Beyond the rows there is -inf, whose weight is 0, so that vectors, and fours below, are complete.
            const int64_t padded = (size + kLanes - 1) / kLanes * kLanes;
            std::fill(p + size, p + padded, kLowest);
            Vector tops = load(p);
            for (int64_t i = kLanes; i < padded; i += kLanes) {
                const Vector other = load(p + i);
                tops = other > tops ? other : tops;
            }
            float top = maximum[g];
            for (int i = 0; i < kLanes; ++i) top = tops[i] > top ? tops[i] : top;
            const float shift = top == kLowest ? 0.0f : top;  // else a tile of -inf would become NaN
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
            fetch_behind(values + (tile + i) * dim, dim);
            for (int64_t j = 0; j < 4; ++j) rows[j] = i + j < size ? values + (tile + i + j) * dim : zeros;
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
            int64_t segments, int64_t group, int64_t dim, float scaling, int threads) {
    std::vector<Piece> pieces;
    std::vector<int64_t> first(segments + 1);
    int64_t total = 0;
    for (int64_t s = 0; s < segments; ++s) {
        first[s] = int64_t(pieces.size());
        for (int64_t at = 0; at < lengths[s]; at += kPiece)
            pieces.push_back({s, starts[s] + at, starts[s] + std::min(at + kPiece, lengths[s])});
        total += lengths[s];
    }
    first[segments] = int64_t(pieces.size());
    const int64_t count = int64_t(pieces.size()), width = whole_lines(group * (dim + 2));
    const int64_t scratch = whole_lines(group * dim) + group * kTile + whole_lines(dim);
    if (total * dim * int64_t(2 * sizeof(T)) < kSerialBytes || count < 2) threads = 1;
    Floats partial(count * width);
    const int team = threads;
    Floats room(team * scratch);

    // Every piece costs about the same: the next free thread takes the next piece, so that no long head delays all.
    // Always the whole team, as in torch's operations: with another size the runtime would start new threads.
    int64_t next = 0;
#pragma omp parallel for schedule(static, 1) num_threads(team) if (team > 1)
    for (int slot = 0; slot < team; ++slot) {
        float* own = room.at + slot * scratch;
        float *scaled = own, *logits = own + whole_lines(group * dim);
        const T* zeros = reinterpret_cast<const T*>(logits + group * kTile);
        for (;;) {
            int64_t at;
#pragma omp atomic capture
            at = next++;
            if (at >= count) break;
            const Piece& piece = pieces[at];
            const T* q = query + piece.segment * group * dim;
            for (int64_t i = 0; i < group * dim; ++i) scaled[i] = widen(q[i]) * scaling;
            float *acc = partial.at + at * width, *maximum = acc + group * dim;
            attend_piece(scaled, keys, values, piece.begin, piece.end, group, dim, zeros, logits, maximum,
                         maximum + group, acc);
        }
    }

    // Partial results (m_i, l_i, a_i) merge to sum_i e^(m_i - M) a_i / sum_i e^(m_i - M) l_i.
    std::vector<float> merged(dim);
    for (int64_t s = 0; s < segments; ++s) {
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

// query, out: (segments, group, dim); keys, values: (rows, dim); starts, lengths: (segments). dtype 0 is float,
// 1 half, 2 bfloat16. Nothing is read before all segments are known to lie inside the slab.
SPARSEMM_EXPORT int64_t sparsemm_ragged_decode(int dtype, const void* query, const void* keys, const void* values,
                                               const int64_t* starts, const int64_t* lengths, void* out,
                                               int64_t segments, int64_t group, int64_t dim, int64_t rows,
                                               float scaling, int threads) {
    using namespace sparsemm;
    for (int64_t s = 0; s < segments; ++s)
        if (starts[s] < 0 || lengths[s] < 0 || lengths[s] > rows || starts[s] > rows - lengths[s]) return s;
    const auto as = [&](auto type) {
        using T = decltype(type);
        return run(static_cast<const T*>(query), static_cast<const T*>(keys), static_cast<const T*>(values), starts,
                   lengths, static_cast<T*>(out), segments, group, dim, scaling, threads);
    };
    try {
        return dtype == 0 ? as(float()) : dtype == 1 ? as(Half()) : as(BFloat());
    } catch (const std::bad_alloc&) {
        return kNoMemory;
    }
}

// Arithmetic on rows of floats: dot products and sums of several rows at once, and exp, all as vectors.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#if defined(__F16C__) || defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "common.h"

namespace sparsemm {
namespace {

constexpr int64_t kTile = 64;  // rows between two updates of a running maximum
constexpr int64_t kAhead = 8192;  // bytes; a prefetch beyond the end of an array does nothing
constexpr float kLowest = -std::numeric_limits<float>::infinity();

// Zeros aligned to a cache line: loading a vector across two lines costs twice.
struct Floats {
    std::vector<float> held;
    float* at;
    explicit Floats(int64_t count) : held(count + 16) {
        at = held.data();
        while (reinterpret_cast<uintptr_t>(at) % 64) ++at;
    }
};

constexpr int64_t whole_lines(int64_t count) { return (count + 15) / 16 * 16; }

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

// kLanes numbers of a row, as floats.
inline Vector load(const float* from) { Vector v; std::memcpy(&v, from, sizeof v); return v; }
inline Vector load(const BFloat* from) {
    typedef uint16_t Narrow __attribute__((vector_size(2 * kLanes)));
    typedef uint32_t Bits __attribute__((vector_size(4 * kLanes)));
    Narrow bits;
    std::memcpy(&bits, from, sizeof bits);
    return reinterpret_cast<Vector>(__builtin_convertvector(bits, Bits) << 16);
}
inline Vector load(const Half* from) {
#if defined(__AVX512F__)
    return reinterpret_cast<Vector>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#elif defined(__AVX__) && defined(__F16C__)
    return reinterpret_cast<Vector>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#else
    Vector v;
    for (int i = 0; i < kLanes; ++i) v[i] = widen(from[i]);
    return v;
#endif
}
inline void store(float* to, const Vector& v) { std::memcpy(to, &v, sizeof v); }

// The last numbers of a row, fewer than kLanes, followed by zeros.
#if defined(__AVX512BW__) && defined(__AVX512VL__)
inline Vector load_last(const float* from, int64_t count) { return _mm512_maskz_loadu_ps((1u << count) - 1u, from); }
inline Vector load_last(const BFloat* from, int64_t count) {
    const __m512i bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16((1u << count) - 1u, from));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}
inline Vector load_last(const Half* from, int64_t count) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16((1u << count) - 1u, from));
}
inline void store_last(float* to, const Vector& v, int64_t count) {
    _mm512_mask_storeu_ps(to, (1u << count) - 1u, v);
}
#else
template <class T>
inline Vector load_last(const T* from, int64_t count) {
    float held[kLanes] = {};
    for (int64_t i = 0; i < count; ++i) held[i] = widen(from[i]);
    return load(held);
}
inline void store_last(float* to, const Vector& v, int64_t count) {
    float held[kLanes];
    store(held, v);
    for (int64_t i = 0; i < count; ++i) to[i] = held[i];
}
#if defined(__AVX2__) && !defined(__AVX512F__)
inline __m256i first_lanes(int64_t count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(int(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Vector load_last(const float* from, int64_t count) { return _mm256_maskload_ps(from, first_lanes(count)); }
#endif
#endif

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
template <int Q, class T>
inline void dots(const float* q, const T* const* k, int64_t dim, float* out) {
    Vector sums[Q][4] = {};
    const auto add = [&](auto part) {  // `part` reads kLanes numbers or the rest
        const Vector k0 = part(k[0]), k1 = part(k[1]), k2 = part(k[2]), k3 = part(k[3]);
#pragma GCC unroll 4
        for (int g = 0; g < Q; ++g) {
            const Vector at = part(q + g * dim);
            sums[g][0] += at * k0;
            sums[g][1] += at * k1;
            sums[g][2] += at * k2;
            sums[g][3] += at * k3;
        }
    };
    int64_t d = 0;
    for (; d + kLanes <= dim; d += kLanes) add([d](const auto* row) { return load(row + d); });
    if (d < dim) add([d, dim](const auto* row) { return load_last(row + d, dim - d); });
#pragma GCC unroll 4
    for (int g = 0; g < Q; ++g) lane_sums(sums[g][0], sums[g][1], sums[g][2], sums[g][3], out + g * kTile);
}

// acc_g += p_g0 v_0 + ... + p_g3 v_3 for Q queries, with p_gj at p[g * kTile + j].
template <int Q, class T>
inline void add_rows(const float* p, const T* const* v, int64_t dim, float* acc) {
    float weight[Q][4];  // copied: for the compiler, a store to acc could change p
    for (int g = 0; g < Q; ++g) std::memcpy(weight[g], p + g * kTile, sizeof weight[g]);
    const auto add = [&](auto part, auto put) {
        const Vector v0 = part(v[0]), v1 = part(v[1]), v2 = part(v[2]), v3 = part(v[3]);
#pragma GCC unroll 4
        for (int g = 0; g < Q; ++g) {
            const float* w = weight[g];
            Vector sum = part(acc + g * dim);
            sum += w[0] * v0;
            sum += w[1] * v1;
            sum += w[2] * v2;
            sum += w[3] * v3;
            put(acc + g * dim, sum);
        }
    };
    int64_t d = 0;
    for (; d + kLanes <= dim; d += kLanes)
        add([d](const auto* row) { return load(row + d); }, [d](float* row, const Vector& sum) { store(row + d, sum); });
    if (d < dim)
        add([d, dim](const auto* row) { return load_last(row + d, dim - d); },
            [d, dim](float* row, const Vector& sum) { store_last(row + d, sum, dim - d); });
}

// A row as floats: in place, or converted into `room`.
inline const float* row_of(const float* row, float*, int64_t) { return row; }
template <class T>
inline const float* row_of(const T* row, float* room, int64_t dim) {
    int64_t d = 0;
    for (; d + kLanes <= dim; d += kLanes) store(room + d, load(row + d));
    for (; d < dim; ++d) room[d] = widen(row[d]);
    return room;
}

// Prefetches the four rows that lie 8 KiB after `row`. Each array is fetched in its own order, as the CPU's own
// prefetcher does, and a page is requested before it is read.
template <class T>
inline void fetch_behind(const T* row, int64_t dim) {
    const char* from = reinterpret_cast<const char*>(row) + kAhead;
    for (int64_t at = 0; at < 4 * dim * int64_t(sizeof(T)); at += 64) __builtin_prefetch(from + at);
}

}  // namespace
}  // namespace sparsemm

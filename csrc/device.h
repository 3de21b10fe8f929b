// Helpers of all CUDA kernels: launches, 16-byte loads, products of a tile, and faults detected on the device.
#pragma once

#include "common.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>
#endif

namespace sparsemm {

constexpr int kWarps = 4, kThreads = 32 * kWarps;
constexpr unsigned kAll = 0xFFFFFFFFu;
constexpr int kQueries = 8;  // query rows of one tensor-core product that are used
constexpr float kLog2E = 1.44269504f;
enum Fault { kDecode = 1, kAppend = 2, kCompact = 3, kArgmax = 4 };

struct alignas(16) Words { uint32_t at[4]; };

// fault: two numbers in host memory, the operation and the index; a later fault overwrites an earlier one.
__device__ inline void report(int64_t* fault, Fault operation, int64_t index) {
    fault[1] = index;
    __threadfence_system();
    fault[0] = operation;
}

__device__ inline float minus_infinity() { return float_of(0xFF800000u); }

// 16 bytes that are read once, or zeros.
__device__ inline Words load_if(bool there, const void* from) {
    Words words = {{0, 0, 0, 0}};
#ifdef __CUDA_ARCH__
    if (there)
        asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(words.at[0]), "=r"(words.at[1]), "=r"(words.at[2]), "=r"(words.at[3])
                     : "l"(from));
#else
    if (there) words = *static_cast<const Words*>(from);
#endif
    return words;
}

// 16 bytes that other warps will read too.
__device__ inline Words load_cached(bool there, const void* from) {
    return there ? *static_cast<const Words*>(from) : Words{{0, 0, 0, 0}};
}

// Two 16-bit numbers, the first one in the low half.
__device__ inline uint32_t pack(float first, float second, BFloat) {
#ifdef __CUDA_ARCH__
    uint32_t packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(second), "f"(first));
    return packed;
#else
    BFloat low, high;
    narrow(first, &low), narrow(second, &high);
    return low.bits | uint32_t(high.bits) << 16;
#endif
}
__device__ inline uint32_t pack(float first, float second, Half) {
#ifdef __CUDA_ARCH__
    uint32_t packed;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(second), "f"(first));
    return packed;
#else
    Half low, high;
    narrow(first, &low), narrow(second, &high);
    return low.bits | uint32_t(high.bits) << 16;
#endif
}
template <class T>
__device__ inline float low_of(uint32_t packed) { return widen(T{uint16_t(packed)}); }
template <class T>
__device__ inline float high_of(uint32_t packed) { return widen(T{uint16_t(packed >> 16)}); }

// d (16 x 8) += a (16 x 16) b (16 x 8), as mma.m16n8k16 distributes them: with i = lane / 4 and c = lane % 4 a lane
// holds a[i | i + 8][2c, 2c + 1 | 2c + 8, 2c + 9], b[2c, 2c + 1 | 2c + 8, 2c + 9][i] and d[i | i + 8][2c, 2c + 1].
#ifdef __CUDA_ARCH__
__device__ inline void mma(float* d, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1,
                           BFloat) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
__device__ inline void mma(float* d, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1,
                           Half) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
#elif defined(__CUDACC__)  // the host's pass of nvcc
template <class T>
__device__ inline void mma(float*, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, T) {}
#else
template <class T>
inline void mma(float* d, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1, T) {
    const uint32_t a[4] = {a0, a1, a2, a3}, b[2] = {b0, b1};
    emulated_mma(d, a, b, [](uint16_t bits) { return widen(T{bits}); });
}
#endif

__device__ inline uint32_t low_halves(uint32_t a, uint32_t b) {
#ifdef __CUDA_ARCH__
    return __byte_perm(a, b, 0x5410);
#else
    return (a & 0xFFFFu) | b << 16;
#endif
}
__device__ inline uint32_t high_halves(uint32_t a, uint32_t b) {
#ifdef __CUDA_ARCH__
    return __byte_perm(a, b, 0x7632);
#else
    return a >> 16 | (b & 0xFFFF0000u);
#endif
}

__device__ inline float exp2_of(float x) {
#ifdef __CUDA_ARCH__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}

// Weight of a partial result with maximum m, when the overall maximum is top (base 2).
__device__ inline float rescale(float m, float top) { return top == minus_infinity() ? 1.0f : exp2_of(m - top); }

// Head dimensions are rounded up to 64, 128 or 256; the rest is zeros that are never read.
#define SPARSEMM_BY_TYPE_AND_DIM(dtype, dim, call)                                                                   \
    ((dtype) == 0   ? ((dim) <= 64 ? call(float, 64) : (dim) <= 128 ? call(float, 128) : call(float, 256))           \
     : (dtype) == 1 ? ((dim) <= 64 ? call(Half, 64) : (dim) <= 128 ? call(Half, 128) : call(Half, 256))              \
                    : ((dim) <= 64 ? call(BFloat, 64) : (dim) <= 128 ? call(BFloat, 128) : call(BFloat, 256)))

#ifdef __CUDACC__
template <class... P, class... A>
void launch(void (*kernel)(P...), int64_t blocks, int threads, void* stream, A... arguments) {
    if (blocks > 0) kernel<<<unsigned(blocks), threads, 0, static_cast<cudaStream_t>(stream)>>>(arguments...);
}
#endif

constexpr int64_t kLaunch = -1000;  // minus the error code of the CUDA runtime
inline int64_t outcome() {
    const int error = int(cudaGetLastError());
    return error ? kLaunch - error : kDone;
}

}  // namespace sparsemm

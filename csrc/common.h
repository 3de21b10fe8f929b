// What all operations share: return codes, storage types and their conversion.
#pragma once

#include <cstdint>
#include <cstring>

#define SPARSEMM_EXPORT extern "C" __attribute__((visibility("default")))
#ifdef __CUDACC__
#define SPARSEMM_BOTH __host__ __device__  // on the CPU and on the GPU
#else
#define SPARSEMM_BOTH
#endif

namespace sparsemm {

constexpr int64_t kDone = -1;       // every operation returns this, or the index of the first segment out of range,
constexpr int64_t kNoMemory = -2;   // or this
constexpr int64_t kSerialBytes = 1 << 18;  // below this, one thread is done before a second one has woken up

struct Half { uint16_t bits; };
struct BFloat { uint16_t bits; };

SPARSEMM_BOTH inline uint32_t bits_of(float value) { uint32_t bits; memcpy(&bits, &value, 4); return bits; }
SPARSEMM_BOTH inline float float_of(uint32_t bits) { float value; memcpy(&value, &bits, 4); return value; }

SPARSEMM_BOTH inline float widen(float value) { return value; }
SPARSEMM_BOTH inline float widen(BFloat value) { return float_of(uint32_t(value.bits) << 16); }
SPARSEMM_BOTH inline float widen(Half value) {  // without a branch, so that a loop over it is vectorised
    const uint32_t word = uint32_t(value.bits) << 16, twice = word + word;
    const float normal = float_of((twice >> 4) + (0xE0u << 23)) * 0x1.0p-112f;
    const float subnormal = float_of((twice >> 17) | (126u << 23)) - 0.5f;
    return float_of((word & 0x80000000u) | (twice < (1u << 27) ? bits_of(subnormal) : bits_of(normal)));
}

SPARSEMM_BOTH inline void narrow(float value, float* out) { *out = value; }
SPARSEMM_BOTH inline void narrow(float value, BFloat* out) {  // round to nearest even; a NaN stays one
    const uint32_t bits = bits_of(value);
    const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    out->bits = uint16_t(value != value ? 0x7FC0u : rounded);
}
SPARSEMM_BOTH inline void narrow(float value, Half* out) {  // round to nearest even, overflow to infinity
    const uint32_t bits = bits_of(value), twice = bits + bits;
    float base = (float_of(bits & 0x7FFFFFFFu) * 0x1.0p+112f) * 0x1.0p-110f;
    uint32_t bias = twice & 0xFF000000u;
    bias = bias < 0x71000000u ? 0x71000000u : bias;
    base = float_of((bias >> 1) + 0x07800000u) + base;
    const uint32_t raw = bits_of(base);
    const uint32_t magnitude = ((raw >> 13) & 0x7C00u) + (raw & 0x0FFFu);
    out->bits = uint16_t(((bits & 0x80000000u) >> 16) | (twice > 0xFF000000u ? 0x7E00u : magnitude));
}

}  // namespace sparsemm

// Just enough of CUDA C++ to run csrc/*.cu on the processor: every thread of a block is a fiber, blocks run one after
// the other. A barrier or a warp's exchange lets the other fibers run until all have arrived.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __launch_bounds__(...)

namespace emulation {

struct Index { unsigned x; };

struct Warp {
    uint32_t words[32][6];
    int arrived = 0, turn = 0;
};

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    Index thread;
    bool done = false;
};

struct Block {
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    ucontext_t scheduler;
    int at = 0, arrived = 0, turn = 0;
    Index block, grid;
    std::function<void()> body;
};

inline Block* block = nullptr;
inline int multiprocessors = 3;  // few, so that small tests share a head between blocks

inline Fiber& fiber() { return block->fibers[block->at]; }
inline Warp& warp() { return block->warps[block->at / 32]; }
inline void let_others() { swapcontext(&fiber().context, &block->scheduler); }

inline void meet(int& arrived, int& turn, int all) {
    const int mine = turn;
    if (++arrived == all) {
        arrived = 0;
        ++turn;
    } else {
        while (turn == mine) let_others();
    }
}
inline void meet_warp() { meet(warp().arrived, warp().turn, 32); }

inline void start() {
    block->body();
    fiber().done = true;
    let_others();
}

inline void run(int64_t blocks, int threads, std::function<void()> body) {
    Block held;
    block = &held;
    held.body = std::move(body);
    held.grid = {unsigned(blocks)};
    for (int64_t b = 0; b < blocks; ++b) {
        held.block = {unsigned(b)};
        held.fibers = std::vector<Fiber>(threads);
        held.warps = std::vector<Warp>(threads / 32);
        for (int t = 0; t < threads; ++t) {
            Fiber& f = held.fibers[t];
            f.stack = std::make_unique<char[]>(1 << 16);
            f.thread = {unsigned(t)};
            getcontext(&f.context);
            f.context.uc_stack.ss_sp = f.stack.get();
            f.context.uc_stack.ss_size = 1 << 16;
            makecontext(&f.context, start, 0);
        }
        // A fiber that waits for one that has returned would wait for ever: a kernel with that fault hangs on a GPU too.
        for (int64_t idle = 0, left = threads; left;) {
            left = 0;
            for (held.at = 0; held.at < threads; ++held.at) {
                if (fiber().done) continue;
                swapcontext(&held.scheduler, &fiber().context);
                left += !fiber().done;
            }
            if (++idle > 10000000) std::fprintf(stderr, "deadlock\n"), std::abort();
        }
    }
    block = nullptr;
}

template <class T>
T exchange(T value, int from) {
    static_assert(sizeof(T) <= 8);
    Warp& own = warp();
    memcpy(own.words[block->at % 32], &value, sizeof value);
    meet_warp();
    T result;
    memcpy(&result, own.words[from], sizeof result);
    meet_warp();
    return result;
}

}  // namespace emulation

#define threadIdx (emulation::fiber().thread)
#define blockIdx (emulation::block->block)
#define gridDim (emulation::block->grid)

inline void __syncthreads() {
    emulation::meet(emulation::block->arrived, emulation::block->turn, int(emulation::block->fibers.size()));
}
inline void __threadfence() {}
inline void __threadfence_system() {}
template <class T>
T __ldcg(const T* from) { return *from; }
inline int atomicAdd(int* at, int value) { const int was = *at; *at += value; return was; }
inline int __popc(uint32_t bits) { return __builtin_popcount(bits); }
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) { return emulation::exchange(value, (emulation::block->at % 32) ^ mask); }
template <class T>
T __shfl_sync(unsigned, T value, int from) { return emulation::exchange(value, from % 32); }
template <class T>
T __shfl_up_sync(unsigned, T value, int by) {
    const int lane = emulation::block->at % 32;
    return emulation::exchange(value, lane < by ? lane : lane - by);
}
inline unsigned __ballot_sync(unsigned, bool vote) {
    emulation::Warp& own = emulation::warp();
    own.words[emulation::block->at % 32][0] = vote;
    emulation::meet_warp();
    unsigned votes = 0;
    for (int lane = 0; lane < 32; ++lane) votes |= own.words[lane][0] << lane;
    emulation::meet_warp();
    return votes;
}
inline bool __any_sync(unsigned all, bool vote) { return __ballot_sync(all, vote) != 0; }

// The product of mma.m16n8k16, by the layout that the PTX manual gives for it.
template <class Widen>
void emulated_mma(float* d, const uint32_t* a, const uint32_t* b, Widen widen) {
    emulation::Warp& own = emulation::warp();
    const int lane = emulation::block->at % 32;
    memcpy(own.words[lane], a, 16);
    memcpy(own.words[lane] + 4, b, 8);
    emulation::meet_warp();
    const auto half = [&](uint32_t word, int which) { return widen(uint16_t(which ? word >> 16 : word)); };
    for (int n = 0; n < 4; ++n) {
        const int row = lane / 4 + n / 2 * 8, column = lane % 4 * 2 + n % 2;
        for (int k = 0; k < 16; ++k) {
            const uint32_t left = own.words[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2];
            const uint32_t right = own.words[column * 4 + k % 8 / 2][4 + k / 8];
            d[n] += half(left, k % 2) * half(right, k % 2);
        }
    }
    emulation::meet_warp();
}

// The runtime.
enum { cudaDevAttrMultiProcessorCount };
inline int cudaGetLastError() { return 0; }
inline int cudaGetDevice(int* device) { return *device = 0; }
inline int cudaDeviceGetAttribute(int* value, int, int) { return *value = emulation::multiprocessors, 0; }
template <class K>
int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* count, K, int, int) { return *count = 2, 0; }

namespace sparsemm {
template <class... P, class... A>
void launch(void (*kernel)(P...), int64_t blocks, int threads, void*, A... arguments) {
    if (blocks > 0) emulation::run(blocks, threads, [&] { kernel(arguments...); });
}
}  // namespace sparsemm

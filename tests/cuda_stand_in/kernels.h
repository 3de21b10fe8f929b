// Just enough of CUDA C++ to run csrc/*.cu on the processor: every thread of a block is a fiber, blocks run one after
// the other, both in an order that differs from launch to launch. A barrier or a warp's exchange lets the other fibers
// run until all have arrived.
//
// Compiled with -fsanitize=thread, the sanitizer sees every fiber as a thread, ordered with the others by what orders
// threads on a device and by nothing else: barriers within a block, an atomic between two fences, and the end of a
// launch. What two threads do to one number without that is a race, in whatever order the fibers happened to run.
#pragma once

#undef _FORTIFY_SOURCE  // its longjmp takes another stack for a fault
#include <link.h>
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <random>
#include <thread>
#include <vector>

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define SANITIZED
#endif
#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)

#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#define EMULATOR inline __attribute__((no_sanitize("thread"), noinline))  // the emulation itself is not looked at
#else
#define EMULATOR inline
#endif
#define __shared__ static thread_local  // so that a block in a thread of its own has memory of its own

namespace emulation {

constexpr int kMostThreads = 1024;
constexpr int64_t kStack = 1 << 16;

inline void stop(const char* why) { std::fprintf(stderr, "kernels.h: %s\n", why), std::abort(); }

struct Index { unsigned x; };

struct Warp {
    uint32_t words[32][6];
    int arrived = 0, turn = 0;
};

// Where a fiber stopped. swapcontext asks the system for the signals each time, so it is for a fiber's beginning, and for
// the sanitizers, which know it.
struct Context {
    ucontext_t whole;
    jmp_buf stopped;
    bool begun = false;
};

struct Fiber {
    Context context;
    Index thread;
    bool done = false;
    const int* awaited = nullptr;  // it has nothing to do while this number is `seen`
    int seen = 0;
    void* sanitized = nullptr;
    char* fence = nullptr;  // what this thread had written is known to whoever acquires this
    struct { const void* atomic; int published; } observed[4];  // atomics since the last fence, and how many were there
    int count_observed = 0;
};

struct Block {
    Fiber fibers[kMostThreads];
    Warp warps[kMostThreads / 32];
    Context scheduler;
    void* sanitized = nullptr;
    int threads = 0, at = 0, arrived = 0, turn = 0;
    Index block, grid;
    const std::function<void()>* body;
};

// Of all blocks of a launch.
struct Launch {
    static constexpr int kMost = 1 << 16;
    struct { const void* atomic; char* fence; } published[kMost];
    char fences[kMost], end;
    int count_published = 0, count_fences = 0;
};

inline Block* block = nullptr;
inline Launch* launch = nullptr;
inline int multiprocessors = 3;  // few, so that small tests share a head between blocks
inline std::mt19937 random;      // the same orders in every run

EMULATOR Fiber& fiber() { return block->fibers[block->at]; }
EMULATOR Warp& warp() { return block->warps[block->at / 32]; }

EMULATOR void release(char* what) {
#ifdef __SANITIZE_THREAD__
    __tsan_release(what);
#endif
}
EMULATOR void acquire(char* what) {
#ifdef __SANITIZE_THREAD__
    __tsan_acquire(what);
#endif
}
EMULATOR void change(Context* from, Context* to, void* sanitized) {
#ifdef __SANITIZE_THREAD__
    __tsan_switch_to_fiber(sanitized, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef SANITIZED
    swapcontext(&from->whole, &to->whole);
#else
    from->begun = true;
    if (_setjmp(from->stopped)) return;
    if (to->begun) _longjmp(to->stopped, 1);
    setcontext(&to->whole);
#endif
}
EMULATOR void let_others() { change(&fiber().context, &block->scheduler, block->sanitized); }

EMULATOR void meet(int& arrived, int& turn, int all) {
    const int mine = turn;
    if (++arrived == all) {
        arrived = 0;
        ++turn;
    } else {
        fiber().awaited = &turn;
        fiber().seen = mine;
        let_others();
    }
}
EMULATOR void meet_warp() { meet(warp().arrived, warp().turn, 32); }

EMULATOR void start() {
    (*block->body)();
    release(&launch->end);
    fiber().done = true;
    let_others();
}

// Shared memory holds anything when a block begins: here it is NaN, and -1.
inline thread_local char shared_memory;  // nothing else of this library is thread_local
EMULATOR int fill_shared_memory(dl_phdr_info* library, size_t, void* own) {
    bool found = false;
    for (int n = 0; n < library->dlpi_phnum; ++n) {
        const auto& part = library->dlpi_phdr[n];
        const uintptr_t from = library->dlpi_addr + part.p_vaddr, at = reinterpret_cast<uintptr_t>(own);
        found |= part.p_type == PT_LOAD && from <= at && at < from + part.p_memsz;
    }
    for (int n = 0; found && n < library->dlpi_phnum; ++n)
        if (library->dlpi_phdr[n].p_type == PT_TLS)
            memset(library->dlpi_tls_data, 0xFF, library->dlpi_phdr[n].p_memsz);
    return found;
}
static char own_address;

EMULATOR void* map(int64_t bytes) {
    void* held = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (held == MAP_FAILED) stop("no memory for a block");
    return held;
}

EMULATOR void run_block(int64_t index, int64_t blocks, int threads, const std::function<void()>& body) {
#ifdef SANITIZED
    const int64_t bytes = sizeof(Block) + threads * kStack;
    void* held = map(bytes);  // from the system and back to it: memory that the next block gets has no history
#else
    static void* const held = map(sizeof(Block) + kMostThreads * kStack);
#endif
    block = new (held) Block;
    char* stacks = static_cast<char*>(held) + sizeof(Block);
    block->threads = threads;
    block->body = &body;
    block->block = {unsigned(index)};
    block->grid = {unsigned(blocks)};
#ifdef __SANITIZE_THREAD__
    block->sanitized = __tsan_get_current_fiber();
#endif
    shared_memory = 0;  // the first use in a thread allocates it
    dl_iterate_phdr(fill_shared_memory, &own_address);
    for (int t = 0; t < threads; ++t) {
        Fiber& f = block->fibers[t];
        f.thread = {unsigned(t)};
#ifdef __SANITIZE_THREAD__
        f.sanitized = __tsan_create_fiber(0);
#endif
        ucontext_t& whole = f.context.whole;
        getcontext(&whole);
        whole.uc_stack.ss_sp = stacks + t * kStack;
        whole.uc_stack.ss_size = kStack;
        makecontext(&whole, start, 0);
    }
    // A fiber that waits for one that has returned would wait for ever: a kernel with that fault hangs on a GPU too.
    for (int64_t idle = 0, left = threads; left;) {
        left = 0;
        const unsigned first = random(), step = random() | 1;  // odd: coprime to the threads of a block
        for (int n = 0; n < threads; ++n) {
            block->at = (first + n * step) % threads;
            Fiber& f = fiber();
            if (!f.done && !(f.awaited && *f.awaited == f.seen)) {
                f.awaited = nullptr;
                change(&block->scheduler, &f.context, f.sanitized);
            }
            left += !f.done;
        }
        if (++idle > 10000000) stop("deadlock");
    }
#ifdef __SANITIZE_THREAD__
    // Not before there are many: a number that is used again would pass for the thread that had it.
    static std::vector<void*> finished;
    for (int t = 0; t < threads; ++t) finished.push_back(block->fibers[t].sanitized);
    if (finished.size() >= 4096) {
        for (void* each : finished) __tsan_destroy_fiber(each);
        finished.clear();
    }
#endif
#ifdef SANITIZED
    munmap(held, bytes);
#endif
    block = nullptr;
}

EMULATOR void run(int64_t blocks, int threads, const std::function<void()>& body) {
    if (threads > kMostThreads || (threads & (threads - 1))) stop("threads of a block must be a power of two");
    const auto held = std::make_unique<Launch>();
    launch = held.get();
    std::vector<int64_t> order(blocks);
    for (int64_t b = 0; b < blocks; ++b) order[b] = b;
    std::shuffle(order.begin(), order.end(), random);
    for (const int64_t b : order) {
#ifdef __SANITIZE_THREAD__
        std::thread(run_block, b, blocks, threads, std::cref(body)).join();
#else
        run_block(b, blocks, threads, body);
#endif
    }
    acquire(&launch->end);
    launch = nullptr;
}

template <class T>
EMULATOR T exchange(T value, int from) {
    static_assert(sizeof(T) <= 8);
    Warp& own = warp();
    __builtin_memcpy(own.words[block->at % 32], &value, sizeof value);
    meet_warp();
    T result;
    __builtin_memcpy(&result, own.words[from], sizeof result);
    meet_warp();
    return result;
}

}  // namespace emulation

#define threadIdx (emulation::fiber().thread)
#define blockIdx (emulation::block->block)
#define gridDim (emulation::block->grid)

EMULATOR void __syncthreads() {
    emulation::Block& own = *emulation::block;
    char* barrier = reinterpret_cast<char*>(&own) + own.turn % 2;
    emulation::release(barrier);
    emulation::meet(own.arrived, own.turn, own.threads);
    emulation::acquire(barrier);
}
// What a thread does before a fence is seen by a thread behind its own fence, if that has seen an atomic between them.
EMULATOR void __threadfence() {
    emulation::Fiber& own = emulation::fiber();
    emulation::Launch& all = *emulation::launch;
    for (; own.count_observed; --own.count_observed) {
        const auto& seen = own.observed[own.count_observed - 1];
        for (int n = 0; n < seen.published; ++n)
            if (all.published[n].atomic == seen.atomic) emulation::acquire(all.published[n].fence);
    }
    if (all.count_fences == all.kMost) emulation::stop("too many fences");
    own.fence = &all.fences[all.count_fences++];
    emulation::release(own.fence);
}
EMULATOR void __threadfence_system() { __threadfence(); }
template <class T>
T __ldcg(const T* from) { return *from; }
EMULATOR int atomicAdd(int* at, int value) {
    emulation::Fiber& own = emulation::fiber();
    emulation::Launch& all = *emulation::launch;
    if (all.count_published == all.kMost || own.count_observed == 4) emulation::stop("too many atomics");
    own.observed[own.count_observed++] = {at, all.count_published};
    if (own.fence) all.published[all.count_published++] = {at, own.fence};
    const int was = *at;
    *at += value;
    return was;
}
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
EMULATOR unsigned __ballot_sync(unsigned, bool vote) {
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
EMULATOR void emulated_mma(float* d, const uint32_t* a, const uint32_t* b, Widen widen) {
    emulation::Warp& own = emulation::warp();
    const int lane = emulation::block->at % 32;
    __builtin_memcpy(own.words[lane], a, 16);
    __builtin_memcpy(own.words[lane] + 4, b, 8);
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

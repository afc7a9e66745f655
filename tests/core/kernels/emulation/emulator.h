// Runs CUDA kernels on the CPU, block after block; the threads of a block are coroutines that change places at
// __syncthreads, so that a missing barrier or a wrong index shows as a wrong result.
#pragma once
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <utility>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__ static

using std::exp;
using std::sqrt;

struct Index {
    unsigned x = 0, y = 0;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

constexpr size_t STACK = 64 * 1024;
static ucontext_t scheduler;
static std::vector<ucontext_t> threads;
static std::vector<bool> finished;
static std::function<void()> body;
static unsigned current;

inline void enter() {
    body();
    finished[current] = true;
    swapcontext(&threads[current], &scheduler);
}

inline void run_block(unsigned block) {
    static std::vector<char> stacks;
    stacks.resize(block * STACK);
    threads.assign(block, {});
    finished.assign(block, false);
    for (unsigned i = 0; i < block; ++i) {
        getcontext(&threads[i]);
        threads[i].uc_stack.ss_sp = stacks.data() + i * STACK;
        threads[i].uc_stack.ss_size = STACK;
        makecontext(&threads[i], enter, 0);
    }
    for (bool running = true; running;) {
        running = false;
        // The last thread first: an order in which no kernel may believe.
        for (unsigned i = block; i-- > 0;) {
            if (finished[i]) continue;
            current = threadIdx.x = i;
            swapcontext(&scheduler, &threads[i]);
            running = true;
        }
    }
}

template <class... Arguments, size_t... I>
void call(void (*kernel)(Arguments...), void** values, std::index_sequence<I...>) {
    kernel(*static_cast<Arguments*>(values[I])...);
}

template <class... Arguments>
void launch(void (*kernel)(Arguments...), unsigned grid_x, unsigned grid_y, unsigned block, void** values) {
    body = [&] { call(kernel, values, std::index_sequence_for<Arguments...>()); };
    gridDim = {grid_x, grid_y};
    blockDim = {block, 1};
    for (unsigned y = 0; y < grid_y; ++y)
        for (unsigned x = 0; x < grid_x; ++x) {
            blockIdx = {x, y};
            run_block(block);
        }
}

template <class... Arguments>
int count(void (*)(Arguments...)) { return sizeof...(Arguments); }

}  // namespace emulator

inline void __syncthreads() { swapcontext(&emulator::threads[emulator::current], &emulator::scheduler); }

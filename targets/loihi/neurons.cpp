// The chip's neurons over several steps, in integers, as arithmetic.py defines them. A plain C interface for ctypes
// (see neurons.py).
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "parallel.h"

// Maps are [steps, pixels, channels]; states [pixels, channels], 64 bits wide with kept_u, else 32; constants
// [channels].
struct Call {
    int64_t steps, pixels, channels;
    int64_t current_step;   // elements from step to step: 0 where the current is held
    int64_t every_bias;     // whether bias is [pixels, channels]
    const float* current;   // whole numbers below 2^24, in weight units
    const int32_t* kept_u;  // what a step keeps of u, in 1/4096; null: nothing of any
    const int32_t *kept_v, *vth, *bias;
    float* spikes;
    void *u, *v;            // in and out; u with kept_u
    int64_t *counts;        // wraps of u and saturations of v, added to
};

namespace {

constexpr int32_t ALIGNMENT = 64;      // of currents to v
constexpr int32_t LIMIT = 1 << 23;     // u wraps and v saturates there
constexpr int64_t BLOCK = 2048;        // neurons taken through all steps together

struct Counts {
    int64_t wraps = 0, saturations = 0;
};

struct Kernels {
    void (*run)(const Call&, int64_t begin, int64_t end, Counts&);
};

#define SPIKEPORT_LOOPS "neuron_loops.h"
#include "instruction_sets.h"

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int spikeport_loihi_use(int level) { return choose(level); }

EXPORT void spikeport_loihi_neurons(const Call* call, int32_t threads) {
    const int used = parallel::worth(call->steps * call->pixels * call->channels, threads);
    const int64_t tasks = std::min<int64_t>(call->pixels, used > 1 ? 8 * used : 1);
    std::atomic<int64_t> wraps{0}, saturations{0};
    parallel::run(tasks, used, [&](int64_t task) {
        Counts counts;
        chosen()->run(*call, call->pixels * task / tasks, call->pixels * (task + 1) / tasks, counts);
        wraps += counts.wraps;
        saturations += counts.saturations;
    });
    call->counts[0] += wraps;
    call->counts[1] += saturations;
}

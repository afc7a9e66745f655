// The chip's neurons over several steps, in integers, as arithmetic.py defines them. A plain C interface for ctypes
// (see neurons.py): compiled for several instruction sets, the best of which runs.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "../../core/kernels/parallel.h"

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
constexpr int64_t GRAIN = 16384;       // neurons and steps worth a thread

struct Counts {
    int64_t wraps = 0, saturations = 0;
};

namespace portable {
#include "neuron_loops.h"
}

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SPIKEPORT_X86 1
#pragma GCC push_options
#pragma GCC target("avx2")
namespace avx2 {
#include "neuron_loops.h"
}
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
namespace avx512 {
#include "neuron_loops.h"
}
#pragma GCC pop_options
#endif

using Run = void (*)(const Call&, int64_t begin, int64_t end, Counts&);

// 0 portable, 1 AVX2, 2 AVX-512; null where this processor or this build has it not.
Run run_of(int level) {
#ifdef SPIKEPORT_X86
    __builtin_cpu_init();
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (level == 2 && avx512) return avx512::run;
    if (level == 1 && __builtin_cpu_supports("avx2")) return avx2::run;
#endif
    return level == 0 ? portable::run : nullptr;
}

Run& chosen() {
    static Run best = [] {
        for (int level = 2; level > 0; --level)
            if (const Run found = run_of(level)) return found;
        return run_of(0);
    }();
    return best;
}

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// Takes the instruction set `level` from now on (tests compare them). Returns whether it is there.
EXPORT int spikeport_loihi_use(int level) {
    const Run found = run_of(level);
    if (found) chosen() = found;
    return found != nullptr;
}

EXPORT void spikeport_loihi_neurons(const Call* call, int32_t threads) {
    const int64_t work = call->steps * call->pixels * call->channels / GRAIN + 1;
    const int64_t tasks = std::min<int64_t>({call->pixels, work, 8 * threads});
    std::atomic<int64_t> wraps{0}, saturations{0};
    parallel::run(tasks, int(std::min<int64_t>(threads, work)), [&](int64_t task) {
        Counts counts;
        chosen()(*call, call->pixels * task / tasks, call->pixels * (task + 1) / tasks, counts);
        wraps += counts.wraps;
        saturations += counts.saturations;
    });
    call->counts[0] += wraps;
    call->counts[1] += saturations;
}

// The chip's neurons over several steps, in integers, as arithmetic.py defines them, and their gradient. A plain C
// interface for ctypes (see neurons.py and gradients.py).
#include <algorithm>
#include <atomic>
#include <cmath>
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

// Layouts as above; a null gradient is zero.
struct GradientCall {
    int64_t steps, pixels, channels, current_step;
    int64_t kind;                    // a Surrogate of lif_step.h, or SILENT
    int64_t through_reset;           // whether gradients pass through the reset
    const float *current, *spikes;   // what the neurons were given, and gave
    const float *grad_spikes;
    const float *grad_v;             // of the voltages after the last step, [pixels, channels]
    const float *kept_u, *kept_v;    // the part of u and of v that a step keeps, [channels]
    const float *bias;               // [channels]
    float inverse_unit;              // of the voltage that stands for 1
    float threshold, alpha;          // of the neuron that is trained
    float* grad_current;             // as current
    double* grad_bias;               // [channels]
};

namespace {

constexpr int SILENT = 5;              // neurons that never fire
constexpr int32_t ALIGNMENT = 64;      // of currents to v
constexpr int32_t LIMIT = 1 << 23;     // u wraps and v saturates there
constexpr int64_t BLOCK = 2048;        // neurons taken through all steps together

struct Counts {
    int64_t wraps = 0, saturations = 0;
};

struct Kernels {
    void (*run)(const Call&, int64_t begin, int64_t end, Counts&);
    void (*gradient)(const GradientCall&, int64_t begin, int64_t end, double* sums);
};

#define SPIKEPORT_LOOPS "loops.h"
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

// Sums are taken per part and added up in order; the number of parts does not depend on the threads.
EXPORT void spikeport_loihi_gradient(const GradientCall* call, int32_t threads) {
    const int64_t channels = call->channels, elements = call->steps * call->pixels * channels;
    const int64_t parts = std::clamp<int64_t>(elements / 65536, 1, 64);  // some of them empty where pixels are few
    std::vector<double> partial(parts * channels);
    parallel::run(parts, parallel::worth(elements, threads), [&](int64_t part) {
        chosen()->gradient(*call, call->pixels * part / parts, call->pixels * (part + 1) / parts,
                           partial.data() + part * channels);
    });
    std::fill_n(call->grad_bias, channels, 0.0);
    for (int64_t i = 0; i < parts * channels; ++i) call->grad_bias[i % channels] += partial[i];
}

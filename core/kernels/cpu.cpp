// The CPU kernels: compiled for several instruction sets, the best of which is picked when they are first used.
//
// A plain C interface for ctypes (see cpu.py): pointers in, nothing of torch or Python. Compile with
// -ffp-contract=off, or the spikes are no longer those of the reference.
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#include "calls.h"
#include "parallel.h"

namespace {

struct Kernels {
    void (*lif)(const LifCall&, Pass, int64_t begin, int64_t end);
    void (*norm_coefficients)(const NormCall&, const double* sums, void* table);
    void (*norm_moments)(const NormCall&, int64_t begin, int64_t end, Moments*);
    void (*norm)(const NormCall&, Pass, const void* table, double* sums, void* grad_y, int64_t begin, int64_t end);
};

#define SPIKEPORT_LOOPS "cpu_kernels.h"
#include "instruction_sets.h"

const Kernels& kernels(const Shape& shape) { return shape.dtype == FLOAT64 ? portable::KERNELS : *chosen(); }
constexpr int64_t BLOCK_OF_TASKS = 1024;

int64_t element_size(const Shape& shape) {
    return shape.dtype == FLOAT64 ? 8 : shape.dtype == FLOAT32 ? 4 : 2;
}

// Fresh memory costs more than the kernel where it comes in pages of 4 KiB: ask for pages of 2 MiB.
void prefer_huge_pages(void* data, int64_t bytes) {
#ifdef MADV_HUGEPAGE
    constexpr uintptr_t PAGE = 2 << 20;
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + PAGE - 1) / PAGE * PAGE;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + uintptr_t(bytes)) / PAGE * PAGE;
    if (data && begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

int threads_for(const Shape& shape) {
    return parallel::worth(shape.steps * shape.neurons, shape.threads);
}

// Calls body(task, begin, end) on `tasks` ranges of whole blocks that together are [0, neurons).
template <class Body>
void over_neurons(const Shape& shape, int64_t block, int64_t tasks, Body body) {
    const int64_t blocks = (shape.neurons + block - 1) / block;
    tasks = std::min(tasks, blocks);
    parallel::run(tasks, threads_for(shape), [&](int64_t task) {
        const int64_t begin = blocks * task / tasks * block;
        body(task, begin, std::min(blocks * (task + 1) / tasks * block, shape.neurons));
    });
}

// Parts of a sum over the tensor: their number, and so the rounding, does not depend on the threads.
int64_t parts_of(const Shape& shape) {
    return std::clamp<int64_t>(shape.steps * shape.neurons / 65536, 1, 64);
}

template <class R>
void finish_moments(const NormCall& call, const std::vector<Moments>& partial) {
    for (int64_t c = 0; c < call.channels; ++c) {
        Moments all{};
        for (size_t i = c; i < partial.size(); i += call.channels) all.merge(partial[i]);
        static_cast<R*>(call.batch_mean)[c] = R(all.mean);
        static_cast<R*>(call.batch_variance)[c] = R(all.squares / all.count);
    }
}

template <class R>
void finish_gradients(const NormCall& call, const std::vector<double>& sums) {
    const R* variance = static_cast<const R*>(call.variance);
    for (int64_t c = 0; c < call.channels; ++c) {
        const double inverse = 1 / std::sqrt(double(variance[c]) + call.eps);
        static_cast<R*>(call.grad_bias)[c] = R(sums[c]);
        static_cast<R*>(call.grad_weight)[c] = R(sums[call.channels + c] * inverse);
    }
}
}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int spikeport_use(int level) { return choose(level); }

// Tests hold it against the structure in cpu.py.
EXPORT int64_t spikeport_size_of_norm_call() { return sizeof(NormCall); }

EXPORT void spikeport_lif(const LifCall* call, int32_t pass) {
    const Shape& shape = call->shape;
    const int64_t bytes = shape.steps * shape.neurons * element_size(shape);
    prefer_huge_pages(call->spikes, bytes);
    prefer_huge_pages(call->grad_x, shape.constant ? bytes / shape.steps : bytes);
    prefer_huge_pages(call->grad2_spikes, bytes);
    over_neurons(shape, BLOCK_OF_TASKS, 8 * shape.threads, [&](int64_t, int64_t begin, int64_t end) {
        kernels(shape).lif(*call, Pass(pass), begin, end);
    });
}

// Mean and biased variance of every channel.
EXPORT void spikeport_norm_moments(const NormCall* call) {
    const int64_t steps = call->shape.constant ? 1 : call->shape.steps;
    const int64_t items = steps * call->shape.neurons / (call->inner == 1 ? call->channels : call->inner);
    const int64_t tasks = std::min(parts_of(call->shape), items);
    std::vector<Moments> partial(tasks * call->channels);
    parallel::run(tasks, threads_for(call->shape), [&](int64_t task) {
        kernels(call->shape).norm_moments(*call, items * task / tasks, items * (task + 1) / tasks,
                                partial.data() + task * call->channels);
    });
    if (call->shape.dtype == FLOAT64) finish_moments<double>(*call, partial);
    else finish_moments<float>(*call, partial);
}

EXPORT void spikeport_norm(const NormCall* call, int32_t pass) {
    const Shape& shape = call->shape;
    const int64_t bytes = shape.steps * shape.neurons * element_size(shape), channels = call->channels;
    const int64_t block = call->pair ? call->pair : BLOCK_OF_TASKS;
    prefer_huge_pages(call->spikes, call->pair ? bytes / 4 : bytes);
    prefer_huge_pages(call->grad_x, shape.constant ? bytes / shape.steps : bytes);
    std::vector<double> table(5 * channels);  // room for the coefficients, float or double
    kernels(shape).norm_coefficients(*call, nullptr, table.data());
    std::unique_ptr<float[]> scratch;
    void* grad_y = nullptr;
    if (pass == BACKWARD) {
        // Kept between the passes where it costs little memory: in grad_x itself; of a constant input, T times smaller
        // than the spikes, beside it.
        if (element_size(shape) > 2) {
            grad_y = call->grad_x;
        } else if (shape.constant) {
            scratch.reset(new float[shape.neurons]);
            grad_y = scratch.get();
        }
        const int64_t parts = parts_of(shape);
        std::vector<double> partial(parts * 2 * channels), sums(2 * channels);
        over_neurons(shape, block, parts, [&](int64_t task, int64_t begin, int64_t end) {
            double* part = partial.data() + task * 2 * channels;
            kernels(shape).norm(*call, BACKWARD, table.data(), part, grad_y, begin, end);
        });
        for (int64_t part = 0; part < parts; ++part)
            for (int64_t c = 0; c < 2 * channels; ++c) sums[c] += partial[part * 2 * channels + c];
        if (shape.dtype == FLOAT64) finish_gradients<double>(*call, sums);
        else finish_gradients<float>(*call, sums);
        kernels(shape).norm_coefficients(*call, call->batch_statistics ? sums.data() : nullptr, table.data());
    }
    over_neurons(shape, block, 8 * shape.threads, [&](int64_t, int64_t begin, int64_t end) {
        kernels(shape).norm(*call, Pass(pass), table.data(), nullptr, grad_y, begin, end);
    });
}

// Sums of maps y [images, channels, inner] over the channels, [images, inner], and over the images, [channels * inner],
// in one pass over y. Exact for whole numbers whose sums stay below 2^24.
EXPORT void spikeport_sums(const float* y, int64_t images, int64_t channels, int64_t inner, float* pixels,
                           float* neurons, int32_t threads) {
    const int64_t size = channels * inner;
    const int64_t tasks = std::min<int64_t>(images, parallel::worth(images * size, threads));
    std::vector<std::vector<float>> partial(tasks, std::vector<float>(size));
    parallel::run(tasks, int(tasks), [&](int64_t task) {
        for (int64_t image = images * task / tasks; image < images * (task + 1) / tasks; ++image) {
            float* row = pixels + image * inner;
            std::fill_n(row, inner, 0.f);
            for (int64_t c = 0; c < channels; ++c) {
                const float* from = y + image * size + c * inner;
                float* sums = partial[task].data() + c * inner;
                for (int64_t i = 0; i < inner; ++i) {
                    row[i] += from[i];
                    sums[i] += from[i];
                }
            }
        }
    });
    std::fill_n(neurons, size, 0.f);
    for (const std::vector<float>& part : partial)
        for (int64_t i = 0; i < size; ++i) neurons[i] += part[i];
}

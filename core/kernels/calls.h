// What Python hands to the CPU kernels; mirrored by ctypes structures in cpu.py.
//
// Tensors are [steps, neurons] with the neurons of a step contiguous, in whatever order, and `neurons` elements
// from step to step, in x `x_step` elements. Constant: x and its gradient are [neurons], x_step is 0. A null
// pointer is an absent tensor: zero as an input, not wanted as an output. "State type" is double for double
// elements, else float.
#pragma once
#include <cstdint>

enum DType : int32_t { FLOAT64 = 0, FLOAT32 = 1, FLOAT16 = 2, BFLOAT16 = 3 };

struct Shape {
    int64_t steps, neurons, x_step;
    double decay, gain, threshold, reset, alpha;
    int32_t dtype, surrogate, constant, detach_reset, smooth, threads;
};

struct LifCall {
    Shape shape;
    const void *x, *grad_spikes, *grad2_x;              // element type; grad2_x as x
    const void *state, *grad_membrane, *grad2_state;    // state type, [neurons]
    void *spikes, *grad_x, *grad2_spikes;               // element type; grad_x as x
    void *membrane, *grad_state, *grad2_membrane;       // state type, [neurons]
};

// Channel of neuron i: (i / inner) % channels; inner is the number of pixels (NCHW) or 1 (channels last). grad_x has
// `grad_step` elements from step to step. pair: the neurons of two pixel rows, whose spikes are max-pooled in windows
// of 2x2 pixels (channels last only: a quarter as many spikes per step); 0: they are not.
struct NormCall {
    Shape shape;
    int64_t channels, inner, grad_step, pair;
    double eps;
    int32_t batch_statistics;                       // the gradient passes through mean and variance
    const void *x, *grad_spikes;                    // element type
    const void *weight, *bias, *mean, *variance;    // state type, [channels]; weight null: 1, bias null: 0
    void *spikes, *grad_x;                          // element type
    void *grad_weight, *grad_bias;                  // state type, [channels]
    void *batch_mean, *batch_variance;              // state type, [channels]; biased variance
};

enum Pass : int32_t { FORWARD = 0, BACKWARD = 1, DOUBLE_BACKWARD = 2 };

// Count, mean and sum of squared deviations of a set of values; merged as in Chan, Golub and LeVeque (1983).
struct Moments {
    double count, mean, squares;

    void merge(const Moments& other) {
        if (other.count == 0) return;
        const double total = count + other.count, delta = other.mean - mean;
        mean += delta * (other.count / total);
        squares += other.squares + delta * delta * (count * other.count / total);
        count = total;
    }
};

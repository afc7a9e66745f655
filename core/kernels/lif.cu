// The LIF kernels for the GPU, compiled by NVRTC at first use (see cuda.py) without contraction (fma=False).
//
// A thread takes V neurons (16 bytes of x where the number of neurons allows it) through all steps. Up to
// STEPS steps known at compile time, every load is issued before the first is needed and the membranes stay in
// registers; STEPS = 0 takes any number, CHUNK at a time. Layout and null pointers as in calls.h.
#include "lif_step.h"
#include "elements.cuh"

constexpr int CHUNK = 8;

template <class T, int V, int STEPS, class R = State<T>>
__global__ void lif_forward(const T* x, const R* state, T* spikes, R* membrane, long long steps, long long neurons,
                            long long x_step, NEURON_PARAMETERS) {
    const Neuron<R> neuron = NEURON;
    const long long first = thread_number() * V;
    if (first >= neurons) return;
    constexpr int WIDTH = STEPS ? STEPS : CHUNK;
    R v[V] = {};
    if (state) {
        load_values<V>(state + first, v);
        for (int i = 0; i < V; ++i) v[i] -= neuron.reset;
    }
    for (long long t = 0; t < (STEPS ? 1 : steps); t += WIDTH) {
        Vector<T, V> in[WIDTH];
#pragma unroll
        for (int k = 0; k < WIDTH; ++k)
            if (STEPS || t + k < steps) in[k] = load_vector<V>(x + (t + k) * x_step + first);
#pragma unroll
        for (int k = 0; k < WIDTH; ++k) {
            if (!STEPS && t + k >= steps) break;
            Vector<T, V> out;
#pragma unroll
            for (int i = 0; i < V; ++i) {
                const R h = charge(v[i], load(in[k].items[i]), neuron);
                const R s = spike<0, false>(h - neuron.threshold, neuron);
                store(out.items[i], s);
                v[i] = discharge(h, s);
            }
            store_vector<V>(spikes + (t + k) * neurons + first, out);
        }
    }
    if (membrane) {
        for (int i = 0; i < V; ++i) v[i] += neuron.reset;
        store_values<V>(membrane + first, v);
    }
}

// Steps [from, from + count) of V neurons backwards, count <= WIDTH. v: membranes before them; carry: gradient of
// the membrane after them, and before them on return. Constant: the gradients of h are added to total.
template <int S, int WIDTH, bool CONSTANT, int V, class T, class R>
LIF_INLINE void backward_steps(const T* x, const T* grad_spikes, T* grad_x, const R (&start)[V], R (&carry)[V],
                               R (&total)[V], long long first, long long from, int count, long long neurons,
                               long long x_step, bool reset, bool last_reset, const Neuron<R>& neuron) {
    Vector<T, V> in[WIDTH], grad[WIDTH];
    R h[WIDTH][V], v[V];
#pragma unroll
    for (int k = 0; k < WIDTH; ++k)
        if (k < count) {
            in[k] = load_vector<V>(x + (from + k) * x_step + first);
            if (grad_spikes) grad[k] = load_vector<V>(grad_spikes + (from + k) * neurons + first);
        }
#pragma unroll
    for (int i = 0; i < V; ++i) v[i] = start[i];
#pragma unroll
    for (int k = 0; k < WIDTH; ++k)
        if (k < count)
#pragma unroll
            for (int i = 0; i < V; ++i) {
                h[k][i] = charge(v[i], load(in[k].items[i]), neuron);
                v[i] = discharge(h[k][i], spike<0, false>(h[k][i] - neuron.threshold, neuron));
            }
#pragma unroll
    for (int k = WIDTH - 1; k >= 0; --k)
        if (k < count) {
            Vector<T, V> out;
#pragma unroll
            for (int i = 0; i < V; ++i) {
                const R g = grad_spikes ? R(load(grad[k].items[i])) : R(0);
                const bool through_reset = k == count - 1 ? last_reset : reset;
                const R grad_h = step_backward<S, false>(h[k][i], g, carry[i], through_reset, neuron);
                if (CONSTANT) total[i] += grad_h;
                else store(out.items[i], grad_h * neuron.gain);
                carry[i] = grad_h * neuron.decay;
            }
            if (!CONSTANT) store_vector<V>(grad_x + (from + k) * neurons + first, out);
        }
}

// starts: [ceil(steps / CHUNK), neurons] of scratch where STEPS is 0.
template <class T, int V, int STEPS, int S, bool CONSTANT, class R = State<T>>
__global__ void lif_backward(const T* x, const R* state, const T* grad_spikes, const R* grad_membrane, T* grad_x,
                             R* grad_state, R* starts, long long steps, long long neurons, long long x_step,
                             int detach_reset, NEURON_PARAMETERS) {
    const Neuron<R> neuron = NEURON;
    const long long first = thread_number() * V;
    if (first >= neurons) return;
    const bool reset = !detach_reset, last_reset = reset && grad_membrane;
    R v[V] = {}, carry[V] = {}, total[V] = {};
    if (state) {
        load_values<V>(state + first, v);
        for (int i = 0; i < V; ++i) v[i] -= neuron.reset;
    }
    if (grad_membrane) load_values<V>(grad_membrane + first, carry);
    if constexpr (STEPS > 0) {
        backward_steps<S, STEPS, CONSTANT>(x, grad_spikes, grad_x, v, carry, total, first, 0, STEPS, neurons, x_step,
                                           reset, last_reset, neuron);
    } else {
        const long long last = (steps - 1) / CHUNK * CHUNK;
        for (long long t = 0; t < last; t += CHUNK) {
            store_values<V>(starts + t / CHUNK * neurons + first, v);
            Vector<T, V> in[CHUNK];
#pragma unroll
            for (int k = 0; k < CHUNK; ++k) in[k] = load_vector<V>(x + (t + k) * x_step + first);
#pragma unroll
            for (int k = 0; k < CHUNK; ++k)
#pragma unroll
                for (int i = 0; i < V; ++i) {
                    const R h = charge(v[i], load(in[k].items[i]), neuron);
                    v[i] = discharge(h, spike<0, false>(h - neuron.threshold, neuron));
                }
        }
        for (long long t = last; t >= 0; t -= CHUNK) {
            if (t < last) load_values<V>(starts + t / CHUNK * neurons + first, v);
            const int count = t < last ? CHUNK : int(steps - last);
            backward_steps<S, CHUNK, CONSTANT>(x, grad_spikes, grad_x, v, carry, total, first, t, count, neurons,
                                               x_step, reset, t < last ? reset : last_reset, neuron);
        }
    }
    if (CONSTANT) {
        Vector<T, V> out;
        for (int i = 0; i < V; ++i) store(out.items[i], total[i] * neuron.gain);
        store_vector<V>(grad_x + first, out);
    }
    if (grad_state) store_values<V>(grad_state + first, carry);
}

// The gradient of the gradient, as in lif_loops.h. h, sources: [steps, neurons] of scratch.
template <class T, int S, bool CONSTANT, class R = State<T>>
__global__ void lif_double_backward(const T* x, const R* state, const T* grad_spikes, const R* grad_membrane,
                                    const T* grad2_x, const R* grad2_state, T* grad_x, R* grad_state, T* grad2_spikes,
                                    R* grad2_membrane, R* h, R* sources, long long steps, long long neurons,
                                    long long x_step, int detach_reset, NEURON_PARAMETERS) {
    const Neuron<R> neuron = NEURON;
    const long long i = thread_number();
    if (i >= neurons) return;
    const bool reset = !detach_reset;
    R v = state ? state[i] - neuron.reset : R(0);
    for (long long t = 0; t < steps; ++t) {
        const R charged = charge(v, load(x[t * x_step + i]), neuron);
        h[t * neurons + i] = charged;
        v = discharge(charged, spike<0, false>(charged - neuron.threshold, neuron));
    }
    R carry = grad_membrane ? grad_membrane[i] : R(0);
    for (long long t = steps - 1; t >= 0; --t) {
        const long long at = t * neurons + i;
        const R g = grad_spikes ? R(load(grad_spikes[at])) : R(0);
        sources[at] = carry;
        carry = neuron.decay * step_backward<S, false>(h[at], g, carry, reset, neuron);
    }
    R cotangent = grad2_state ? grad2_state[i] : R(0);
    for (long long t = 0; t < steps; ++t) {
        const long long at = t * neurons + i;
        const R g = grad_spikes ? R(load(grad_spikes[at])) : R(0);
        const R g2 = grad2_x ? R(load(grad2_x[CONSTANT ? i : at])) : R(0);
        const R p = neuron.gain * g2 + neuron.decay * cotangent;
        sources[at] = step_curvature<S>(h[at], g, sources[at], p, reset, neuron);
        store(grad2_spikes[at], p * derivative<S>(h[at] - neuron.threshold, neuron));
        cotangent = p * retained<S, false>(h[at], reset, neuron);
    }
    grad2_membrane[i] = cotangent;
    R total = 0;
    cotangent = 0;
    for (long long t = steps - 1; t >= 0; --t) {
        const long long at = t * neurons + i;
        const R grad_h = sources[at] + cotangent * retained<S, false>(h[at], reset, neuron);
        if (CONSTANT) total += neuron.gain * grad_h;
        else store(grad_x[at], neuron.gain * grad_h);
        cotangent = neuron.decay * grad_h;
    }
    if (CONSTANT) store(grad_x[i], total);
    if (grad_state) grad_state[i] = cotangent;
}

// BatchNorm and LIF in one for the GPU: two passes over memory each way. Compiled like lif.cu.
//
// Channels: LAST false, [.., C, pixels]: a block takes one channel; LAST true, [.., C]: a thread takes V channels.
// Every sum is taken per block, written, and added up by one thread a channel in double: the same result every run.
#include "lif_step.h"
#include "elements.cuh"

constexpr int THREADS = 256;
constexpr int LANES = 32;  // threads of a block beside each other on the channels, where LAST

// Count, mean and sum of squared deviations; merged as in Chan, Golub and LeVeque (1983).
template <class R>
struct Moments {
    R count, mean, squares;
};

template <class R>
LIF_INLINE Moments<R> merged(const Moments<R>& a, const Moments<R>& b) {
    if (b.count == R(0)) return a;
    const R total = a.count + b.count, delta = b.mean - a.mean, share = b.count / total;
    return {total, a.mean + delta * share, a.squares + b.squares + delta * delta * (a.count * share)};
}

template <class R>
LIF_INLINE void add_up(Moments<R>& to, const Moments<R>& other) { to = merged(to, other); }
template <class R>
struct Sums {
    R grad, moment;  // of grad_y, of grad_y * (x - mean)
};
template <class R>
LIF_INLINE void add_up(Sums<R>& to, const Sums<R>& other) {
    to.grad += other.grad;
    to.moment += other.moment;
}

// The block's sum per channel, partial[split * channels + channel].
// LAST: `own` holds V channels; threads of the same lane share them. Else one value, shared by the whole block.
template <bool LAST, int N, class Value>
LIF_INLINE void reduce_block(const Value (&own)[N], Value* partial, long long channel, long long channels) {
    __shared__ Value shared[THREADS];
    for (int i = 0; i < N; ++i) {
        __syncthreads();
        shared[threadIdx.x] = own[i];
        __syncthreads();
        for (int half = THREADS / 2; half >= (LAST ? LANES : 1); half /= 2) {
            if (int(threadIdx.x) < half) add_up(shared[threadIdx.x], shared[threadIdx.x + half]);
            __syncthreads();
        }
        const long long c = channel + i;
        if (int(threadIdx.x) < (LAST ? LANES : 1) && c < channels)
            partial[blockIdx.y * channels + c] = shared[threadIdx.x];
    }
}

// The work of a block: `step(i)` for the first memory index of every group of V of its channels in a time step.
// items: groups of all samples and pixels; this thread's are begin, begin + stride, ...
template <bool LAST, int V>
struct Walk {
    long long channel, begin, stride, items, channels, inner;

    LIF_MEMBER Walk(long long neurons, long long channels, long long inner) : channels(channels), inner(inner) {
        if (LAST) {
            channel = ((long long)blockIdx.x * LANES + threadIdx.x % LANES) * V;
            begin = (long long)blockIdx.y * (THREADS / LANES) + threadIdx.x / LANES;
            stride = (long long)gridDim.y * (THREADS / LANES);
            items = channel < channels ? neurons / channels : 0;
        } else {
            channel = blockIdx.x;
            begin = (long long)blockIdx.y * THREADS + threadIdx.x;
            stride = (long long)gridDim.y * THREADS;
            items = neurons / channels / V;
        }
    }

    LIF_MEMBER long long neuron(long long item) const {
        if (LAST) return item * channels + channel;
        const long long pixel = item * V;
        return pixel / inner * (inner * channels) + channel * inner + pixel % inner;
    }
};

template <class T, int V, bool LAST, class R = State<T>>
__global__ void norm_moments(const T* x, Moments<R>* partial, long long steps, long long neurons, long long x_step,
                             long long channels, long long inner) {
    const Walk<LAST, V> walk(neurons, channels, inner);
    constexpr int N = LAST ? V : 1;
    Moments<R> own[N] = {};
    for (long long item = walk.begin; item < walk.items; item += walk.stride)
        for (long long t = 0; t < steps; ++t) {
            const Vector<T, V> in = load_vector<V>(x + t * x_step + walk.neuron(item));
            if (LAST) {
                for (int i = 0; i < N; ++i) own[i] = merged(own[i], Moments<R>{R(1), load(in.items[i]), R(0)});
            } else {
                R sum = 0, squares = 0;
                for (int i = 0; i < V; ++i) sum += load(in.items[i]);
                const R mean = sum / R(V);
                for (int i = 0; i < V; ++i) squares += (load(in.items[i]) - mean) * (load(in.items[i]) - mean);
                own[0] = merged(own[0], Moments<R>{R(V), mean, squares});
            }
        }
    reduce_block<LAST>(own, partial, walk.channel, channels);
}

template <class R>
__global__ void norm_finish_moments(const Moments<R>* partial, long long splits, long long channels, R* mean,
                                    R* variance) {
    const long long c = thread_number();
    if (c >= channels) return;
    Moments<double> all = {0, 0, 0};
    for (long long split = 0; split < splits; ++split) {
        const Moments<R> part = partial[split * channels + c];
        all = merged(all, Moments<double>{part.count, part.mean, part.squares});
    }
    mean[c] = R(all.mean);
    variance[c] = R(all.squares / all.count);
}

// y = x * scale + shift
template <class R>
struct Channel {
    R mean, scale, shift, inverse;
};

template <class R>
LIF_INLINE Channel<R> channel_of(long long c, const R* weight, const R* bias, const R* mean, const R* variance, R eps) {
    const R inverse = R(1) / sqrt(variance[c] + eps);
    const R scale = weight ? inverse * weight[c] : inverse;
    return {mean[c], scale, (bias ? bias[c] : R(0)) - mean[c] * scale, inverse};
}

template <class T, int V, int STEPS, bool LAST, class R = State<T>>
__global__ void norm_forward(const T* x, const R* weight, const R* bias, const R* mean, const R* variance, T* spikes,
                             long long neurons, long long x_step, long long channels, long long inner, R eps,
                             NEURON_PARAMETERS) {
    const Neuron<R> neuron = NEURON;
    const long long first = thread_number() * V;
    if (first >= neurons) return;
    Vector<T, V> in[STEPS];
#pragma unroll
    for (int t = 0; t < STEPS; ++t) in[t] = load_vector<V>(x + t * x_step + first);
    const long long c = LAST ? first % channels : first / inner % channels;
    Channel<R> channel[LAST ? V : 1];
    for (int i = 0; i < (LAST ? V : 1); ++i) channel[i] = channel_of(c + i, weight, bias, mean, variance, eps);
    R v[V] = {};
#pragma unroll
    for (int t = 0; t < STEPS; ++t) {
        Vector<T, V> out;
#pragma unroll
        for (int i = 0; i < V; ++i) {
            const Channel<R>& own = channel[LAST ? i : 0];
            const R h = charge(v[i], load(in[t].items[i]) * own.scale + own.shift, neuron);
            const R s = spike<0, false>(h - neuron.threshold, neuron);
            store(out.items[i], s);
            v[i] = discharge(h, s);
        }
        store_vector<V>(spikes + t * neurons + first, out);
    }
}

// grad_y[t][i] and x[t][i] of V neurons; constant input (x_step 0): summed into grad_y[0].
template <int STEPS, int S, bool LAST, int V, class T, class R>
LIF_INLINE void grad_currents(const T* x, const T* grad_spikes, const Channel<R>* channel, long long first,
                              long long neurons, long long x_step, bool reset, const Neuron<R>& neuron,
                              Vector<T, V> (&in)[STEPS], R (&grad_y)[STEPS][V]) {
    Vector<T, V> grad[STEPS];
    R h[STEPS][V], v[V] = {}, carry[V] = {};
#pragma unroll
    for (int t = 0; t < STEPS; ++t) {
        in[t] = load_vector<V>(x + t * x_step + first);
        grad[t] = load_vector<V>(grad_spikes + t * neurons + first);
    }
#pragma unroll
    for (int t = 0; t < STEPS; ++t)
#pragma unroll
        for (int i = 0; i < V; ++i) {
            const Channel<R>& own = channel[LAST ? i : 0];
            h[t][i] = charge(v[i], load(in[t].items[i]) * own.scale + own.shift, neuron);
            v[i] = discharge(h[t][i], spike<0, false>(h[t][i] - neuron.threshold, neuron));
        }
#pragma unroll
    for (int t = STEPS - 1; t >= 0; --t)
#pragma unroll
        for (int i = 0; i < V; ++i) {
            const bool through_reset = reset && t < STEPS - 1;
            const R g = load(grad[t].items[i]);
            const R grad_h = step_backward<S, false>(h[t][i], g, carry[i], through_reset, neuron);
            grad_y[t][i] = grad_h * neuron.gain;
            carry[i] = grad_h * neuron.decay;
        }
    if (x_step == 0)
#pragma unroll
        for (int t = 1; t < STEPS; ++t)
#pragma unroll
            for (int i = 0; i < V; ++i) grad_y[0][i] += grad_y[t][i];
}

template <class T, int V, int STEPS, int S, bool LAST, class R = State<T>>
__global__ void norm_reduce(const T* x, const R* weight, const R* bias, const R* mean, const R* variance,
                            const T* grad_spikes, Sums<R>* partial, long long neurons, long long x_step,
                            long long channels, long long inner, R eps, int detach_reset, NEURON_PARAMETERS) {
    const Neuron<R> neuron = NEURON;
    const Walk<LAST, V> walk(neurons, channels, inner);
    constexpr int N = LAST ? V : 1;
    Sums<R> own[N] = {};
    Channel<R> channel[N];
    for (int i = 0; i < N; ++i)
        if (walk.items) channel[i] = channel_of(walk.channel + i, weight, bias, mean, variance, eps);
    for (long long item = walk.begin; item < walk.items; item += walk.stride) {
        Vector<T, V> in[STEPS];
        R grad_y[STEPS][V];
        grad_currents<STEPS, S, LAST>(x, grad_spikes, channel, walk.neuron(item), neurons, x_step, !detach_reset,
                                      neuron, in, grad_y);
#pragma unroll
        for (int t = 0; t < STEPS; ++t)
            if (t == 0 || x_step)
#pragma unroll
                for (int i = 0; i < V; ++i) {
                    const int k = LAST ? i : 0;
                    own[k].grad += grad_y[t][i];
                    own[k].moment += grad_y[t][i] * (load(in[t].items[i]) - channel[k].mean);
                }
    }
    reduce_block<LAST>(own, partial, walk.channel, channels);
}

// coefficients: [2, channels]: mean of grad_y and slope of its part along x; zero without batch statistics.
template <class R>
__global__ void norm_finish_sums(const Sums<R>* partial, long long splits, long long channels, const R* variance, R eps,
                                 double count, int batch_statistics, R* grad_weight, R* grad_bias, R* coefficients) {
    const long long c = thread_number();
    if (c >= channels) return;
    double grad = 0, moment = 0;
    for (long long split = 0; split < splits; ++split) {
        grad += partial[split * channels + c].grad;
        moment += partial[split * channels + c].moment;
    }
    const double inverse = 1 / sqrt(double(variance[c]) + double(eps));
    grad_bias[c] = R(grad);
    grad_weight[c] = R(moment * inverse);
    coefficients[c] = batch_statistics ? R(grad / count) : R(0);
    coefficients[channels + c] = batch_statistics ? R(moment / count * inverse * inverse) : R(0);
}

template <class T, int V, int STEPS, int S, bool LAST, class R = State<T>>
__global__ void norm_apply(const T* x, const R* weight, const R* bias, const R* mean, const R* variance,
                           const T* grad_spikes, const R* coefficients, T* grad_x, long long neurons, long long x_step,
                           long long channels, long long inner, R eps, int detach_reset, NEURON_PARAMETERS) {
    const Neuron<R> neuron = NEURON;
    const long long first = thread_number() * V;
    if (first >= neurons) return;
    const long long c = LAST ? first % channels : first / inner % channels;
    constexpr int N = LAST ? V : 1;
    Channel<R> channel[N];
    for (int i = 0; i < N; ++i) channel[i] = channel_of(c + i, weight, bias, mean, variance, eps);
    Vector<T, V> in[STEPS];
    R grad_y[STEPS][V];
    grad_currents<STEPS, S, LAST>(x, grad_spikes, channel, first, neurons, x_step, !detach_reset, neuron, in, grad_y);
#pragma unroll
    for (int t = 0; t < STEPS; ++t) {
        if (t > 0 && x_step == 0) break;
        Vector<T, V> out;
#pragma unroll
        for (int i = 0; i < V; ++i) {
            const int k = LAST ? i : 0;
            const R along = (load(in[t].items[i]) - channel[k].mean) * coefficients[channels + c + k];
            store(out.items[i], channel[k].scale * (grad_y[t][i] - coefficients[c + k] - along));
        }
        store_vector<V>(grad_x + t * neurons + first, out);
    }
}

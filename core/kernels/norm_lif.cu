// BatchNorm and LIF in one for the GPU: two passes over memory each way. Compiled like lif.cu.
//
// Channels: LAST false, [.., C, pixels]: a block takes one channel; LAST true, [.., C]: a thread takes V channels.
// Every sum is taken per block, written, and added up by one block a channel in double: the same result every run.
#include "lif_step.h"
#include "elements.cuh"

constexpr int THREADS = 128;
constexpr int AHEAD = 4;  // vectors that a thread of norm_moments has on their way
constexpr int LANES = 32;  // threads of a block beside each other on the channels at most, where LAST
constexpr int FINISH = 512;  // threads of a block that adds up the sums of a channel

// As many lanes of V channels as there are channels for: a power of two.
LIF_INLINE int lanes_for(long long channels, int width) {
    int lanes = LANES;
    while (lanes > 1 && lanes / 2 * width >= channels) lanes /= 2;
    return lanes;
}

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
// LAST: `own` holds N channels; every `lanes`-th thread shares them. Else one value, shared by the whole block.
template <bool LAST, int N, class Value>
LIF_INLINE void reduce_block(const Value (&own)[N], Value* partial, long long channel, long long channels) {
    __shared__ Value shared[THREADS];
    const int lanes = LAST ? lanes_for(channels, N) : 1;
    for (int i = 0; i < N; ++i) {
        __syncthreads();
        shared[threadIdx.x] = own[i];
        __syncthreads();
        for (int half = THREADS / 2; half >= lanes; half /= 2) {
            if (int(threadIdx.x) < half) add_up(shared[threadIdx.x], shared[threadIdx.x + half]);
            __syncthreads();
        }
        const long long c = channel + i;
        if (int(threadIdx.x) < lanes && c < channels) partial[blockIdx.y * channels + c] = shared[threadIdx.x];
    }
}

// The sum of FINISH threads, in thread 0.
template <class Value>
LIF_INLINE Value sum_of_block(const Value& own) {
    __shared__ Value shared[FINISH];
    shared[threadIdx.x] = own;
    for (int half = FINISH / 2; half >= 1; half /= 2) {
        __syncthreads();
        if (int(threadIdx.x) < half) add_up(shared[threadIdx.x], shared[threadIdx.x + half]);
    }
    return shared[0];
}

// The work of a block: `neuron(item)`, the first memory index of every group of V of its channels in a time step.
// items: groups of all samples and pixels; this thread's are begin, begin + stride, ...
template <bool LAST, int V>
struct Walk {
    long long channel, begin, stride, items, channels, inner;

    LIF_MEMBER Walk(long long neurons, long long channels, long long inner) : channels(channels), inner(inner) {
        if (LAST) {
            const int lanes = lanes_for(channels, V), rows = THREADS / lanes;
            channel = ((long long)blockIdx.x * lanes + threadIdx.x % lanes) * V;
            begin = (long long)blockIdx.y * rows + threadIdx.x / lanes;
            stride = (long long)gridDim.y * rows;
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

// Where the neurons lie that make the spikes at memory index `own`: there, or, POOLED (channels-last), at the four
// places of a window of 2x2 pixels, whose spikes are max-pooled. pair: as in calls.h.
template <bool POOLED>
struct Places {
    static constexpr int COUNT = POOLED ? 4 : 1;
    long long first, right, below;

    LIF_MEMBER Places(long long own, long long channels, long long pair)
        : first(own), right(channels), below(pair / 2) {
        if (POOLED) {
            const long long in_pair = own % (pair / 4);
            first = own / (pair / 4) * pair + in_pair / channels * (2 * channels) + in_pair % channels;
        }
    }

    LIF_MEMBER long long at(int place) const { return first + (place & 1) * right + (place >> 1) * below; }
};

template <class T, int V, bool LAST, class R = State<T>>
__global__ void norm_moments(const T* x, Moments<R>* partial, long long steps, long long neurons, long long x_step,
                             long long channels, long long inner) {
    const Walk<LAST, V> walk(neurons, channels, inner);
    constexpr int N = LAST ? V : 1;
    // Sums of deviations from the thread's first values: no quotient for every element.
    R pivot[N] = {}, sum[N] = {}, squares[N] = {};
    long long count = 0;
    if (walk.begin < walk.items) {
        const Vector<T, V> in = load_vector<V>(x + walk.neuron(walk.begin));
        for (int i = 0; i < N; ++i) pivot[i] = load(in.items[i]);
    }
    for (long long item = walk.begin; item < walk.items; item += walk.stride) {
        const T* from = x + walk.neuron(item);
        for (long long first = 0; first < steps; first += AHEAD) {
            Vector<T, V> in[AHEAD];  // all on their way before one is needed
#pragma unroll
            for (int t = 0; t < AHEAD; ++t)
                if (first + t < steps) in[t] = load_vector<V>(from + (first + t) * x_step);
#pragma unroll
            for (int t = 0; t < AHEAD; ++t)
                if (first + t < steps)
#pragma unroll
                    for (int i = 0; i < V; ++i) {
                        const int k = LAST ? i : 0;
                        const R deviation = load(in[t].items[i]) - pivot[k];
                        sum[k] += deviation;
                        squares[k] += deviation * deviation;
                    }
        }
        count += steps * (LAST ? 1 : V);
    }
    Moments<R> own[N] = {};
    if (count)
        for (int i = 0; i < N; ++i) {
            const R mean = sum[i] / R(count);
            own[i] = {R(count), pivot[i] + mean, squares[i] - sum[i] * mean};
        }
    reduce_block<LAST>(own, partial, walk.channel, channels);
}

// A block a channel.
template <class R>
__global__ void norm_finish_moments(const Moments<R>* partial, long long splits, long long channels, R* mean,
                                    R* variance) {
    const long long c = blockIdx.x;
    Moments<double> own = {0, 0, 0};
    for (long long split = threadIdx.x; split < splits; split += FINISH) {
        const Moments<R> part = partial[split * channels + c];
        own = merged(own, Moments<double>{part.count, part.mean, part.squares});
    }
    const Moments<double> all = sum_of_block(own);
    if (threadIdx.x > 0) return;
    mean[c] = R(all.mean);
    variance[c] = R(all.squares / all.count);
}

// y = x * scale + shift of every channel: factors[0] is the mean, factors[1] the scale, factors[2] the shift.
template <class R>
__global__ void norm_factors(const R* weight, const R* bias, const R* mean, const R* variance, R eps,
                             long long channels, R* factors) {
    const long long c = thread_number();
    if (c >= channels) return;
    const R inverse = R(1) / sqrt(variance[c] + eps);
    const R scale = weight ? inverse * weight[c] : inverse;
    factors[c] = mean[c];
    factors[channels + c] = scale;
    factors[2 * channels + c] = (bias ? bias[c] : R(0)) - mean[c] * scale;
}

// The factors of the channels of a thread: V neighbours where LAST, else one.
template <int N, class R>
struct Channels {
    R mean[N], scale[N], shift[N];

    LIF_MEMBER Channels(const R* factors, long long c, long long channels) {
        load_values<N>(factors + c, mean);
        load_values<N>(factors + channels + c, scale);
        load_values<N>(factors + 2 * channels + c, shift);
    }
};

template <class T, int V, int STEPS, bool LAST, bool POOLED, class R = State<T>>
__global__ void norm_forward(const T* x, const R* factors, T* spikes, long long neurons, long long x_step,
                             long long channels, long long inner, long long pair, NEURON_PARAMETERS) {
    const Neuron<R> neuron = NEURON;
    constexpr int PLACES = Places<POOLED>::COUNT;
    const long long own = thread_number() * V, step = neurons / PLACES;
    if (own >= step) return;
    const Places<POOLED> places(own, channels, pair);
    Vector<T, V> in[PLACES][STEPS], out[STEPS];
#pragma unroll
    for (int place = 0; place < PLACES; ++place)
#pragma unroll
        for (int t = 0; t < STEPS; ++t) in[place][t] = load_vector<V>(x + t * x_step + places.at(place));
    const long long c = LAST ? own % channels : own / inner % channels;
    const Channels<LAST ? V : 1, R> channel(factors, c, channels);
#pragma unroll
    for (int place = 0; place < PLACES; ++place) {
        R v[V] = {};
#pragma unroll
        for (int t = 0; t < STEPS; ++t) {
#pragma unroll
            for (int i = 0; i < V; ++i) {
                const int k = LAST ? i : 0;
                const R h = charge(v[i], load(in[place][t].items[i]) * channel.scale[k] + channel.shift[k], neuron);
                const R s = spike<0, false>(h - neuron.threshold, neuron);
                if (place == 0 || s != R(0)) store(out[t].items[i], s);
                v[i] = discharge(h, s);
            }
            if (place == PLACES - 1) store_vector<V>(spikes + t * step + own, out[t]);
        }
    }
}

// The membranes h[t][i] before the spikes of V neurons, and their input.
template <int STEPS, bool LAST, int V, class T, class R>
LIF_INLINE void membranes(const T* x, long long x_step, const Channels<LAST ? V : 1, R>& channel,
                          const Neuron<R>& neuron, Vector<T, V> (&in)[STEPS], R (&h)[STEPS][V]) {
    R v[V] = {};
#pragma unroll
    for (int t = 0; t < STEPS; ++t) in[t] = load_vector<V>(x + t * x_step);
#pragma unroll
    for (int t = 0; t < STEPS; ++t)
#pragma unroll
        for (int i = 0; i < V; ++i) {
            const int k = LAST ? i : 0;
            h[t][i] = charge(v[i], load(in[t].items[i]) * channel.scale[k] + channel.shift[k], neuron);
            v[i] = discharge(h[t][i], spike<0, false>(h[t][i] - neuron.threshold, neuron));
        }
}

// Calls use(first, in, grad_y) for V neurons at every place: their memory index in a step, their input and the gradient
// of their current; constant input (x_step 0): summed into grad_y[0].
//
// A window's gradient goes to the first place that fired, or to the first where none did: as torch's max_pool2d.
template <int STEPS, int S, bool LAST, bool POOLED, int V, class T, class R, class Use>
LIF_INLINE void grad_currents(const T* x, const T* grad_spikes, const Channels<LAST ? V : 1, R>& channel,
                              const Places<POOLED>& places, long long own, long long step, long long x_step, bool reset,
                              const Neuron<R>& neuron, Use use) {
    Vector<T, V> in[STEPS], grad[STEPS];
    R h[STEPS][V];
    unsigned long long winners = 0;  // places, in two bits for each step and neuron
#pragma unroll
    for (int t = 0; t < STEPS; ++t) grad[t] = load_vector<V>(grad_spikes + t * step + own);
    const auto settle = [&](int place) {
#pragma unroll
        for (int t = 0; t < STEPS; ++t)
#pragma unroll
            for (int i = 0; i < V; ++i) {
                const int at = 2 * (t * V + i);
                const R fired = spike<0, false>(h[t][i] - neuron.threshold, neuron);
                if (fired != R(0)) winners = (winners & ~(3ull << at)) | ((unsigned long long)place << at);
            }
    };
    if (POOLED)
#pragma unroll 1
        for (int place = 3; place > 0; --place) {
            membranes<STEPS, LAST>(x + places.at(place), x_step, channel, neuron, in, h);
            settle(place);
        }
#pragma unroll 1
    for (int place = 0; place < Places<POOLED>::COUNT; ++place) {
        membranes<STEPS, LAST>(x + places.at(place), x_step, channel, neuron, in, h);
        if (POOLED && place == 0) settle(0);
        R grad_y[STEPS][V], carry[V] = {};
#pragma unroll
        for (int t = STEPS - 1; t >= 0; --t)
#pragma unroll
            for (int i = 0; i < V; ++i) {
                const bool through_reset = reset && t < STEPS - 1;
                const bool won = !POOLED || int(winners >> 2 * (t * V + i) & 3) == place;
                const R g = won ? load(grad[t].items[i]) : R(0);
                const R grad_h = step_backward<S, false>(h[t][i], g, carry[i], through_reset, neuron);
                grad_y[t][i] = grad_h * neuron.gain;
                carry[i] = grad_h * neuron.decay;
            }
        if (x_step == 0)
#pragma unroll
            for (int t = 1; t < STEPS; ++t)
#pragma unroll
                for (int i = 0; i < V; ++i) grad_y[0][i] += grad_y[t][i];
        use(places.at(place), in, grad_y);
    }
}

template <class T, int V, int STEPS, int S, bool LAST, bool POOLED, class R = State<T>>
__global__ void norm_reduce(const T* x, const R* factors, const T* grad_spikes, Sums<R>* partial, long long neurons,
                            long long x_step, long long channels, long long inner, long long pair, int detach_reset,
                            NEURON_PARAMETERS) {
    const Neuron<R> neuron = NEURON;
    const long long step = neurons / Places<POOLED>::COUNT;
    const Walk<LAST, V> walk(step, channels, inner);
    constexpr int N = LAST ? V : 1;
    Sums<R> sums[N] = {};
    const Channels<N, R> channel(factors, walk.items ? walk.channel : 0, channels);
    for (long long item = walk.begin; item < walk.items; item += walk.stride) {
        const long long own = walk.neuron(item);
        const Places<POOLED> places(own, channels, pair);
        grad_currents<STEPS, S, LAST, POOLED, V>(
            x, grad_spikes, channel, places, own, step, x_step, !detach_reset, neuron,
            [&](long long, const Vector<T, V>(&in)[STEPS], const R(&grad_y)[STEPS][V]) {
#pragma unroll
                for (int t = 0; t < STEPS; ++t)
                    if (t == 0 || x_step)
#pragma unroll
                        for (int i = 0; i < V; ++i) {
                            const int k = LAST ? i : 0;
                            sums[k].grad += grad_y[t][i];
                            sums[k].moment += grad_y[t][i] * (load(in[t].items[i]) - channel.mean[k]);
                        }
            });
    }
    reduce_block<LAST>(sums, partial, walk.channel, channels);
}

// A block a channel. coefficients: [2, channels]: mean of grad_y and slope of its part along x; zero without batch statistics.
template <class R>
__global__ void norm_finish_sums(const Sums<R>* partial, long long splits, long long channels, const R* variance, R eps,
                                 double count, int batch_statistics, R* grad_weight, R* grad_bias, R* coefficients) {
    const long long c = blockIdx.x;
    Sums<double> own = {0, 0};
    for (long long split = threadIdx.x; split < splits; split += FINISH) {
        own.grad += partial[split * channels + c].grad;
        own.moment += partial[split * channels + c].moment;
    }
    const auto [grad, moment] = sum_of_block(own);
    if (threadIdx.x > 0) return;
    const double inverse = 1 / sqrt(double(variance[c]) + double(eps));
    grad_bias[c] = R(grad);
    grad_weight[c] = R(moment * inverse);
    coefficients[c] = batch_statistics ? R(grad / count) : R(0);
    coefficients[channels + c] = batch_statistics ? R(moment / count * inverse * inverse) : R(0);
}

template <class T, int V, int STEPS, int S, bool LAST, bool POOLED, class R = State<T>>
__global__ void norm_apply(const T* x, const R* factors, const T* grad_spikes, const R* coefficients, T* grad_x,
                           long long neurons, long long x_step, long long channels, long long inner, long long pair,
                           int detach_reset, NEURON_PARAMETERS) {
    const Neuron<R> neuron = NEURON;
    const long long own = thread_number() * V, step = neurons / Places<POOLED>::COUNT;
    if (own >= step) return;
    const long long c = LAST ? own % channels : own / inner % channels;
    constexpr int N = LAST ? V : 1;
    const Channels<N, R> channel(factors, c, channels);
    R offset[N], slope[N];
    load_values<N>(coefficients + c, offset);
    load_values<N>(coefficients + channels + c, slope);
    const Places<POOLED> places(own, channels, pair);
    grad_currents<STEPS, S, LAST, POOLED, V>(
        x, grad_spikes, channel, places, own, step, x_step, !detach_reset, neuron,
        [&](long long first, const Vector<T, V>(&in)[STEPS], const R(&grad_y)[STEPS][V]) {
#pragma unroll
            for (int t = 0; t < STEPS; ++t) {
                if (t > 0 && x_step == 0) break;
                Vector<T, V> out;
#pragma unroll
                for (int i = 0; i < V; ++i) {
                    const int k = LAST ? i : 0;
                    const R along = (load(in[t].items[i]) - channel.mean[k]) * slope[k];
                    store(out.items[i], channel.scale[k] * (grad_y[t][i] - offset[k] - along));
                }
                store_vector<V>(grad_x + t * neurons + first, out);
            }
        });
}

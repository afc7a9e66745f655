// BatchNorm followed by LIF, in two passes over memory each way. Included after lif_loops.h, once per
// instruction set, inside a namespace.
//
// Sums are taken per task and added up in the order of the tasks, whose number does not depend on the threads:
// the same input gives the same result on any number of threads.

// Sum of x[i] - centre, or of its square: sixteen partial sums, so that the loop vectorises in a fixed order.
template <bool SQUARED, class R>
R deviations(const R* __restrict x, R centre, int64_t n) {
    constexpr int LANES = 16;
    R partial[LANES] = {};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int lane = 0; lane < LANES; ++lane) {
            const R d = x[i + lane] - centre;
            partial[lane] += SQUARED ? d * d : d;
        }
    for (int lane = 0; i < n; ++i, ++lane) {
        const R d = x[i] - centre;
        partial[lane] += SQUARED ? d * d : d;
    }
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; ++lane) partial[lane] += partial[lane + half];
    return partial[0];
}

// Moments of n <= BLOCK neighbours, read from memory once: the second reading finds them in the cache.
template <class T, class R = State<T>>
Moments moments_of(const T* neighbours, int n) {
    alignas(64) R buffer[BLOCK];
    const R* x = widened(neighbours, buffer, n);
    const double mean = double(deviations<false>(x, R(0), n)) / n;
    // The rounding of the mean to R is corrected for.
    const R centre = R(mean);
    const double error = mean - double(centre);
    return {double(n), mean, double(deviations<true>(x, centre, n)) - n * error * error};
}

// The planes [begin, end) of x, steps times samples times channels of them; adds to moments[channels].
template <class T>
void plane_moments(const NormCall& call, int64_t begin, int64_t end, Moments* moments) {
    const int64_t planes = call.shape.neurons / call.inner;  // per step
    for (int64_t plane = begin; plane < end; ++plane) {
        const T* x = row<T>(call.x, plane / planes, call.shape.x_step, plane % planes * call.inner);
        for (int64_t i = 0; i < call.inner; i += BLOCK)
            moments[plane % call.channels].merge(moments_of(x + i, int(std::min<int64_t>(call.inner - i, BLOCK))));
    }
}

// The pixels [begin, end) of x in channels-last order, steps times samples times pixels of them.
template <class T>
void pixel_moments(const NormCall& call, int64_t begin, int64_t end, Moments* moments) {
    using R = State<T>;
    constexpr int64_t RUN = 32;
    const int64_t channels = call.channels, pixels = call.shape.neurons / channels;  // per step
    Scratch<R> buffer(2 * channels);
    R *__restrict sum = buffer.data, *__restrict squares = buffer.data + channels;
    for (int64_t first = begin; first < end;) {
        const int64_t pixel = first % pixels;
        int64_t n = end - first < RUN ? end - first : RUN;
        if (n > pixels - pixel) n = pixels - pixel;
        const T* __restrict x = row<T>(call.x, first / pixels, call.shape.x_step, pixel * channels);
        for (int64_t c = 0; c < channels; ++c) sum[c] = squares[c] = 0;
        for (int64_t i = 0; i < n; ++i)
            for (int64_t c = 0; c < channels; ++c) sum[c] += load(x[i * channels + c]);
        const R share = R(1) / R(n);
        for (int64_t c = 0; c < channels; ++c) sum[c] *= share;
        for (int64_t i = 0; i < n; ++i)
            for (int64_t c = 0; c < channels; ++c) {
                const R d = load(x[i * channels + c]) - sum[c];
                squares[c] += d * d;
            }
        for (int64_t c = 0; c < channels; ++c) moments[c].merge({double(n), double(sum[c]), double(squares[c])});
        first += n;
    }
}

template <class T>
void moments_of_range(const NormCall& call, int64_t begin, int64_t end, Moments* moments) {
    if (call.inner == 1) pixel_moments<T>(call, begin, end, moments);
    else plane_moments<T>(call, begin, end, moments);
}

// What normalises a channel, y = x * scale + shift, and what takes its gradient back,
// grad_x = scale * (grad_y - offset - (x - mean) * slope).
enum Coefficient { SCALE, SHIFT, MEAN, OFFSET, SLOPE, COEFFICIENTS };

// The coefficients of every channel: [COEFFICIENTS][channels]. `sums`: [2][channels], the sums of grad_y and of
// grad_y * (x - mean), or null.
template <class R>
void coefficients(const NormCall& call, const double* sums, R* table) {
    const int64_t channels = call.channels;
    const double count = double(call.shape.neurons / channels) * double(call.shape.constant ? 1 : call.shape.steps);
    const R *weight = static_cast<const R*>(call.weight), *bias = static_cast<const R*>(call.bias);
    const R *mean = static_cast<const R*>(call.mean), *variance = static_cast<const R*>(call.variance);
    for (int64_t c = 0; c < channels; ++c) {
        const R inverse = R(1) / std::sqrt(variance[c] + R(call.eps));
        const R scale = weight ? inverse * weight[c] : inverse;
        table[SCALE * channels + c] = scale;
        table[SHIFT * channels + c] = (bias ? bias[c] : R(0)) - mean[c] * scale;
        table[MEAN * channels + c] = mean[c];
        table[OFFSET * channels + c] = sums ? R(sums[c] / count) : R(0);
        table[SLOPE * channels + c] = sums ? R(sums[channels + c] / count) * inverse * inverse : R(0);
    }
}

// Coefficients [0, wanted) of the n neurons from `first`, each a row of BLOCK.
template <class R>
void spread(const NormCall& call, const R* table, int wanted, int64_t first, int n, R (*rows)[BLOCK]) {
    const int64_t channels = call.channels, inner = call.inner;
    for (int k = 0; k < wanted; ++k) {
        const R* values = table + k * channels;
        R* to = rows[k];
        int64_t c = first / inner % channels;
        int64_t run = inner == 1 ? channels - c : inner - first % inner;
        for (int64_t i = 0; i < n; i += run, run = inner == 1 ? channels : inner) {
            if (run > n - i) run = n - i;
            if (inner == 1) std::memcpy(to + i, values + c, run * sizeof(R));
            else std::fill(to + i, to + i + run, values[c]);
            c = inner == 1 || c + 1 == channels ? 0 : c + 1;
        }
    }
}

// The reverse of spread: adds a row of n neurons to the sums of their channels.
template <class R>
void gather(const NormCall& call, const R* __restrict values, int64_t first, int n, double* __restrict sums) {
    const int64_t channels = call.channels, inner = call.inner;
    int64_t c = first / inner % channels;
    int64_t run = inner == 1 ? channels - c : inner - first % inner;
    for (int64_t i = 0; i < n; i += run, run = inner == 1 ? channels : inner) {
        if (run > n - i) run = n - i;
        if (inner == 1) for (int64_t k = 0; k < run; ++k) sums[c + k] += double(values[i + k]);
        else sums[c] += double(deviations<false>(values + i, R(0), run));
        c = inner == 1 || c + 1 == channels ? 0 : c + 1;
    }
}

template <class T, class R>
void normalise_row(const T* __restrict x, const R* __restrict scale, const R* __restrict shift, R* __restrict y,
                   int n) {
    for (int i = 0; i < n; ++i) y[i] = load(x[i]) * scale[i] + shift[i];
}

template <class T, class R>
void reduce_row(const T* __restrict x, const R* __restrict grad_y, const R* __restrict mean, R* __restrict total,
                R* __restrict moment, int n) {
    for (int i = 0; i < n; ++i) {
        total[i] += grad_y[i];
        moment[i] += grad_y[i] * (load(x[i]) - mean[i]);
    }
}

// grad_x may be grad_y itself. Not inlined: g++ would then no longer vectorise it.
template <class T, class R>
[[gnu::noinline]] void denormalise_row(const T* __restrict x, const R* grad_y, const R (*__restrict channel)[BLOCK],
                                        T* grad_x, int n) {
#pragma GCC ivdep
    for (int i = 0; i < n; ++i) {
        const R centred = grad_y[i] - channel[OFFSET][i] - (load(x[i]) - channel[MEAN][i]) * channel[SLOPE][i];
        store(grad_x[i], channel[SCALE][i] * centred);
    }
}

// STEPS steps with everything in registers, as forward_steps and backward_steps in lif_loops.h. channel: rows of
// coefficients.
template <class T>
void norm_forward_steps(const T* __restrict x, int64_t x_step, const float (*__restrict channel)[BLOCK],
                        T* __restrict spikes, int64_t step, float* __restrict state, int n,
                        const Neuron<float> neuron) {
#pragma GCC ivdep
    for (int i = 0; i < n; ++i) {
        const float scale = channel[SCALE][i], shift = channel[SHIFT][i];
        float v = state[i];
#pragma GCC unroll 16
        for (int t = 0; t < STEPS; ++t) {
            const float h = charge(v, load(x[t * x_step + i]) * scale + shift, neuron);
            const float s = spike<0, false>(h - neuron.threshold, neuron);
            store(spikes[t * step + i], s);
            v = discharge(h, s);
        }
        state[i] = v;
    }
}

template <class T>
void norm_advance_steps(const T* __restrict x, int64_t x_step, const float (*__restrict channel)[BLOCK],
                        const float* __restrict before, float* __restrict after, int n, const Neuron<float> neuron) {
#pragma GCC ivdep
    for (int i = 0; i < n; ++i) {
        const float scale = channel[SCALE][i], shift = channel[SHIFT][i];
        float v = before[i];
#pragma GCC unroll 16
        for (int t = 0; t < STEPS; ++t) {
            const float h = charge(v, load(x[t * x_step + i]) * scale + shift, neuron);
            v = discharge(h, spike<0, false>(h - neuron.threshold, neuron));
        }
        after[i] = v;
    }
}

// REDUCE: adds to total and moment and, where grad_x has the membrane's type, leaves grad_y in it; else writes grad_x.
template <int S, bool REDUCE, class T>
[[gnu::noinline]] void norm_backward_steps(const T* __restrict x, int64_t x_step,
                                            const float (*__restrict channel)[BLOCK],
                                            const T* __restrict grad_spikes, int64_t step, T* __restrict grad_x,
                                            int64_t grad_step, const float* __restrict state, float* __restrict carry,
                                            float* __restrict total, float* __restrict moment, int n,
                                            bool reset_gradient, bool last_reset_gradient,
                                            const Neuron<float> neuron) {
#pragma GCC ivdep
    for (int i = 0; i < n; ++i) {
        const float scale = channel[SCALE][i], shift = channel[SHIFT][i], mean = channel[MEAN][i];
        float h[STEPS];
        float v = state[i], q = carry[i], sum = 0, product = 0;
#pragma GCC unroll 16
        for (int t = 0; t < STEPS; ++t) {
            h[t] = charge(v, load(x[t * x_step + i]) * scale + shift, neuron);
            v = discharge(h[t], spike<0, false>(h[t] - neuron.threshold, neuron));
        }
#pragma GCC unroll 16
        for (int t = STEPS - 1; t >= 0; --t) {
            const bool through_reset = t == STEPS - 1 ? last_reset_gradient : reset_gradient;
            const float grad = load(grad_spikes[t * step + i]);
            const float grad_h = step_backward<S, false>(h[t], grad, q, through_reset, neuron);
            const float grad_y = grad_h * neuron.gain, centred = load(x[t * x_step + i]) - mean;
            q = grad_h * neuron.decay;
            if constexpr (REDUCE) {
                sum += grad_y;
                product += grad_y * centred;
                if constexpr (std::is_same_v<T, float>) grad_x[t * grad_step + i] = grad_y;
            } else {
                store(grad_x[t * grad_step + i], scale * (grad_y - channel[OFFSET][i] - centred * channel[SLOPE][i]));
            }
        }
        carry[i] = q;
        if constexpr (REDUCE) {
            total[i] += sum;
            moment[i] += product;
        }
    }
}

// Whether the channels lie alike in every block of the largest size that `block` allows, which it becomes: one table of
// rows then serves all blocks.
inline bool whole_pixels(const NormCall& call, int& block) {
    if (call.inner != 1 || call.channels > block) return false;
    block -= block % int(call.channels);
    return true;
}

template <class T, class R = State<T>>
void norm_forward(const NormCall& call, const R* table, int64_t begin, int64_t end) {
    const Shape& shape = call.shape;
    const Neuron<R> neuron = neuron_of<R>(shape);
    int block = BLOCK;
    const bool alike = whole_pixels(call, block);
    alignas(64) R v[BLOCK], y[BLOCK], channel[SHIFT + 1][BLOCK];
    for (int64_t first = begin; first < end; first += block) {
        const int n = int(end - first < block ? end - first : block);
        if (first == begin || !alike) spread(call, table, SHIFT + 1, first, n, channel);
        std::fill(v, v + n, R(0));
        int64_t t = 0;
        if constexpr (IN_REGISTERS<T>)
            for (; t + STEPS <= shape.steps; t += STEPS)
                norm_forward_steps(row<T>(call.x, t, shape.x_step, first), shape.x_step, channel,
                                   row<T>(call.spikes, t, shape.neurons, first), shape.neurons, v, n, neuron);
        for (; t < shape.steps; ++t) {
            normalise_row(row<T>(call.x, t, shape.x_step, first), channel[SCALE], channel[SHIFT], y, n);
            forward_row<0, false>(y, row<T>(call.spikes, t, shape.neurons, first), v, n, neuron);
        }
    }
}

// The membranes before the spike of steps [from, to), h[(t - from) * BLOCK + i], from the membranes v before them.
template <class T, class R>
void norm_recompute(const NormCall& call, const R (*channel)[BLOCK], int64_t first, int n, int64_t from, int64_t to,
                    R* v, R* h, const Neuron<R>& neuron) {
    alignas(64) R y[BLOCK];
    for (int64_t t = from; t < to; ++t) {
        normalise_row(row<T>(call.x, t, call.shape.x_step, first), channel[SCALE], channel[SHIFT], y, n);
        recompute_row<0, false>(y, h + (t - from) * BLOCK, v, n, neuron);
    }
}

// What a block accumulates on its way back through time.
template <class R>
struct Carried {
    alignas(64) R carry[BLOCK], grad_y[BLOCK], total[BLOCK], moment[BLOCK];
};

// The STEPS steps from `from` of one block backwards. A constant input gathers its gradient in grad_y.
template <bool REDUCE, class T>
void norm_backward_chunk(const NormCall& call, const float (*channel)[BLOCK], int64_t first, int n, int64_t from,
                         const float* v, Carried<float>& carried, const Neuron<float>& neuron) {
    const Shape& shape = call.shape;
    const int64_t x_step = shape.x_step, step = shape.neurons;
    const T *x = row<T>(call.x, from, x_step, first), *grad = row<T>(call.grad_spikes, from, step, first);
    const bool reset = !shape.detach_reset, last_reset = reset && from + STEPS < shape.steps;
    alignas(64) float y[BLOCK];
    if (shape.constant) normalise_row(x, channel[SCALE], channel[SHIFT], y, n);
    T* grad_x = shape.constant ? nullptr : row<T>(call.grad_x, from, call.grad_step, first);
    with_surrogate(shape.surrogate, [&](auto s) {
        if (shape.constant)
            accumulate_steps<s.value>(y, grad, step, v, carried.carry, carried.grad_y, n, reset, last_reset, neuron);
        else
            norm_backward_steps<s.value, REDUCE>(x, x_step, channel, grad, step, grad_x, call.grad_step, v,
                                                 carried.carry, carried.total, carried.moment, n, reset, last_reset,
                                                 neuron);
    });
}

// From carried.grad_y of step t to the sums, kept in grad_y for the second pass where that is given; or to grad_x.
template <bool REDUCE, class T, class R>
void norm_gradient(const NormCall& call, const R (*channel)[BLOCK], R* grad_y, int64_t first, int n, int64_t t,
                   Carried<R>& carried) {
    const T* x = row<T>(call.x, t, call.shape.x_step, first);
    if constexpr (REDUCE) {
        reduce_row(x, carried.grad_y, channel[MEAN], carried.total, carried.moment, n);
        if (grad_y) std::copy(carried.grad_y, carried.grad_y + n, row<R>(grad_y, t, call.grad_step, first));
    } else {
        denormalise_row(x, carried.grad_y, channel, row<T>(call.grad_x, t, call.grad_step, first), n);
    }
}

// Steps [from, to) of one block backwards, row by row. A constant input gathers its gradient in grad_y.
template <bool REDUCE, class T, class R>
void norm_backward_rows(const NormCall& call, const R (*channel)[BLOCK], R* grad_y, int64_t first, int n, int64_t from,
                        int64_t to, R* v, Carried<R>& carried, const Neuron<R>& neuron) {
    const Shape& shape = call.shape;
    const Rows<R>& rows = rows_of<R>(shape);
    alignas(64) R h[STEPS * BLOCK], buffer[BLOCK];
    norm_recompute<T>(call, channel, first, n, from, to, v, h, neuron);
    for (int64_t t = to - 1; t >= from; --t) {
        const R* ht = h + (t - from) * BLOCK;
        const R* grad = widened(row<T>(call.grad_spikes, t, shape.neurons, first), buffer, n);
        const bool reset = !shape.detach_reset && t < shape.steps - 1;
        if (shape.constant) {
            rows.accumulate(ht, grad, carried.grad_y, carried.carry, n, reset, neuron);
        } else {
            rows.backward(ht, grad, carried.grad_y, carried.carry, n, reset, neuron);
            norm_gradient<REDUCE, T>(call, channel, grad_y, first, n, t, carried);
        }
    }
}

// REDUCE: adds up grad_y and grad_y * (x - mean) in `sums` [2][channels]. Else writes grad_x. As backward in
// lif_loops.h: forward through time to the membranes at every STEPS-th step, then backward, STEPS steps at a time.
template <bool REDUCE, class T, class R = State<T>>
void norm_backward(const NormCall& call, const R* table, double* sums, R* grad_y, int64_t begin, int64_t end) {
    const Shape& shape = call.shape;
    const Neuron<R> neuron = neuron_of<R>(shape);
    const int64_t last = (shape.steps - 1) / STEPS * STEPS;
    int block = block_of(last / STEPS + 1);
    const bool alike = whole_pixels(call, block);
    Scratch<R> starts((last / STEPS + 1) * block);
    Carried<R> carried;
    alignas(64) R channel[COEFFICIENTS][BLOCK], ignored[STEPS * BLOCK];
    for (int64_t first = begin; first < end; first += block) {
        const int n = int(end - first < block ? end - first : block);
        if (first == begin || !alike) spread(call, table, REDUCE ? MEAN + 1 : COEFFICIENTS, first, n, channel);
        R* v = starts.data;
        for (R* zeroed : {v, carried.carry, carried.grad_y, carried.total, carried.moment})
            std::fill(zeroed, zeroed + n, R(0));
        for (int64_t t = 0; t < last; t += STEPS, v += block) {
            if constexpr (IN_REGISTERS<T>) {
                norm_advance_steps(row<T>(call.x, t, shape.x_step, first), shape.x_step, channel, v, v + block, n,
                                   neuron);
            } else {
                std::copy(v, v + n, v + block);
                norm_recompute<T>(call, channel, first, n, t, t + STEPS, v + block, ignored, neuron);
            }
        }
        for (int64_t t = last; t >= 0; t -= STEPS, v -= block) {
            const int64_t to = std::min(t + STEPS, shape.steps);
            if constexpr (IN_REGISTERS<T>)
                if (to - t == STEPS) {
                    norm_backward_chunk<REDUCE, T>(call, channel, first, n, t, v, carried, neuron);
                    continue;
                }
            norm_backward_rows<REDUCE, T>(call, channel, grad_y, first, n, t, to, v, carried, neuron);
        }
        if (shape.constant) {
            for (int i = 0; i < n; ++i) carried.grad_y[i] *= neuron.gain;
            norm_gradient<REDUCE, T>(call, channel, grad_y, first, n, 0, carried);
        }
        if constexpr (REDUCE) {
            gather(call, carried.total, first, n, sums);
            gather(call, carried.moment, first, n, sums + call.channels);
        }
    }
}

// The second pass where the first has left grad_y, laid out as x without gaps between its steps.
template <class T, class R = State<T>>
void norm_finish(const NormCall& call, const R* table, R* grad_y, int64_t begin, int64_t end) {
    const Shape& shape = call.shape;
    int block = BLOCK;
    const bool alike = whole_pixels(call, block);
    alignas(64) R channel[COEFFICIENTS][BLOCK];
    for (int64_t first = begin; first < end; first += block) {
        const int n = int(end - first < block ? end - first : block);
        if (first == begin || !alike) spread(call, table, COEFFICIENTS, first, n, channel);
        for (int64_t t = 0; t < (shape.constant ? 1 : shape.steps); ++t)
            denormalise_row(row<T>(call.x, t, shape.x_step, first), row<R>(grad_y, t, call.grad_step, first), channel,
                            row<T>(call.grad_x, t, call.grad_step, first), n);
    }
}

// FORWARD; BACKWARD with `sums`, its first pass, and without, its second. grad_y: what the first leaves for the second,
// in the membrane's type (grad_x itself where that has it); null: the second computes it again.
template <class T, class R = State<T>>
void norm_pass(const NormCall& call, Pass pass, const void* table, double* sums, void* grad_y, int64_t begin,
               int64_t end) {
    const R* coefficient = static_cast<const R*>(table);
    R* kept = static_cast<R*>(grad_y);
    if (pass == FORWARD) norm_forward<T>(call, coefficient, begin, end);
    else if (sums) norm_backward<true, T>(call, coefficient, sums, kept, begin, end);
    else if (kept) norm_finish<T>(call, coefficient, kept, begin, end);
    else if constexpr (!std::is_same_v<T, R>)
        norm_backward<false, T, R>(call, coefficient, nullptr, nullptr, begin, end);
}

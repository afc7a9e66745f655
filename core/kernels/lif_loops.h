// The LIF kernels over a range of neurons: all steps of one block at a time, its membranes in the cache.
// Included after rows.h, once per instruction set, inside a namespace.

constexpr int HISTORY = 8192;  // membranes kept per block in the backward passes: 32 KiB of floats
constexpr int STEPS = 4;       // steps taken together, with the membranes in registers

template <class R>
struct Scratch {
    R* data;
    explicit Scratch(int64_t size) : data(static_cast<R*>(aligned_alloc(64, (size * sizeof(R) + 63) / 64 * 64))) {}
    ~Scratch() { free(data); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
};

template <class R>
Neuron<R> neuron_of(const Shape& shape) {
    const double alpha = shape.alpha;
    return {R(shape.decay), R(shape.gain), R(shape.threshold), R(shape.reset),
            R(alpha), R(alpha / 2), R(1.57079632679489661923 * alpha)};
}

// Row t of a block; zeros where the tensor is absent.
template <class T>
const T* row(const void* tensor, int64_t t, int64_t step, int64_t first) {
    alignas(64) static const T zeros[BLOCK] = {};
    return tensor ? static_cast<const T*>(tensor) + t * step + first : zeros;
}

template <class T>
T* row(void* tensor, int64_t t, int64_t step, int64_t first) {
    return static_cast<T*>(tensor) + t * step + first;
}

template <class R>
void load_state(const void* state, int64_t first, R* __restrict v, R reset, int n) {
    const R* __restrict from = row<R>(state, 0, 0, first);
    const R rest = state ? reset : R(0);
    for (int i = 0; i < n; ++i) v[i] = from[i] - rest;
}

// COUNT steps with the membranes in registers: as fast as a copy, where rows go through the cache. ALONE: these are
// all steps, from rest, and nobody asks for the last membrane, so that `state` is not touched. The pragma: steps do
// not overlap in memory, which is more than the compiler would check at run time.
template <int COUNT, bool ALONE, class T>
void forward_steps(const T* __restrict x, int64_t x_step, T* __restrict spikes, int64_t step, float* __restrict state,
                   int n, const Neuron<float> neuron) {
#pragma GCC ivdep
    for (int i = 0; i < n; ++i) {
        float v = ALONE ? 0.0f : state[i];
#pragma GCC unroll 16
        for (int t = 0; t < COUNT; ++t) {
            const float h = charge(v, load(x[t * x_step + i]), neuron);
            const float s = spike<0, false>(h - neuron.threshold, neuron);
            store(spikes[t * step + i], s);
            v = discharge(h, s);
        }
        if (!ALONE) state[i] = v;
    }
}

template <class T>
void advance_steps(const T* __restrict x, int64_t x_step, const float* __restrict before, float* __restrict after,
                   int n, const Neuron<float> neuron) {
#pragma GCC ivdep
    for (int i = 0; i < n; ++i) {
        float v = before[i];
#pragma GCC unroll 16
        for (int t = 0; t < STEPS; ++t) {
            const float h = charge(v, load(x[t * x_step + i]), neuron);
            v = discharge(h, spike<0, false>(h - neuron.threshold, neuron));
        }
        after[i] = v;
    }
}

// COUNT, ALONE: as above; `carry`, the gradient of the membrane, is zero on entry and not wanted on return. Not inlined:
// g++ would then no longer vectorise it.
template <int S, int COUNT, bool ALONE, class T>
[[gnu::noinline]] void backward_steps(const T* __restrict x, int64_t x_step, const T* __restrict grad_spikes,
                                       T* __restrict grad_x, int64_t step, const float* __restrict state,
                                       float* __restrict carry, int n, bool reset_gradient, bool last_reset_gradient,
                                       const Neuron<float> neuron) {
#pragma GCC ivdep
    for (int i = 0; i < n; ++i) {
        float h[COUNT];
        float v = ALONE ? 0.0f : state[i], q = ALONE ? 0.0f : carry[i];
#pragma GCC unroll 16
        for (int t = 0; t < COUNT; ++t) {
            h[t] = charge(v, load(x[t * x_step + i]), neuron);
            v = discharge(h[t], spike<0, false>(h[t] - neuron.threshold, neuron));
        }
#pragma GCC unroll 16
        for (int t = COUNT - 1; t >= 0; --t) {
            const bool through_reset = t == COUNT - 1 ? last_reset_gradient : reset_gradient;
            const float grad = load(grad_spikes[t * step + i]);
            const float grad_h = step_backward<S, false>(h[t], grad, q, through_reset, neuron);
            store(grad_x[t * step + i], grad_h * neuron.gain);
            q = grad_h * neuron.decay;
        }
        if (!ALONE) carry[i] = q;
    }
}

// As backward_steps for an x that is the same at every step: adds grad_h to total.
template <int S, class T>
[[gnu::noinline]] void accumulate_steps(const float* __restrict x, const T* __restrict grad_spikes, int64_t step,
                                         const float* __restrict state, float* __restrict carry,
                                         float* __restrict total, int n, bool reset_gradient,
                                         bool last_reset_gradient, const Neuron<float> neuron) {
#pragma GCC ivdep
    for (int i = 0; i < n; ++i) {
        float h[STEPS];
        float v = state[i], q = carry[i], sum = total[i];
#pragma GCC unroll 16
        for (int t = 0; t < STEPS; ++t) {
            h[t] = charge(v, x[i], neuron);
            v = discharge(h[t], spike<0, false>(h[t] - neuron.threshold, neuron));
        }
#pragma GCC unroll 16
        for (int t = STEPS - 1; t >= 0; --t) {
            const bool through_reset = t == STEPS - 1 ? last_reset_gradient : reset_gradient;
            const float grad = load(grad_spikes[t * step + i]);
            const float grad_h = step_backward<S, false>(h[t], grad, q, through_reset, neuron);
            sum += grad_h;
            q = grad_h * neuron.decay;
        }
        carry[i] = q;
        total[i] = sum;
    }
}

// From rest, without a last membrane. Whether this number of steps has a loop of its own.
template <class T>
bool forward_alone(const Shape& shape, const T* x, T* spikes, int n, const Neuron<float>& neuron) {
    const int64_t x_step = shape.x_step, step = shape.neurons;
    switch (shape.steps) {
        case 4: forward_steps<4, true>(x, x_step, spikes, step, nullptr, n, neuron); return true;
        case 8: forward_steps<8, true>(x, x_step, spikes, step, nullptr, n, neuron); return true;
        case 16: forward_steps<16, true>(x, x_step, spikes, step, nullptr, n, neuron); return true;
        default: return false;
    }
}

template <class T>
void forward_block(const LifCall& call, int64_t first, int n, State<T>* v, const Neuron<State<T>>& neuron) {
    const Shape& shape = call.shape;
    int64_t t = 0;
    if constexpr (IN_REGISTERS<T>) {
        T* spikes = row<T>(call.spikes, 0, 0, first);
        if (!call.state && !call.membrane && forward_alone(shape, row<T>(call.x, 0, 0, first), spikes, n, neuron))
            return;
        for (; t + STEPS <= shape.steps; t += STEPS)
            forward_steps<STEPS, false>(row<T>(call.x, t, shape.x_step, first), shape.x_step,
                                        spikes + t * shape.neurons, shape.neurons, v, n, neuron);
    }
    for (; t < shape.steps; ++t) {
        const T* x = row<T>(call.x, t, shape.x_step, first);
        T* spikes = row<T>(call.spikes, t, shape.neurons, first);
        if constexpr (sizeof(T) < 8) forward_row<0, false>(x, spikes, v, n, neuron);
        else rows_of<double>(shape).forward(x, spikes, v, n, neuron);
    }
}

template <class T>
void forward(const LifCall& call, int64_t begin, int64_t end) {
    using R = State<T>;
    const Neuron<R> neuron = neuron_of<R>(call.shape);
    alignas(64) R v[BLOCK];
    for (int64_t first = begin; first < end; first += BLOCK) {
        const int n = int(end - first < BLOCK ? end - first : BLOCK);
        load_state(call.state, first, v, neuron.reset, n);
        forward_block<T>(call, first, n, v, neuron);
        if (call.membrane) {
            R* __restrict membrane = row<R>(call.membrane, 0, 0, first);
            for (int i = 0; i < n; ++i) membrane[i] = v[i] + neuron.reset;
        }
    }
}

// Neurons per block such that `rows` rows of a block stay in the cache.
inline int block_of(int64_t rows) {
    const int64_t fitting = HISTORY / rows / 64 * 64;
    return int(fitting < 64 ? 64 : fitting > BLOCK ? BLOCK : fitting);
}

// The membranes before the spike of steps [from, to), h[(t - from) * block + i], from the membranes v before them.
template <class T, class R>
void recompute(const LifCall& call, int64_t first, int n, int64_t from, int64_t to, R* v, R* h, int block,
               const Neuron<R>& neuron) {
    for (int64_t t = from; t < to; ++t) {
        const T* x = row<T>(call.x, t, call.shape.x_step, first);
        R* ht = h + (t - from) * block;
        if constexpr (sizeof(T) == 8) rows_of<R>(call.shape).recompute(x, ht, v, n, neuron);
        else recompute_row<0, false>(x, ht, v, n, neuron);
    }
}

// Steps [from, to) of one block backwards, row by row. v: the membranes before step `from`.
template <class T, class R>
void backward_rows(const LifCall& call, int64_t first, int n, int64_t from, int64_t to, R* v, R* carry, R* total,
                   const Neuron<R>& neuron) {
    const Shape& shape = call.shape;
    const Rows<R>& rows = rows_of<R>(shape);
    alignas(64) R h[STEPS * BLOCK], buffer[BLOCK];
    recompute<T>(call, first, n, from, to, v, h, BLOCK, neuron);
    for (int64_t t = to - 1; t >= from; --t) {
        const R* ht = h + (t - from) * BLOCK;
        const R* grad = widened(row<T>(call.grad_spikes, t, shape.neurons, first), buffer, n);
        const bool reset = !shape.detach_reset && (t < shape.steps - 1 || call.grad_membrane);
        if (shape.constant) {
            rows.accumulate(ht, grad, total, carry, n, reset, neuron);
        } else {
            rows.backward(ht, grad, total, carry, n, reset, neuron);
            copy_row(total, row<T>(call.grad_x, t, shape.neurons, first), R(1), n);
        }
    }
}

// Forward through time to the membranes at every STEPS-th step, then backward, STEPS steps at a time.
template <class T>
void backward_in_chunks(const LifCall& call, int64_t begin, int64_t end) {
    using R = State<T>;
    const Shape& shape = call.shape;
    const Neuron<R> neuron = neuron_of<R>(shape);
    const int64_t x_step = shape.x_step, last = (shape.steps - 1) / STEPS * STEPS;
    const int block = block_of(last / STEPS + 1);
    Scratch<R> starts((last / STEPS + 1) * block);
    alignas(64) R carry[BLOCK], total[BLOCK], buffer[STEPS * BLOCK];
    for (int64_t first = begin; first < end; first += block) {
        const int n = int(end - first < block ? end - first : block);
        R* v = starts.data;
        load_state(call.state, first, v, neuron.reset, n);
        for (int64_t t = 0; t < last; t += STEPS, v += block) {
            if constexpr (IN_REGISTERS<T>) {
                advance_steps(row<T>(call.x, t, x_step, first), x_step, v, v + block, n, neuron);
            } else {
                std::copy(v, v + n, v + block);
                recompute<T>(call, first, n, t, t + STEPS, v + block, buffer, BLOCK, neuron);
            }
        }
        copy_row(row<R>(call.grad_membrane, 0, 0, first), carry, R(1), n);
        std::fill(total, total + n, R(0));
        for (int64_t t = last; t >= 0; t -= STEPS, v -= block) {
            const int64_t to = std::min(t + STEPS, shape.steps);
            if constexpr (IN_REGISTERS<T>)
                if (call.grad_spikes && to - t == STEPS) {
                    const bool reset = !shape.detach_reset, last_reset = reset && (t < last || call.grad_membrane);
                    const T* x = row<T>(call.x, t, x_step, first);
                    const T* grad = row<T>(call.grad_spikes, t, shape.neurons, first);
                    T* grad_x = shape.constant ? nullptr : row<T>(call.grad_x, t, shape.neurons, first);
                    with_surrogate(shape.surrogate, [&](auto s) {
                        if (shape.constant)
                            accumulate_steps<s.value>(widened(x, buffer, n), grad, shape.neurons, v, carry, total, n,
                                                      reset, last_reset, neuron);
                        else
                            backward_steps<s.value, STEPS, false>(x, x_step, grad, grad_x, shape.neurons, v, carry, n,
                                                                  reset, last_reset, neuron);
                    });
                    continue;
                }
            backward_rows<T>(call, first, n, t, to, v, carry, total, neuron);
        }
        if (shape.constant) copy_row(total, row<T>(call.grad_x, 0, 0, first), neuron.gain, n);
        if (call.grad_state) copy_row(carry, row<R>(call.grad_state, 0, 0, first), R(1), n);
    }
}

// From rest, without gradients of a state or the last membrane. Whether this number of steps has a loop of its own; 16
// steps would be no faster than in chunks.
template <class T>
bool backward_alone(const LifCall& call, int64_t begin, int64_t end) {
    const Shape& shape = call.shape;
    const T* x = row<T>(call.x, 0, 0, begin);
    const T* grad = row<T>(call.grad_spikes, 0, 0, begin);
    T* grad_x = row<T>(call.grad_x, 0, 0, begin);
    const auto run = [&](auto steps) {
        with_surrogate(shape.surrogate, [&](auto s) {
            backward_steps<s.value, steps.value, true>(x, shape.x_step, grad, grad_x, shape.neurons, nullptr, nullptr,
                                                       int(end - begin), !shape.detach_reset, false,
                                                       neuron_of<float>(shape));
        });
        return true;
    };
    switch (shape.steps) {
        case 4: return run(std::integral_constant<int, 4>{});
        case 8: return run(std::integral_constant<int, 8>{});
        default: return false;
    }
}

template <class T>
void backward(const LifCall& call, int64_t begin, int64_t end) {
    const bool alone = !call.shape.constant && call.grad_spikes && !call.state && !call.grad_membrane;
    if constexpr (IN_REGISTERS<T>)
        if (alone && backward_alone<T>(call, begin, end)) return;
    backward_in_chunks<T>(call, begin, end);
}

// double_backward below with everything in registers: STEPS steps are all, from rest, and of the last membrane there is
// no gradient. CONSTANT: x, grad2_x and grad_x are single rows.
template <int S, bool CONSTANT, class T>
[[gnu::noinline]] void double_backward_steps(const T* __restrict x, int64_t x_step, const T* __restrict grad_spikes,
                                              const T* __restrict grad2_x, T* __restrict grad_x,
                                              T* __restrict grad2_spikes, float* __restrict grad2_membrane,
                                              int64_t step, int n, bool reset, const Neuron<float> neuron) {
    const int64_t grad2_step = CONSTANT ? 0 : step;
#pragma GCC ivdep
    for (int i = 0; i < n; ++i) {
        float h[STEPS], q[STEPS], source[STEPS];
        float v = 0, carry = 0, cotangent = 0, total = 0;
#pragma GCC unroll 16
        for (int t = 0; t < STEPS; ++t) {
            h[t] = charge(v, load(x[t * x_step + i]), neuron);
            v = discharge(h[t], spike<0, false>(h[t] - neuron.threshold, neuron));
        }
#pragma GCC unroll 16
        for (int t = STEPS - 1; t >= 0; --t) {
            q[t] = carry;
            const float grad = load(grad_spikes[t * step + i]);
            carry = neuron.decay * step_backward<S, false>(h[t], grad, carry, reset, neuron);
        }
#pragma GCC unroll 16
        for (int t = 0; t < STEPS; ++t) {
            const float p = neuron.gain * load(grad2_x[t * grad2_step + i]) + neuron.decay * cotangent;
            source[t] = step_curvature<S>(h[t], load(grad_spikes[t * step + i]), q[t], p, reset, neuron);
            store(grad2_spikes[t * step + i], p * derivative<S>(h[t] - neuron.threshold, neuron));
            cotangent = p * retained<S, false>(h[t], reset, neuron);
        }
        grad2_membrane[i] = cotangent;
        cotangent = 0;
#pragma GCC unroll 16
        for (int t = STEPS - 1; t >= 0; --t) {
            const float grad_h = source[t] + cotangent * retained<S, false>(h[t], reset, neuron);
            total += neuron.gain * grad_h;
            if (!CONSTANT) store(grad_x[t * step + i], neuron.gain * grad_h);
            cotangent = neuron.decay * grad_h;
        }
        if (CONSTANT) store(grad_x[i], total);
    }
}

// The gradient of the gradient. With q[t] the gradient of the membrane after step t and p[t] that of h[t], the
// backward pass is
//     p[t] = q[t] (1 - s[t]) + (g[t] - q[t] h[t]) d[t],    grad_x[t] = gain p[t],    q[t-1] = decay p[t]
// (without q h where the reset is detached). Its cotangents run forward in time; what they say of h then runs
// backward through the neuron once more.
template <class T>
void double_backward(const LifCall& call, int64_t begin, int64_t end) {
    using R = State<T>;
    const Shape& shape = call.shape;
    const Neuron<R> neuron = neuron_of<R>(shape);
    const Rows<R>& rows = rows_of<R>(shape);
    const bool constant = shape.constant, reset = !shape.detach_reset;
    const bool inputs = call.grad_spikes && call.grad2_x;
    if constexpr (IN_REGISTERS<T> && sizeof(T) == 4)
        if (shape.steps == STEPS && inputs && !call.state && !call.grad_membrane && !call.grad2_state)
            return with_surrogate(shape.surrogate, [&](auto s) {
                (constant ? double_backward_steps<s.value, true, T> : double_backward_steps<s.value, false, T>)(
                    row<T>(call.x, 0, 0, begin), shape.x_step, row<T>(call.grad_spikes, 0, 0, begin),
                    row<T>(call.grad2_x, 0, 0, begin), row<T>(call.grad_x, 0, 0, begin),
                    row<T>(call.grad2_spikes, 0, 0, begin), row<R>(call.grad2_membrane, 0, 0, begin), shape.neurons,
                    int(end - begin), reset, neuron);
            });
    const int block = block_of(2 * shape.steps);
    Scratch<R> h(shape.steps * block), sources(shape.steps * block);
    alignas(64) R cotangent[BLOCK], total[BLOCK], buffer[BLOCK], grad2[BLOCK];
    for (int64_t first = begin; first < end; first += block) {
        const int n = int(end - first < block ? end - first : block);
        load_state(call.state, first, cotangent, neuron.reset, n);
        recompute<T>(call, first, n, 0, shape.steps, cotangent, h.data, block, neuron);

        copy_row(row<R>(call.grad_membrane, 0, 0, first), cotangent, R(1), n);
        for (int64_t t = shape.steps - 1; t >= 0; --t) {
            const R* grad = widened(row<T>(call.grad_spikes, t, shape.neurons, first), buffer, n);
            rows.carry(h.data + t * block, grad, sources.data + t * block, cotangent, n, reset, neuron);
        }

        copy_row(row<R>(call.grad2_state, 0, 0, first), cotangent, R(1), n);
        for (int64_t t = 0; t < shape.steps; ++t) {
            const R* grad = widened(row<T>(call.grad_spikes, t, shape.neurons, first), buffer, n);
            const T* grad2_x = row<T>(call.grad2_x, t, constant ? 0 : shape.neurons, first);
            for (int i = 0; i < n; ++i) grad2[i] = load(grad2_x[i]);
            rows.curvature(h.data + t * block, grad, grad2, sources.data + t * block, cotangent, n, reset, neuron);
            copy_row(grad2, row<T>(call.grad2_spikes, t, shape.neurons, first), R(1), n);
        }
        copy_row(cotangent, row<R>(call.grad2_membrane, 0, 0, first), R(1), n);

        std::fill(cotangent, cotangent + n, R(0));
        std::fill(total, total + n, R(0));
        for (int64_t t = shape.steps - 1; t >= 0; --t) {
            R* source = sources.data + t * block;
            rows.source(h.data + t * block, source, cotangent, n, reset, neuron);
            if (!constant) copy_row(source, row<T>(call.grad_x, t, shape.neurons, first), R(1), n);
            for (int i = 0; i < n; ++i) total[i] += source[i];
        }
        if (constant) copy_row(total, row<T>(call.grad_x, 0, 0, first), R(1), n);
        if (call.grad_state) copy_row(cotangent, row<R>(call.grad_state, 0, 0, first), R(1), n);
    }
}

template <class T>
void lif_pass(const LifCall& call, Pass pass, int64_t begin, int64_t end) {
    switch (pass) {
        case FORWARD: return forward<T>(call, begin, end);
        case BACKWARD: return backward<T>(call, begin, end);
        case DOUBLE_BACKWARD: return double_backward<T>(call, begin, end);
    }
}

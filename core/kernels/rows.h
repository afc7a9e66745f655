// The inner loops over one row, the neurons of a block at one time step. Included once per instruction set,
// inside a namespace.
//
// Pointers are __restrict and parameters are values so that the compiler vectorises them. What depends on the
// surrogate is compiled for the membrane's type alone; float16 and bfloat16 rows are converted first.

constexpr int BLOCK = 1024;  // neurons of a row at most

template <class T> struct StateOf { using type = float; };
template <> struct StateOf<double> { using type = double; };
template <class T> using State = typename StateOf<T>::type;

// Whether loops that keep several steps in registers are compiled for T. They are most of the compiling, and only pay
// where networks are trained: neither in double, nor in float16 (a CPU's half precision is bfloat16), nor in a portable
// set that merely stands in for the others. Those take a row at a time, with the same result.
#if defined(SPIKEPORT_PORTABLE) && defined(SPIKEPORT_X86)
template <class T> constexpr bool IN_REGISTERS = false;
#else
template <class T> constexpr bool IN_REGISTERS = std::is_same_v<T, float> || std::is_same_v<T, BFloat16>;
#endif

template <class T, class R>
void copy_row(const R* __restrict from, T* __restrict to, R factor, int n) {
    for (int i = 0; i < n; ++i) store(to[i], from[i] * factor);
}

// The row in the membrane's type: itself, or a copy in `buffer`.
template <class R>
const R* widened(const R* x, R*, int) { return x; }

template <class T, class R>
const R* widened(const T* __restrict x, R* __restrict buffer, int n) {
    for (int i = 0; i < n; ++i) buffer[i] = load(x[i]);
    return buffer;
}

// f with the surrogate as a type, std::integral_constant.
template <class F>
auto with_surrogate(int surrogate, F f) -> decltype(f(std::integral_constant<int, ATAN>{})) {
    switch (surrogate) {
        case SIGMOID: return f(std::integral_constant<int, SIGMOID>{});
        case FAST_SIGMOID: return f(std::integral_constant<int, FAST_SIGMOID>{});
        case PIECEWISE_LINEAR: return f(std::integral_constant<int, PIECEWISE_LINEAR>{});
        case EXPONENTIAL: return f(std::integral_constant<int, EXPONENTIAL>{});
        default: return f(std::integral_constant<int, ATAN>{});
    }
}

template <int S, bool SMOOTH, class T, class O, class R>
void forward_row(const T* __restrict x, O* __restrict spikes, R* __restrict v, int n, const Neuron<R> neuron) {
    for (int i = 0; i < n; ++i) {
        const R h = charge(v[i], load(x[i]), neuron);
        const R s = spike<S, SMOOTH>(h - neuron.threshold, neuron);
        store(spikes[i], s);
        v[i] = discharge(h, s);
    }
}

template <int S, bool SMOOTH, class T, class R>
void recompute_row(const T* __restrict x, R* __restrict h, R* __restrict v, int n, const Neuron<R> neuron) {
    for (int i = 0; i < n; ++i) {
        h[i] = charge(v[i], load(x[i]), neuron);
        v[i] = discharge(h[i], spike<S, SMOOTH>(h[i] - neuron.threshold, neuron));
    }
}

// carry: the gradient of the membrane, after the step on entry and before it on return.
template <int S, bool SMOOTH, class R>
void backward_row(const R* __restrict h, const R* __restrict grad_spikes, R* __restrict grad_x, R* __restrict carry,
                  int n, bool reset_gradient, const Neuron<R> neuron) {
    for (int i = 0; i < n; ++i) {
        const R grad_h = step_backward<S, SMOOTH>(h[i], grad_spikes[i], carry[i], reset_gradient, neuron);
        grad_x[i] = grad_h * neuron.gain;
        carry[i] = grad_h * neuron.decay;
    }
}

// As backward_row; adds grad_h to total instead of writing grad_x.
template <int S, bool SMOOTH, class R>
void accumulate_row(const R* __restrict h, const R* __restrict grad_spikes, R* __restrict total, R* __restrict carry,
                    int n, bool reset_gradient, const Neuron<R> neuron) {
    for (int i = 0; i < n; ++i) {
        const R grad_h = step_backward<S, SMOOTH>(h[i], grad_spikes[i], carry[i], reset_gradient, neuron);
        total[i] += grad_h;
        carry[i] = grad_h * neuron.decay;
    }
}

// As backward_row; keeps in q the gradient of the membrane after the step instead of writing grad_x.
template <int S, bool SMOOTH, class R>
void carry_row(const R* __restrict h, const R* __restrict grad_spikes, R* __restrict q, R* __restrict carry, int n,
               bool reset_gradient, const Neuron<R> neuron) {
    for (int i = 0; i < n; ++i) {
        q[i] = carry[i];
        carry[i] = neuron.decay * step_backward<S, SMOOTH>(h[i], grad_spikes[i], q[i], reset_gradient, neuron);
    }
}

// Cotangents of the gradients, forward in time. cotangent: that of q before the step on entry, after it on
// return. source: q on entry, the cotangent of h on return. grad2: that of grad_x on entry, of grad_spikes on return.
template <int S, bool SMOOTH, class R>
void curvature_row(const R* __restrict h, const R* __restrict grad_spikes, R* __restrict grad2, R* __restrict source,
                   R* __restrict cotangent, int n, bool reset_gradient, const Neuron<R> neuron) {
    for (int i = 0; i < n; ++i) {
        const R p = neuron.gain * grad2[i] + neuron.decay * cotangent[i];
        source[i] = step_curvature<S>(h[i], grad_spikes[i], source[i], p, reset_gradient, neuron);
        grad2[i] = p * derivative<S>(h[i] - neuron.threshold, neuron);
        cotangent[i] = p * retained<S, SMOOTH>(h[i], reset_gradient, neuron);
    }
}

// source: the cotangent of h that is added at this step on entry, of x on return. cotangent: of the membrane.
template <int S, bool SMOOTH, class R>
void source_row(const R* __restrict h, R* __restrict source, R* __restrict cotangent, int n, bool reset_gradient,
                const Neuron<R> neuron) {
    for (int i = 0; i < n; ++i) {
        const R grad_h = source[i] + cotangent[i] * retained<S, SMOOTH>(h[i], reset_gradient, neuron);
        source[i] = neuron.gain * grad_h;
        cotangent[i] = neuron.decay * grad_h;
    }
}

// The loops of one surrogate.
template <class R>
struct Rows {
    void (*forward)(const R*, R*, R*, int, Neuron<R>);
    void (*recompute)(const R*, R*, R*, int, Neuron<R>);
    void (*backward)(const R*, const R*, R*, R*, int, bool, Neuron<R>);
    void (*accumulate)(const R*, const R*, R*, R*, int, bool, Neuron<R>);
    void (*carry)(const R*, const R*, R*, R*, int, bool, Neuron<R>);
    void (*curvature)(const R*, const R*, R*, R*, R*, int, bool, Neuron<R>);
    void (*source)(const R*, R*, R*, int, bool, Neuron<R>);
};

template <int S, bool SMOOTH, class R>
constexpr Rows<R> ROWS{
    forward_row<SMOOTH ? S : 0, SMOOTH, R, R, R>, recompute_row<SMOOTH ? S : 0, SMOOTH, R, R>,
    backward_row<S, SMOOTH, R>,                   accumulate_row<S, SMOOTH, R>,
    carry_row<S, SMOOTH, R>,                      curvature_row<S, SMOOTH, R>,
    source_row<S, SMOOTH, R>};

template <class R>
const Rows<R>& rows_of(const Shape& shape) {
    return with_surrogate(shape.surrogate, [&](auto s) -> const Rows<R>& {
        if constexpr (sizeof(R) == 8)
            if (shape.smooth) return ROWS<s.value, true, R>;
        return ROWS<s.value, false, R>;
    });
}

// The arithmetic of one LIF step, of its surrogate derivatives and of the step's derivatives.
//
// Included by the CPU kernels (once per instruction set, inside a namespace: hence no include guard) and by the
// CUDA kernels. Must be compiled without contraction (g++ -ffp-contract=off, NVRTC fma=False): every product
// and every sum is rounded once, as in the PyTorch reference, so that the spikes are the same bit for bit.
//
// R is the type of the membrane, float or double. Membranes are measured from the reset potential.

#ifdef __CUDACC__
#define LIF_INLINE static __device__ __forceinline__
#else
#define LIF_INLINE static inline __attribute__((always_inline))
#endif

// The numbers are those of spikeport.core.kernels.parameters.SURROGATE_CODES.
enum Surrogate : int { ATAN = 0, SIGMOID = 1, FAST_SIGMOID = 2, PIECEWISE_LINEAR = 3, EXPONENTIAL = 4 };

// The parameters of a neuron, each rounded to R once, on the host.
template <class R>
struct Neuron {
    R decay;       // 1 - 1/tau
    R gain;        // 1/tau
    R threshold;   // v_threshold - v_reset
    R reset;       // v_reset
    R alpha;       // steepness of the surrogate
    R half_alpha;  // alpha / 2
    R arc_alpha;   // pi / 2 * alpha
};

template <class R>
LIF_INLINE R magnitude(R x) { return x < R(0) ? -x : x; }

template <class R>
LIF_INLINE R sign(R x) { return R(x > R(0)) - R(x < R(0)); }

// keep ? x : 0, as a mask: g++ does not vectorise a choice whose condition is the same for all elements.
LIF_INLINE float where(bool keep, float x) {
    union { float value; int bits; } both = {x};
    both.bits &= -int(keep);
    return both.value;
}

LIF_INLINE double where(bool keep, double x) {
    union { double value; long long bits; } both = {x};
    both.bits &= -static_cast<long long>(keep);
    return both.value;
}

// 1/x, for gradients alone: on a GPU to 1 ulp, for the exact quotient is a call and many registers.
LIF_INLINE double reciprocal(double x) { return 1 / x; }
#ifdef __CUDACC__
LIF_INLINE float reciprocal(float x) {
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}
#else
LIF_INLINE float reciprocal(float x) { return 1 / x; }
#endif

LIF_INLINE double exponential_of(double x) { return exp(x); }

// exp in float to 2 ulp, of operations that vectorise and round alike on every processor (Cephes' polynomial).
LIF_INLINE float exponential_of(float x) {
    union { int bits; float value; } low, high;
    x = x < -104.0f ? -104.0f : x;
    x = x > 89.0f ? 89.0f : x;
    const float n = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f;  // rounds to the nearest integer
    const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    const float y = p * (r * r) + r + 1.0f;
    const int exponent = int(n == n ? n : 0.0f);  // NaN stays in y
    low.bits = ((exponent >> 1) + 127) << 23;     // two factors: 2^n itself may be subnormal or infinite
    high.bits = (exponent - (exponent >> 1) + 127) << 23;
    return y * low.value * high.value;
}

// d(spike)/du at u = h - threshold.
template <int S, class R>
LIF_INLINE R derivative(R u, const Neuron<R>& neuron) {
    if (S == ATAN) {
        const R z = neuron.arc_alpha * u;
        return reciprocal(R(1) + z * z) * neuron.half_alpha;
    }
    if (S == SIGMOID) {
        // s (1 - s) as a product: the difference would add to the error of s.
        const R e = exponential_of(-neuron.alpha * magnitude(u)), s = reciprocal(R(1) + e);
        return neuron.alpha * (e * s) * s;
    }
    if (S == FAST_SIGMOID) {
        const R w = R(1) + neuron.alpha * magnitude(u);
        return reciprocal(w * w);
    }
    if (S == PIECEWISE_LINEAR) {
        const R w = R(1) - neuron.alpha * magnitude(u);
        return neuron.alpha * (w < R(0) ? R(0) : w);
    }
    return neuron.half_alpha * exponential_of(-neuron.alpha * magnitude(u));
}

// d2(spike)/du2: the derivative of the above.
template <int S, class R>
LIF_INLINE R second_derivative(R u, const Neuron<R>& neuron) {
    if (S == ATAN) {
        const R z = neuron.arc_alpha * u;
        const R d = R(1) / (R(1) + z * z);
        return -neuron.alpha * neuron.arc_alpha * z * d * d;
    }
    if (S == SIGMOID) {
        const R s = R(1) / (R(1) + exponential_of(-(neuron.alpha * u)));
        return neuron.alpha * neuron.alpha * s * (R(1) - s) * (R(1) - s - s);
    }
    if (S == FAST_SIGMOID) {
        const R w = R(1) + neuron.alpha * magnitude(u);
        return R(-2) * neuron.alpha * sign(u) / (w * w * w);
    }
    if (S == PIECEWISE_LINEAR) {
        const R w = R(1) - neuron.alpha * magnitude(u);
        return w < R(0) ? R(0) : -neuron.alpha * neuron.alpha * sign(u);
    }
    return -neuron.alpha * neuron.half_alpha * sign(u) * exponential_of(-neuron.alpha * magnitude(u));
}

// The function whose derivative is derivative(): a step with finite slope, for checks by finite differences.
template <int S>
LIF_INLINE double smooth_step(double u, const Neuron<double>& neuron) {
    const double half = u < 0 ? -0.5 : 0.5;
    if (S == ATAN) return atan(neuron.arc_alpha * u) / 3.14159265358979323846 + 0.5;
    if (S == SIGMOID) return 1 / (1 + exp(-neuron.alpha * u));
    if (S == FAST_SIGMOID) return u / (1 + neuron.alpha * magnitude(u));
    if (S == PIECEWISE_LINEAR) {
        const double z = neuron.alpha * u;
        return magnitude(z) >= 1 ? half + 0.5 : z - z * magnitude(z) / 2 + 0.5;
    }
    return half * (1 - exp(-neuron.alpha * magnitude(u))) + 0.5;
}

// 1 where u >= 0, else 0. NaN does not fire.
template <int S, bool SMOOTH, class R>
LIF_INLINE R spike(R u, const Neuron<R>& neuron) {
    if constexpr (SMOOTH) return smooth_step<S>(u, neuron);
    return u >= R(0) ? R(1) : R(0);
}

// The membrane before the spike: h = v * decay + x * gain.
template <class R>
LIF_INLINE R charge(R v, R x, const Neuron<R>& neuron) { return v * neuron.decay + x * neuron.gain; }

// The membrane after the spike. A product, not a choice: an infinite h leaves NaN behind, as in the reference.
template <class R>
LIF_INLINE R discharge(R h, R s) { return h * (R(1) - s); }

// The gradient of the spike, with what comes to it through the reset.
template <class R>
LIF_INLINE R spike_gradient(R h, R grad_spike, R carry, bool reset_gradient) {
    return grad_spike - where(reset_gradient, carry) * where(reset_gradient, h);
}

// One step backwards: the gradient of h. `carry` is the gradient of the membrane after the step; without
// `reset_gradient` it does not pass through the reset (detach_reset, or no gradient of the last membrane).
template <int S, bool SMOOTH, class R>
LIF_INLINE R step_backward(R h, R grad_spike, R carry, bool reset_gradient, const Neuron<R>& neuron) {
    const R u = h - neuron.threshold;
    const R through_spike = spike_gradient(h, grad_spike, carry, reset_gradient) * derivative<S>(u, neuron);
    return carry * (R(1) - spike<S, SMOOTH>(u, neuron)) + through_spike;
}

// d(membrane after the step)/dh.
template <int S, bool SMOOTH, class R>
LIF_INLINE R retained(R h, bool reset_gradient, const Neuron<R>& neuron) {
    const R u = h - neuron.threshold;
    return R(1) - spike<S, SMOOTH>(u, neuron) - where(reset_gradient, h) * derivative<S>(u, neuron);
}

// The direct derivative by h of step_backward's result, times its cotangent.
template <int S, class R>
LIF_INLINE R step_curvature(R h, R grad_spike, R carry, R cotangent, bool reset_gradient, const Neuron<R>& neuron) {
    const R u = h - neuron.threshold;
    const R bend = spike_gradient(h, grad_spike, carry, reset_gradient) * second_derivative<S>(u, neuron);
    return cotangent * (bend - R(2) * where(reset_gradient, carry) * derivative<S>(u, neuron));
}

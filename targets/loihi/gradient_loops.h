// The gradient of neurons that were run in integers: backwards through the same neurons without truncation, whose
// spikes are those the integers gave. Included once per instruction set, inside a namespace, after neuron_loops.h.

// The voltages h before the spikes of one step; u, v: the state.
inline void charge_row(const float* __restrict current, const float* __restrict spikes, const float* __restrict kept_u,
                       const float* __restrict kept_v, const float* __restrict bias, float* __restrict u,
                       float* __restrict v, float* __restrict h, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        u[i] = u[i] * kept_u[i] + current[i] * ALIGNMENT;
        h[i] = v[i] * kept_v[i] + u[i] + bias[i];
        v[i] = h[i] - h[i] * spikes[i];
    }
}

// One step backwards. into_u, into_v: the gradients of the state, after the step on entry and before it on return. Not
// inlined: g++ would then no longer know that rows do not overlap.
template <int KIND, bool HELD>
[[gnu::noinline]] void gradient_row(const float* __restrict h, const float* __restrict spikes,
                                    const float* __restrict grad_spikes, const float* __restrict kept_u,
                                    const float* __restrict kept_v, float* __restrict into_u, float* __restrict into_v,
                                    float* __restrict grad_current, float* __restrict grad_bias, int64_t n,
                                    const GradientCall& call, const Neuron<float> neuron) {
    const float through_reset = call.through_reset ? 1.0f : 0.0f;
    const float inverse_unit = call.inverse_unit;
    for (int64_t i = 0; i < n; ++i) {
        float into_h = into_v[i] - into_v[i] * spikes[i];
        if constexpr (KIND != SILENT) {
            const float into_spike = grad_spikes[i] - through_reset * into_v[i] * h[i];
            into_h += into_spike * derivative<KIND>(h[i] * inverse_unit - neuron.threshold, neuron) * inverse_unit;
        }
        into_u[i] = into_u[i] * kept_u[i] + into_h;
        grad_current[i] = (HELD ? grad_current[i] : 0.0f) + into_u[i] * ALIGNMENT;
        grad_bias[i] += into_h;
        into_v[i] = into_h * kept_v[i];
    }
}

// The pixels [begin, end), of so many at a time that their steps stay in the cache; adds to `sums` [channels], the
// gradient of the bias.
template <int KIND, bool HELD>
void gradient_of(const GradientCall& call, int64_t begin, int64_t end, double* sums) {
    const int64_t channels = call.channels, steps = call.steps;
    const int64_t most = std::max<int64_t>(1, end - begin);
    const int64_t block = std::clamp<int64_t>(BLOCK / (channels * steps), 1, most), size = block * channels;
    const float alpha = call.alpha, arc_alpha = float(1.57079632679489661923 * call.alpha);
    const Neuron<float> neuron{0, 0, call.threshold, 0, alpha, alpha / 2, arc_alpha};
    std::vector<float> kept_u, kept_v, bias, zeros(size), h(steps * size), u(size), v(size), total(size);
    repeat(call.kept_u, channels, block, kept_u);
    repeat(call.kept_v, channels, block, kept_v);
    repeat(call.bias, channels, block, bias);
    const int64_t step = call.pixels * channels;
    for (int64_t first = begin; first < end; first += block) {
        const int64_t offset = first * channels, n = std::min(block, end - first) * channels;
        for (std::vector<float>* state : {&u, &v, &total}) std::fill_n(state->data(), n, 0.0f);
        for (int64_t t = 0; t < steps; ++t)
            charge_row(call.current + t * call.current_step + offset, call.spikes + t * step + offset, kept_u.data(),
                       kept_v.data(), bias.data(), u.data(), v.data(), h.data() + t * size, n);
        std::fill_n(u.data(), n, 0.0f);
        if (call.grad_v) std::copy_n(call.grad_v + offset, n, v.data());
        else std::fill_n(v.data(), n, 0.0f);
        if (HELD) std::fill_n(call.grad_current + offset, n, 0.0f);
        for (int64_t t = steps - 1; t >= 0; --t)
            gradient_row<KIND, HELD>(h.data() + t * size, call.spikes + t * step + offset,
                                     call.grad_spikes ? call.grad_spikes + t * step + offset : zeros.data(),
                                     kept_u.data(), kept_v.data(), u.data(), v.data(),
                                     call.grad_current + t * call.current_step + offset, total.data(), n, call, neuron);
        for (int64_t i = 0; i < n; i += channels)
            for (int64_t c = 0; c < channels; ++c) sums[c] += double(total[i + c]);
    }
}

template <int KIND>
void gradient_of(const GradientCall& call, int64_t begin, int64_t end, double* sums) {
    if (call.current_step) gradient_of<KIND, false>(call, begin, end, sums);
    else gradient_of<KIND, true>(call, begin, end, sums);
}

void gradient(const GradientCall& call, int64_t begin, int64_t end, double* sums) {
    switch (call.kind) {
        case ATAN: return gradient_of<ATAN>(call, begin, end, sums);
        case SIGMOID: return gradient_of<SIGMOID>(call, begin, end, sums);
        case FAST_SIGMOID: return gradient_of<FAST_SIGMOID>(call, begin, end, sums);
        case PIECEWISE_LINEAR: return gradient_of<PIECEWISE_LINEAR>(call, begin, end, sums);
        case EXPONENTIAL: return gradient_of<EXPONENTIAL>(call, begin, end, sums);
        default: return gradient_of<SILENT>(call, begin, end, sums);
    }
}

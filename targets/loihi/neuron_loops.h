// The chip's neuron, a block of neurons at a time. Included once per instruction set, inside a namespace: hence no
// include guard.

// x * kept / 4096, towards zero.
inline int64_t decayed(int64_t x, int64_t kept) {
    const int64_t product = x * kept;
    return (product + ((product >> 63) & 4095)) >> 12;
}

// The same in 32 bits, for |x| <= 2^23: of its magnitude the upper and the lower 12 bits by themselves.
inline int32_t decayed(int32_t x, int32_t kept) {
    const int32_t sign = x >> 31, magnitude = (x ^ sign) - sign;
    const int32_t result = (magnitude >> 12) * kept + (((magnitude & 4095) * kept) >> 12);
    return (result ^ sign) - sign;
}

// STEPS steps of n neurons, their states in registers. MEMORY: a step keeps something of u. The pragma: steps do not
// overlap in memory, which is more than the compiler would check at run time.
template <int STEPS, bool MEMORY, class I>
[[gnu::noinline]] void advance(const float* __restrict current, int64_t current_step, const int32_t* __restrict kept_u,
                               const int32_t* __restrict kept_v, const int32_t* __restrict vth,
                               const int32_t* __restrict bias, float* __restrict spikes, int64_t spikes_step,
                               I* __restrict u, I* __restrict v, int64_t n, Counts& counts) {
    int32_t wraps = 0, saturations = 0;
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) {
        I voltage = v[i], charge = MEMORY ? u[i] : 0;
#pragma GCC unroll 16
        for (int t = 0; t < STEPS; ++t) {
            const I arrived = I(int32_t(current[t * current_step + i])) * ALIGNMENT;
            charge = MEMORY ? decayed(charge, I(kept_u[i])) + arrived : arrived;
            const int32_t over = charge > LIMIT, under = charge <= -LIMIT;
            charge -= I(over - under) * (2 * LIMIT);
            voltage = decayed(voltage, I(kept_v[i])) + charge + bias[i];
            const int32_t high = voltage >= LIMIT - 1, low = voltage <= 1 - LIMIT;
            voltage = high ? LIMIT - 1 : low ? 1 - LIMIT : voltage;
            const bool fires = voltage > vth[i];
            spikes[t * spikes_step + i] = fires ? 1.0f : 0.0f;
            voltage = fires ? 0 : voltage;
            wraps += over + under;
            saturations += high + low;
        }
        v[i] = voltage;
        if (MEMORY) u[i] = charge;
    }
    counts.wraps += wraps;
    counts.saturations += saturations;
}

// A row of constants for whole pixels.
template <class V>
void repeat(const V* channels, int64_t count, int64_t pixels, std::vector<V>& row) {
    for (int64_t pixel = 0; channels && pixel < pixels; ++pixel) row.insert(row.end(), channels, channels + count);
}

// All steps of the pixels [begin, end), of so many at a time that their states stay in the cache.
template <bool MEMORY, class I>
void run_pixels(const Call& call, int64_t begin, int64_t end, Counts& counts) {
    const int64_t channels = call.channels, block = std::clamp<int64_t>(BLOCK / channels, 1, end - begin);
    std::vector<int32_t> kept_u, kept_v, vth, bias;
    repeat(call.kept_u, channels, block, kept_u);
    repeat(call.kept_v, channels, block, kept_v);
    repeat(call.vth, channels, block, vth);
    if (!call.every_bias) repeat(call.bias, channels, block, bias);
    const auto steps = [&](auto advance, int64_t t, int64_t first) {
        const int64_t offset = first * channels, n = std::min(block, end - first) * channels;
        const int64_t spikes_step = call.pixels * channels;
        advance(call.current + t * call.current_step + offset, call.current_step, kept_u.data(), kept_v.data(),
                vth.data(), call.every_bias ? call.bias + offset : bias.data(), call.spikes + t * spikes_step + offset,
                spikes_step, static_cast<I*>(call.u) + offset, static_cast<I*>(call.v) + offset, n, counts);
    };
    for (int64_t first = begin; first < end; first += block) {
        int64_t t = 0;
        for (; t + 4 <= call.steps; t += 4) steps(advance<4, MEMORY, I>, t, first);
        for (; t < call.steps; ++t) steps(advance<1, MEMORY, I>, t, first);
    }
}

void run(const Call& call, int64_t begin, int64_t end, Counts& counts) {
    if (call.kept_u) run_pixels<true, int64_t>(call, begin, end, counts);
    else run_pixels<false, int32_t>(call, begin, end, counts);
}

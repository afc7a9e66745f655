// BatchNorm, LIF and 2x2 max-pooling of the spikes in one, for channels-last tensors: the loops of norm_loops.h over
// one pair of pixel rows at a time, whose spikes never leave the cache. Included after norm_loops.h, once per instruction
// set, inside a namespace.
//
// A window's gradient goes to its first neuron (row by row) that fired, or to its first where none did: where torch's
// max_pool2d sends it. To know, each backward pass runs forward first: one pass, in 16 bits both.

template <class T>
struct BitsOf { using type __attribute__((may_alias)) = uint16_t; };
template <> struct BitsOf<float> { using type __attribute__((may_alias)) = uint32_t; };
template <> struct BitsOf<double> { using type __attribute__((may_alias)) = uint64_t; };

// Spikes of two rows [2][width][channels] to [width / 2][channels]. A spike is 1 or 0, and the bits of 0 are none.
template <class Bits>
void pool_rows(const Bits* __restrict spikes, Bits* __restrict pooled, int64_t width, int64_t channels) {
    const Bits* below = spikes + width * channels;
    for (int64_t left = 0; left < width * channels; left += 2 * channels, pooled += channels) {
        const int64_t right = left + channels;
        for (int64_t c = 0; c < channels; ++c)
            pooled[c] = spikes[left + c] | spikes[right + c] | below[left + c] | below[right + c];
    }
}

// The reverse: puts in place of the spikes their gradients, from those of the pooled ones.
template <class Bits>
void unpool_rows(Bits* __restrict spikes, const Bits* __restrict grad_pooled, int64_t width, int64_t channels) {
    Bits* below = spikes + width * channels;
    for (int64_t left = 0; left < width * channels; left += 2 * channels, grad_pooled += channels) {
        Bits *__restrict a = spikes + left, *__restrict b = a + channels;
        Bits *__restrict c = below + left, *__restrict d = c + channels;
#pragma GCC ivdep
        for (int64_t i = 0; i < channels; ++i) {
            const Bits grad = grad_pooled[i], on_a = a[i], on_b = b[i], on_c = c[i], on_d = d[i];
            const bool to_d = on_d && !(on_a | on_b | on_c), to_c = on_c && !(on_a | on_b), to_b = on_b && !on_a;
            a[i] = to_b | to_c | to_d ? 0 : grad;
            b[i] = to_b ? grad : 0;
            c[i] = to_c ? grad : 0;
            d[i] = to_d ? grad : 0;
        }
    }
}

// As norm_pass, for whole pairs of rows.
template <class T, class R = State<T>>
void pooled_pass(const NormCall& call, Pass pass, const void* table, double* sums, void* grad_y, int64_t begin,
                 int64_t end) {
    using Bits = typename BitsOf<T>::type;
    if (pass == BACKWARD && !sums && grad_y) return norm_pass<T>(call, pass, table, sums, grad_y, begin, end);
    const int64_t steps = call.shape.steps, size = call.pair, outputs = call.shape.neurons / 4;
    const int64_t width = size / 2 / call.channels;
    Scratch<T> spikes(steps * size);
    NormCall rows = call;
    rows.shape.neurons = size;
    rows.spikes = spikes.data;
    rows.grad_spikes = spikes.data;
    for (int64_t first = begin; first < end; first += size) {
        rows.x = row<T>(call.x, 0, 0, first);
        norm_forward<T>(rows, static_cast<const R*>(table), 0, size);
        for (int64_t t = 0; t < steps; ++t) {
            Bits* own = reinterpret_cast<Bits*>(spikes.data + t * size);
            const int64_t pooled = t * outputs + first / 4;
            if (pass == FORWARD) pool_rows(own, static_cast<Bits*>(call.spikes) + pooled, width, call.channels);
            else unpool_rows(own, static_cast<const Bits*>(call.grad_spikes) + pooled, width, call.channels);
        }
        if (pass == FORWARD) continue;
        rows.grad_x = row<T>(call.grad_x, 0, 0, first);
        R* kept = grad_y ? row<R>(grad_y, 0, 0, first) : nullptr;
        norm_pass<T>(rows, pass, table, sums, kept, 0, size);
    }
}

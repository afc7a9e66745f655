// Everything that is compiled once per instruction set, inside a namespace, and its table of entry points.
#include "elements.h"
#include "lif_step.h"
#include "rows.h"
#include "lif_loops.h"
#include "norm_loops.h"
#include "pool_loops.h"

// f of an element of the tensor's type. double serves checks, not training: one instruction set is enough.
template <class F>
void with_type(int32_t dtype, F f) {
    switch (dtype) {
#ifdef SPIKEPORT_PORTABLE
        case FLOAT64: return f(double{});
#endif
        case FLOAT32: return f(float{});
        case FLOAT16: return f(Half{});
        case BFLOAT16: return f(BFloat16{});
    }
}

void lif(const LifCall& call, Pass pass, int64_t begin, int64_t end) {
    with_type(call.shape.dtype, [&](auto x) { lif_pass<decltype(x)>(call, pass, begin, end); });
}

void norm_moments(const NormCall& call, int64_t begin, int64_t end, Moments* moments) {
    with_type(call.shape.dtype, [&](auto x) { moments_of_range<decltype(x)>(call, begin, end, moments); });
}

// `table`: 5 * channels values of the membrane's type.
void norm_coefficients(const NormCall& call, const double* sums, void* table) {
    if (call.shape.dtype == FLOAT64) coefficients(call, sums, static_cast<double*>(table));
    else coefficients(call, sums, static_cast<float*>(table));
}

void norm(const NormCall& call, Pass pass, const void* table, double* sums, void* grad_y, int64_t begin, int64_t end) {
    with_type(call.shape.dtype, [&](auto x) {
        (call.pair ? pooled_pass<decltype(x)> : norm_pass<decltype(x)>)(call, pass, table, sums, grad_y, begin, end);
    });
}

constexpr Kernels KERNELS{lif, norm_coefficients, norm_moments, norm};

// Everything that is compiled once per instruction set, inside a namespace, and its table of entry points. double
// serves checks, not training: one instruction set is enough.
#include "elements.h"
#include "lif_step.h"
#include "rows.h"
#include "lif_loops.h"
#include "norm_loops.h"
#include "pool_loops.h"

void lif(const LifCall& call, Pass pass, int64_t begin, int64_t end) {
    switch (call.shape.dtype) {
#ifdef SPIKEPORT_PORTABLE
        case FLOAT64: return lif_pass<double>(call, pass, begin, end);
#endif
        case FLOAT32: return lif_pass<float>(call, pass, begin, end);
        case FLOAT16: return lif_pass<Half>(call, pass, begin, end);
        case BFLOAT16: return lif_pass<BFloat16>(call, pass, begin, end);
    }
}

void norm_moments(const NormCall& call, int64_t begin, int64_t end, Moments* moments) {
    switch (call.shape.dtype) {
#ifdef SPIKEPORT_PORTABLE
        case FLOAT64: return moments_of_range<double>(call, begin, end, moments);
#endif
        case FLOAT32: return moments_of_range<float>(call, begin, end, moments);
        case FLOAT16: return moments_of_range<Half>(call, begin, end, moments);
        case BFLOAT16: return moments_of_range<BFloat16>(call, begin, end, moments);
    }
}

// `table`: 5 * channels values of the membrane's type.
void norm_coefficients(const NormCall& call, const double* sums, void* table) {
    if (call.shape.dtype == FLOAT64) coefficients(call, sums, static_cast<double*>(table));
    else coefficients(call, sums, static_cast<float*>(table));
}

template <class T>
void norm_of(const NormCall& call, Pass pass, const void* table, double* sums, void* grad_y, int64_t begin,
             int64_t end) {
    if (call.pair) pooled_pass<T>(call, pass, table, sums, grad_y, begin, end);
    else norm_pass<T>(call, pass, table, sums, grad_y, begin, end);
}

void norm(const NormCall& call, Pass pass, const void* table, double* sums, void* grad_y, int64_t begin, int64_t end) {
    switch (call.shape.dtype) {
#ifdef SPIKEPORT_PORTABLE
        case FLOAT64: return norm_of<double>(call, pass, table, sums, grad_y, begin, end);
#endif
        case FLOAT32: return norm_of<float>(call, pass, table, sums, grad_y, begin, end);
        case FLOAT16: return norm_of<Half>(call, pass, table, sums, grad_y, begin, end);
        case BFLOAT16: return norm_of<BFloat16>(call, pass, table, sums, grad_y, begin, end);
    }
}

constexpr Kernels KERNELS{lif, norm_coefficients, norm_moments, norm};

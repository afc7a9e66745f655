// Compiles SPIKEPORT_LOOPS, a header that ends with `constexpr Kernels KERNELS`, for several instruction sets, and
// picks the best of them that this processor has. Included inside a namespace that defines `struct Kernels`.

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define SPIKEPORT_X86 1
#endif

namespace portable {
#define SPIKEPORT_PORTABLE
#include SPIKEPORT_LOOPS
#undef SPIKEPORT_PORTABLE
}

#ifdef SPIKEPORT_X86
#pragma GCC push_options
#pragma GCC target("avx2")
namespace avx2 {
#include SPIKEPORT_LOOPS
}
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
namespace avx512 {
#include SPIKEPORT_LOOPS
}
#pragma GCC pop_options
#endif

// 0 portable, 1 AVX2, 2 AVX-512; null where this processor or this build has it not.
const Kernels* kernels_of(int level) {
#ifdef SPIKEPORT_X86
    __builtin_cpu_init();
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (level == 2 && avx512) return &avx512::KERNELS;
    if (level == 1 && __builtin_cpu_supports("avx2")) return &avx2::KERNELS;
#endif
    return level == 0 ? &portable::KERNELS : nullptr;
}

const Kernels*& chosen() {
    static const Kernels* best = [] {
        for (int level = 2; level > 0; --level)
            if (const Kernels* found = kernels_of(level)) return found;
        return kernels_of(0);
    }();
    return best;
}

// Takes the instruction set `level` from now on (tests compare them). Returns whether it is there.
bool choose(int level) {
    const Kernels* found = kernels_of(level);
    if (found) chosen() = found;
    return found != nullptr;
}

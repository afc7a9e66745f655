// float16 for the emulation: the compiler's own type, independent of the package's conversions.
#pragma once
struct __half {
    _Float16 value;
};
inline float __half2float(__half x) { return float(x.value); }
inline __half __float2half_rn(float x) { return {_Float16(x)}; }

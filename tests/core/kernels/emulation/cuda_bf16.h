// bfloat16 for the emulation: rounding to nearest even by neighbours, independent of the package's conversions.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
    uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    if (std::isnan(x)) return {0x7fff};
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const __nv_bfloat16 down = {uint16_t(bits >> 16)}, up = {uint16_t((bits >> 16) + 1)};
    const uint32_t rest = bits & 0xffff;
    if (rest != 0x8000) return rest < 0x8000 ? down : up;
    return down.bits % 2 == 0 ? down : up;
}

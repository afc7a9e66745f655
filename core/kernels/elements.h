// float16 and bfloat16 in memory, float in registers: conversions that vectorise without intrinsics.
// Included once per instruction set, inside a namespace.

struct Half { uint16_t bits; };
struct BFloat16 { uint16_t bits; };

static inline __attribute__((always_inline)) float as_float(uint32_t bits) {
    union { uint32_t bits; float value; } both = {bits};
    return both.value;
}

static inline __attribute__((always_inline)) uint32_t as_bits(float value) {
    union { float value; uint32_t bits; } both = {value};
    return both.bits;
}

static inline __attribute__((always_inline)) double load(double x) { return x; }
static inline __attribute__((always_inline)) float load(float x) { return x; }
static inline __attribute__((always_inline)) float load(BFloat16 x) { return as_float(uint32_t(x.bits) << 16); }

static inline __attribute__((always_inline)) float load(Half x) {
    const uint32_t magnitude = uint32_t(x.bits & 0x7fff) << 13, sign = uint32_t(x.bits & 0x8000) << 16;
    // The factor moves the exponent's bias from 15 to 127 and makes subnormals normal.
    const uint32_t finite = as_bits(as_float(magnitude) * 0x1p+112f);
    const uint32_t special = magnitude | 0x7f800000;  // infinity and NaN
    return as_float(sign | (magnitude >= 0x0f800000 ? special : finite));
}

static inline __attribute__((always_inline)) void store(double& to, double x) { to = x; }
static inline __attribute__((always_inline)) void store(float& to, float x) { to = x; }

static inline __attribute__((always_inline)) void store(BFloat16& to, float x) {
    const uint32_t bits = as_bits(x);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
    to.bits = uint16_t(x != x ? 0x7fc0 : rounded);
}

static inline __attribute__((always_inline)) void store(Half& to, float x) {
    const uint32_t bits = as_bits(x), doubled = bits + bits;
    const float magnitude = as_float(bits & 0x7fffffff);
    // Adding a power of two 2^13 ulp above x rounds it to half's ulp; the two factors overflow to infinity first.
    const float clamped = magnitude * 0x1p+112f * 0x1p-110f;
    uint32_t bias = doubled & 0xff000000;
    bias = bias < 0x71000000 ? 0x71000000 : bias;
    const uint32_t sum = as_bits(as_float((bias >> 1) + 0x07800000) + clamped);
    const uint32_t finite = ((sum >> 13) & 0x7c00) + (sum & 0x0fff);
    to.bits = uint16_t(((bits >> 16) & 0x8000) | (doubled > 0xff000000 ? 0x7e00 : finite));
}

// Elements of tensors on the GPU: conversions, and vectors of neighbours loaded in one instruction.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define LIF_MEMBER __device__ __forceinline__

template <class T> struct StateOf { using type = float; };
template <> struct StateOf<double> { using type = double; };
template <class T> using State = typename StateOf<T>::type;

LIF_INLINE double load(double x) { return x; }
LIF_INLINE float load(float x) { return x; }
LIF_INLINE float load(__half x) { return __half2float(x); }
LIF_INLINE float load(__nv_bfloat16 x) { return __bfloat162float(x); }
LIF_INLINE void store(double& to, double x) { to = x; }
LIF_INLINE void store(float& to, float x) { to = x; }
LIF_INLINE void store(__half& to, float x) { to = __float2half_rn(x); }
LIF_INLINE void store(__nv_bfloat16& to, float x) { to = __float2bfloat16_rn(x); }

// The members of Neuron one by one: a launch passes scalars.
#define NEURON_PARAMETERS R decay, R gain, R threshold, R reset_potential, R alpha, R half_alpha, R arc_alpha
#define NEURON \
    Neuron<R> { decay, gain, threshold, reset_potential, alpha, half_alpha, arc_alpha }

// V neighbours; at most 16 bytes, on an address that is a multiple of its size.
template <class T, int V>
struct alignas(sizeof(T) * V) Vector {
    T items[V];
};

template <int V, class T>
LIF_INLINE Vector<T, V> load_vector(const T* from) { return *reinterpret_cast<const Vector<T, V>*>(from); }

template <int V, class T>
LIF_INLINE void store_vector(T* to, const Vector<T, V>& vector) { *reinterpret_cast<Vector<T, V>*>(to) = vector; }

// V values of the membrane's type, in as many 16-byte pieces as it takes.
template <int V, class R>
LIF_INLINE void load_values(const R* from, R (&values)[V]) {
    constexpr int PIECE = V * int(sizeof(R)) > 16 ? 16 / int(sizeof(R)) : V;
    for (int i = 0; i < V; i += PIECE) {
        const Vector<R, PIECE> piece = load_vector<PIECE>(from + i);
        for (int k = 0; k < PIECE; ++k) values[i + k] = piece.items[k];
    }
}

template <int V, class R>
LIF_INLINE void store_values(R* to, const R (&values)[V]) {
    constexpr int PIECE = V * int(sizeof(R)) > 16 ? 16 / int(sizeof(R)) : V;
    for (int i = 0; i < V; i += PIECE) {
        Vector<R, PIECE> piece;
        for (int k = 0; k < PIECE; ++k) piece.items[k] = values[i + k];
        store_vector<PIECE>(to + i, piece);
    }
}

LIF_INLINE long long thread_number() { return (long long)blockIdx.x * blockDim.x + threadIdx.x; }

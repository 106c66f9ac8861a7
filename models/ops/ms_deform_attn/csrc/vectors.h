// Vectors of channels and of points for one instruction set: as wide as the compiler's flags allow.
//
// Included by kernel.cpp alone, inside whose namespace CAPABILITY everything lies.
#pragma once

#include <cstdint>

#if defined(__AVX2__)
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // about the compiler's own header (GCC bug 105593)
#endif
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX2__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

#define INLINE inline __attribute__((always_inline))

namespace ms_deform_attn {
namespace CAPABILITY {
namespace {

template <typename T, int N>
struct VectorOf {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <typename T>
struct VectorOf<T, 1> {
  typedef T type;
};

// Points side by side in a vector register. Arrays of points are as long as a multiple of kPadding, so that the last
// vector needs no rest loop; what it computes beyond the last point is never used.
template <typename T>
struct Points {
  static constexpr int kLanes = VECTOR_BYTES / sizeof(T);
  typedef typename VectorOf<T, kLanes>::type Values;
  typedef typename VectorOf<int32_t, kLanes>::type Numbers;
};

template <typename Vector, typename T>
INLINE Vector load(const T* from) {
  Vector vector;
  __builtin_memcpy(&vector, from, sizeof(Vector));
  return vector;
}
template <typename Vector, typename T>
INLINE void store(const Vector& vector, T* to) {
  __builtin_memcpy(to, &vector, sizeof(Vector));
}

// Channels [0, N) of a row as vectors that fill registers: kCount vectors of kLanes channels.
template <typename T, int N>
struct Channels {
  static constexpr int kLanes = N * sizeof(T) < VECTOR_BYTES ? N : VECTOR_BYTES / sizeof(T);
  static constexpr int kCount = N / kLanes;
  typedef typename VectorOf<T, kLanes>::type Vector;

  Vector at[kCount];

  static INLINE Channels zero() {
    Channels channels;
    for (int i = 0; i < kCount; ++i) channels.at[i] = Vector{};
    return channels;
  }
  static INLINE Channels load(const T* row) {
    Channels channels;
    for (int i = 0; i < kCount; ++i) __builtin_memcpy(&channels.at[i], row + i * kLanes, sizeof(Vector));
    return channels;
  }
  INLINE void store(T* row) const {
    for (int i = 0; i < kCount; ++i) __builtin_memcpy(row + i * kLanes, &at[i], sizeof(Vector));
  }
  INLINE void add(T coefficient, const Channels& other) {
    for (int i = 0; i < kCount; ++i) at[i] += coefficient * other.at[i];
  }
  INLINE Vector product(const Channels& other) const {
    Vector sum = at[0] * other.at[0];
    for (int i = 1; i < kCount; ++i) sum += at[i] * other.at[i];
    return sum;
  }
};

template <typename T>
INLINE T sum_of_lanes(T scalar) {
  return scalar;
}
template <typename T, typename Vector>
INLINE T sum_of_lanes(Vector vector) {
  constexpr int kLanes = sizeof(Vector) / sizeof(T);
  if constexpr (kLanes == 1) {
    return vector;
  } else if constexpr (kLanes == 2) {
    return vector[0] + vector[1];
  } else {
    typedef typename VectorOf<T, kLanes / 2>::type Half;
    Half half[2];
    __builtin_memcpy(half, &vector, sizeof(vector));
    return sum_of_lanes<T, Half>(half[0] + half[1]);
  }
}

// The four corners' sums over lanes: written to sums[0], sums[1], sums[2], sums[3].
template <typename T, typename Vector>
INLINE void sums_of_lanes(Vector a, Vector b, Vector c, Vector d, T* sums) {
  sums[0] = sum_of_lanes<T, Vector>(a);
  sums[1] = sum_of_lanes<T, Vector>(b);
  sums[2] = sum_of_lanes<T, Vector>(c);
  sums[3] = sum_of_lanes<T, Vector>(d);
}

#if defined(__AVX2__)
typedef VectorOf<float, 8>::type Float8;
template <>
INLINE void sums_of_lanes<float, Float8>(Float8 a, Float8 b, Float8 c, Float8 d, float* sums) {
  const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
}
#endif
#if defined(__AVX512F__)
typedef VectorOf<float, 16>::type Float16;
template <>
INLINE void sums_of_lanes<float, Float16>(Float16 a, Float16 b, Float16 c, Float16 d, float* sums) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));  // a b a b in each quarter
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512 abcd = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, _MM_SHUFFLE(1, 0, 1, 0)),
                                    _mm512_shuffle_ps(ab, cd, _MM_SHUFFLE(3, 2, 3, 2)));
  const __m256 halves = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
  _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
}
#endif

// e^x for x <= 0, to one unit in the last place or two, in operations that the compiler vectorises.
// 2^n by its exponent bits, the rest by a polynomial (Cephes' coefficients for [-ln 2 / 2, ln 2 / 2]).
INLINE float exponential(float x) {
  const float bounded = x > -87.0f ? x : -87.0f;
  const float n = __builtin_floorf(bounded * 1.44269504f + 0.5f);
  const float r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  __builtin_memcpy(&power, &bits, sizeof(power));
  return x > -87.0f ? p * power : x == x ? 0.0f : x;
}
INLINE double exponential(double x) { return __builtin_exp(x); }

}  // namespace
}  // namespace CAPABILITY
}  // namespace ms_deform_attn

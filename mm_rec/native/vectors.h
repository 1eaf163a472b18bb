// Vectors of float32 as wide as the processor's registers, by GCC's and Clang's vector types, and functions of them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

// LANES: numbers of float32 in a register. SUMS: how many registers of sums a product keeps beside what it multiplies.
#if defined(__AVX512BW__)
constexpr int LANES = 16, SUMS = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8, SUMS = 8;
#elif defined(__aarch64__)
constexpr int LANES = 4, SUMS = 16;
#elif defined(__SSE4_1__)
constexpr int LANES = 4, SUMS = 8;
#else
#error "a processor with AVX-512, AVX2, SSE4.1 or NEON is needed"
#endif
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
typedef int16_t Shorts __attribute__((vector_size(4 * LANES)));
typedef int8_t Bytes __attribute__((vector_size(2 * LANES)));
typedef float Four __attribute__((vector_size(16)));
typedef float Eight __attribute__((vector_size(32)));
typedef float Sixteen __attribute__((vector_size(64)));

struct Bfloat16 {
    uint16_t bits;
};

float widen(float x) { return x; }
float widen(Bfloat16 x) {
    uint32_t word = uint32_t(x.bits) << 16;
    float out;
    std::memcpy(&out, &word, 4);
    return out;
}
void narrow(float x, float* out) { *out = x; }
void narrow(float x, Bfloat16* out) {
    uint32_t word;
    std::memcpy(&word, &x, 4);
    if ((word & 0x7fffffff) > 0x7f800000) word |= 0x400000;  // a NaN stays one
    else word += 0x7fff + ((word >> 16) & 1);                 // to the nearest, ties to even
    out->bits = uint16_t(word >> 16);
}

Floats load(const float* from) {
    Floats out;
    std::memcpy(&out, from, sizeof out);
    return out;
}
Floats load(const Bfloat16* from) {
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
#if defined(__AVX512BW__)
    Words words = (Words)_mm512_cvtepu16_epi32((__m256i)halves) << 16;
#elif defined(__AVX2__)
    Words words = (Words)_mm256_cvtepu16_epi32((__m128i)halves) << 16;
#elif defined(__x86_64__)
    Words words = (Words)_mm_unpacklo_epi16(_mm_setzero_si128(), _mm_loadl_epi64((const __m128i*)from));
#else
    Words words = (Words)vshll_n_u16((uint16x4_t)halves, 16);
#endif
    return (Floats)words;
}
void store(Floats x, float* to) { std::memcpy(to, &x, sizeof x); }
Floats splat(float x) {
#if defined(__AVX512F__)
    return (Floats)_mm512_set1_ps(x);
#elif defined(__AVX2__)
    return (Floats)_mm256_set1_ps(x);
#elif defined(__x86_64__)
    return (Floats)_mm_set1_ps(x);
#else
    return (Floats)vdupq_n_f32(x);
#endif
}
// The sum of the lanes, in one order: halves are added until four are left, then 0 + 2 and 1 + 3.
[[maybe_unused]] Four fold(const Four& x) { return x; }
[[maybe_unused]] Four fold(const Eight& x) {
    Four halves[2];
    std::memcpy(halves, &x, sizeof x);
    return halves[0] + halves[1];
}
[[maybe_unused]] Four fold(const Sixteen& x) {
    Eight halves[2];
    std::memcpy(halves, &x, sizeof x);
    return fold(halves[0] + halves[1]);
}
float sum(Floats x) {
    Four four = fold(x);
    return (four[0] + four[2]) + (four[1] + four[3]);
}
// Four such sums at once.
void sum(const Floats (&x)[4], float (&out)[4]) {
    Four a = fold(x[0]), b = fold(x[1]), c = fold(x[2]), d = fold(x[3]);
    Four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
    Four cd = __builtin_shufflevector(c, d, 0, 4, 1, 5) + __builtin_shufflevector(c, d, 2, 6, 3, 7);
    Four all = __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
    std::memcpy(out, &all, sizeof all);
}

// The larger, the smaller of two; x where x is no number.
Floats at_least(Floats bound, Floats x) {
#if defined(__AVX512F__)
    return (Floats)_mm512_max_ps((__m512)bound, (__m512)x);
#elif defined(__AVX2__)
    return (Floats)_mm256_max_ps((__m256)bound, (__m256)x);
#else
    return x < bound ? bound : x;
#endif
}
Floats at_most(Floats bound, Floats x) {
#if defined(__AVX512F__)
    return (Floats)_mm512_min_ps((__m512)bound, (__m512)x);
#elif defined(__AVX2__)
    return (Floats)_mm256_min_ps((__m256)bound, (__m256)x);
#else
    return x > bound ? bound : x;
#endif
}
// e to the x to 2 units in the last place: 2 to a whole number times a polynomial (of the least relative error for the rest,
// which is at most half of log 2). One form for vectors and single numbers, so that a value never depends on its place in a
// vector.
Floats exponential(Floats x) {
    const Floats zero = {};
    x = at_most(zero + 88.3f, at_least(zero - 87.3f, x));
    const Floats shifted = x * 1.44269504088896341f + 12582912.0f;  // to the nearest whole number: 1.5 * 2^23 leaves no fraction
    const Floats whole = shifted - 12582912.0f;
    const Floats rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    Floats p = rest * 1.38146023e-3f + 8.36871564e-3f;
    p = p * rest + 4.16683890e-2f;
    p = p * rest + 1.66665211e-1f;
    p = p * rest + 4.99999940e-1f;
    p = p * rest + 1.0f;
    p = p * rest + 1.0f;
    // The whole number is in the lowest bits of `shifted`; added to the exponent it multiplies.
    return (Floats)((Words)p + ((Words)shifted << 23));
}
// 1 / x to 2 units in the last place, for x of 1 and more.
Floats reciprocal(Floats x) {
#if defined(__AVX512F__)
    Floats guess = (Floats)_mm512_rcp14_ps((__m512)x);
#elif defined(__AVX2__)
    Floats guess = (Floats)_mm256_rcp_ps((__m256)x);
#else
    return 1.0f / x;
#endif
#if defined(__AVX2__)
    return guess * (2.0f - x * guess);
#endif
}
Floats sigmoid(Floats x) { return reciprocal(1.0f + exponential(-x)); }
// tanh to 2 units in the last place: near 0 a polynomial (Cephes' tanhf), where the other form has lost its last digits.
Floats tanh(Floats x) {
    const Floats zero = {}, near = zero + 0.625f;
    Floats size = x < zero ? -x : x, square = x * x;
    Floats p = square * -5.70498872745e-3f + 2.06390887954e-2f;
    p = p * square - 5.37397155531e-2f;
    p = p * square + 1.33314422036e-1f;
    p = p * square - 3.33332819422e-1f;
    Floats far = 1.0f - 2.0f / (exponential(2.0f * size) + 1.0f);
    return size < near ? p * square * x + x : x < zero ? -far : far;
}
// Scores and logits that shall not pass a bound (Gemma 2).
Floats capped(Floats x, float cap) { return tanh(x / cap) * cap; }
Floats silu(Floats x) { return x * sigmoid(x); }
// GELU by tanh (Hendrycks & Gimpel 2016): x / 2 · (1 + tanh u), and (1 + tanh u) / 2 is sigmoid(2u).
Floats gelu(Floats x) { return x * sigmoid(1.5957691216057308f * (x + 0.044715f * x * x * x)); }
float exponential(float x) {
    const Floats zero = {};
    return exponential(zero + x)[0];
}
float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }
// To bfloat16: to the nearest, ties to even; a NaN stays one.
void store(Floats x, Bfloat16* to) {
    Words words = (Words)x;
    words = x == x ? words + 0x7fff + ((words >> 16) & 1) : words | 0x400000;
    Halves halves = __builtin_convertvector(words >> 16, Halves);
    std::memcpy(to, &halves, sizeof halves);
}

}  // namespace

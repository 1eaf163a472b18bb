// Decoding on a CPU: a list of operations over rows of float32, run by a few threads in one call.
//
// The kernels know nothing of models: graph_builder.py writes a model down as such a list. A row is one token of one sequence;
// `states` has, for each row, pointers to the tensors that its sequence remembers, `positions` how many tokens stand before
// it there. Rows of one sequence stand in the order of time. What is computed for a row does not depend on the other rows,
// to the last bit: each sum is taken in one order, however many rows share it.
//
// Plain C++20 with GCC's and Clang's vector types, as wide as the registers of the processor that it is compiled for; it is
// compiled when it is first used. Where a type is widened or numbers are multiplied in pairs, which compilers do not find
// by themselves, there is a form for AVX-512, AVX2, SSE4.1 and NEON.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <mutex>
#include <system_error>
#include <thread>
#include <type_traits>
#include <vector>

#include "vectors.h"

namespace {

constexpr int LINE = 64;   // bytes that come from memory together
constexpr int GROUP = 64;  // weights of a byte that share a scale, as in program.py

enum OpKind : int32_t { EMBED, NORM, LINEAR, ANGLES, ROTATE, ATTEND, GATE, CONVOLVE, RECUR, LORA_IN, LORA_OUT, SCALE };
enum Type : int32_t { FLOAT32, BFLOAT16, INT8 };
enum Activation : int32_t { SILU, GELU_TANH };

// Flags of an operation.
constexpr int32_t ACCUMULATE = 1;  // add to what is in `out`
[[maybe_unused]] constexpr int32_t UNORDERED = 2;   // the next operation needs nothing of this one

// To the nearest whole number, ties to even: adding 1.5 · 2^23 leaves no bits for a fraction.
int32_t to_nearest(float x) {
    float shifted = x + 12582912.0f;
    int32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    return bits - 0x4b400000;
}

// 2 · LANES bytes as numbers of 16 bits.
Shorts load(const int8_t* from) {
    Bytes bytes;
    std::memcpy(&bytes, from, sizeof bytes);
#if defined(__AVX512BW__)
    return (Shorts)_mm512_cvtepi8_epi16((__m256i)bytes);
#elif defined(__AVX2__)
    return (Shorts)_mm256_cvtepi8_epi16((__m128i)bytes);
#elif defined(__x86_64__)
    return (Shorts)_mm_cvtepi8_epi16(_mm_loadl_epi64((const __m128i*)from));
#else
    return (Shorts)vmovl_s8((int8x8_t)bytes);
#endif
}
Shorts load(const int16_t* from) {
    Shorts out;
    std::memcpy(&out, from, sizeof out);
    return out;
}
// `total` and the 2 · LANES products of two such, two of them in each lane.
Ints add_products(Ints total, Shorts a, Shorts b) {
#if defined(__AVX512VNNI__)
    return (Ints)_mm512_dpwssd_epi32((__m512i)total, (__m512i)a, (__m512i)b);
#elif defined(__AVX512BW__)
    return total + (Ints)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVXVNNI__)
    return (Ints)_mm256_dpwssd_avx_epi32((__m256i)total, (__m256i)a, (__m256i)b);
#elif defined(__AVX2__)
    return total + (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__x86_64__)
    return total + (Ints)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    int32x4_t low = vmlal_s16((int32x4_t)total, vget_low_s16((int16x8_t)a), vget_low_s16((int16x8_t)b));
    return (Ints)vmlal_high_s16(low, (int16x8_t)a, (int16x8_t)b);
#endif
}

// The first `count` of LANES numbers, the others 0, and back.
template <typename T>
Floats load_some(const T* from, int64_t count) {
    if (count >= LANES) return load(from);
    T some[LANES] = {};
    std::memcpy(some, from, count * sizeof(T));
    return load(some);
}
void store_some(Floats x, float* to, int64_t count) {
    if (count >= LANES) return store(x, to);
    float some[LANES];
    store(x, some);
    std::memcpy(to, some, count * sizeof(float));
}

}  // namespace

extern "C" {

// One operation. What the fields mean to each kind stands at its function below; unused ones are 0.
struct Op {
    int32_t kind, flags;
    int32_t n[8];
    int64_t strides[3];
    float f[2];
    void *in, *out, *weight, *extra[4];
};

struct Rows {
    int64_t count;
    const int64_t *tokens, *positions, *adapters;  // an adapter below 0 is none
    void* const* const* states;
};

// A low-rank adapter of one projection: out += B (A x), factors included in B. Float32, A (rank, K), B (N, rank).
struct Factors {
    const float *a, *b;
    int64_t rank;
};
}

namespace {

// The share of `count` things that thread `id` of `threads` does, in whole steps; the first threads' are the largest.
struct Share {
    int64_t begin, end;
    Share(int64_t count, int64_t step, int id, int threads) {
        int64_t steps = (count + step - 1) / step;
        begin = std::min(count, (steps * id + threads - 1) / threads * step);
        end = std::min(count, (steps * (id + 1) + threads - 1) / threads * step);
    }
};

// --- matrix products --------------------------------------------------------------------------------------------------

constexpr int WEIGHTS = 4;  // rows of a weight that are read side by side

// The next LANES products of ROWS rows of `in` with COLUMNS rows of a weight, added to what is there. All loops are unrolled
// and the function is inlined, or the sums would not stay in registers.
template <typename T, int ROWS, int COLUMNS>
[[gnu::always_inline]] inline void multiply(const T* weight, int64_t weight_stride, const float* in, int64_t in_stride,
                                            Floats (&acc)[ROWS][COLUMNS]) {
    Floats w[COLUMNS];
#pragma GCC unroll 16
    for (int c = 0; c < COLUMNS; ++c) w[c] = load(weight + c * weight_stride);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
        Floats x = load(in + r * in_stride);
#pragma GCC unroll 16
        for (int c = 0; c < COLUMNS; ++c) acc[r][c] += w[c] * x;
    }
}

// The line of each row of the weight that comes next is fetched while these are multiplied: twice the speed for several rows.
template <int COLUMNS, typename T>
[[gnu::always_inline]] inline void fetch(const T* weight, int64_t stride) {
#pragma GCC unroll 16
    for (int c = 0; c < COLUMNS; ++c) __builtin_prefetch(weight + (WEIGHTS + c) * stride);
}

// The sums of the lanes.
template <int ROWS, int COLUMNS>
[[gnu::always_inline]] inline void add_up(const Floats (&acc)[ROWS][COLUMNS], float (*sums)[COLUMNS]) {
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r)
        if constexpr (COLUMNS == 4) sum(acc[r], sums[r]);
        else
#pragma GCC unroll 16
            for (int c = 0; c < COLUMNS; ++c) sums[r][c] = sum(acc[r][c]);
}

template <typename T, int ROWS, int COLUMNS>
void dot_block(const T* weight, int64_t weight_stride, const float* in, int64_t in_stride, int64_t size,
               float (*sums)[COLUMNS]) {
    Floats acc[ROWS][COLUMNS] = {};
    int64_t k = 0;
    for (constexpr int STEP = LINE / sizeof(T); k + STEP <= size; k += STEP) {
        fetch<COLUMNS>(weight + k, weight_stride);
#pragma GCC unroll 16
        for (int i = 0; i < STEP; i += LANES) multiply(weight + k + i, weight_stride, in + k + i, in_stride, acc);
    }
    for (; k + LANES <= size; k += LANES) multiply(weight + k, weight_stride, in + k, in_stride, acc);
    if (k < size)
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
            for (int c = 0; c < COLUMNS; ++c)
                acc[r][c] += load_some(weight + c * weight_stride + k, size - k) * load_some(in + r * in_stride + k, size - k);
    add_up(acc, sums);
}

float dot(const float* a, const float* b, int64_t size) {
    float total[1][1];
    dot_block<float, 1, 1>(a, 0, b, 0, size, total);
    return total[0][0];
}

// What a weight is multiplied with: float32, or the inputs in fewer bits where the processor then multiplies faster.
template <typename T>
struct Inputs {
    const T* numbers;
    int64_t stride;
    const float* scales;  // (R, K / GROUP) of int16_t
};
template <typename Weight>
using InputOf = std::conditional_t<std::is_same_v<Weight, int8_t>, int16_t,
#if defined(__AVX512BF16__)
                                   std::conditional_t<std::is_same_v<Weight, Bfloat16>, Bfloat16, float>>;
#else
                                   float>;
#endif

template <int ROWS, int COLUMNS, typename T>
void products(const T* weight, const float*, const Inputs<float>& in, int64_t size, float (*sums)[COLUMNS]) {
    dot_block<T, ROWS, COLUMNS>(weight, size, in.numbers, in.stride, size, sums);
}

// Weights of a byte, each group of them times its scale. The sum of a group is exact: 64 · 127 · 32767 is less than 2^31.
template <int ROWS, int COLUMNS>
void products(const int8_t* weight, const float* scales, const Inputs<int16_t>& in, int64_t size, float (*sums)[COLUMNS]) {
    Floats acc[ROWS][COLUMNS] = {};
    int64_t groups = size / GROUP;
    for (int64_t g = 0; g < groups; ++g) {
        const int8_t* bytes = weight + g * GROUP;
        const int16_t* numbers = in.numbers + g * GROUP;
        Ints part[ROWS][COLUMNS] = {};
        fetch<COLUMNS>(bytes, size);
#pragma GCC unroll 16
        for (int k = 0; k < GROUP; k += 2 * LANES) {
            Shorts w[COLUMNS];
#pragma GCC unroll 16
            for (int c = 0; c < COLUMNS; ++c) w[c] = load(bytes + c * size + k);
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; ++r) {
                Shorts x = load(numbers + r * in.stride + k);
#pragma GCC unroll 16
                for (int c = 0; c < COLUMNS; ++c) part[r][c] = add_products(part[r][c], w[c], x);
            }
        }
#pragma GCC unroll 16
        for (int c = 0; c < COLUMNS; ++c)
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; ++r)
                acc[r][c] += __builtin_convertvector(part[r][c], Floats) * (scales[c * groups + g] * in.scales[r * groups + g]);
    }
    add_up(acc, sums);
}

// Numbers of 16 bits for each group of inputs: its largest becomes ±32767. A NaN makes the whole group one, an infinity too.
void narrow_row(const float* in, int64_t size, int16_t* out, float* scales) {
    for (int64_t g = 0; g < size / GROUP; ++g, in += GROUP, out += GROUP) {
        Ints most = {};
        for (int k = 0; k < GROUP; k += LANES) {  // the bits of positive numbers are ordered as they are, a NaN's above all
            Ints bits = (Ints)load(in + k) & 0x7fffffff;
            most = bits > most ? bits : most;
        }
        int32_t highest = 0;
        for (int lane = 0; lane < LANES; ++lane) highest = std::max(highest, most[lane]);
        float largest;
        std::memcpy(&largest, &highest, sizeof largest);
        scales[g] = largest / 32767.0f;
        float factor = largest > 0.0f ? 32767.0f / largest : 0.0f;
        for (int k = 0; k < GROUP; ++k) out[k] = int16_t(to_nearest(in[k] * factor));
    }
}

#if defined(__AVX512BF16__)
// The processor adds the products of 32 pairs of bfloat16 to 16 sums of float32 at once.
template <int ROWS, int COLUMNS>
[[gnu::always_inline]] inline void multiply_pairs(const Bfloat16* weight, const Bfloat16* in, int64_t stride, __mmask32 here,
                                                  Floats (&acc)[ROWS][COLUMNS]) {
    __m512bh w[COLUMNS];
    fetch<COLUMNS>(weight, stride);
#pragma GCC unroll 16
    for (int c = 0; c < COLUMNS; ++c) w[c] = (__m512bh)_mm512_maskz_loadu_epi16(here, weight + c * stride);
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; ++r) {
        __m512bh x = (__m512bh)_mm512_maskz_loadu_epi16(here, in + r * stride);
#pragma GCC unroll 16
        for (int c = 0; c < COLUMNS; ++c) acc[r][c] = (Floats)_mm512_dpbf16_ps((__m512)acc[r][c], w[c], x);
    }
}

template <int ROWS, int COLUMNS>
void products(const Bfloat16* weight, const float*, const Inputs<Bfloat16>& in, int64_t size, float (*sums)[COLUMNS]) {
    Floats acc[ROWS][COLUMNS] = {};
    int64_t k = 0;
    for (; k + 2 * LANES <= size; k += 2 * LANES) multiply_pairs(weight + k, in.numbers + k, size, ~0u, acc);
    if (k < size) multiply_pairs(weight + k, in.numbers + k, size, (1u << (size - k)) - 1, acc);
    add_up(acc, sums);
}

// Rounded to bfloat16, as a bfloat16 model's own inputs are.
void narrow_row(const float* in, int64_t size, Bfloat16* out, float*) {
    for (int64_t k = 0; k < size; k += LANES) {
        __mmask16 here = size - k >= LANES ? 0xffff : (1u << (size - k)) - 1;
        _mm256_mask_storeu_epi16(out + k, here, (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(here, in + k)));
    }
}
#endif

// The inputs of a product. Each thread makes its own copy where they are narrowed, which costs less than waiting.
template <typename T>
Inputs<T> inputs_of(const Op& op, int64_t rows) {
    const float* in = static_cast<const float*>(op.in);
    int64_t size = op.n[1], groups = size / GROUP;
    if constexpr (std::is_same_v<T, float>) {
        return {in, op.strides[0], nullptr};
    } else {
        static thread_local std::vector<T> numbers;
        static thread_local std::vector<float> scales;
        if (int64_t(numbers.size()) < rows * size) numbers.resize(rows * size);
        if (int64_t(scales.size()) < rows * groups) scales.resize(rows * groups);
        for (int64_t r = 0; r < rows; ++r)
            narrow_row(in + r * op.strides[0], size, &numbers[r * size], scales.data() + r * groups);
        return {numbers.data(), size, scales.data()};
    }
}

template <typename T, int ROWS, int COLUMNS>
void linear_block(const Op& op, const Inputs<InputOf<T>>& inputs, int64_t row, int64_t column) {
    int64_t in_size = op.n[1], groups = in_size / GROUP;
    const T* weight = static_cast<const T*>(op.weight) + column * in_size;
    const float* bias = static_cast<const float*>(op.extra[1]);
    const float* scales = op.extra[0] ? static_cast<const float*>(op.extra[0]) + column * groups : nullptr;
    float* out = static_cast<float*>(op.out) + row * op.strides[1] + column;
    float sums[ROWS][COLUMNS];
    Inputs<InputOf<T>> in = {inputs.numbers + row * inputs.stride, inputs.stride, inputs.scales + row * groups};
    products<ROWS, COLUMNS>(weight, scales, in, in_size, sums);
    for (int r = 0; r < ROWS; ++r)
        for (int c = 0; c < COLUMNS; ++c) {
            float* place = out + r * op.strides[1] + c;
            float value = sums[r][c] + (bias ? bias[column + c] : 0.0f);
            *place = op.flags & ACCUMULATE ? *place + value : value;
        }
}

// The next ROWS rows, as often as there are so many, with as many rows of the weight at once as there are registers for.
template <typename T, int ROWS, int COLUMNS>
void linear_rows(const Op& op, const Inputs<InputOf<T>>& inputs, int64_t rows, int64_t& row, int64_t column) {
    constexpr int MOST = std::is_same_v<T, int8_t> ? SUMS / 2 : SUMS;  // a group of bytes has a sum of its own
    constexpr int AT_ONCE = std::min(COLUMNS, std::max(MOST / ROWS, 1));
    for (; row + ROWS <= rows; row += ROWS)
        for (int c = 0; c < COLUMNS; c += AT_ONCE) linear_block<T, ROWS, AT_ONCE>(op, inputs, row, column + c);
}

template <typename T, int COLUMNS>
void linear_columns(const Op& op, const Inputs<InputOf<T>>& inputs, int64_t rows, int64_t column) {
    int64_t row = 0;
    if constexpr (SUMS > 8) linear_rows<T, 8, COLUMNS>(op, inputs, rows, row, column);
    linear_rows<T, 4, COLUMNS>(op, inputs, rows, row, column);
    linear_rows<T, 2, COLUMNS>(op, inputs, rows, row, column);
    linear_rows<T, 1, COLUMNS>(op, inputs, rows, row, column);
}

// out (R, N) = in (R, K) · weight (N, K)ᵀ + bias. n: N, K, type; strides: of a row of in and of out;
// extra: scales (N, K / GROUP) of INT8, bias (N) or null.
template <typename T>
void linear(const Op& op, const Rows& rows, int id, int threads) {
    Share share(op.n[0], WEIGHTS, id, threads);
    Inputs<InputOf<T>> inputs = inputs_of<InputOf<T>>(op, rows.count);
    int64_t column = share.begin;
    for (; column + WEIGHTS <= share.end; column += WEIGHTS) linear_columns<T, WEIGHTS>(op, inputs, rows.count, column);
    for (; column < share.end; ++column) linear_columns<T, 1>(op, inputs, rows.count, column);
}

// Low-rank adapters, a row's own: LORA_IN writes A x (R, rank), LORA_OUT adds B times it. weight: table of Factors;
// n: K or N; strides: of a row of in and of out.
void lora_in(const Op& op, const Rows& rows, int id, int threads) {
    for (int64_t r = 0; r < rows.count; ++r) {
        if (rows.adapters[r] < 0) continue;
        const Factors& one = static_cast<const Factors*>(op.weight)[rows.adapters[r]];
        const float* in = static_cast<const float*>(op.in) + r * op.strides[0];
        Share share(one.rank, 1, id, threads);
        for (int64_t i = share.begin; i < share.end; ++i)
            static_cast<float*>(op.out)[r * op.strides[1] + i] = dot(one.a + i * op.n[0], in, op.n[0]);
    }
}

void lora_out(const Op& op, const Rows& rows, int id, int threads) {
    for (int64_t r = 0; r < rows.count; ++r) {
        if (rows.adapters[r] < 0) continue;
        const Factors& one = static_cast<const Factors*>(op.weight)[rows.adapters[r]];
        const float* in = static_cast<const float*>(op.in) + r * op.strides[0];
        Share share(one.rank ? op.n[0] : 0, 1, id, threads);
        for (int64_t i = share.begin; i < share.end; ++i)
            static_cast<float*>(op.out)[r * op.strides[1] + i] += dot(one.b + i * one.rank, in, one.rank);
    }
}

// --- what works on each row by itself ---------------------------------------------------------------------------------

// out (R, D) = f · the rows of weight (V, D) that the tokens name. n: D, type.
template <typename T>
void embed(const Op& op, const Rows& rows, int id, int threads) {
    Share share(op.n[0], LANES, id, threads);
    for (int64_t r = 0; r < rows.count; ++r) {
        const T* from = static_cast<const T*>(op.weight) + rows.tokens[r] * op.n[0];
        float* to = static_cast<float*>(op.out) + r * op.n[0];
        for (int64_t i = share.begin; i < share.end; ++i) to[i] = widen(from[i]) * op.f[0];
    }
}

float inverse_root_mean_square(const float* x, int64_t size, float eps) {
    return 1.0f / std::sqrt(dot(x, x, size) / size + eps);
}

// out = in / rms(in) · (f[1] + weight) for each of n[0] parts of n[1] features of a row. f[0]: epsilon; strides: rows of in
// and out.
void norm(const Op& op, const Rows& rows, int id, int threads) {
    int64_t parts = op.n[0], size = op.n[1];
    const float* weight = static_cast<const float*>(op.weight);
    Share share(rows.count * parts, 1, id, threads);
    for (int64_t i = share.begin; i < share.end; ++i) {
        const float* in = static_cast<const float*>(op.in) + i / parts * op.strides[0] + i % parts * size;
        float* out = static_cast<float*>(op.out) + i / parts * op.strides[1] + i % parts * size;
        float factor = inverse_root_mean_square(in, size, op.f[0]);
        for (int64_t j = 0; j < size; j += LANES) {
            Floats value = load_some(in + j, size - j) * factor * (op.f[1] + load_some(weight + j, size - j));
            if (op.flags & ACCUMULATE) value += load_some(out + j, size - j);
            store_some(value, out + j, size - j);
        }
    }
}

// Cosines (R, n[0]) to out and sines to extra[0] of position times weight (n[0], float64), times f[0]; reduced mod 2π, so
// that position 100,000 is as exact as position 1.
void angles(const Op& op, const Rows& rows, int id, int threads) {
    int64_t half = op.n[0];
    Share share(rows.count * half, 1, id, threads);
    for (int64_t i = share.begin; i < share.end; ++i) {
        double angle = std::fmod(rows.positions[i / half] * static_cast<const double*>(op.weight)[i % half],
                                 6.283185307179586476925286766559);
        static_cast<float*>(op.out)[i] = float(std::cos(angle) * op.f[0]);
        static_cast<float*>(op.extra[0])[i] = float(std::sin(angle) * op.f[0]);
    }
}

// Turn the first 2·n[2] features of each head of out (R, n[0] heads, n[1]) by cosines `in` and sines extra[0]; the halves
// are pairs, as in LLaMA. strides[1]: a row of out.
void rotate(const Op& op, const Rows& rows, int id, int threads) {
    int64_t heads = op.n[0], size = op.n[1], half = op.n[2];
    Share share(rows.count * heads, 1, id, threads);
    for (int64_t i = share.begin; i < share.end; ++i) {
        int64_t r = i / heads;
        float* x = static_cast<float*>(op.out) + r * op.strides[1] + i % heads * size;
        const float* cosine = static_cast<const float*>(op.in) + r * half;
        const float* sine = static_cast<const float*>(op.extra[0]) + r * half;
        for (int64_t j = 0; j < half; ++j) {
            float first = x[j], second = x[j + half];
            x[j] = first * cosine[j] - second * sine[j];
            x[j + half] = second * cosine[j] + first * sine[j];
        }
    }
}

// out (R, n[0]) = the activation n[1] of in, times extra[0] (Shazeer 2020). strides: rows of in and extra[0], of out.
void gate(const Op& op, const Rows& rows, int id, int threads) {
    Share share(op.n[0], LANES, id, threads);
    for (int64_t r = 0; r < rows.count; ++r) {
        const float* in = static_cast<const float*>(op.in) + r * op.strides[0];
        const float* up = static_cast<const float*>(op.extra[0]) + r * op.strides[0];
        float* out = static_cast<float*>(op.out) + r * op.strides[1];
        for (int64_t i = share.begin; i < share.end; i += LANES) {
            int64_t count = share.end - i;
            Floats x = load_some(in + i, count);
            store_some((op.n[1] == GELU_TANH ? gelu(x) : silu(x)) * load_some(up + i, count), out + i, count);
        }
    }
}

// out (R, n[0]) = f[0] · in, capped at ±f[1] unless that is 0.
void scale(const Op& op, const Rows& rows, int id, int threads) {
    Share share(rows.count * op.n[0], LANES, id, threads);
    const float* in = static_cast<const float*>(op.in);
    float* out = static_cast<float*>(op.out);
    for (int64_t i = share.begin; i < share.end; i += LANES) {
        int64_t count = share.end - i;
        Floats value = load_some(in + i, count) * op.f[0];
        if (op.f[1] > 0.0f) value = capped(value, op.f[1]);
        if (op.flags & ACCUMULATE) value += load_some(out + i, count);
        store_some(value, out + i, count);
    }
}

// --- what remembers ---------------------------------------------------------------------------------------------------

// Attention of each row over the tokens of its sequence up to itself, the last n[6] of them; its key and value are written
// first, at the place of its position. in: queries (R, n[0] heads, n[2]), extra[0], extra[1]: new keys and values (R, n[1]
// groups, n[2]); tensors n[5] and n[5] + 1 of the state: keys and values of type n[4], (places, groups, n[2]); f[0]: scale; f[1]: cap of the scores, or 0; strides: rows of in, of out, of
// the new keys and values. out (R, n[0], n[2]).
template <typename T>
void attend(const Op& op, const Rows& rows, int id, int threads, std::vector<float>& scratch) {
    int64_t heads = op.n[0], groups = op.n[1], size = op.n[2], per_group = heads / groups;
    Share share(groups, 1, id, threads);
    for (int64_t group = share.begin; group < share.end; ++group)
        for (int64_t r = 0; r < rows.count; ++r) {
            T* keys = static_cast<T*>(rows.states[r][op.n[5]]) + group * size;
            T* values = static_cast<T*>(rows.states[r][op.n[5] + 1]) + group * size;
            int64_t stride = groups * size, place = rows.positions[r] * stride;
            const float* key = static_cast<const float*>(op.extra[0]) + r * op.strides[2] + group * size;
            const float* value = static_cast<const float*>(op.extra[1]) + r * op.strides[2] + group * size;
            for (int64_t j = 0; j < size; ++j) {
                narrow(key[j], keys + place + j);
                narrow(value[j], values + place + j);
            }
            int64_t there = rows.positions[r] + 1, count = std::min<int64_t>(there, op.n[6]);
            keys += (there - count) * stride;
            values += (there - count) * stride;
            if (int64_t(scratch.size()) < count) scratch.resize(count + 1024);
            for (int64_t head = group * per_group; head < (group + 1) * per_group; ++head) {
                const float* query = static_cast<const float*>(op.in) + r * op.strides[0] + head * size;
                float* out = static_cast<float*>(op.out) + r * op.strides[1] + head * size;
                float highest = -INFINITY, total = 0.0f, scale = op.f[0];
                int64_t t = 0;
                for (; t + WEIGHTS <= count; t += WEIGHTS) {
                    float scores[1][WEIGHTS];
                    dot_block<T, 1, WEIGHTS>(keys + t * stride, stride, query, 0, size, scores);
                    std::memcpy(&scratch[t], scores, sizeof scores);
                }
                for (; t < count; ++t) {
                    float score[1][1];
                    dot_block<T, 1, 1>(keys + t * stride, 0, query, 0, size, score);
                    scratch[t] = score[0][0];
                }
                if (op.f[1] > 0.0f) {
                    for (t = 0; t < count; t += LANES)
                        store_some(capped(load_some(&scratch[t], count - t) * scale, op.f[1]), &scratch[t], count - t);
                    scale = 1.0f;
                }
                for (t = 0; t < count; ++t) highest = std::max(highest, scratch[t]);
                for (t = 0; t < count; t += LANES)
                    store_some(exponential((load_some(&scratch[t], count - t) - highest) * scale), &scratch[t], count - t);
                for (t = 0; t < count; ++t) total += scratch[t];
                for (int64_t j = 0; j < size; j += WEIGHTS * LANES) {
                    Floats mean[WEIGHTS] = {};
                    if (size - j >= WEIGHTS * LANES)
                        for (t = 0; t < count; ++t)
                            for (int c = 0; c < WEIGHTS; ++c)
                                mean[c] += load(values + t * stride + j + c * LANES) * scratch[t];
                    else
                        for (t = 0; t < count; ++t)
                            for (int c = 0; c < WEIGHTS && j + c * LANES < size; ++c)
                                mean[c] += load_some(values + t * stride + j + c * LANES, size - j - c * LANES) * scratch[t];
                    for (int c = 0; c < WEIGHTS && j + c * LANES < size; ++c)
                        store_some(mean[c] / total, out + j + c * LANES, size - j - c * LANES);
                }
            }
        }
}

// MM-Rec's causal depthwise convolution over the last n[1] inputs of a sequence, then SiLU. in, out (R, n[0]);
// weight (n[1], n[0]) float32, newest tap last; tensor n[5] of the state: the inputs before, (n[1] − 1, n[0]) of type
// n[4], moved on.
template <typename T>
void convolve(const Op& op, const Rows& rows, int id, int threads) {
    int64_t channels = op.n[0], taps = op.n[1];
    const float* weight = static_cast<const float*>(op.weight);
    Share share(channels, LANES, id, threads);
    for (int64_t r = 0; r < rows.count; ++r) {
        T* past = static_cast<T*>(rows.states[r][op.n[5]]);
        const float* in = static_cast<const float*>(op.in) + r * channels;
        float* out = static_cast<float*>(op.out) + r * channels;
        for (int64_t c = share.begin; c < share.end; c += LANES) {
            int64_t count = std::min<int64_t>(LANES, share.end - c);
            Floats mixed = load_some(in + c, count) * load_some(weight + (taps - 1) * channels + c, count);
            for (int64_t back = 1; back < taps; ++back) {
                if (rows.positions[r] < back) break;
                int64_t tap = (taps - 1 - back) * channels + c;
                mixed += load_some(past + tap, count) * load_some(weight + tap, count);
            }
            store_some(silu(mixed), out + c, count);
            for (int64_t tap = 0; tap + 2 < taps; ++tap)
                std::memcpy(past + tap * channels + c, past + (tap + 1) * channels + c, count * sizeof(T));
            for (int64_t i = 0; taps > 1 && i < count; ++i) narrow(in[c + i], past + (taps - 2) * channels + c + i);
        }
    }
}

// MM-Rec's recurrence, the gated delta rule in its step form, with its norm and output gate. in: q, k, v (R, M·K + M·K +
// M·V); extra[0], extra[1]: write and decay logits (R, M); extra[2]: output gate (R, M·V); extra[3]: decay bias and decay rate (2, M);
// weight: of the norm (V); tensor n[5] of the state: (M, K, V) float32. n: M, K, V; f: epsilon of the norm. out (R, M·V).
void recur(const Op& op, const Rows& rows, int id, int threads, std::vector<float>& scratch) {
    int64_t memories = op.n[0], keys = op.n[1], values = op.n[2];
    const float* biases = static_cast<const float*>(op.extra[3]);
    if (int64_t(scratch.size()) < 2 * keys + 2 * values) scratch.resize(2 * keys + 2 * values);
    float *q = scratch.data(), *k = q + keys, *written = k + keys, *y = written + values;
    Share share(memories, 1, id, threads);
    for (int64_t m = share.begin; m < share.end; ++m)
        for (int64_t r = 0; r < rows.count; ++r) {
            const float* in = static_cast<const float*>(op.in) + r * memories * (2 * keys + values);
            const float *query = in + m * keys, *key = in + (memories + m) * keys;
            const float* value = in + 2 * memories * keys + m * values;
            float* state = static_cast<float*>(rows.states[r][op.n[5]]) + m * keys * values;
            float query_factor = 1.0f / std::max(std::sqrt(dot(query, query, keys)), 1e-12f);
            float key_factor = 1.0f / std::max(std::sqrt(dot(key, key, keys)), 1e-12f);
            for (int64_t j = 0; j < keys; ++j) q[j] = query[j] * query_factor, k[j] = key[j] * key_factor;
            float beta = sigmoid(static_cast<const float*>(op.extra[0])[r * memories + m]);
            float wish = static_cast<const float*>(op.extra[1])[r * memories + m] + biases[m];
            float softplus = wish > 20.0f ? wish : std::log1p(std::exp(wish));
            float decay = rows.positions[r] == 0 ? 0.0f : exponential(-biases[memories + m] * softplus);
            for (int64_t j = 0; j < values; ++j) written[j] = value[j], y[j] = 0.0f;
            if (rows.positions[r] == 0) std::memset(state, 0, keys * values * sizeof(float));
            for (int64_t i = 0; i < keys; ++i)  // written is what the memory does not hold yet
                for (int64_t j = 0; j < values; ++j) written[j] -= decay * state[i * values + j] * k[i];
            for (int64_t i = 0; i < keys; ++i) {
                float strength = beta * k[i], asked = q[i];
                float* line = state + i * values;
                for (int64_t j = 0; j < values; ++j) {
                    line[j] = decay * line[j] + strength * written[j];
                    y[j] += line[j] * asked;
                }
            }
            float factor = inverse_root_mean_square(y, values, op.f[0]);
            const float* gates = static_cast<const float*>(op.extra[2]) + r * memories * values + m * values;
            float* out = static_cast<float*>(op.out) + r * memories * values + m * values;
            for (int64_t j = 0; j < values; j += LANES) {
                Floats x = load_some(gates + j, values - j);
                Floats scaled = load_some(y + j, values - j) * factor;
                scaled *= load_some(static_cast<const float*>(op.weight) + j, values - j);
                store_some(scaled * x * sigmoid(x), out + j, values - j);
            }
        }
}

void run_op(const Op& op, const Rows& rows, int id, int threads) {
    static thread_local std::vector<float> scratch;
    switch (op.kind) {
        case EMBED: op.n[1] == BFLOAT16 ? embed<Bfloat16>(op, rows, id, threads) : embed<float>(op, rows, id, threads); break;
        case NORM: norm(op, rows, id, threads); break;
        case LINEAR:
            if (op.n[2] == FLOAT32) linear<float>(op, rows, id, threads);
            else if (op.n[2] == BFLOAT16) linear<Bfloat16>(op, rows, id, threads);
            else linear<int8_t>(op, rows, id, threads);
            break;
        case ANGLES: angles(op, rows, id, threads); break;
        case ROTATE: rotate(op, rows, id, threads); break;
        case ATTEND:
            op.n[4] == BFLOAT16 ? attend<Bfloat16>(op, rows, id, threads, scratch)
                                : attend<float>(op, rows, id, threads, scratch);
            break;
        case GATE: gate(op, rows, id, threads); break;
        case CONVOLVE:
            op.n[4] == BFLOAT16 ? convolve<Bfloat16>(op, rows, id, threads) : convolve<float>(op, rows, id, threads);
            break;
        case RECUR: recur(op, rows, id, threads, scratch); break;
        case LORA_IN: lora_in(op, rows, id, threads); break;
        case LORA_OUT: lora_out(op, rows, id, threads); break;
        case SCALE: scale(op, rows, id, threads); break;
    }
}

using Clock = std::chrono::steady_clock;

// What this thread has had of a processor.
Clock::duration processor_time() {
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return std::chrono::seconds(now.tv_sec) + std::chrono::nanoseconds(now.tv_nsec);
}

// Some 50 microseconds of looking whether a number has changed, before a thread sleeps until it does: operations take
// microseconds and so does waking up, and a thread that never slept would take a processor from whoever else needs it.
void await_change(const std::atomic<int>& number, int before) {
    for (int spin = 0; spin < 1500; ++spin) {
        if (number.load(std::memory_order_acquire) != before) return;
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        asm volatile("isb");  // takes about as long; its `yield` takes no time at all
#endif
    }
    number.wait(before, std::memory_order_acquire);
}

// Where all threads of a call meet after an operation.
class Barrier {
    std::atomic<int> arrived{0};
    std::atomic<int> round{0};

public:
    void wait(int all) {
        int now = round.load(std::memory_order_acquire);
        if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 < all) return await_change(round, now);
        arrived.store(0, std::memory_order_relaxed);
        round.store(now + 1, std::memory_order_release);
        round.notify_all();
    }
};

// A call of `run`.
struct Call {
    const Op* ops;
    int64_t count;
    const Rows* rows;
    int threads;
};

// The threads that help the caller; they live as long as the process and sleep between calls. OpenMP's, which torch has too,
// would wait as its settings say: those suit training, whose operations are a hundred times as long.
//
// All wait for the slowest: where another process takes a processor from one of them, each operation waits for that
// process. A call in which the caller had nothing to do or no processor for a millisecond and a quarter of the time, which
// unequal shares do not cost, is followed by calls that it does alone, for sixteen times as long.
class Team {
    std::mutex one_call;
    std::atomic<int> calls{0};
    Barrier operation_done, call_done;
    Call call{};
    int helpers = 0;
    Clock::time_point alone_until{};

    void work(int id) {
        for (int64_t i = 0; i < call.count; ++i) {
            run_op(call.ops[i], *call.rows, id, call.threads);
            if (call.threads > 1 && !(call.ops[i].flags & UNORDERED)) operation_done.wait(call.threads);
        }
    }

    void help(int id, int seen) {
        for (;; ++seen) {
            await_change(calls, seen);
            if (id < call.threads) work(id);
            call_done.wait(helpers + 1);
        }
    }

public:
    void run(const Call& next) {
        std::lock_guard<std::mutex> one(one_call);
        call = next;
        Clock::time_point start = Clock::now();
        if (call.threads == 1 || start < alone_until) {
            call.threads = 1;
            return work(0);
        }
        try {
            for (; helpers + 1 < call.threads; ++helpers) std::thread(&Team::help, this, helpers + 1, calls.load()).detach();
        } catch (const std::system_error&) {  // no more threads are to be had; what is computed does not depend on them
            call.threads = helpers + 1;
        }
        Clock::duration used = processor_time();
        calls.fetch_add(1, std::memory_order_release);
        calls.notify_all();
        work(0);
        call_done.wait(helpers + 1);
        Clock::time_point end = Clock::now();
        Clock::duration idle = end - start - (processor_time() - used);
        if (idle > std::chrono::milliseconds(1) && idle > (end - start) / 4) alone_until = end + 16 * idle;
    }
};

}  // namespace

extern "C" {

// Run the operations one after the other, each by all threads.
void run(const Op* ops, int64_t count, const Rows* rows, int threads) {
    static Team& team = *new Team;  // never destroyed: its threads outlive the end of the program's main function
    team.run({ops, count, rows, threads});
}

int64_t op_size() { return sizeof(Op); }
}

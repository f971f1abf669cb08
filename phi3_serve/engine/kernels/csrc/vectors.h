// Vectors of LANES numbers in a register, and how numbers in memory become vectors and are stored again. The compiler's
// vector types do the arithmetic. Intrinsics do the conversions that GCC 12 would do one by one.
#pragma once

#include <cstdint>
#include <cstring>

#include "dtypes.h"
#include "platform.h"

namespace {

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));
typedef uint32_t Bits __attribute__((vector_size(4 * LANES)));

template <typename Vector>
INLINE Vector loaded(const void *from) {
    Vector v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

// The LANES bytes at `from` as floats.
INLINE Floats floats_of_bytes(const void *from) {
#if defined(__AVX512F__)
    const Words words = (Words)_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
#elif defined(__AVX2__)
    const Words words = (Words)_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(from)));
#else
    Words words;
    for (int lane = 0; lane < LANES; ++lane) words[lane] = static_cast<const int8_t *>(from)[lane];
#endif
    return __builtin_convertvector(words, Floats);
}

// The LANES numbers at `from` as floats.
INLINE Floats floats_of(const float *from) { return loaded<Floats>(from); }

INLINE Floats floats_of(const bfloat16 *from) {
#if defined(__AVX512F__)
    const __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)));
    return (Floats)_mm512_slli_epi32(words, 16);
#elif defined(__AVX2__)
    const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
    return (Floats)_mm256_slli_epi32(words, 16);
#else
    return (Floats)(__builtin_convertvector(loaded<Halves>(from), Words) << 16);
#endif
}

INLINE Floats floats_of(const float16 *from) {
#if defined(__AVX512F__)
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)));
#elif defined(__F16C__)
    return (Floats)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
#else  // exact for all finite numbers
    const Words bits = __builtin_convertvector(loaded<Halves>(from), Words);
    const Floats magnitude = (Floats)((bits & 0x7FFF) << 13) * 0x1p112f;
    return (Floats)((Words)magnitude | (bits & 0x8000) << 16);
#endif
}

// a * b + sum, rounded once where the processor can. A compiler left to itself fuses some sums and not others.
INLINE Floats multiply_add(Floats a, Floats b, Floats sum) {
#if defined(__AVX512F__)
    return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#elif defined(__FMA__)
    return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#else
    return a * b + sum;
#endif
}

constexpr int64_t WIDE = 2 * LANES;  // numbers in two registers

// WIDE numbers as floats.
struct Wide {
    Floats even, odd;  // of bfloat16 the numbers with even and with odd places; of float the first and the second half
};

INLINE Wide widened(const float *from) { return {loaded<Floats>(from), loaded<Floats>(from + LANES)}; }

INLINE Wide widened(const bfloat16 *from) {
    const Words pairs = loaded<Words>(from);
    return {(Floats)(pairs << 16), (Floats)(pairs & static_cast<int32_t>(0xFFFF0000))};
}

INLINE void store_wide(const Wide &from, float *to) {
    std::memcpy(to, &from.even, sizeof from.even);
    std::memcpy(to + LANES, &from.odd, sizeof from.odd);
}

// As rounded<bfloat16>, in the upper half of each word.
INLINE Bits rounded_bits(const Floats &x) {
    const Bits bits = (Bits)x;
    return x == x ? (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000 : Bits{} + 0x7FC00000;
}

INLINE void store_wide(const Wide &from, bfloat16 *to) {
    const Bits pairs = rounded_bits(from.even) >> 16 | rounded_bits(from.odd);
    std::memcpy(to, &pairs, sizeof pairs);
}

// For each lane the one whose number differs in the bit `half`.
INLINE Floats swapped(const Floats &x, int half) {
    Words others{};
    for (int lane = 0; lane < LANES; ++lane) others[lane] = lane ^ half;
    return __builtin_shuffle(x, others);
}

INLINE float sum_of_lanes(const Floats &x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)x);
#else
    Floats sum = x;
    for (int half = LANES / 2; half > 0; half /= 2) sum += swapped(sum, half);
    return sum[0];
#endif
}

INLINE float largest_of_lanes(Floats x) {
    for (int half = LANES / 2; half > 0; half /= 2) {
        const Floats other = swapped(x, half);
        x = other > x ? other : x;
    }
    return x[0];
}

}  // namespace

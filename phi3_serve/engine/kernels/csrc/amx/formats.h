// The formats of panels for AMX: how the packed weights of a panel become a tile in bfloat16, or vectors in the order
// of a tile, and what the sums of a tile are multiplied by. It needs AVX512-BF16.
#pragma once

#include <cstdint>

#include "../dtypes.h"
#include "../panel_formats.h"
#include "../panels.h"
#include "../platform.h"
#include "../vectors.h"
#include "registers.h"

namespace {

#pragma GCC push_options
#pragma GCC optimize("no-associative-math")  // platform.h says why

INLINE void prefetch_tile(const char *from, int64_t bytes) {
#pragma GCC unroll 8
    for (int64_t line = 0; line < bytes; line += CACHE_LINE) __builtin_prefetch(from + QUANTIZED_PREFETCH + line);
}

// How weights become tiles of [INPUTS / 2][16 outputs][2 inputs].
template <typename Weights, int64_t INPUTS>
struct Unpacker;

template <int64_t INPUTS>
struct Unpacker<Bytes, INPUTS> {
    // act(k, weights of the inputs k, weights of the inputs k + 1) for each pair, with weights in float.
    template <typename Act>
    INLINE void each_pair(const char *from, Act act) const {
#pragma GCC unroll 16
        for (int64_t k = 0; k < INPUTS; k += 2, from += 2 * QUANTIZED_OUTPUTS)
            act(k, floats_of_bytes(from), floats_of_bytes(from + QUANTIZED_OUTPUTS));
    }

    INLINE void unpack(const char *from, bfloat16 *to) const {
#pragma GCC unroll 16
        for (int64_t k = 0; k < INPUTS; k += 2, from += 2 * QUANTIZED_OUTPUTS, to += 2 * QUANTIZED_OUTPUTS) {
            const Words even = (Words)floats_of_bytes(from), odd = (Words)floats_of_bytes(from + QUANTIZED_OUTPUTS);
            _mm512_storeu_si512(to, _mm512_or_si512(_mm512_srli_epi32((__m512i)even, 16), (__m512i)odd));
        }
        finish_stores();
    }
};

// Weights are looked up by their bits. With the highest bit of a word flipped, all eight numbers are from 0 to 15.
template <int64_t INPUTS>
struct Unpacker<Nibbles, INPUTS> {
    __m512i of_numbers;  // weights of the numbers 0 to 15 in bfloat16, twice, because the look-up sees a fifth bit
    __m512 floats_of_numbers;

    explicit Unpacker(int lowered_by) {
        float floats[16];
        bfloat16 values[32];
        for (int number = 0; number < 16; ++number) {
            floats[number] = static_cast<float>(number - lowered_by);
            values[number] = values[16 + number] = rounded<bfloat16>(floats[number]);
        }
        of_numbers = _mm512_loadu_si512(values);
        floats_of_numbers = _mm512_loadu_ps(floats);
    }

    INLINE static __m512i numbers(const char *from) {
        return _mm512_xor_si512(_mm512_loadu_si512(from), _mm512_set1_epi32(INT32_MIN));
    }

    template <typename Act>
    INLINE void each_pair(const char *from, Act act) const {
#pragma GCC unroll 4
        for (int64_t k = 0; k < INPUTS; from += Nibbles::WORDS) {
            const __m512i words = numbers(from);
#pragma GCC unroll 4
            for (int pair = 0; pair < 4; ++pair, k += 2)
                act(k, (Floats)_mm512_permutexvar_ps(_mm512_srli_epi32(words, 4 * pair), floats_of_numbers),
                    (Floats)_mm512_permutexvar_ps(_mm512_srli_epi32(words, 16 + 4 * pair), floats_of_numbers));
        }
    }

    INLINE void unpack(const char *from, bfloat16 *to) const {
#pragma GCC unroll 4
        for (int64_t word = 0; word < INPUTS / Nibbles::PER_WORD; ++word, from += Nibbles::WORDS) {
            const __m512i words = numbers(from);
#pragma GCC unroll 4
            for (int pair = 0; pair < 4; ++pair, to += 2 * QUANTIZED_OUTPUTS)
                _mm512_storeu_si512(to, _mm512_permutexvar_epi16(_mm512_srli_epi16(words, 4 * pair), of_numbers));
        }
        finish_stores();
    }
};

// A format in tiles: how many inputs a tile has, how it is unpacked, and what its sums are multiplied by.
template <typename Format>
struct Tiled;

template <>
struct Tiled<Int8> {
    static constexpr int64_t INPUTS = GROUP;
    static constexpr bool HAS_GROUPS = false, HAS_MINIMA = false;
    Unpacker<Bytes, INPUTS> unpacker;

    explicit Tiled(const Int8 &) {}

    static constexpr int64_t TILE_BYTES = INPUTS * QUANTIZED_OUTPUTS;

    // The packed weights of a tile, while a later tile is prefetched.
    INLINE const char *weights(const char *panel, int64_t tile) const {
        const char *const from = panel + QUANTIZED_OUTPUTS * sizeof(float) + tile * TILE_BYTES;
        prefetch_tile(from, TILE_BYTES);
        return from;
    }

    INLINE Floats scales(const char *panel, int64_t) const { return loaded<Floats>(panel); }
};

template <typename Scale>
struct Tiled<Int4<Scale>> {
    using Format = Int4<Scale>;
    static constexpr int64_t INPUTS = GROUP;
    static constexpr bool HAS_GROUPS = true, HAS_MINIMA = false;
    Unpacker<Nibbles, INPUTS> unpacker{8};

    explicit Tiled(const Format &) {}

    INLINE const char *weights(const char *panel, int64_t tile) const {
        const char *const from = panel + tile * Format::GROUP_BYTES;
        prefetch_tile(from, Format::GROUP_BYTES);
        return from + Format::SCALES;
    }

    INLINE Floats scales(const char *panel, int64_t tile) const {
        return floats_of(reinterpret_cast<const Scale *>(panel + tile * Format::GROUP_BYTES));
    }
};

template <typename Weights, int64_t GROUP_INPUTS, bool MINIMA>
struct Tiled<Blocked<Weights, GROUP_INPUTS, MINIMA>> {
    using Format = Blocked<Weights, GROUP_INPUTS, MINIMA>;
    static constexpr int64_t INPUTS = GROUP_INPUTS;
    static constexpr bool HAS_GROUPS = true, HAS_MINIMA = MINIMA;
    const Format &format;
    Unpacker<Weights, INPUTS> unpacker;

    explicit Tiled(const Format &format) : format(format), unpacker(made()) {}

    static Unpacker<Weights, INPUTS> made() {
        if constexpr (Format::HAS_WORDS)
            return Unpacker<Weights, INPUTS>{0};
        else
            return {};
    }

    INLINE const char *weights(const char *panel, int64_t tile) const {
        const char *const from = panel + offset_of_block(tile) + offset_in_block(tile);
        prefetch_tile(from, Format::GROUP_BYTES);
        return from + Format::STEPS;
    }

    INLINE Floats scales(const char *panel, int64_t tile) const { return scales_of<0>(panel, tile); }
    INLINE Floats minima(const char *panel, int64_t tile) const { return scales_of<1>(panel, tile); }

  private:
    INLINE int64_t offset_of_block(int64_t tile) const { return tile / format.groups * format.block_bytes(); }

    INLINE int64_t offset_in_block(int64_t tile) const {
        return Format::HEAD + tile % format.groups * Format::GROUP_BYTES;
    }

    template <int PART>
    INLINE Floats scales_of(const char *panel, int64_t tile) const {
        const int64_t block = offset_of_block(tile);
        return Format::template scales_of<PART>(TileOfPanels{panel, 0, 0}, 0, block, block + offset_in_block(tile));
    }
};

// Stores one row's sums of a panel. If all inputs share a scale, they still lack it.
template <typename Format>
INLINE void store_outputs(const Tiled<Format> &format, const char *panel, Floats total, bfloat16 *out) {
    if constexpr (!Tiled<Format>::HAS_GROUPS) total *= format.scales(panel, 0);
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(out), (__m256i)_mm512_cvtneps_pbh((__m512)total));
}

#pragma GCC pop_options

}  // namespace

// The formats of panels. Each knows how large a panel is, where it has weights and scales, how rows of activations are
// packed for it, and how a tile is multiplied. int8 and int4 are those of quantize.py; Blocked has the types of GGUF;
// Half is for weights in 16 bits.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "dtypes.h"
#include "panels.h"
#include "platform.h"
#include "vectors.h"

namespace {

#pragma GCC push_options
#pragma GCC optimize("no-associative-math")  // platform.h says why

// A panel is 16 scales in float, then [inputs][16] weights. All inputs of an output share its scale.
struct Int8 {
    static int64_t panel_bytes(int64_t inputs) { return QUANTIZED_OUTPUTS * (sizeof(float) + inputs); }

    // Floats of a packed row.
    static int64_t packed_size(int64_t inputs) { return inputs; }

    // Packs the group of inputs from number `first` on of `rows` rows of x, as [GROUP][rows]. Beyond `inputs` is 0.
    template <typename T>
    static void pack(const T *x, int64_t rows, int64_t inputs, int64_t first, float *block) {
        float *packed = block + first * rows;
        for (int64_t k = first; k < first + GROUP; ++k)
            for (int64_t r = 0; r < rows; ++r) *packed++ = k < inputs ? to_float(x[r * inputs + k]) : 0.0f;
    }

    template <int R, int N>
    __attribute__((noinline)) static void multiply(const TileOfPanels &tile, const float *x, int64_t inputs,
                                                   Floats (&total)[R][N]) {
        Floats sum[R][N] = {};
        Bytes::add(sum, tile, QUANTIZED_OUTPUTS * sizeof(float), inputs, x);
        for (int n = 0; n < N; ++n) {
            const Floats scales = loaded<Floats>(tile.part(n, 0, sizeof(float)));
            for (int r = 0; r < R; ++r) total[r][n] = sum[r][n] * scales;
        }
    }
};

// A panel is [inputs][16] weights in T, bfloat16 or float16.
template <typename T>
struct Half {
    static int64_t panel_bytes(int64_t inputs) { return QUANTIZED_OUTPUTS * sizeof(T) * inputs; }
    static int64_t packed_size(int64_t inputs) { return Int8::packed_size(inputs); }

    static void pack(const float *x, int64_t rows, int64_t inputs, int64_t first, float *block) {
        Int8::pack(x, rows, inputs, first, block);
    }

    template <int R, int N>
    __attribute__((noinline)) static void multiply(const TileOfPanels &tile, const float *x, int64_t inputs,
                                                   Floats (&total)[R][N]) {
        constexpr int64_t OF_INPUT = QUANTIZED_OUTPUTS * sizeof(T), OF_CACHE_LINE = CACHE_LINE / OF_INPUT;
        Floats sum[R][N] = {};  // a variable of its own stays in registers
        for (int64_t k = 0; k < inputs; k += OF_CACHE_LINE) {
            tile.prefetch<R, N>(k * OF_INPUT);
#pragma GCC unroll 2
            for (int64_t i = k; i < k + OF_CACHE_LINE; ++i, x += R)
                add_products(sum, x, [&](int n) INLINE_LAMBDA {
                    return floats_of(reinterpret_cast<const T *>(tile.part(n, i * OF_INPUT, sizeof(T))));
                });
        }
        std::memcpy(total, sum, sizeof sum);
    }
};

// A panel is, for each group of 32 inputs, 16 scales, then the weights. All but the highest of a word are stored with 8
// added, which the group's sum begins without.
template <typename Scale>
struct Int4 {
    static constexpr int64_t SCALES = QUANTIZED_OUTPUTS * sizeof(Scale);
    static constexpr int64_t GROUP_BYTES = SCALES + GROUP / Nibbles::PER_WORD * Nibbles::WORDS;

    static int64_t panel_bytes(int64_t inputs) { return inputs / GROUP * GROUP_BYTES; }
    static int64_t packed_size(int64_t inputs) { return inputs / GROUP * (1 + GROUP); }

    // Packs a group as Int8 does, behind what its sums begin with, [rows].
    template <typename T>
    static void pack(const T *x, int64_t rows, int64_t inputs, int64_t first, float *block) {
        float *packed = block + packed_size(first) * rows;
        for (int64_t r = 0; r < rows; ++r) {
            float of_raised = 0.0f;
            for (int64_t i = 0; i < GROUP; ++i) {
                const int64_t place = i % Nibbles::PER_WORD, k = first + i - place + Nibbles::INPUT_OF_PLACE[place];
                const float value = k < inputs ? to_float(x[r * inputs + k]) : 0.0f;
                if (place != Nibbles::HIGHEST) of_raised += value;
                packed[(1 + i) * rows + r] = value * Nibbles::OF_PLACE[place];
            }
            packed[r] = -8.0f * of_raised;
        }
    }

    template <int R, int N>
    __attribute__((noinline)) static void multiply(const TileOfPanels &tile, const float *x, int64_t inputs,
                                                   Floats (&total)[R][N]) {
        for (int r = 0; r < R; ++r)
            for (int n = 0; n < N; ++n) total[r][n] = Floats{};
        for (int64_t offset = 0; offset < inputs / GROUP * GROUP_BYTES; offset += GROUP_BYTES) {
            Floats sum[R][N];
            for (int r = 0; r < R; ++r)
                for (int n = 0; n < N; ++n) sum[r][n] = Floats{} + x[r];
            x += R;
            Nibbles::add(sum, tile, offset + SCALES, GROUP, x);
            x += GROUP * R;
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) {
                const char *const at = tile.part(n, offset, sizeof(Scale));
                const Floats scales = floats_of(reinterpret_cast<const Scale *>(at));
#pragma GCC unroll 12
                for (int r = 0; r < R; ++r) total[r][n] += sum[r][n] * scales;
            }
        }
    }
};

// A panel is, for each block of groups, 16 scales and, with minima, 16 minima in float16, then its groups. A group is
// 16 steps and, with minima, 16 steps of them in bytes, then the weights. A weight is
// number * scale * step - minimum * step of the minimum. Numbers of 4 bits are from 0 to 15, and those that are the
// highest of their word are stored with 8 taken away.
template <typename Weights, int64_t INPUTS, bool HAS_MINIMA>
struct Blocked {
    static constexpr int64_t PARTS = HAS_MINIMA ? 2 : 1, SCALES = QUANTIZED_OUTPUTS * sizeof(float16);
    static constexpr int64_t HEAD = PARTS * SCALES, STEPS = PARTS * QUANTIZED_OUTPUTS;
    static constexpr bool HAS_WORDS = std::is_same_v<Weights, Nibbles>;
    static constexpr int64_t GROUP_BYTES = STEPS + INPUTS * QUANTIZED_OUTPUTS / (HAS_WORDS ? 2 : 1);
    int64_t groups;  // of a block

    int64_t block_bytes() const { return HEAD + groups * GROUP_BYTES; }
    int64_t panel_bytes(int64_t inputs) const { return inputs / (INPUTS * groups) * block_bytes(); }
    static int64_t packed_size(int64_t inputs) { return inputs / INPUTS * (2 + INPUTS); }

    // Packs GROUP inputs as Int4 does. Before each group of INPUTS is what its sums begin with, then the sum of its x.
    template <typename T>
    static void pack(const T *x, int64_t rows, int64_t inputs, int64_t first, float *block) {
        float *packed = block + packed_size(first) * rows;
        for (int64_t begin = first; begin < first + GROUP; begin += INPUTS, packed += (2 + INPUTS) * rows)
            for (int64_t r = 0; r < rows; ++r) {
                float of_lowered = 0.0f, of_all = 0.0f;
                for (int64_t i = 0; i < INPUTS; ++i) {
                    const int64_t place = i % Nibbles::PER_WORD;
                    const int64_t k = begin + i + (HAS_WORDS ? Nibbles::INPUT_OF_PLACE[place] - place : 0);
                    const float value = k < inputs ? to_float(x[r * inputs + k]) : 0.0f;
                    if (HAS_WORDS && place == Nibbles::HIGHEST) of_lowered += value;
                    of_all += value;
                    packed[(2 + i) * rows + r] = HAS_WORDS ? value * Nibbles::OF_PLACE[place] : value;
                }
                packed[r] = 8.0f * of_lowered;
                packed[rows + r] = of_all;
            }
    }

    // The scales, or with PART 1 the minima, of the group at `offset` in the block at `block`.
    template <int PART>
    INLINE static Floats scales_of(const TileOfPanels &tile, int n, int64_t block, int64_t offset) {
        const char *const of_block = tile.part(n, block + PART * SCALES, sizeof(float16));
        const char *const steps = tile.part(n, offset + PART * QUANTIZED_OUTPUTS, 1);
        return floats_of(reinterpret_cast<const float16 *>(of_block)) * floats_of_bytes(steps);
    }

    template <int R, int N>
    __attribute__((noinline)) void multiply(const TileOfPanels &tile, const float *x, int64_t inputs,
                                            Floats (&total)[R][N]) const {
        for (int r = 0; r < R; ++r)
            for (int n = 0; n < N; ++n) total[r][n] = Floats{};
        const int64_t size = panel_bytes(inputs);
        for (int64_t block = 0; block < size; block += block_bytes())
            for (int64_t group = 0; group < groups; ++group) {
                const int64_t offset = block + HEAD + group * GROUP_BYTES;
                Floats sum[R][N];
                for (int r = 0; r < R; ++r)
                    for (int n = 0; n < N; ++n) sum[r][n] = Floats{} + x[r];
                const float *const of_all = x + R;
                x += 2 * R;
                Weights::add(sum, tile, offset + STEPS, INPUTS, x);
                x += INPUTS * R;
#pragma GCC unroll 8
                for (int n = 0; n < N; ++n) {
                    const Floats scales = scales_of<0>(tile, n, block, offset);
#pragma GCC unroll 12
                    for (int r = 0; r < R; ++r) total[r][n] += sum[r][n] * scales;
                    if constexpr (HAS_MINIMA) {
                        const Floats minima = scales_of<1>(tile, n, block, offset);
#pragma GCC unroll 12
                        for (int r = 0; r < R; ++r) total[r][n] -= minima * (Floats{} + of_all[r]);
                    }
                }
            }
    }
};

#pragma GCC pop_options

}  // namespace

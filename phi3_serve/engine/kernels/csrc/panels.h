// Panels of sixteen outputs with weights in 16, 8 or 4 bits, and the products of a tile of rows and outputs with them.
// quantized_panels.py has the layout.
//
// Weights become floats in registers; activations are not rounded, and sums are float. Each output of each row is one
// chain of operations in the order of the inputs, so a row's result does not depend on the number of rows. A compiler
// must not reorder the chains.
#pragma once

#include <cstdint>

#include "platform.h"
#include "vectors.h"

namespace {

#pragma GCC push_options
#pragma GCC optimize("no-associative-math")  // platform.h says why

constexpr int64_t QUANTIZED_OUTPUTS = 16;  // of a panel; quantized_panels.py has the same constant
constexpr int VECTORS = QUANTIZED_OUTPUTS / LANES;  // of a panel's outputs
constexpr int64_t GROUP = 32;  // inputs are packed in groups; quantized_panels.py has the same constant
constexpr int64_t QUANTIZED_PREFETCH = 2048;  // bytes

// What a tile of N vectors of outputs reads of the panels: vector n is of panel n / VECTORS.
struct TileOfPanels {
    const char *first;  // panel
    int64_t panel_bytes;
    int64_t first_output;  // of the first panel

    const char *part(int n, int64_t offset, int64_t bytes_of_output) const {
        return first + n / VECTORS * panel_bytes + offset + (first_output + n % VECTORS * LANES) * bytes_of_output;
    }

    // Few rows read the weights as fast as the memory allows. With more, the processor prefetches enough by itself.
    template <int R, int N>
    void prefetch(int64_t offset) const {
        if constexpr (R <= 2) {
            const int64_t ahead = offset + QUANTIZED_PREFETCH;
            const int64_t skipped = ahead < panel_bytes ? 0 : (N / VECTORS - 1) * panel_bytes;  // to the next tile
#pragma GCC unroll 8
            for (int n = 0; n < N; n += VECTORS) __builtin_prefetch(part(n, ahead + skipped, 0));
        }
    }
};

// sum[r][n] += weight_of(n) * x[r]. The smaller of both sides waits in registers for the other one.
template <int R, int N, typename WeightOf>
INLINE void add_products(Floats (&sum)[R][N], const float *x, WeightOf weight_of) {
    if constexpr (R < N) {
        Floats of_rows[R];
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) of_rows[r] = Floats{} + x[r];
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) {
            const Floats weights = weight_of(n);
#pragma GCC unroll 12
            for (int r = 0; r < R; ++r) sum[r][n] += weights * of_rows[r];
        }
    } else {
        Floats weights[N];
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) weights[n] = weight_of(n);
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
            const Floats of_row = Floats{} + x[r];
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) sum[r][n] += weights[n] * of_row;
        }
    }
}

// Weights of 8 bits: [inputs][16] bytes.
struct Bytes {
    // sum[r][n] += the weights at `offset` of `inputs` inputs, a multiple of four, times x [inputs][R].
    template <int R, int N>
    INLINE static void add(Floats (&sum)[R][N], const TileOfPanels &tile, int64_t offset, int64_t inputs,
                           const float *x) {
        constexpr int64_t OF_CACHE_LINE = CACHE_LINE / QUANTIZED_OUTPUTS;
        for (int64_t k = 0; k < inputs; k += OF_CACHE_LINE, offset += CACHE_LINE) {
            tile.prefetch<R, N>(offset);
#pragma GCC unroll 4
            for (int64_t i = 0; i < OF_CACHE_LINE; ++i, x += R)
                add_products(sum, x, [&](int n) INLINE_LAMBDA {
                    return floats_of_bytes(tile.part(n, offset + i * QUANTIZED_OUTPUTS, 1));
                });
        }
    }
};

// Weights of 4 bits: [inputs / 8][16] words of 8 weights. The lower half of a word has those of even inputs, the upper
// half those of odd inputs, so that a shift by 4 j lines up a pair, as amx/formats.h needs it.
//
// A weight is used in its place in the word, without a shift: the one at bit 4 j is 16^j times too large, and its input
// is packed 16^-j times as large. The highest one is a number from -8 to 7, the others are from 0 to 15.
struct Nibbles {
    static constexpr int64_t PER_WORD = 8, HIGHEST = PER_WORD - 1, WORDS = QUANTIZED_OUTPUTS * sizeof(int32_t);
    static constexpr int64_t INPUT_OF_PLACE[PER_WORD] = {0, 2, 4, 6, 1, 3, 5, 7};
    static constexpr float OF_PLACE[PER_WORD] = {0x1p0f,   0x1p-4f,  0x1p-8f,  0x1p-12f,
                                                 0x1p-16f, 0x1p-20f, 0x1p-24f, 0x1p-28f};

    template <int J, int R, int N>
    INLINE static void add_word(Floats (&sum)[R][N], const Words (&words)[N], const float *x) {
        if constexpr (J < PER_WORD) {
            add_products(sum, x + J * R, [&](int n) INLINE_LAMBDA {
                return __builtin_convertvector(words[n] & static_cast<int32_t>(0xFu << 4 * J), Floats);
            });
            add_word<J + 1>(sum, words, x);
        }
    }

    // As Bytes::add. Inputs are a multiple of eight, and x is packed for the places in the words.
    template <int R, int N>
    INLINE static void add(Floats (&sum)[R][N], const TileOfPanels &tile, int64_t offset, int64_t inputs,
                           const float *x) {
        for (int64_t k = 0; k < inputs; k += PER_WORD, x += PER_WORD * R, offset += WORDS) {
            tile.prefetch<R, N>(offset);
            Words words[N];
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) words[n] = loaded<Words>(tile.part(n, offset, sizeof(int32_t)));
            add_word<0>(sum, words, x);
        }
    }
};

#pragma GCC pop_options

}  // namespace

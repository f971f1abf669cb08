// Linear layers with weights in bfloat16 and activations in float, on a processor with AMX.
//
// A float is the sum of three parts in bfloat16, because its 24 bits are three times 8. So three products of tiles give
// what a product in float would: every product of a part and a weight is exact, sums are float, and denormal numbers
// are 0. For each tile, the sums take the largest parts first. The instruction adds the products of even and of odd
// inputs in two chains, then both to the sum (Intel, "Intel 64 and IA-32 Architectures Software Developer's Manual",
// TDPBF16PS).
//
// One row is multiplied in vectors, in the same order. So a row's result does not depend on the number of rows.
//
// A panel has sixteen outputs: [inputs / 2][16][2], filled up with zeros to whole tiles (half_panels.py).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../dtypes.h"
#include "../panels.h"
#include "../platform.h"
#include "../vectors.h"
#include "registers.h"
#include "split_row.h"

namespace {

#pragma GCC push_options
#pragma GCC optimize("no-associative-math")  // platform.h says why

constexpr int64_t SPLIT_PANELS = 2;  // that use a tile of activations one after another
constexpr int64_t MAX_SPLIT_BLOCKS = 16;  // of rows, in one pass over the weights; half_panels.py has the rows of them
constexpr int64_t SPLIT_STRIP = 32;  // tiles of two panels that stay in a cache while all blocks of rows use them
constexpr int64_t SPLIT_PREFETCH = 4096;  // bytes
constexpr int64_t SPLIT_BYTES = 1 << 20;  // of activations that stay in the L2 cache while all panels use them

// Packs the parts of a tile of x [rows, inputs] for `of_block` rows from number `first` on, as
// [PARTS][rows][TILE_INPUTS]. What is beyond both is 0.
inline void pack_split(const float *x, int64_t rows, int64_t inputs, int64_t first, int64_t of_block, int64_t tile,
                       bfloat16 *packed) {
    for (int64_t r = 0; r < of_block; ++r, packed += TILE_INPUTS)
        for (int64_t k = 0; k < TILE_INPUTS; k += LANES) {
            const int64_t left = first + r < rows ? inputs - tile * TILE_INPUTS - k : 0;
            each_split(x + (first + r) * inputs + tile * TILE_INPUTS + k, left, [&](int64_t part, Floats values)
                           INLINE_LAMBDA {
                const __m256i halves = _mm512_cvtepi32_epi16(_mm512_srli_epi32((__m512i)values, 16));
                _mm256_storeu_si256(reinterpret_cast<__m256i *>(packed + part * of_block * TILE_INPUTS + k), halves);
            });
        }
}

INLINE void prefetch_weights(const bfloat16 *tile) {
    const char *const ahead = reinterpret_cast<const char *>(tile) + SPLIT_PREFETCH;
#pragma GCC unroll 16
    for (int64_t line = 0; line < WEIGHT_TILE * static_cast<int64_t>(sizeof *tile); line += CACHE_LINE)
        __builtin_prefetch(ahead + line);
}

// The product of some blocks of rows and all panels. Each block has `of_block` rows, the last one perhaps fewer.
struct SplitProduct {
    const bfloat16 *weight;
    int64_t panels, tiles;
    const bfloat16 *x;  // [blocks][tiles][PARTS][rows of a block][TILE_INPUTS]
    int64_t rows, blocks, of_block;
    float *out;  // [rows][panels][16]

    using Sums = TileSums[MAX_SPLIT_BLOCKS][SPLIT_PANELS];

    int64_t part_size() const { return of_block * TILE_INPUTS; }

    // Tiles whose activations stay in the L2 cache. One or two blocks keep their sums in registers to the end.
    int64_t tiles_at_once() const {
        const int64_t of_tile = blocks * PARTS * part_size() * static_cast<int64_t>(sizeof(bfloat16));
        return blocks > 2 ? std::max(SPLIT_STRIP, SPLIT_BYTES / of_tile) : tiles;
    }

    // sums += the products of two or one blocks and panels, for the tiles [first, end).
    template <int BLOCKS, int PANELS>
    INLINE void add_tiles(int64_t block, int64_t panel, int64_t first, int64_t end, Sums &sums) const {
        constexpr int64_t X_STRIDE = TILE_INPUTS * sizeof(bfloat16);
        TileSums *const of_block = sums[block];
        const bfloat16 *of_x = x + (block * tiles + first) * PARTS * part_size();
        const bfloat16 *const of_other_x = of_x + tiles * PARTS * part_size();
        const bfloat16 *weights = weight + (panel * tiles + first) * WEIGHT_TILE;
        const int64_t panel_size = tiles * WEIGHT_TILE;
        _tile_loadd(0, of_block, CACHE_LINE);
        if constexpr (PANELS > 1) _tile_loadd(1, of_block + 1, CACHE_LINE);
        if constexpr (BLOCKS > 1) _tile_loadd(2, of_block + SPLIT_PANELS, CACHE_LINE);
        if constexpr (BLOCKS > 1 && PANELS > 1) _tile_loadd(3, of_block + SPLIT_PANELS + 1, CACHE_LINE);
        for (int64_t t = first, at = 0; t < end; ++t, weights += WEIGHT_TILE) {
            prefetch_weights(weights);
            _tile_loadd(6, weights, CACHE_LINE);
            if constexpr (PANELS > 1) {
                prefetch_weights(weights + panel_size);
                _tile_loadd(7, weights + panel_size, CACHE_LINE);
            }
            for (int64_t part = 0; part < PARTS; ++part, at += part_size()) {
                _tile_loadd(4, of_x + at, X_STRIDE);
                _tile_dpbf16ps(0, 4, 6);
                if constexpr (PANELS > 1) _tile_dpbf16ps(1, 4, 7);
                if constexpr (BLOCKS > 1) {
                    _tile_loadd(5, of_other_x + at, X_STRIDE);
                    _tile_dpbf16ps(2, 5, 6);
                    if constexpr (PANELS > 1) _tile_dpbf16ps(3, 5, 7);
                }
            }
        }
        _tile_stored(0, of_block, CACHE_LINE);
        if constexpr (PANELS > 1) _tile_stored(1, of_block + 1, CACHE_LINE);
        if constexpr (BLOCKS > 1) _tile_stored(2, of_block + SPLIT_PANELS, CACHE_LINE);
        if constexpr (BLOCKS > 1 && PANELS > 1) _tile_stored(3, of_block + SPLIT_PANELS + 1, CACHE_LINE);
    }

    // The tiles [first, end) of all blocks and of `width` panels from number `at` on. The sums of earlier tiles are
    // read from the output.
    void multiply(int64_t at, int64_t width, int64_t first, int64_t end, Sums &sums) const {
        each_row(at, width, sums, [&](float (&of_row)[LANES], const float *outputs) {
            if (first == 0 || outputs == nullptr)
                std::memset(of_row, 0, sizeof of_row);
            else
                std::memcpy(of_row, outputs, sizeof of_row);
        });
        finish_stores();
        const int64_t strip = blocks > 2 ? SPLIT_STRIP : end - first;
        for (int64_t from = first; from < end; from += strip)
            for (int64_t block = 0; block < blocks; block += 2) {
                const auto add = [&](auto num_blocks, auto num_panels) INLINE_LAMBDA {
                    add_tiles<decltype(num_blocks)::value, decltype(num_panels)::value>(
                        block, at, from, std::min(from + strip, end), sums);
                };
                constexpr std::integral_constant<int, 1> ONE;
                constexpr std::integral_constant<int, 2> TWO;
                if (block + 2 <= blocks)
                    width == 2 ? add(TWO, TWO) : add(TWO, ONE);
                else
                    width == 2 ? add(ONE, TWO) : add(ONE, ONE);
            }
        finish_stores();
        each_row(at, width, sums, [&](const float (&of_row)[LANES], float *outputs) {
            if (outputs != nullptr) std::memcpy(outputs, of_row, sizeof of_row);
        });
    }

  private:
    // act(sums of a row, where its outputs are) for all rows, blocks and panels; null for a row beyond the last one.
    template <typename Act>
    INLINE void each_row(int64_t at, int64_t width, Sums &sums, Act act) const {
        for (int64_t row = 0; row < blocks * of_block; ++row)
            for (int64_t p = 0; p < width; ++p)
                act(sums[row / of_block][p].of[row % of_block],
                    row < rows ? out + (row * panels + at + p) * QUANTIZED_OUTPUTS : nullptr);
    }
};

// out [rows, panels * 16] = x [rows, inputs] * weight^T. `packed` is scratch for PARTS numbers in bfloat16 for each input
// of the tiles, of MAX_SPLIT_BLOCKS * TILE_ROWS rows or of all, and PADDING_ROWS (quantized_panels.py) more.
inline void multiply_split(const bfloat16 *weight, const float *x, float *packed, float *out, int64_t rows,
                           int64_t inputs, int64_t panels, int threads) {
    const int64_t tiles = (inputs + TILE_INPUTS - 1) / TILE_INPUTS;
    if (rows == 0) return;  // a step that chooses no tokens
    if (rows == 1) return multiply_row(weight, x, packed, out, inputs, tiles, panels, threads);
    const int64_t all_blocks = (rows + TILE_ROWS - 1) / TILE_ROWS, of_block = (rows + all_blocks - 1) / all_blocks;
    bfloat16 *const parts_of_x = reinterpret_cast<bfloat16 *>(packed);
#pragma omp parallel num_threads(threads)
    {
        const DenormalsAreZero as_in_tiles;
        const ConfiguredTiles tiles_of_thread(of_block, TILE_INPUTS);
        SplitProduct::Sums sums;
        for (int64_t first = 0; first < all_blocks; first += MAX_SPLIT_BLOCKS) {
            const int64_t first_row = first * of_block, blocks = std::min(MAX_SPLIT_BLOCKS, all_blocks - first);
            const SplitProduct product{weight,           panels, tiles,    parts_of_x,
                                       rows - first_row, blocks, of_block, out + first_row * panels * QUANTIZED_OUTPUTS};
#pragma omp for schedule(static) collapse(2)
            for (int64_t block = 0; block < blocks; ++block)
                for (int64_t tile = 0; tile < tiles; ++tile)
                    pack_split(x + first_row * inputs, rows - first_row, inputs, block * of_block, of_block, tile,
                               parts_of_x + (block * tiles + tile) * PARTS * product.part_size());
            const int64_t at_once = product.tiles_at_once();
            for (int64_t from = 0; from < tiles; from += at_once)
#pragma omp for schedule(static) nowait  // a thread goes on with the panels whose sums it has stored
                for (int64_t at = 0; at < panels; at += SPLIT_PANELS)
                    product.multiply(at, std::min(SPLIT_PANELS, panels - at), from, std::min(from + at_once, tiles),
                                     sums);
#pragma omp barrier  // the next rows are packed over these
        }
    }
}

#pragma GCC pop_options

}  // namespace

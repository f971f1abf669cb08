// Linear layers with weights in 8 or 4 bits and activations in bfloat16, on a processor with AMX.
//
// A tile of weights becomes bfloat16, which is exact for numbers of 8 bits, and AMX multiplies it by a tile of
// activations; sums are float, and denormal numbers are 0. The instruction adds the products of even and of odd inputs
// in two chains, then both to the sum (Intel, "Intel 64 and IA-32 Architectures Software Developer's Manual",
// TDPBF16PS). The sums of a group of inputs are multiplied by its scales afterwards.
//
// One or two rows are multiplied in vectors, in the same order, because storing and loading tiles takes longer than
// reading the weights from memory. So a row's result does not depend on the number of rows. More rows unpack a tile
// beside the product of the one before. With many, a strip of tiles is unpacked beside the product of the first rows,
// and multiplied by the other ones.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "../dtypes.h"
#include "../panels.h"
#include "../platform.h"
#include "../vectors.h"
#include "few_rows.h"
#include "formats.h"
#include "products.h"
#include "registers.h"

namespace {

#pragma GCC push_options
#pragma GCC optimize("no-associative-math")  // platform.h says why

constexpr int64_t BLOCKS_AT_ONCE = 2;  // of rows, if sums stay in the tiles' registers
constexpr int64_t MAX_TILED_ROWS = 256;  // multiplied in one pass over the weights, so that they stay in the L2 cache

// The product of all rows and some panels. Rows are in blocks of up to TILE_ROWS.
template <typename Format>
struct TiledProduct {
    Tiled<Format> format;
    const char *weight;
    int64_t panel_bytes, panels, tiles;
    const bfloat16 *x;  // [blocks][tiles][rows of a block][inputs of a tile]
    const float *of_groups;  // [blocks][tiles][rows of a block]
    int64_t rows, blocks, of_block;
    bfloat16 *out;  // [rows][panels][16]

    static constexpr int64_t INPUTS = Tiled<Format>::INPUTS, X_STRIDE = INPUTS * sizeof(bfloat16);
    static constexpr int64_t MAX_BLOCKS = MAX_TILED_ROWS / TILE_ROWS;

    // What a thread works with.
    struct Scratch {
        alignas(CACHE_LINE) bfloat16 weights[TILED_PANELS][STRIP][TILE_SIZE];
        TileSums sums[MAX_BLOCKS * TILED_PANELS];  // [blocks][panels]
    };

    const char *panel(int64_t number) const { return weight + number * panel_bytes; }

    TiledRows rows_of(int64_t block) const {
        const int64_t first = block * tiles * of_block;
        return {x + first * INPUTS, of_groups + first, of_block, of_block * INPUTS};
    }

    // For `count` blocks of rows from number `first` on, and `width` panels from number `at` on.
    void multiply(int64_t first, int64_t count, int64_t at, int64_t width, Scratch &scratch) const {
        std::memset(scratch.sums, 0, count * TILED_PANELS * sizeof *scratch.sums);
        finish_stores();
        const int64_t length = count <= (Tiled<Format>::HAS_GROUPS ? 1 : BLOCKS_AT_ONCE) ? tiles : STRIP;
        for (int64_t strip = 0; strip < tiles; strip += length)
            multiply_strip(first, count, at, width, strip, std::min(length, tiles - strip), scratch);
        for (int64_t block = 0; block < count; ++block)
            for (int64_t p = 0; p < width; ++p) store(first + block, at + p, scratch.sums[block * TILED_PANELS + p]);
    }

    // The first rows unpack the tiles of the strip.
    void multiply_strip(int64_t first, int64_t count, int64_t at, int64_t width, int64_t strip, int64_t length,
                        Scratch &scratch) const {
        const auto rows_of_strip = [&](int64_t block) { return rows_of(first + block).from(strip); };
        const auto in_time = [&](int64_t p) {
            return UnpackedInTime<Format>{format, panel(at + p), strip, length, scratch.weights[p]};
        };
        if constexpr (Tiled<Format>::HAS_GROUPS) {
            for (int64_t p = 0; p < width; ++p) {
                const auto add = [&](int64_t block, const auto &weights) {
                    add_block(panel(at + p), strip, length, rows_of_strip(block), weights,
                              scratch.sums + block * TILED_PANELS + p);
                };
                add(0, in_time(p));
                for (int64_t block = 1; block < count; ++block) add(block, Unpacked{scratch.weights[p]});
            }
        } else {
            const auto add = [&](int64_t block, const auto &one, const auto &other) {
                TileSums *const sums = scratch.sums + block * TILED_PANELS;
                if (block + 1 == count)
                    add_blocks(length, {rows_of_strip(block)}, {one, other}, width, sums);
                else
                    add_blocks(length, {rows_of_strip(block), rows_of_strip(block + 1)}, {one, other}, width, sums);
            };
            add(0, in_time(0), in_time(1));
            for (int64_t block = BLOCKS_AT_ONCE; block < count; block += BLOCKS_AT_ONCE)
                add(block, Unpacked{scratch.weights[0]}, Unpacked{scratch.weights[1]});
        }
    }

    template <typename Weights>
    void add_block(const char *of_panel, int64_t strip, int64_t length, const TiledRows &block, const Weights &weights,
                   TileSums *sums) const {
        if (of_block <= TILE_ROWS / 2)
            add_groups<TILE_ROWS / 2>(format, of_panel, strip, length, block, weights, sums);
        else
            add_groups<TILE_ROWS>(format, of_panel, strip, length, block, weights, sums);
    }

    template <int BLOCKS, typename Weights>
    void add_blocks(int64_t length, const TiledRows (&blocks)[BLOCKS], const Weights (&weights)[TILED_PANELS],
                    int64_t width, TileSums *sums) const {
        if (width > 1)
            add_products_of_tiles<BLOCKS, 2>(length, blocks, weights, X_STRIDE, sums);
        else
            add_products_of_tiles<BLOCKS, 1>(length, blocks, {weights[0]}, X_STRIDE, sums);
    }

    void store(int64_t block, int64_t at, const TileSums &sums) const {
        for (int64_t row = block * of_block; row < std::min(rows, (block + 1) * of_block); ++row)
            store_outputs(format, panel(at), loaded<Floats>(sums.of[row - block * of_block]),
                          out + (row * panels + at) * QUANTIZED_OUTPUTS);
    }
};

// Packs a tile of x [rows, inputs] for `of_block` rows from number `first` on. What is beyond both is 0.
template <int64_t INPUTS, bool HAS_MINIMA>
void pack_tile(const bfloat16 *x, int64_t rows, int64_t inputs, int64_t first, int64_t of_block, int64_t tile,
               bfloat16 *packed, float *of_groups) {
    for (int64_t r = 0; r < of_block; ++r, packed += INPUTS) {
        const int64_t row = first + r, begin = tile * INPUTS;
        const int64_t count = row < rows ? std::clamp<int64_t>(inputs - begin, 0, INPUTS) : 0;
        if (count > 0) std::memcpy(packed, x + row * inputs + begin, count * sizeof *packed);
        std::memset(packed + count, 0, (INPUTS - count) * sizeof *packed);
        if constexpr (HAS_MINIMA) {
            float sum = 0.0f;
            for (int64_t i = 0; i < INPUTS; ++i) sum += to_float(packed[i]);
            of_groups[r] = sum;
        }
    }
}

// As multiply_quantized. `packed` is scratch for Format::packed_size floats for each row and for PADDING_ROWS more.
template <typename Format>
void multiply_tiles(const Format &format, const char *weight, const bfloat16 *x, float *packed, bfloat16 *out,
                    int64_t rows, int64_t inputs, int64_t panels, int threads) {
    using Product = TiledProduct<Format>;
    const Tiled<Format> tiled(format);
    const int64_t filled_up = (inputs + GROUP - 1) / GROUP * GROUP, tiles = filled_up / Product::INPUTS;
    const int64_t panel_bytes = format.panel_bytes(filled_up);
    if (rows == 1)
        return multiply_few_rows<1>(tiled, weight, panel_bytes, x, packed, out, inputs, tiles, panels, threads);
    if (rows == 2)
        return multiply_few_rows<2>(tiled, weight, panel_bytes, x, packed, out, inputs, tiles, panels, threads);
    const int64_t blocks = (rows + TILE_ROWS - 1) / TILE_ROWS, of_block = (rows + blocks - 1) / blocks;
    bfloat16 *const packed_x = reinterpret_cast<bfloat16 *>(packed);
    float *const of_groups = packed + blocks * of_block * filled_up / 2;
    const Product product{tiled,    weight,    panel_bytes, panels, tiles,
                          packed_x, of_groups, rows,        blocks, of_block, out};
#pragma omp parallel num_threads(threads)
    {
        const DenormalsAreZero as_in_tiles;
#pragma omp for schedule(static) collapse(2)
        for (int64_t block = 0; block < blocks; ++block)
            for (int64_t tile = 0; tile < tiles; ++tile) {
                const int64_t at = (block * tiles + tile) * of_block;
                pack_tile<Product::INPUTS, Tiled<Format>::HAS_MINIMA>(x, rows, inputs, block * of_block, of_block, tile,
                                                                      packed_x + at * Product::INPUTS, of_groups + at);
            }
        const ConfiguredTiles tiles_of_thread(of_block, Product::INPUTS);
        typename Product::Scratch scratch;
        for (int64_t first = 0; first < blocks; first += Product::MAX_BLOCKS)
#pragma omp for schedule(static) nowait
            for (int64_t at = 0; at < panels; at += TILED_PANELS)
                product.multiply(first, std::min(Product::MAX_BLOCKS, blocks - first), at,
                                 std::min(TILED_PANELS, panels - at), scratch);
    }
}

#pragma GCC pop_options

}  // namespace

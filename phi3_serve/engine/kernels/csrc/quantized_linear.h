// Linear layers with weights in panels, for every format of panels. The rows of a block share one pass over the
// weights. On a processor with AMX, activations in bfloat16 are left to amx/quantized_linear.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "dtypes.h"
#include "panel_formats.h"
#include "panels.h"
#include "platform.h"
#include "vectors.h"

#ifdef __AMX_BF16__
#include "amx/quantized_linear.h"
#endif

namespace {

#pragma GCC push_options
#pragma GCC optimize("no-associative-math")  // platform.h says why

constexpr int MAX_TILE_ROWS = LANES == 16 ? 12 : 6;
constexpr int WIDEST_TILE = 8;  // vectors of outputs; eight chains of one row hide the latency of the additions
constexpr int64_t UNIT = WIDEST_TILE / VECTORS;  // panels that one tile of one row spans

// Vectors of outputs in a tile of R rows, so that the sums fill the registers.
constexpr int tile_width(int R) { return R == 1 ? WIDEST_TILE : R <= 3 ? 4 : 2; }

// Rows that are multiplied in one pass over a panel, and where their outputs are.
template <typename T>
struct RowBlock {
    const float *packed;
    T *out;
    int64_t out_stride;
    int64_t rows;
};

template <int R, int N, typename Format, typename T>
inline void multiply_tile(const Format &format, const TileOfPanels &tile, const RowBlock<T> &block, int64_t inputs,
                          T *out) {
    Floats total[R][N];
    format.multiply(tile, block.packed, inputs, total);
    for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) {
            float lanes[LANES];
            std::memcpy(lanes, &total[r][n], sizeof lanes);
            for (int lane = 0; lane < LANES; ++lane)
                out[r * block.out_stride + n * LANES + lane] = rounded<T>(lanes[lane]);
        }
}

// Multiplies the R rows of `block` by the `panels` panels from number `first` on.
template <int R, typename Format, typename T>
void multiply_panels(const Format &format, const char *weight, int64_t first, int64_t panels, const RowBlock<T> &block,
                     int64_t inputs) {
    if constexpr (R > 0) {
        if (block.rows != R) return multiply_panels<R - 1>(format, weight, first, panels, block, inputs);
        constexpr int WIDTH = tile_width(R), REST = VECTORS < 2 ? 1 : 2;
        const int64_t panel_bytes = format.panel_bytes(inputs);
        const auto tile = [&](int64_t vector) {
            const char *const panel = weight + (first + vector / VECTORS) * panel_bytes;
            return TileOfPanels{panel, panel_bytes, vector % VECTORS * LANES};
        };
        T *const out = block.out + first * QUANTIZED_OUTPUTS;
        int64_t at = 0;
        for (; at + WIDTH <= panels * VECTORS; at += WIDTH)
            multiply_tile<R, WIDTH>(format, tile(at), block, inputs, out + at * LANES);
        for (; at < panels * VECTORS; at += REST)
            multiply_tile<R, REST>(format, tile(at), block, inputs, out + at * LANES);
    }
}

// out [rows, panels * 16] = x [rows, inputs] * weight^T. `packed` is scratch for Format::packed_size floats for each
// row and for PADDING_ROWS (quantized_panels.py) more.
template <typename Format, typename T>
void multiply_quantized(const Format &format, const char *weight, const T *x, float *packed, T *out, int64_t rows,
                        int64_t inputs, int64_t panels, int threads) {
    const int64_t groups = (inputs + GROUP - 1) / GROUP, packed_size = Format::packed_size(groups * GROUP);
    if (rows == 0) return;  // a step that chooses no tokens
#ifdef __AMX_BF16__
    if constexpr (std::is_same_v<T, bfloat16>)
        return multiply_tiles(format, weight, x, packed, out, rows, inputs, panels, threads);
#endif
    const int64_t blocks = (rows + MAX_TILE_ROWS - 1) / MAX_TILE_ROWS, of_block = (rows + blocks - 1) / blocks;
    const auto rows_of = [&](int64_t block) { return std::min(of_block, rows - block * of_block); };
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static) collapse(2)
        for (int64_t block = 0; block < blocks; ++block)
            for (int64_t group = 0; group < groups; ++group)
                Format::pack(x + block * of_block * inputs, rows_of(block), inputs, group * GROUP,
                             packed + block * of_block * packed_size);
#pragma omp for schedule(static)
        for (int64_t first = 0; first < panels; first += UNIT)
            for (int64_t block = 0; block < blocks; ++block) {
                const int64_t row = block * of_block, stride = panels * QUANTIZED_OUTPUTS;
                const RowBlock<T> of_rows{packed + row * packed_size, out + row * stride, stride, rows_of(block)};
                multiply_panels<MAX_TILE_ROWS>(format, weight, first, std::min(UNIT, panels - first), of_rows,
                                               groups * GROUP);
            }
    }
}

#pragma GCC pop_options

}  // namespace

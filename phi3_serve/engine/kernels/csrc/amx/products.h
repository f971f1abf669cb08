// Products of tiles of activations and weights: `add_groups` of one panel whose groups have scales,
// `add_products_of_tiles` of several panels without groups. It needs AMX, and tiles that registers.h has configured.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "../dtypes.h"
#include "../platform.h"
#include "../vectors.h"
#include "formats.h"
#include "registers.h"

namespace {

#pragma GCC push_options
#pragma GCC optimize("no-associative-math")  // platform.h says why

constexpr int64_t TILE_SIZE = 512;  // bfloat16 numbers, at most
constexpr int64_t TILED_PANELS = 2;  // that use a tile of activations one after another
constexpr int64_t STRIP = 8;  // unpacked tiles of a panel that are kept
constexpr int64_t RING = 4;  // tiles of sums that wait for their use

// Rows that are multiplied together, as [tiles][rows][inputs of a tile], and the sum of each group, [tiles][rows].
struct TiledRows {
    const bfloat16 *x;
    const float *of_groups;
    int64_t rows;
    int64_t tile_size;  // numbers

    TiledRows from(int64_t tile) const { return {x + tile * tile_size, of_groups + tile * rows, rows, tile_size}; }
};

// The tiles of a strip, unpacked before.
struct Unpacked {
    const bfloat16 (*kept)[TILE_SIZE];

    INLINE void prepare(int64_t) const {}
    INLINE const bfloat16 *tile(int64_t number) const { return kept[number % STRIP]; }
};

// The same, each unpacked shortly before its use.
template <typename Format>
struct UnpackedInTime {
    const Tiled<Format> &format;
    const char *panel;
    int64_t first, count;
    bfloat16 (*kept)[TILE_SIZE];

    INLINE void prepare(int64_t number) const {
        if (number < count) format.unpacker.unpack(format.weights(panel, first + number), kept[number % STRIP]);
    }

    INLINE const bfloat16 *tile(int64_t number) const { return kept[number % STRIP]; }
};

// sums[r] += for each of `tiles` tiles from number `first` on: its sums times its scales, without its minima. R is at
// least the number of rows; sums of more rows mean nothing. A tile's sums are used two tiles later, when they have left
// its register.
template <int R, typename Format, typename Weights>
INLINE void add_groups(const Tiled<Format> &format, const char *panel, int64_t first, int64_t tiles,
                       const TiledRows &rows, const Weights &weights, TileSums *sums) {
    constexpr int64_t X_STRIDE = Tiled<Format>::INPUTS * sizeof(bfloat16), LATER = 2;
    TileSums ring[RING];
    Floats total[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) total[r] = loaded<Floats>(sums->of[r]);
    const auto finish = [&](int64_t t) INLINE_LAMBDA {
        const Floats scales = format.scales(panel, first + t);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) total[r] += loaded<Floats>(ring[t % RING].of[r]) * scales;
        if constexpr (Tiled<Format>::HAS_MINIMA) {
            const Floats minima = format.minima(panel, first + t);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) total[r] -= minima * (Floats{} + rows.of_groups[t * rows.rows + r]);
        }
    };
    weights.prepare(0);
    weights.prepare(1);
#define ADD_TILE(T, SUMS, X, WEIGHTS)                            \
    _tile_zero(SUMS);                                            \
    _tile_loadd(X, rows.x + (T)*rows.tile_size, X_STRIDE);       \
    _tile_loadd(WEIGHTS, weights.tile(T), CACHE_LINE);           \
    _tile_dpbf16ps(SUMS, X, WEIGHTS);                            \
    _tile_stored(SUMS, &ring[(T) % RING], CACHE_LINE);           \
    weights.prepare((T) + LATER);                                \
    if ((T) >= LATER) finish((T)-LATER);
    for (int64_t t = 0; t < tiles; t += 2) {
        ADD_TILE(t, 0, 4, 6)
        if (t + 1 == tiles) break;
        ADD_TILE(t + 1, 1, 5, 7)
    }
#undef ADD_TILE
    for (int64_t t = std::max<int64_t>(0, tiles - LATER); t < tiles; ++t) finish(t);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) std::memcpy(sums->of[r], &total[r], sizeof total[r]);
}

// sums[b * TILED_PANELS + p] += the products of `tiles` tiles, for BLOCKS blocks of rows and PANELS panels.
template <int BLOCKS, int PANELS, typename Weights>
INLINE void add_products_of_tiles(int64_t tiles, const TiledRows (&rows)[BLOCKS], const Weights (&weights)[PANELS],
                                  int64_t x_stride, TileSums *sums) {
    TileSums *const second = sums + TILED_PANELS;
    _tile_loadd(0, sums, CACHE_LINE);
    if constexpr (PANELS > 1) _tile_loadd(1, sums + 1, CACHE_LINE);
    if constexpr (BLOCKS > 1) _tile_loadd(2, second, CACHE_LINE);
    if constexpr (BLOCKS > 1 && PANELS > 1) _tile_loadd(3, second + 1, CACHE_LINE);
    for (const Weights &of_panel : weights) of_panel.prepare(0);
    for (int64_t t = 0; t < tiles; ++t) {
        _tile_loadd(4, rows[0].x + t * rows[0].tile_size, x_stride);
        _tile_loadd(6, weights[0].tile(t), CACHE_LINE);
        _tile_dpbf16ps(0, 4, 6);
        weights[0].prepare(t + 1);
        if constexpr (PANELS > 1) {
            _tile_loadd(7, weights[1].tile(t), CACHE_LINE);
            _tile_dpbf16ps(1, 4, 7);
            weights[1].prepare(t + 1);
        }
        if constexpr (BLOCKS > 1) {
            _tile_loadd(5, rows[1].x + t * rows[1].tile_size, x_stride);
            _tile_dpbf16ps(2, 5, 6);
            if constexpr (PANELS > 1) _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, sums, CACHE_LINE);
    if constexpr (PANELS > 1) _tile_stored(1, sums + 1, CACHE_LINE);
    if constexpr (BLOCKS > 1) _tile_stored(2, second, CACHE_LINE);
    if constexpr (BLOCKS > 1 && PANELS > 1) _tile_stored(3, second + 1, CACHE_LINE);
}

#pragma GCC pop_options

}  // namespace

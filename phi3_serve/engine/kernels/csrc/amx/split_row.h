// One row of activations in float times weights in bfloat16, in vectors. Sums have the order of split_linear.h and
// denormal numbers are 0, so the results have the same bits as those of tiles. A row in a tile takes a tenth longer.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../dtypes.h"
#include "../panels.h"
#include "../platform.h"
#include "../vectors.h"
#include "registers.h"

namespace {

#pragma GCC push_options
#pragma GCC optimize("no-associative-math")  // platform.h says why

constexpr int64_t PARTS = 3;
constexpr int64_t TILE_INPUTS = 32;
constexpr int64_t WEIGHT_TILE = TILE_INPUTS * QUANTIZED_OUTPUTS;  // numbers

// The parts of x, the largest first. The last one is exact because two times eight bits are gone. An infinite number
// has parts that are no numbers.
INLINE void split(Floats x, Floats (&parts)[PARTS]) {
    for (int64_t part = 0; part + 1 < PARTS; ++part) {
        parts[part] = (Floats)((Words)x & static_cast<int32_t>(0xFFFF0000));
        x -= parts[part];
    }
    parts[PARTS - 1] = x;
}

// Acts on the parts of LANES numbers, of which `count` are at `from` and the others are 0.
template <typename Act>
INLINE void each_split(const float *from, int64_t count, Act act) {
    Floats x{}, parts[PARTS];
    if (count >= LANES)
        x = loaded<Floats>(from);
    else if (count > 0)
        std::memcpy(&x, from, count * sizeof(float));
    split(x, parts);
    for (int64_t part = 0; part < PARTS; ++part) act(part, parts[part]);
}

constexpr int64_t ROW_PANELS = 8;  // beside one another; more than one hides the memory's latency
constexpr int64_t ROW_PREFETCH = 1024;  // bytes

// total[p] = the products of x [inputs][PARTS] and P panels.
template <int P>
__attribute__((noinline)) void multiply_panels_by_row(const bfloat16 *panel, int64_t panel_size, int64_t tiles,
                                                      const float *x, Floats (&total)[P]) {
    for (int p = 0; p < P; ++p) total[p] = Floats{};
    for (int64_t t = 0; t < tiles; ++t, x += TILE_INPUTS * PARTS)
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
            const bfloat16 *const from = panel + p * panel_size + t * WEIGHT_TILE;
            Floats even[PARTS] = {}, odd[PARTS] = {};  // the chains of a tile
#pragma GCC unroll 4
            for (int64_t k = 0; k < TILE_INPUTS; k += 2) {
                __builtin_prefetch(from + k * QUANTIZED_OUTPUTS + ROW_PREFETCH / sizeof(bfloat16));
                const Wide pair = widened(from + k * QUANTIZED_OUTPUTS);
#pragma GCC unroll 3
                for (int64_t part = 0; part < PARTS; ++part) {
                    even[part] = multiply_add(pair.even, Floats{} + x[k * PARTS + part], even[part]);
                    odd[part] = multiply_add(pair.odd, Floats{} + x[(k + 1) * PARTS + part], odd[part]);
                }
            }
#pragma GCC unroll 3
            for (int64_t part = 0; part < PARTS; ++part) total[p] += even[part] + odd[part];
        }
}

// out [panels * 16] = x [inputs] * weight^T. `packed` is scratch for [inputs of all tiles][PARTS] floats.
inline void multiply_row(const bfloat16 *weight, const float *x, float *packed, float *out, int64_t inputs,
                         int64_t tiles, int64_t panels, int threads) {
    const int64_t panel_size = tiles * WEIGHT_TILE;
#pragma omp parallel num_threads(threads)
    {
        const DenormalsAreZero as_in_tiles;
#pragma omp for schedule(static)
        for (int64_t first = 0; first < tiles * TILE_INPUTS; first += LANES)
            each_split(x + first, inputs - first, [&](int64_t part, Floats values) INLINE_LAMBDA {
                for (int lane = 0; lane < LANES; ++lane) packed[(first + lane) * PARTS + part] = values[lane];
            });
        const auto multiply = [&](auto width, int64_t at) {
            Floats total[decltype(width)::value];
            multiply_panels_by_row(weight + at * panel_size, panel_size, tiles, packed, total);
            std::memcpy(out + at * QUANTIZED_OUTPUTS, total, sizeof total);
        };
#pragma omp for schedule(static)
        for (int64_t first = 0; first < panels; first += ROW_PANELS)
            if (first + ROW_PANELS <= panels)
                multiply(std::integral_constant<int, ROW_PANELS>{}, first);
            else
                for (int64_t at = first; at < panels; ++at) multiply(std::integral_constant<int, 1>{}, at);
    }
}

#pragma GCC pop_options

}  // namespace

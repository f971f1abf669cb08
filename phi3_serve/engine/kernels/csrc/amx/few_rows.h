// Linear layers for one or two rows, in vectors. Sums have the order of AMX and denormal numbers are 0, so the results
// have the same bits as those of tiles. It needs AVX512-BF16. quantized_linear.h says why tiles are slower here.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../dtypes.h"
#include "../panels.h"
#include "../platform.h"
#include "../vectors.h"
#include "formats.h"
#include "registers.h"

namespace {

#pragma GCC push_options
#pragma GCC optimize("no-associative-math")  // platform.h says why

constexpr int64_t FEW_PANELS = 4;  // beside one another by few rows; more than one hides the memory's latency

// total[r][p] = the products of R rows, x [inputs][R] in float, and P panels, in the order of tiles. `of_groups` is
// [tiles][R].
template <int R, int P, typename Format>
__attribute__((noinline)) void multiply_few(const Tiled<Format> &format, const char *panel, int64_t panel_bytes,
                                            int64_t tiles, const float *x, const float *of_groups,
                                            Floats (&total)[R][P]) {
    constexpr int64_t INPUTS = Tiled<Format>::INPUTS;
    for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p) total[r][p] = Floats{};
    for (int64_t t = 0; t < tiles; ++t, x += INPUTS * R) {
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
            const char *const of_panel = panel + p * panel_bytes;
            Floats even[R], odd[R];
#pragma GCC unroll 2
            for (int r = 0; r < R; ++r) even[r] = odd[r] = Floats{};
            const auto add_pair = [&](int64_t k, Floats of_even, Floats of_odd) INLINE_LAMBDA {
#pragma GCC unroll 2
                for (int r = 0; r < R; ++r) {
                    even[r] += of_even * x[k * R + r];
                    odd[r] += of_odd * x[(k + 1) * R + r];
                }
            };
            format.unpacker.each_pair(format.weights(of_panel, t), add_pair);
#pragma GCC unroll 2
            for (int r = 0; r < R; ++r) {
                const Floats sum = even[r] + odd[r];
                if constexpr (!Tiled<Format>::HAS_GROUPS) {
                    total[r][p] += sum;
                    continue;
                }
                total[r][p] += sum * format.scales(of_panel, t);
                if constexpr (Tiled<Format>::HAS_MINIMA)
                    total[r][p] -= format.minima(of_panel, t) * (Floats{} + of_groups[t * R + r]);
            }
        }
    }
}

// As multiply_tiles of quantized_linear.h, for R rows.
template <int R, typename Format>
void multiply_few_rows(const Tiled<Format> &format, const char *weight, int64_t panel_bytes, const bfloat16 *x,
                       float *packed, bfloat16 *out, int64_t inputs, int64_t tiles, int64_t panels, int threads) {
    constexpr int64_t INPUTS = Tiled<Format>::INPUTS;
    float *const of_groups = packed + tiles * INPUTS * R;
#pragma omp parallel num_threads(threads)
    {
        const DenormalsAreZero as_in_tiles;
#pragma omp for schedule(static)
        for (int64_t tile = 0; tile < tiles; ++tile)
            for (int r = 0; r < R; ++r) {
                float sum = 0.0f;
                for (int64_t k = tile * INPUTS; k < (tile + 1) * INPUTS; ++k) {
                    const float value = k < inputs ? to_float(x[r * inputs + k]) : 0.0f;
                    packed[k * R + r] = value;
                    sum += value;
                }
                of_groups[tile * R + r] = sum;
            }
        const auto multiply = [&](auto width, int64_t at) {
            constexpr int P = decltype(width)::value;
            const char *const first = weight + at * panel_bytes;
            Floats total[R][P];
            multiply_few<R, P>(format, first, panel_bytes, tiles, packed, of_groups, total);
            for (int r = 0; r < R; ++r)
                for (int p = 0; p < P; ++p)
                    store_outputs(format, first + p * panel_bytes, total[r][p],
                                  out + (r * panels + at + p) * QUANTIZED_OUTPUTS);
        };
#pragma omp for schedule(static)
        for (int64_t first = 0; first < panels; first += FEW_PANELS) {
            if (first + FEW_PANELS <= panels)
                multiply(std::integral_constant<int, FEW_PANELS>{}, first);
            else
                for (int64_t at = first; at < panels; ++at) multiply(std::integral_constant<int, 1>{}, at);
        }
    }
}

#pragma GCC pop_options

}  // namespace

// Linear layers with weights and activations in bfloat16. It needs AVX512-BF16, so only some levels include it.
// linear.py packs the weights as panels of sixteen outputs.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "dtypes.h"
#include "platform.h"

namespace {

constexpr int64_t PANEL_OUTPUTS = 16;  // floats in one register; linear.py has the same constant
constexpr int64_t PANEL_ROWS = 16;  // multiplied in one pass over the weights; linear.py has the same constant
constexpr int64_t PREFETCH_DISTANCE = 4096;  // numbers; further than the processor prefetches by itself

// R rows by P panels: out[r][c] = sum over k of x[k][r] * weight[c][k]. The instruction multiplies pairs of k, so both
// are stored in pairs: x as [pairs][PANEL_ROWS] with a pair in 32 bits, each panel as [pairs][PANEL_OUTPUTS][2].
template <int R, int P>
inline void multiply_block(const bfloat16 *weight, const uint32_t *x, int64_t pairs, bfloat16 *out, int64_t out_stride,
                           const bfloat16 *next) {
    __m512 sum[R][P];
    for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p) sum[r][p] = _mm512_setzero_ps();
    for (int64_t k = 0; k < pairs; ++k) {
        __builtin_prefetch(next + k * 2 * PANEL_OUTPUTS);
        __m512bh w[P];
#pragma GCC unroll 3
        for (int p = 0; p < P; ++p) w[p] = (__m512bh)_mm512_loadu_si512(weight + (p * pairs + k) * 2 * PANEL_OUTPUTS);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const __m512bh pair = (__m512bh)_mm512_set1_epi32(x[k * PANEL_ROWS + r]);
#pragma GCC unroll 3
            for (int p = 0; p < P; ++p) sum[r][p] = _mm512_dpbf16_ps(sum[r][p], w[p], pair);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p)
            _mm256_storeu_si256(reinterpret_cast<__m256i *>(out + r * out_stride + p * PANEL_OUTPUTS),
                                (__m256i)_mm512_cvtneps_pbh(sum[r][p]));
}

// multiply_block for `rows` <= R.
template <int R, int P>
void multiply_rows(int64_t rows, const bfloat16 *weight, const uint32_t *x, int64_t pairs, bfloat16 *out,
                   int64_t out_stride, const bfloat16 *next) {
    if constexpr (R > 0) {
        if (rows == R)
            multiply_block<R, P>(weight, x, pairs, out, out_stride, next);
        else
            multiply_rows<R - 1, P>(rows, weight, x, pairs, out, out_stride, next);
    }
}

// out [rows, outputs] = x [rows, inputs] * weight^T, with the weight in panels. `pairs_of_x` is scratch for x in pairs.
// Reading the weights from memory takes as long as multiplying sixteen rows by them, so up to sixteen rows take one
// pass over the weights. With more rows, three panels stay in the core's cache until they are multiplied by all rows,
// eight rows at a time, while the next three panels are prefetched.
void multiply(const bfloat16 *weight, const bfloat16 *x, uint32_t *pairs_of_x, bfloat16 *out, int64_t rows,
              int64_t inputs, int64_t outputs, int threads) {
    constexpr int64_t GROUP = 3, FEW_ROWS = PANEL_ROWS / 2;
    const int64_t pairs = inputs / 2, panels = outputs / PANEL_OUTPUTS, panel_size = inputs * PANEL_OUTPUTS;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)  // by k, because threads that write to the same cache line wait for each other
        for (int64_t k = 0; k < pairs; ++k)
            for (int64_t row = 0; row < rows; ++row)
                std::memcpy(pairs_of_x + (row / PANEL_ROWS * pairs + k) * PANEL_ROWS + row % PANEL_ROWS,
                            x + row * inputs + 2 * k, sizeof(uint32_t));
        if (rows <= PANEL_ROWS) {
#pragma omp for schedule(static)
            for (int64_t panel = 0; panel < panels; ++panel) {
                const bfloat16 *w = weight + panel * panel_size;
                multiply_rows<PANEL_ROWS, 1>(rows, w, pairs_of_x, pairs, out + panel * PANEL_OUTPUTS, outputs,
                                             w + PREFETCH_DISTANCE);
            }
        } else {
#pragma omp for schedule(static)
            for (int64_t first = 0; first < panels; first += GROUP) {
                const bfloat16 *w = weight + first * panel_size;
                for (int64_t row = 0; row < rows; row += FEW_ROWS) {
                    const int64_t count = std::min(FEW_ROWS, rows - row);
                    const int64_t next = first + GROUP + row / FEW_ROWS;  // prefetches one of the next three panels
                    const bfloat16 *ahead = next < std::min(first + 2 * GROUP, panels) ? weight + next * panel_size : w;
                    const uint32_t *x_rows = pairs_of_x + row / PANEL_ROWS * pairs * PANEL_ROWS + row % PANEL_ROWS;
                    bfloat16 *o = out + row * outputs + first * PANEL_OUTPUTS;
                    if (panels - first >= 3)
                        multiply_rows<FEW_ROWS, 3>(count, w, x_rows, pairs, o, outputs, ahead);
                    else if (panels - first == 2)
                        multiply_rows<FEW_ROWS, 2>(count, w, x_rows, pairs, o, outputs, ahead);
                    else
                        multiply_rows<FEW_ROWS, 1>(count, w, x_rows, pairs, o, outputs, ahead);
                }
            }
        }
    }
}

}  // namespace

// The activation of the gated MLP: SiLU of the gate, times the other half. Each row is the work of one thread.
#pragma once

#include <cstdint>

#include "dtypes.h"
#include "exponential.h"

namespace {

// product [rows, width] = silu(gate) * up, where gate_up is [rows, 2 * width].
template <typename T>
void silu_product(const T *gate_up, T *product, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        const T *gate = gate_up + row * 2 * width;
        const T *up = gate + width;
        T *out = product + row * width;
        for (int64_t i = 0; i < width; ++i) {
            const float g = to_float(gate[i]);
            out[i] = rounded<T>(as_stored<T>(g / (1.0f + exponential(-g))) * to_float(up[i]));
        }
    }
}

}  // namespace

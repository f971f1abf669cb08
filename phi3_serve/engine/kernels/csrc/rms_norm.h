// The sum of the residual stream, then its RMSNorm. Each row is the work of one thread.
#pragma once

#include <cmath>
#include <cstdint>

#include "dtypes.h"

namespace {

// hidden += delta; normed = weight * hidden / rms(hidden). All [rows, width].
template <typename T>
void add_rms_norm(T *hidden, const T *delta, const T *weight, T *normed, int64_t rows, int64_t width, float epsilon,
                  int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < rows; ++row) {
        T *h = hidden + row * width;
        const T *d = delta + row * width;
        for (int64_t i = 0; i < width; ++i) h[i] = rounded<T>(to_float(h[i]) + to_float(d[i]));
        float squares = 0.0f;
        for (int64_t i = 0; i < width; ++i) squares += to_float(h[i]) * to_float(h[i]);
        const float factor = 1.0f / std::sqrt(squares / static_cast<float>(width) + epsilon);
        T *out = normed + row * width;
        for (int64_t i = 0; i < width; ++i)
            out[i] = rounded<T>(to_float(weight[i]) * as_stored<T>(to_float(h[i]) * factor));
    }
}

}  // namespace

// Weights become 8 bits with a scale for each output, or 4 bits with a scale for each group of inputs. quantize.py does
// the same in torch. In 4 bits, LANES outputs are rounded together, each in a lane of its own.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "dtypes.h"
#include "panels.h"
#include "vectors.h"

namespace {

constexpr float SMALLEST_WEIGHT = 1e-30f;  // a group without larger ones is 0; quantize.py has the same constant

// The nearest whole numbers between the bounds.
INLINE Words nearest(Floats x, float least, float most) {
    x = x < least ? Floats{} + least : x;
    x = x > most ? Floats{} + most : x;
    return __builtin_convertvector(x - least + 0.5f, Words) + static_cast<int32_t>(least);
}

inline float largest_magnitude(const Floats &x) {
    float largest = 0.0f;
    for (int lane = 0; lane < LANES; ++lane) largest = std::max(largest, std::fabs(x[lane]));
    return largest;
}

// Calls act(LANES numbers of `weight` as floats, the first place, their number) for all `inputs` of them. The last ones
// are filled up with zeros.
template <typename T, typename Act>
INLINE void each_vector(const T *weight, int64_t inputs, Act act) {
    int64_t i = 0;
    for (; i + LANES <= inputs; i += LANES) act(floats_of(weight + i), i, LANES);
    if (i < inputs) {
        T rest[LANES] = {};
        std::memcpy(rest, weight + i, (inputs - i) * sizeof *weight);
        act(floats_of(rest), i, inputs - i);
    }
}

// Rounds the weights of one output to 8 bits, with the scale that gives the largest 127.
template <typename T>
void quantize_8_bits(const T *weight, int8_t *values, float *scale, int64_t inputs) {
    Floats magnitudes{};
    each_vector(weight, inputs, [&](const Floats &w, int64_t, int64_t) INLINE_LAMBDA {
        const Floats magnitude = w < 0.0f ? -w : w;
        magnitudes = magnitude > magnitudes ? magnitude : magnitudes;
    });
    const float largest = largest_magnitude(magnitudes);
    const bool is_zero = largest < SMALLEST_WEIGHT;
    *scale = is_zero ? 0.0f : largest / 127.0f;
    const float inverse = is_zero ? 0.0f : 127.0f / largest;
    each_vector(weight, inputs, [&](const Floats &w, int64_t first, int64_t count) INLINE_LAMBDA {
        const Words rounded = nearest(w * inverse, -127.0f, 127.0f);
        for (int64_t i = 0; i < count; ++i) values[first + i] = static_cast<int8_t>(rounded[i]);
    });
}

// Rounds a group of weights [GROUP] of LANES outputs to 4 bits, and returns the scales, which bfloat16 holds exactly. Of
// the scales that give an output's largest weight one of EXTREMES, it takes the one with the least sum of squared errors,
// each moved to the optimum of its rounded weights.
INLINE Floats quantize_4_bits(const Floats (&weights)[GROUP], Words (&values)[GROUP]) {
    constexpr float EXTREMES[] = {-8.4f, -8.0f, -7.6f, -7.2f, -6.7f, 7.25f, 6.75f, 6.25f};
    Floats least{}, most{};
    for (const Floats &w : weights) {
        least = w < least ? w : least;
        most = w > most ? w : most;
    }
    const Floats extreme = most > -least ? most : least;
    const Words is_zero = (extreme < SMALLEST_WEIGHT) & (extreme > -SMALLEST_WEIGHT);
    Floats scale{}, inverse{}, best_gain = Floats{} - INFINITY;
    for (const float candidate : EXTREMES) {
        const Floats factor = candidate / extreme;
        Floats products{}, squares{};
        for (const Floats &w : weights) {
            const Floats n = __builtin_convertvector(nearest(w * factor, -8.0f, 7.0f), Floats);
            products += w * n;
            squares += n * n;
        }
        const Floats optimum = (Floats)rounded_bits(products / squares);
        const Floats gain = optimum * (2.0f * products - optimum * squares);  // of squared error
        const Words is_best = gain > best_gain;
        best_gain = is_best ? gain : best_gain;
        scale = is_best ? optimum : scale;
        inverse = is_best ? 1.0f / optimum : inverse;
    }
    inverse = is_zero ? Floats{} : inverse;
    for (int64_t i = 0; i < GROUP; ++i) values[i] = nearest(weights[i] * inverse, -8.0f, 7.0f);
    return is_zero ? Floats{} : scale;
}

template <typename T>
void quantize_int8(const T *weight, int8_t *values, float *scales, int64_t outputs, int64_t inputs, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t output = 0; output < outputs; ++output)
        quantize_8_bits(weight + output * inputs, values + output * inputs, scales + output, inputs);
}

template <typename T>
void quantize_int4(const T *weight, int8_t *values, bfloat16 *scales, int64_t outputs, int64_t inputs, int threads) {
    const int64_t groups = (inputs + GROUP - 1) / GROUP;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t first = 0; first < outputs; first += LANES)
        for (int64_t group = 0; group < groups; ++group) {
            const int64_t begin = group * GROUP, size = std::min(GROUP, inputs - begin);
            const int64_t count = std::min<int64_t>(LANES, outputs - first);
            Floats of_group[GROUP] = {};
            Words quantized[GROUP];
            for (int64_t output = 0; output < count; ++output)
                for (int64_t i = 0; i < size; ++i)
                    of_group[i][output] = to_float(weight[(first + output) * inputs + begin + i]);
            const Floats of_outputs = quantize_4_bits(of_group, quantized);
            for (int64_t output = 0; output < count; ++output) {
                scales[(first + output) * groups + group] = rounded<bfloat16>(of_outputs[output]);
                for (int64_t i = 0; i < size; ++i)
                    values[(first + output) * inputs + begin + i] = static_cast<int8_t>(quantized[i][output]);
            }
        }
}

}  // namespace

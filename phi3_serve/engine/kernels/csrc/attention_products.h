// The two products of attention for a few rows at once: scores of the keys of a block, and the weighted sum of values.
// A row is one head of one query. Rows that are computed together share the loads of keys and values.
//
// Each score and each sum is one chain of operations in a fixed order, so a row's result does not depend on the other
// rows. A compiler must not reorder the chains.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "dtypes.h"
#include "kv_cache.h"
#include "platform.h"
#include "vectors.h"

namespace {

#pragma GCC push_options
#pragma GCC optimize("no-associative-math", "fp-contract=off")  // platform.h says why

constexpr int KEYS_AT_ONCE = 4;
constexpr int ROWS_AT_ONCE = LANES / KEYS_AT_ONCE;  // as many products as a register has lanes

INLINE Floats floats_of(const int8_t *from) { return floats_of_bytes(from); }

// The first `count` of LANES numbers as floats, and zeros.
template <typename C>
INLINE Floats first_floats_of(const C *from, int64_t count) {
    C filled_up[LANES] = {};
    std::memcpy(filled_up, from, count * sizeof(C));
    return floats_of(filled_up);
}

// LANES numbers as floats, of which `count` are left; those beyond are 0. D is a known dimension, or 0.
template <int D, typename C>
INLINE Floats floats_up_to(const C *from, int64_t count) {
    static_assert(D % LANES == 0);
    return D || count >= LANES ? floats_of(from) : first_floats_of(from, count);
}

// Lane i of the result is the sum of the lanes of x[i]. Every sum has the same order.
INLINE Floats sums_of_lanes(Floats (&x)[LANES]) {
#pragma GCC unroll 4
    for (int half = LANES / 2; half > 0; half /= 2) {
        Words first{}, second{};  // of both vectors: the lanes whose number has the bit `half`, and the others
        for (int lane = 0; lane < LANES; ++lane) {
            const int of_vector = lane & half ? LANES : 0;
            first[lane] = (lane & ~half) + of_vector;
            second[lane] = (lane | half) + of_vector;
        }
#pragma GCC unroll 8
        for (int i = 0; i < half; ++i)
            x[i] = __builtin_shuffle(x[i], x[i + half], first) + __builtin_shuffle(x[i], x[i + half], second);
    }
    return x[0];
}

// scores[r][k] = rows[r] . keys[k], for R rows of queries, `stride` floats apart in memory, and LANES / R keys. D is
// the dimension if known at compile time, else 0. Rows of scores are `scores_stride` apart.
template <int R, int D, typename C>
INLINE void score_keys(const float *rows, int64_t stride, const C *keys, int64_t given_dim, float *scores,
                       int64_t scores_stride) {
    constexpr int KEYS = LANES / R;
    const int64_t dim = D ? D : given_dim;
    Floats products[LANES] = {};  // r * KEYS + k
#pragma GCC unroll 2
    for (int64_t i = 0; i < dim; i += LANES) {
        Floats of_rows[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) of_rows[r] = floats_up_to<D>(rows + r * stride + i, dim - i);
#pragma GCC unroll 16
        for (int k = 0; k < KEYS; ++k) {
            const Floats of_key = floats_up_to<D>(keys + k * dim + i, dim - i);
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r)
                products[r * KEYS + k] = multiply_add(of_rows[r], of_key, products[r * KEYS + k]);
        }
    }
    const Floats sums = sums_of_lanes(products);
    float lanes[LANES];
    std::memcpy(lanes, &sums, sizeof lanes);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) std::memcpy(scores + r * scores_stride, lanes + r * KEYS, KEYS * sizeof(float));
}

// scores[r][k] for R rows and all keys of the block that begins at `slot`.
template <int R, int D, typename C>
INLINE void score_block(const float *rows, int64_t stride, const Head<C> &keys, int64_t slot, int64_t given_dim,
                        float *scores, int64_t scores_stride) {
    const int64_t dim = D ? D : given_dim;
    for (int64_t k = 0; k < BLOCK_SIZE; k += LANES / R)
        score_keys<R, D>(rows, stride, keys.numbers + (slot + k) * dim, dim, scores + k, scores_stride);
    if constexpr (std::is_same_v<C, int8_t>)
        for (int r = 0; r < R; ++r)
            for (int64_t k = 0; k < BLOCK_SIZE; ++k) scores[r * scores_stride + k] *= keys.scales[slot + k];
}

// Part of a block: `count` slots from `slot` on, whose weights begin at `at` in each row of weights.
struct SeenSlots {
    int64_t slot;
    int64_t count;
    int64_t at;
};

// A weight of the value in `slot`; bytes are multiplied by their scale.
template <typename C>
INLINE float scaled(float weight, const Head<C> &values, int64_t slot) {
    if constexpr (std::is_same_v<C, int8_t>) weight *= values.scales[slot];
    return weight;
}

// sums[r] += weights[r][k] * values[k], for N vectors of columns from `column` on and all `parts`, in their order.
template <int R, int N, typename C>
INLINE void add_columns(const SeenSlots *parts, int64_t num_parts, const Head<C> &values, int64_t dim, int64_t column,
                        const float *weights, int64_t weights_stride, float *sums, int64_t stride) {
    Floats total[R][N];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) total[r][n] = loaded<Floats>(sums + r * stride + column + n * LANES);
    for (const SeenSlots *part = parts; part < parts + num_parts; ++part) {
        const C *value = values.numbers + part->slot * dim + column;
        for (int64_t k = 0; k < part->count; ++k, value += dim) {
            Floats of_rows[R];
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r)
                of_rows[r] = Floats{} + scaled(weights[r * weights_stride + part->at + k], values, part->slot + k);
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) {
                const Floats of_value = floats_of(value + n * LANES);
#pragma GCC unroll 4
                for (int r = 0; r < R; ++r) total[r][n] = multiply_add(of_rows[r], of_value, total[r][n]);
            }
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) std::memcpy(sums + r * stride + column + n * LANES, &total[r][n], sizeof(Floats));
}

// The same for all columns.
template <int R, int D, typename C>
INLINE void add_values(const SeenSlots *parts, int64_t num_parts, const Head<C> &values, int64_t given_dim,
                       const float *weights, int64_t weights_stride, float *sums, int64_t stride) {
    const int64_t dim = D ? D : given_dim;
    const auto add = [&](auto add_some, int64_t column) INLINE_LAMBDA {
        add_some(parts, num_parts, values, dim, column, weights, weights_stride, sums, stride);
    };
    int64_t column = 0;
    if constexpr (R == 1)
        for (; column + 8 * LANES <= dim; column += 8 * LANES) add(add_columns<R, 8, C>, column);
    for (; column + 6 * LANES <= dim; column += 6 * LANES) add(add_columns<R, 6, C>, column);
    for (; column + 4 * LANES <= dim; column += 4 * LANES) add(add_columns<R, 4, C>, column);
    for (; column + LANES <= dim; column += LANES) add(add_columns<R, 1, C>, column);
    const int64_t left = dim - column;
    for (int r = 0; D == 0 && left > 0 && r < R; ++r) {
        float *const sum = sums + r * stride + column;
        Floats total = first_floats_of(sum, left);
        for (const SeenSlots *part = parts; part < parts + num_parts; ++part)
            for (int64_t k = 0; k < part->count; ++k) {
                const int64_t slot = part->slot + k;
                const float weight = scaled(weights[r * weights_stride + part->at + k], values, slot);
                const Floats value = first_floats_of(values.numbers + slot * dim + column, left);
                total = multiply_add(Floats{} + weight, value, total);
            }
        std::memcpy(sum, &total, left * sizeof(float));
    }
}

#pragma GCC pop_options

}  // namespace

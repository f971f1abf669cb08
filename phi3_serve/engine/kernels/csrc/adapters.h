// Adapters (LoRA): output += scaling * strength * (x A^T) B, for the rows that have adapters.
//
// A row's products with A are summed over the inputs in lanes, those with B over the ranks: one chain of operations for
// each number, whatever rows and ranks share a tile. So a row's result does not depend on the other rows.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "dtypes.h"
#include "platform.h"
#include "vectors.h"

namespace {

#pragma GCC push_options
#pragma GCC optimize("no-associative-math")  // platform.h says why

constexpr int ADAPTED_ROWS = 4;  // of a tile
constexpr int RANKS = LANES == 16 ? 4 : 2;  // of a tile

// sum[r][n] += the products of WIDE inputs of row r and of rank n, by lanes.
template <int R, int N, typename T>
INLINE void add_dots(Floats (&sum)[R][N], const T *const (&x)[R], const T *const (&a)[N]) {
#ifdef __AVX512BF16__
    if constexpr (std::is_same_v<T, bfloat16>) {
        __m512bh of_ranks[N];
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) of_ranks[n] = (__m512bh)_mm512_loadu_si512(a[n]);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            const __m512bh of_row = (__m512bh)_mm512_loadu_si512(x[r]);
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) sum[r][n] = (Floats)_mm512_dpbf16_ps((__m512)sum[r][n], of_ranks[n], of_row);
        }
        return;
    }
#endif
    Wide of_ranks[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) of_ranks[n] = widened(a[n]);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
        const Wide of_row = widened(x[r]);
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
            sum[r][n] += of_ranks[n].even * of_row.even;
            sum[r][n] += of_ranks[n].odd * of_row.odd;
        }
    }
}

// What an adapter adds to one linear layer; cpu_adapters.py has the same layout.
struct LowRank {
    const void *a;  // [rank, inputs]
    const void *b;  // [rank, outputs]
    int64_t rank;  // 0: nothing
    double scaling;
};

// Rows with the same adapters; cpu_adapters.py has the same layout.
struct AdaptedGroup {
    int64_t first_part, end_part;  // of LowRank
    int64_t first_row, end_row;  // of row numbers, strengths and products
};

// The rows of one step that have adapters.
template <typename T>
struct Adapted {
    const LowRank *parts;
    const AdaptedGroup *groups;
    int64_t num_groups;
    const int64_t *row_numbers;  // in x and output
    const double *strengths;  // [rows, max_parts]: of each part of the row's group
    int64_t max_parts;
    float *products;  // [rows, stride]: of a row with A, for the ranks of one part after another
    int64_t stride;
    const T *x;
    int64_t inputs;
    T *output;
    int64_t outputs;
};

// products[r][n] = scales[r] * x[r] . a[n].
template <int R, int N, typename T>
void multiply_a_tile(const T *const (&x)[R], const T *a, int64_t inputs, const float *scales, float *products,
                     int64_t stride) {
    Floats sum[R][N] = {};
    const T *of_rows[R], *of_ranks[N];
    int64_t k = 0;
    for (; k + WIDE <= inputs; k += WIDE) {
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) of_rows[r] = x[r] + k;
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
            of_ranks[n] = a + n * inputs + k;
            if constexpr (R <= 2) __builtin_prefetch(of_ranks[n] + N * inputs);  // of the next tile
        }
        add_dots<R, N, T>(sum, of_rows, of_ranks);
    }
    if (k < inputs) {
        T rest[R + N][WIDE] = {};
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) of_rows[r] = rest[r], std::memcpy(rest[r], x[r] + k, (inputs - k) * sizeof(T));
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
            of_ranks[n] = rest[R + n];
            std::memcpy(rest[R + n], a + n * inputs + k, (inputs - k) * sizeof(T));
        }
        add_dots<R, N, T>(sum, of_rows, of_ranks);
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) products[r * stride + n] = scales[r] * sum_of_lanes(sum[r][n]);
}

// The products of `count` <= R rows from number `first` on with up to RANKS rows of A.
template <int R, typename T>
void multiply_a(const Adapted<T> &s, int64_t count, int64_t first, const LowRank &part, int64_t number, int64_t offset,
                int64_t rank) {
    if constexpr (R > 0) {
        if (count != R) return multiply_a<R - 1>(s, count, first, part, number, offset, rank);
        const T *x[R];
        float scales[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            x[r] = s.x + s.row_numbers[first + r] * s.inputs;
            scales[r] = static_cast<float>(part.scaling * s.strengths[(first + r) * s.max_parts + number]);
        }
        const T *a = static_cast<const T *>(part.a) + rank * s.inputs;
        float *products = s.products + first * s.stride + offset + rank;
        int64_t left = std::min<int64_t>(RANKS, part.rank - rank);
        if (left == RANKS) return multiply_a_tile<R, RANKS>(x, a, s.inputs, scales, products, s.stride);
        for (; left > 0; --left, a += s.inputs, ++products)
            multiply_a_tile<R, 1>(x, a, s.inputs, scales, products, s.stride);
    }
}

// Writes the products with A. Each thread takes an equal share of the tiles.
template <typename T>
void multiply_all_a(const Adapted<T> &s, int64_t thread, int64_t threads) {
    const auto each_tile = [&](auto act) {
        int64_t tile = 0;
        for (const AdaptedGroup *group = s.groups; group < s.groups + s.num_groups; ++group)
            for (int64_t row = group->first_row; row < group->end_row; row += ADAPTED_ROWS)
                for (int64_t number = group->first_part, offset = 0; number < group->end_part; ++number) {
                    const LowRank &part = s.parts[number];
                    for (int64_t rank = 0; rank < part.rank; rank += RANKS)
                        act(tile++, *group, row, number - group->first_part, offset, rank);
                    offset += part.rank;
                }
        return tile;
    };
    const int64_t tiles = each_tile([](auto...) {});
    const int64_t first = tiles * thread / threads, end = tiles * (thread + 1) / threads;
    each_tile([&](int64_t tile, const AdaptedGroup &group, int64_t row, int64_t number, int64_t offset, int64_t rank) {
        if (tile < first || tile >= end) return;
        const int64_t count = std::min<int64_t>(ADAPTED_ROWS, group.end_row - row);
        multiply_a<ADAPTED_ROWS>(s, count, row, s.parts[group.first_part + number], number, offset, rank);
    });
}

// Adds the products of R rows with B to N times WIDE outputs, from number `at` on.
template <int R, int N, typename T>
void add_b_tile(const Adapted<T> &s, const AdaptedGroup &group, const float *products, T *const (&out)[R], int64_t at) {
    Floats even[R][N] = {}, odd[R][N] = {};
    const float *of_part = products;
    for (int64_t number = group.first_part; number < group.end_part; ++number) {
        const LowRank &part = s.parts[number];
        const T *b = static_cast<const T *>(part.b) + at;
        for (int64_t rank = 0; rank < part.rank; ++rank, b += s.outputs) {
            Wide weights[N];
#pragma GCC unroll 4
            for (int n = 0; n < N; ++n) {
                weights[n] = widened(b + n * WIDE);
                if constexpr (R <= 2) __builtin_prefetch(b + (N + n) * WIDE);  // of the next tile
            }
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) {
                const Floats product = Floats{} + of_part[r * s.stride + rank];
#pragma GCC unroll 4
                for (int n = 0; n < N; ++n) {
                    even[r][n] += weights[n].even * product;
                    odd[r][n] += weights[n].odd * product;
                }
            }
        }
        of_part += part.rank;
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) {
            T *const o = out[r] + at + n * WIDE;
            const Wide before = widened(o);
            store_wide({before.even + even[r][n], before.odd + odd[r][n]}, o);
        }
}

// The same for one output.
template <typename T>
void add_b_to_one(const Adapted<T> &s, const AdaptedGroup &group, const float *products, T *out, int64_t at) {
    float sum = 0.0f;
    for (int64_t number = group.first_part; number < group.end_part; ++number) {
        const LowRank &part = s.parts[number];
        const T *b = static_cast<const T *>(part.b) + at;
        for (int64_t rank = 0; rank < part.rank; ++rank, b += s.outputs) sum += to_float(*b) * *products++;
    }
    out[at] = rounded<T>(to_float(out[at]) + sum);
}

// Adds the products of `count` <= R rows from number `first` on to the outputs [at, end).
template <int R, typename T>
void add_b(const Adapted<T> &s, const AdaptedGroup &group, int64_t count, int64_t first, int64_t at, int64_t end) {
    if constexpr (R > 0) {
        if (count != R) return add_b<R - 1>(s, group, count, first, at, end);
        constexpr int N = LANES == 16 ? (R <= 2 ? 4 : 2) : (R <= 2 ? 2 : 1);
        const float *const products = s.products + first * s.stride;
        T *out[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) out[r] = s.output + s.row_numbers[first + r] * s.outputs;
        for (; at + N * WIDE <= end; at += N * WIDE) add_b_tile<R, N>(s, group, products, out, at);
        for (; at + WIDE <= end; at += WIDE) add_b_tile<R, 1>(s, group, products, out, at);
        for (; at < end; ++at)
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) add_b_to_one(s, group, products + r * s.stride, out[r], at);
    }
}

// Adds all products with B to the outputs. Each thread takes an equal share of the outputs.
template <typename T>
void add_all_b(const Adapted<T> &s, int64_t thread, int64_t threads) {
    const int64_t pieces = (s.outputs + WIDE - 1) / WIDE;
    const int64_t at = pieces * thread / threads * WIDE;
    const int64_t end = std::min(pieces * (thread + 1) / threads * WIDE, s.outputs);
    for (const AdaptedGroup *group = s.groups; group < s.groups + s.num_groups; ++group) {
        int64_t rank = 0;
        for (int64_t number = group->first_part; number < group->end_part; ++number) rank += s.parts[number].rank;
        if (rank == 0) continue;
        for (int64_t row = group->first_row; row < group->end_row; row += ADAPTED_ROWS)
            add_b<ADAPTED_ROWS>(s, *group, std::min<int64_t>(ADAPTED_ROWS, group->end_row - row), row, at, end);
    }
}

template <typename T>
void add_low_rank(const Adapted<T> &step, int threads) {
#pragma omp parallel num_threads(threads)
    {
        multiply_all_a(step, omp_get_thread_num(), omp_get_num_threads());
#pragma omp barrier
        add_all_b(step, omp_get_thread_num(), omp_get_num_threads());
    }
}

#pragma GCC pop_options

}  // namespace

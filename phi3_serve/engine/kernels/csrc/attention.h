// Softmax attention of single queries over the paged key-value cache. One item of work is a row with one head of the
// cache and the queries that share it. Rows differ in length, so a thread that has finished takes the next items.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "dtypes.h"
#include "exponential.h"
#include "kv_cache.h"
#include "platform.h"
#include "vectors.h"

namespace {

constexpr int64_t MAX_HEAD_DIM = 256;  // cpu_library.py has the same constant

// A query, by its row in the batch, and the keys that it sees: positions [first, end) of the sequence with the block
// table `table`.
struct AttentionRow {
    int64_t query;
    const int32_t *table;
    int64_t first;
    int64_t end;
};

// For each block, calls act(first slot, count, keys before, block index) with the part of the block that `row` sees.
template <typename Act>
inline void each_block(const AttentionRow &row, Act act) {
    for (int64_t at = row.first; at < row.end;) {
        const int64_t number = at / BLOCK_SIZE, offset = at % BLOCK_SIZE;
        const int64_t count = std::min(BLOCK_SIZE - offset, row.end - at);
        act(row.table[number] * BLOCK_SIZE + offset, count, at - row.first, number);
        at += count;
    }
}

// scores[i] = query . keys[i], for the keys of a block from `slot` on.
template <typename T>
inline void score_block(const float *query, const Head<T> &keys, int64_t slot, int64_t count, int64_t dim,
                        float *scores) {
    const T *key = keys.numbers + slot * dim;
    int64_t at = 0;
    for (; at + 4 <= count; at += 4, key += 4 * dim) {  // four independent sums hide the latency of one
        float s0 = 0.0f, s1 = 0.0f, s2 = 0.0f, s3 = 0.0f;
        for (int64_t i = 0; i < dim; ++i) {
            s0 += query[i] * to_float(key[i]);
            s1 += query[i] * to_float(key[i + dim]);
            s2 += query[i] * to_float(key[i + 2 * dim]);
            s3 += query[i] * to_float(key[i + 3 * dim]);
        }
        scores[at] = s0, scores[at + 1] = s1, scores[at + 2] = s2, scores[at + 3] = s3;
    }
    for (; at < count; ++at, key += dim) {
        float sum = 0.0f;
        for (int64_t i = 0; i < dim; ++i) sum += query[i] * to_float(key[i]);
        scores[at] = sum;
    }
}

#pragma GCC diagnostic push  // GCC 12 warns of the last loop where the dimension is known and leaves it nothing to do
#pragma GCC diagnostic ignored "-Waggressive-loop-optimizations"
inline void score_block(const float *query, const Head<int8_t> &keys, int64_t slot, int64_t count, int64_t dim,
                        float *scores) {
    const int8_t *key = keys.numbers + slot * dim;
    for (int64_t at = 0; at < count; ++at, key += dim) {
        Floats sums{};
        int64_t i = 0;
        for (; i + LANES <= dim; i += LANES) sums += loaded<Floats>(query + i) * floats_of_bytes(key + i);
        float sum = 0.0f;
        for (int lane = 0; lane < LANES; ++lane) sum += sums[lane];
        for (; i < dim; ++i) sum += query[i] * key[i];
        scores[at] = sum * keys.scales[slot + at];
    }
}
#pragma GCC diagnostic pop

// scores[i] = query . keys[i]. The processor cannot predict where the next block is, so the keys of the next block and
// the values of this one are prefetched.
template <typename C>
inline void score(const AttentionRow &row, const float *query, const Head<C> &keys, const Head<C> &values, int64_t dim,
                  float *scores) {
    const int64_t num_blocks = (row.end + BLOCK_SIZE - 1) / BLOCK_SIZE;
    each_block(row, [&](int64_t slot, int64_t count, int64_t before, int64_t number) {
        if (number + 1 < num_blocks) prefetch_block(keys, row.table[number + 1], dim);
        prefetch_block(values, row.table[number], dim);
        score_block(query, keys, slot, count, dim, scores + before);
    });
}

// scores[i] = e^(scores[i] - largest score). Returns their sum.
inline float exponentials(float *scores, int64_t count) {
    float largest = -INFINITY, sum = 0.0f;
    for (int64_t i = 0; i < count; ++i) largest = scores[i] > largest ? scores[i] : largest;
    for (int64_t i = 0; i < count; ++i) sum += scores[i] = exponential(scores[i] - largest);
    return sum;
}

// answer += sum of weights[i] * values[i], for the values of a block from `slot` on.
template <typename T>
inline void add_block(const float *w, const Head<T> &values, int64_t slot, int64_t count, int64_t dim, float *answer) {
    const T *value = values.numbers + slot * dim;
    int64_t at = 0;
    for (; at + 4 <= count; at += 4, value += 4 * dim)
        for (int64_t i = 0; i < dim; ++i)
            answer[i] += w[at] * to_float(value[i]) + w[at + 1] * to_float(value[i + dim]) +
                         w[at + 2] * to_float(value[i + 2 * dim]) + w[at + 3] * to_float(value[i + 3 * dim]);
    for (; at < count; ++at, value += dim)
        for (int64_t i = 0; i < dim; ++i) answer[i] += w[at] * to_float(value[i]);
}

// add_block for N vectors of columns, with the products of weights and scales as `w`.
template <int N>
INLINE void add_columns(const float *w, const int8_t *value, int64_t count, int64_t dim, float *answer) {
    Floats sums[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) sums[n] = loaded<Floats>(answer + n * LANES);
    for (int64_t at = 0; at < count; ++at, value += dim)
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) sums[n] += floats_of_bytes(value + n * LANES) * w[at];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) std::memcpy(answer + n * LANES, &sums[n], sizeof(Floats));
}

inline void add_block(const float *weights, const Head<int8_t> &values, int64_t slot, int64_t count, int64_t dim,
                      float *answer) {
    constexpr int FEW = 2, MANY = 4;  // vectors; heads of 64, 96 and 128 have a multiple of them
    const int8_t *const value = values.numbers + slot * dim;
    float w[BLOCK_SIZE];
    for (int64_t at = 0; at < count; ++at) w[at] = weights[at] * values.scales[slot + at];
    int64_t i = 0;
    for (; i + MANY * LANES <= dim; i += MANY * LANES) add_columns<MANY>(w, value + i, count, dim, answer + i);
    for (; i + FEW * LANES <= dim; i += FEW * LANES) add_columns<FEW>(w, value + i, count, dim, answer + i);
    for (; i + LANES <= dim; i += LANES) add_columns<1>(w, value + i, count, dim, answer + i);
    for (; i < dim; ++i)
        for (int64_t at = 0; at < count; ++at) answer[i] += w[at] * value[at * dim + i];
}

// answer += sum of weights[i] * values[i].
template <typename C>
inline void add_weighted(const AttentionRow &row, const float *weights, const Head<C> &values, int64_t dim,
                         float *answer) {
    each_block(row, [&](int64_t slot, int64_t count, int64_t before, int64_t) {
        add_block(weights + before, values, slot, count, dim, answer);
    });
}

// Softmax attention of the query of `row` over one head. D is the head's dimension if known at compile time, else 0.
template <typename T, typename C, int D>
void attend_head(const AttentionRow &row, const T *query, const Head<C> &keys, const Head<C> &values, T *output,
                 int64_t given_dim, float scale, float *scores) {
    const int64_t dim = D ? D : given_dim;
    float scaled[D ? D : MAX_HEAD_DIM], answer[D ? D : MAX_HEAD_DIM] = {};
    for (int64_t i = 0; i < dim; ++i) scaled[i] = to_float(query[i]) * scale;
    score(row, scaled, keys, values, dim, scores);
    const float sum = exponentials(scores, row.end - row.first);
    add_weighted(row, scores, values, dim, answer);
    for (int64_t i = 0; i < dim; ++i) output[i] = rounded<T>(answer[i] / sum);
}

// Writes the output [heads, dim] of each row. The rows of one head follow one another, so that keys which several rows
// share stay in the core's cache. `scratch` holds `longest` scores for each thread.
template <typename T, typename C, int D>
void attend_rows(const AttentionRow *rows, int64_t num_rows, const T *query, int64_t query_stride,
                 const Cache<C> &cache, T *output, int64_t heads, float scale, float *scratch, int64_t longest,
                 int threads) {
    const int64_t group = heads / cache.kv_heads, dim = cache.dim;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4)
    for (int64_t item = 0; item < cache.kv_heads * num_rows; ++item) {
        const AttentionRow &row = rows[item % num_rows];
        const int64_t kv_head = item / num_rows;
        for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head)
            attend_head<T, C, D>(row, query + row.query * query_stride + head * dim, cache.keys(kv_head),
                              cache.values(kv_head), output + (row.query * heads + head) * dim, dim, scale,
                              scratch + omp_get_thread_num() * longest);
    }
}

template <typename T, typename C>
void attend(const AttentionRow *rows, int64_t num_rows, const T *query, int64_t query_stride, const Cache<C> &cache,
            T *output, int64_t heads, float scale, float *scratch, int64_t longest, int threads) {
    auto *const of_dimensions = cache.dim == 64    ? attend_rows<T, C, 64>
                                : cache.dim == 96  ? attend_rows<T, C, 96>   // mini
                                : cache.dim == 128 ? attend_rows<T, C, 128>  // medium
                                                   : attend_rows<T, C, 0>;
    of_dimensions(rows, num_rows, query, query_stride, cache, output, heads, scale, scratch, longest, threads);
}

}  // namespace

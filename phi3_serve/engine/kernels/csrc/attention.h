// Softmax attention over the paged key-value cache. One item of work is a tile of queries with one head of the cache
// and the heads of the queries that share it. Tiles differ in length, so a thread that has finished takes the next one.
//
// The keys are visited in segments, and what was summed so far is scaled when a segment has a larger score: Milakov and
// Gimelshein, "Online normalizer calculation for softmax" (2018), as in FlashAttention (Dao and others, 2022). Segments
// begin at fixed positions of the sequence. So a row's result depends on its query and the keys that it sees alone, and
// has the same bits in every tile.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "attention_products.h"
#include "dtypes.h"
#include "exponential.h"
#include "kv_cache.h"
#include "platform.h"
#include "vectors.h"

namespace {

constexpr int64_t SEGMENT = 4 * BLOCK_SIZE;  // keys; cpu_attention.py has the same constant

// Queries in adjacent rows of the batch, from row `query` on, of the sequence with the block table `table`. They are at
// adjacent positions, and each sees itself and up to `window` - 1 keys before it. cpu_attention.py has the same order.
struct QueryTile {
    int64_t query;
    const int32_t *table;
    int64_t position;  // of the first query
    int64_t count;
    int64_t window;

    // The keys [first, end) that the query with this number in the tile sees.
    int64_t end(int64_t number) const { return position + number + 1; }
    int64_t first(int64_t number) const { return std::max<int64_t>(0, end(number) - window); }
};

// What is known of the rows of a tile when some segments have been visited. A row is one head of one query.
struct RowsOfTile {
    int64_t count;
    int64_t dim;
    float *queries;  // [rows, dim], times the scale
    float *sums;     // [rows, dim], of values times weights
    float *scores;   // [rows, SEGMENT], which become weights
    float *largest;  // [rows], of all scores
    float *totals;   // [rows], of the weights

    RowsOfTile(int64_t count, int64_t dim, float *scratch)
        : count(count),
          dim(dim),
          queries(scratch),
          sums(queries + count * dim),
          scores(sums + count * dim),
          largest(scores + count * SEGMENT),
          totals(largest + count) {}
};

#pragma GCC push_options
#pragma GCC optimize("no-associative-math", "fp-contract=off")  // platform.h says why

// Turns the scores of one row into weights, with 0 for the keys outside of [low, high) of the segment, and scales what
// was summed before.
INLINE void weigh(const RowsOfTile &rows, int64_t row, int64_t low, int64_t high) {
    float *const scores = rows.scores + row * SEGMENT;
    const auto clear = [&](float unseen) INLINE_LAMBDA {
        for (int64_t i = 0; i < low; ++i) scores[i] = unseen;
        for (int64_t i = high; i < SEGMENT; ++i) scores[i] = unseen;
    };
    clear(-INFINITY);
    Floats highest = loaded<Floats>(scores);
    for (int64_t i = LANES; i < SEGMENT; i += LANES) {
        const Floats some = loaded<Floats>(scores + i);
        highest = some > highest ? some : highest;
    }
    const float largest = std::max(rows.largest[row], largest_of_lanes(highest));
    if (largest > rows.largest[row]) {
        const float factor = exponential(Floats{} + (rows.largest[row] - largest))[0];
        float *const sums = rows.sums + row * rows.dim;
        for (int64_t i = 0; i < rows.dim; ++i) sums[i] *= factor;
        rows.totals[row] *= factor;
        rows.largest[row] = largest;
    }
    for (int64_t i = 0; i < SEGMENT; i += LANES) {
        const Floats weights = exponential(loaded<Floats>(scores + i) - largest);
        std::memcpy(scores + i, &weights, sizeof weights);
    }
    clear(0.0f);
    Floats total{};
    for (int64_t i = 0; i < SEGMENT; i += LANES) total += loaded<Floats>(scores + i);
    rows.totals[row] += sum_of_lanes(total);
}

// Visits the segment of keys that begins at position `start` with the R rows from `row` on. `group` rows share a query.
template <int R, int D, typename C>
INLINE void visit(const QueryTile &tile, int64_t group, const Head<C> &keys, const Head<C> &values, int64_t start,
                  const RowsOfTile &rows, int64_t row) {
    const int64_t end = std::min(tile.end((row + R - 1) / group), start + SEGMENT);
    float *const scores = rows.scores + row * SEGMENT, *const sums = rows.sums + row * rows.dim;
    SeenSlots parts[SEGMENT / BLOCK_SIZE];
    int64_t num_parts = 0;
    for (int64_t at = std::max(tile.first(row / group), start); at < end; at += parts[num_parts++].count) {
        const int64_t number = at / BLOCK_SIZE, offset = at % BLOCK_SIZE, slot = tile.table[number] * BLOCK_SIZE;
        if (row == 0) {  // the processor cannot predict where the next block is
            if ((number + 1) * BLOCK_SIZE < tile.end(tile.count - 1))
                prefetch_block(keys, tile.table[number + 1], rows.dim);
            prefetch_block(values, tile.table[number], rows.dim);
        }
        parts[num_parts] = {slot + offset, std::min(BLOCK_SIZE - offset, end - at), at - start};
        score_block<R, D>(rows.queries + row * rows.dim, rows.dim, keys, slot, rows.dim, scores + at - offset - start,
                          SEGMENT);
    }
    if (num_parts == 0) return;
    for (int64_t of_row = row; of_row < row + R; ++of_row) {
        const int64_t query = of_row / group;
        const int64_t high = std::clamp<int64_t>(tile.end(query) - start, 0, SEGMENT);
        weigh(rows, of_row, std::clamp<int64_t>(tile.first(query) - start, 0, high), high);
    }
    add_values<R, D>(parts, num_parts, values, rows.dim, scores, SEGMENT, sums, rows.dim);
}

// Writes the output of the queries of `tile` for the `group` heads from number `head` on, which share `keys`. It is not
// inlined, because the function that OpenMP makes of a loop lacks the flags of the pragma.
template <typename T, typename C, int D>
__attribute__((noinline)) void attend_tile(const QueryTile &tile, int64_t head, int64_t group, const T *query, int64_t query_stride,
                 const Head<C> &keys, const Head<C> &values, T *output, int64_t output_stride, float scale,
                 const RowsOfTile &rows) {
    const int64_t dim = rows.dim;
    for (int64_t row = 0; row < rows.count; ++row) {
        const T *const from = query + (tile.query + row / group) * query_stride + (head + row % group) * dim;
        for (int64_t i = 0; i < dim; ++i) rows.queries[row * dim + i] = to_float(from[i]) * scale;
        for (int64_t i = 0; i < dim; ++i) rows.sums[row * dim + i] = 0.0f;
        rows.largest[row] = -INFINITY;
        rows.totals[row] = 0.0f;
    }
    for (int64_t start = tile.first(0) / SEGMENT * SEGMENT; start < tile.end(tile.count - 1); start += SEGMENT) {
        int64_t row = 0;
        for (; row + ROWS_AT_ONCE <= rows.count; row += ROWS_AT_ONCE)
            visit<ROWS_AT_ONCE, D>(tile, group, keys, values, start, rows, row);
        for (; row < rows.count; ++row) visit<1, D>(tile, group, keys, values, start, rows, row);
    }
    for (int64_t row = 0; row < rows.count; ++row) {
        T *const to = output + (tile.query + row / group) * output_stride + (head + row % group) * dim;
        for (int64_t i = 0; i < dim; ++i) to[i] = rounded<T>(rows.sums[row * dim + i] / rows.totals[row]);
    }
}

// Writes the output [heads, dim] of each query of the tiles. The tiles of one head follow one another, so that keys
// which several of them share stay in the core's cache. `scratch` has `scratch_size` floats for each thread.
template <typename T, typename C, int D>
void attend_tiles(const QueryTile *tiles, int64_t num_tiles, const T *query, int64_t query_stride,
                  const Cache<C> &cache, T *output, int64_t heads, float scale, float *scratch, int64_t scratch_size,
                  int threads) {
    const int64_t group = heads / cache.kv_heads, dim = cache.dim;
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t item = 0; item < cache.kv_heads * num_tiles; ++item) {
        const QueryTile &tile = tiles[item % num_tiles];
        const int64_t kv_head = item / num_tiles;
        const RowsOfTile rows(tile.count * group, dim, scratch + omp_get_thread_num() * scratch_size);
        attend_tile<T, C, D>(tile, kv_head * group, group, query, query_stride, cache.keys(kv_head),
                             cache.values(kv_head), output, heads * dim, scale, rows);
    }
}

template <typename T, typename C>
void attend(const QueryTile *tiles, int64_t num_tiles, const T *query, int64_t query_stride, const Cache<C> &cache,
            T *output, int64_t heads, float scale, float *scratch, int64_t scratch_size, int threads) {
    auto *const of_dimensions = cache.dim == 64    ? attend_tiles<T, C, 64>
                                : cache.dim == 96  ? attend_tiles<T, C, 96>   // mini
                                : cache.dim == 128 ? attend_tiles<T, C, 128>  // medium
                                                   : attend_tiles<T, C, 0>;
    of_dimensions(tiles, num_tiles, query, query_stride, cache, output, heads, scale, scratch, scratch_size, threads);
}

#pragma GCC pop_options

}  // namespace

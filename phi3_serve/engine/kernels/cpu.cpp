// The kernels of a forward pass on a CPU: RMSNorm, rotation, attention over the paged cache, SiLU, and linear layers in
// bfloat16. contract.py defines all but the last.
//
// cpu.py and model/linear.py pass addresses of contiguous numbers. The functions allocate nothing, never fail and keep
// no state. Each splits its work among `threads` threads of the OpenMP runtime that torch has loaded. Numbers are float
// or bfloat16 in memory and float in registers; they are rounded where modeling_phi3.py of transformers rounds them.

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

struct bfloat16 {
    uint16_t bits;
};

inline float to_float(float x) { return x; }

inline float to_float(bfloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

template <typename T>
inline T rounded(float x);

template <>
inline float rounded<float>(float x) {
    return x;
}

template <>
inline bfloat16 rounded<bfloat16>(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const uint32_t nearest_even = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
    return {static_cast<uint16_t>(x == x ? nearest_even : 0x7FC0)};
}

template <typename T>
inline float as_stored(float x) {
    return to_float(rounded<T>(x));
}

// e^x with a relative error of 1e-7. It has no branch, so loops over it are vectorised. Cephes, expf.c (S. L. Moshier).
inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    const float n = std::rint(x * 1.44269504f);
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return p * power;
}

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

// Rotates the first `rotary` dimensions of queries and keys in place; the two of a pair are rotary / 2 apart (rope.py).
// Then stores keys and values in their slots of the cache [2 * kv_heads, slots, dim].
template <typename T>
void rotate_and_store(T *qkv, const T *cosine, const T *sine, const int64_t *slots, T *cache, int64_t head_stride,
                      int64_t tokens, int64_t heads, int64_t kv_heads, int64_t dim, int64_t rotary, int threads) {
    const int64_t half = rotary / 2;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t token = 0; token < tokens; ++token) {
        T *const row = qkv + token * (heads + 2 * kv_heads) * dim;
        const T *c = cosine + token * rotary;
        const T *s = sine + token * rotary;
        for (int64_t head = 0; head < heads + kv_heads; ++head) {
            T *x = row + head * dim;
#pragma omp simd
            for (int64_t i = 0; i < half; ++i) {
                const float a = to_float(x[i]), b = to_float(x[i + half]);
                x[i] = rounded<T>(as_stored<T>(a * to_float(c[i])) + as_stored<T>(b * to_float(s[i])));
                x[i + half] =
                    rounded<T>(as_stored<T>(b * to_float(c[i + half])) + as_stored<T>(a * to_float(s[i + half])));
            }
        }
        for (int64_t head = 0; head < 2 * kv_heads; ++head)
            std::memcpy(cache + head * head_stride + slots[token] * dim, row + (heads + head) * dim, dim * sizeof(T));
    }
}

constexpr int64_t BLOCK_SIZE = 16;  // tokens; block_manager.py has the same constant
constexpr int64_t MAX_HEAD_DIM = 256;  // cpu_library.py has the same constant
constexpr int64_t CACHE_LINE = 64;  // bytes

// A query, by its row in the batch, and the keys that it sees: positions [first, end) of the sequence with the block
// table `table`.
struct AttentionRow {
    int64_t query;
    const int32_t *table;
    int64_t first;
    int64_t end;
};

// Keys and values of one layer, [2 * kv_heads, blocks, BLOCK_SIZE, dim]: the heads of the keys, then of the values.
template <typename T>
struct Cache {
    const T *start;
    int64_t head_stride;
    int64_t kv_heads;
    int64_t dim;

    const T *keys(int64_t head) const { return start + head * head_stride; }
    const T *values(int64_t head) const { return start + (kv_heads + head) * head_stride; }
};

template <typename T>
inline void prefetch_block(const T *head, int64_t block, int64_t dim) {
    const char *at = reinterpret_cast<const char *>(head + block * BLOCK_SIZE * dim);
    for (const char *end = at + BLOCK_SIZE * dim * sizeof(T); at < end; at += CACHE_LINE) __builtin_prefetch(at);
}

// For each block, calls act(keys, count, keys before, block index) with the part of the block that `row` sees.
template <typename T, typename Act>
inline void each_block(const AttentionRow &row, const T *head, int64_t dim, Act act) {
    for (int64_t at = row.first; at < row.end;) {
        const int64_t number = at / BLOCK_SIZE, offset = at % BLOCK_SIZE;
        const int64_t count = std::min(BLOCK_SIZE - offset, row.end - at);
        act(head + (row.table[number] * BLOCK_SIZE + offset) * dim, count, at - row.first, number);
        at += count;
    }
}

// scores[i] = query . keys[i]. The processor cannot predict where the next block is, so the keys of the next block and
// the values of this one are prefetched.
template <typename T>
inline void score(const AttentionRow &row, const float *query, const T *keys, const T *values, int64_t dim,
                  float *scores) {
    const int64_t num_blocks = (row.end + BLOCK_SIZE - 1) / BLOCK_SIZE;
    each_block(row, keys, dim, [&](const T *key, int64_t count, int64_t before, int64_t number) {
        if (number + 1 < num_blocks) prefetch_block(keys, row.table[number + 1], dim);
        prefetch_block(values, row.table[number], dim);
        float *s = scores + before;
        int64_t at = 0;
        for (; at + 4 <= count; at += 4, key += 4 * dim) {  // four independent sums hide the latency of one
            float s0 = 0.0f, s1 = 0.0f, s2 = 0.0f, s3 = 0.0f;
            for (int64_t i = 0; i < dim; ++i) {
                s0 += query[i] * to_float(key[i]);
                s1 += query[i] * to_float(key[i + dim]);
                s2 += query[i] * to_float(key[i + 2 * dim]);
                s3 += query[i] * to_float(key[i + 3 * dim]);
            }
            s[at] = s0, s[at + 1] = s1, s[at + 2] = s2, s[at + 3] = s3;
        }
        for (; at < count; ++at, key += dim) {
            float sum = 0.0f;
            for (int64_t i = 0; i < dim; ++i) sum += query[i] * to_float(key[i]);
            s[at] = sum;
        }
    });
}

// scores[i] = e^(scores[i] - largest score). Returns their sum.
inline float exponentials(float *scores, int64_t count) {
    float largest = -INFINITY, sum = 0.0f;
    for (int64_t i = 0; i < count; ++i) largest = scores[i] > largest ? scores[i] : largest;
    for (int64_t i = 0; i < count; ++i) sum += scores[i] = exponential(scores[i] - largest);
    return sum;
}

// answer += sum of weights[i] * values[i].
template <typename T>
inline void add_weighted(const AttentionRow &row, const float *weights, const T *values, int64_t dim, float *answer) {
    each_block(row, values, dim, [&](const T *value, int64_t count, int64_t before, int64_t) {
        const float *w = weights + before;
        int64_t at = 0;
        for (; at + 4 <= count; at += 4, value += 4 * dim)
            for (int64_t i = 0; i < dim; ++i)
                answer[i] += w[at] * to_float(value[i]) + w[at + 1] * to_float(value[i + dim]) +
                             w[at + 2] * to_float(value[i + 2 * dim]) + w[at + 3] * to_float(value[i + 3 * dim]);
        for (; at < count; ++at, value += dim)
            for (int64_t i = 0; i < dim; ++i) answer[i] += w[at] * to_float(value[i]);
    });
}

// Softmax attention of the query of `row` over one head. D is the head's dimension if known at compile time, else 0.
template <typename T, int D>
void attend_head(const AttentionRow &row, const T *query, const T *keys, const T *values, T *output, int64_t given_dim,
                 float scale, float *scores) {
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
template <typename T, int D>
void attend_rows(const AttentionRow *rows, int64_t num_rows, const T *query, int64_t query_stride,
                 const Cache<T> &cache, T *output, int64_t heads, float scale, float *scratch, int64_t longest,
                 int threads) {
    const int64_t group = heads / cache.kv_heads, dim = cache.dim;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4)
    for (int64_t item = 0; item < cache.kv_heads * num_rows; ++item) {
        const AttentionRow &row = rows[item % num_rows];
        const int64_t kv_head = item / num_rows;
        for (int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head)
            attend_head<T, D>(row, query + row.query * query_stride + head * dim, cache.keys(kv_head),
                              cache.values(kv_head), output + (row.query * heads + head) * dim, dim, scale,
                              scratch + omp_get_thread_num() * longest);
    }
}

template <typename T>
void attend(const AttentionRow *rows, int64_t num_rows, const T *query, int64_t query_stride, const Cache<T> &cache,
            T *output, int64_t heads, float scale, float *scratch, int64_t longest, int threads) {
    auto *const of_dimensions = cache.dim == 64    ? attend_rows<T, 64>
                                : cache.dim == 96  ? attend_rows<T, 96>   // mini
                                : cache.dim == 128 ? attend_rows<T, 128>  // medium
                                                   : attend_rows<T, 0>;
    of_dimensions(rows, num_rows, query, query_stride, cache, output, heads, scale, scratch, longest, threads);
}

#ifdef __AVX512BF16__

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

#endif  // __AVX512BF16__

}  // namespace

#define EXPORT(T, SUFFIX)                                                                                             \
    extern "C" void add_rms_norm_##SUFFIX(void *hidden, const void *delta, const void *weight, void *normed,          \
                                          int64_t rows, int64_t width, float epsilon, int threads) {                  \
        add_rms_norm(static_cast<T *>(hidden), static_cast<const T *>(delta), static_cast<const T *>(weight),         \
                     static_cast<T *>(normed), rows, width, epsilon, threads);                                        \
    }                                                                                                                 \
    extern "C" void silu_product_##SUFFIX(const void *gate_up, void *product, int64_t rows, int64_t width,            \
                                          int threads) {                                                              \
        silu_product(static_cast<const T *>(gate_up), static_cast<T *>(product), rows, width, threads);               \
    }                                                                                                                 \
    extern "C" void rotate_and_store_##SUFFIX(void *qkv, const void *cosine, const void *sine, const int64_t *slots,  \
                                              void *cache, int64_t head_stride, int64_t tokens, int64_t heads,        \
                                              int64_t kv_heads, int64_t dim, int64_t rotary, int threads) {           \
        rotate_and_store(static_cast<T *>(qkv), static_cast<const T *>(cosine), static_cast<const T *>(sine), slots,  \
                         static_cast<T *>(cache), head_stride, tokens, heads, kv_heads, dim, rotary, threads);        \
    }                                                                                                                 \
    extern "C" void attend_##SUFFIX(const void *rows, int64_t num_rows, const void *query, int64_t query_stride,      \
                                    const void *cache, int64_t head_stride, void *output, int64_t heads,              \
                                    int64_t kv_heads, int64_t dim, float scale, float *scratch, int64_t longest,      \
                                    int threads) {                                                                    \
        attend(static_cast<const AttentionRow *>(rows), num_rows, static_cast<const T *>(query), query_stride,        \
               Cache<T>{static_cast<const T *>(cache), head_stride, kv_heads, dim}, static_cast<T *>(output), heads,  \
               scale, scratch, longest, threads);                                                                     \
    }

EXPORT(float, float32)
EXPORT(bfloat16, bfloat16)

#ifdef __AVX512BF16__
extern "C" void multiply_bfloat16(const void *weight, const void *x, void *pairs_of_x, void *out, int64_t rows,
                                  int64_t inputs, int64_t outputs, int threads) {
    multiply(static_cast<const bfloat16 *>(weight), static_cast<const bfloat16 *>(x),
             static_cast<uint32_t *>(pairs_of_x), static_cast<bfloat16 *>(out), rows, inputs, outputs, threads);
}
#endif
